"""Retention in chunks: equal to the other forms whatever the chunk, their fold, and its cost."""

import tracemalloc

import numpy as np
import pytest
from naive_retention import assert_same, everything, random_case

from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.retention import retention
from minitransformers.linear_attention.retention_chunked import retention_chunked
from minitransformers.linear_attention.retention_recurrent import retention_recurrent


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 8, 11, 12, 100, np.int64(3)])
def test_equals_the_plain_form_whatever_the_chunk_with_every_gradient(chunk):
    arguments, dout, decay = random_case(11, 3, 4, 3, batch=(2, 1))
    assert_same(everything(retention_chunked, arguments, dout, decay=decay, chunk=chunk), everything(retention, arguments, dout, decay=decay))
    arguments = (*arguments[:-1], None)
    assert_same(everything(retention_chunked, arguments, dout, decay=decay, chunk=chunk), everything(retention, arguments, dout, decay=decay))


@pytest.mark.parametrize("positions", [1, 2, 31, 32, 33, 64, 70])
def test_equals_the_recurrence_at_every_length(positions):
    arguments, dout, decay = random_case(positions)
    assert_same(everything(retention_chunked, arguments, dout, decay=decay), everything(retention_recurrent, arguments, dout, decay=decay))


def test_it_is_the_plain_form_folded_over_the_chunks():
    (query, key, value, state), dout, decay = random_case(11)
    expected = everything(retention_chunked, (query, key, value, state), dout, decay=decay, chunk=4)
    outs, backwards = [], []
    for start in (0, 4, 8):
        part = np.s_[:, start : start + 4]
        (out, state), backward = retention(query[part], key[part], value[part], state, decay=decay)
        outs.append(out)
        backwards.append(backward)
    gradients, dstate = [], dout[1]
    for start in (8, 4, 0):
        *gradient, dstate = backwards.pop()((dout[0][:, start : start + 4], dstate))
        gradients.insert(0, gradient)
    folded = [np.concatenate(outs, axis=1), state, *(np.concatenate(parts, axis=1) for parts in zip(*gradients, strict=True)), dstate]
    assert_same(folded, expected)


def test_memory_grows_with_the_length_and_no_faster():
    def peak(positions):
        arguments, dout, decay = random_case(positions, 8, 8)
        tracemalloc.start()
        everything(retention_chunked, arguments, dout, decay=decay)
        _, bytes_ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return bytes_

    assert peak(1024) < 2.1 * peak(512)
    assert peak(1024) < 1024 * 1024 * 8                      # half of the two heads' matrices of positions^2 numbers


def test_a_chunk_that_is_none_is_named():
    arguments, _, _ = random_case()
    for chunk in (0, -1, 2.5, "all"):
        with pytest.raises(ValueError, match=r"chunk: got .*, wants a whole number of at least 1"):
            retention_chunked(*arguments, chunk=chunk)


def without_what_comes_from_later_chunks(query, key, value, state, *, decay, chunk):
    out, backward = retention_chunked(query, key, value, state, decay=decay, chunk=chunk)

    def wrong(dout):
        dquery, dkey, dvalue, dstate = backward(dout)
        first = np.s_[:, :chunk]
        _, alone = retention(query[first], key[first], value[first], state, decay=decay)
        dkey = dkey.copy()
        dkey[first] = alone((dout[0][first], None))[1]
        return dquery, dkey, dvalue, dstate

    return out, wrong


def test_the_checker_refuses_a_chunk_whose_keys_do_not_hear_of_the_next():
    arguments, _, decay = random_case(4)
    report = check_gradients(without_what_comes_from_later_chunks, *arguments, decay=decay, chunk=2)
    assert not report.passed and report.worst.path == "key"
