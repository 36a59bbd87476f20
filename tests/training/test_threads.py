"""Work in threads."""

import multiprocessing
import os
import warnings

import pytest

from minitransformers.training.threads import in_threads


def test_results_come_in_the_order_of_the_parts():
    assert in_threads([3, -1, 2], [1, 5, 1], function=max) == [3, 5, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies of a process are made by fork")
def test_a_copy_of_a_process_whose_threads_have_worked_has_threads_of_its_own():
    in_threads([1, 2], function=abs)
    context = multiprocessing.get_context("fork")
    copy = context.Process(target=in_threads, args=([1, 2],), kwargs={"function": abs})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on a fork beside threads warns
        copy.start()
    copy.join(30)
    assert copy.exitcode == 0, "it waits for threads that it does not have"
