"""Retention as a recurrence: what a state is, and that a step costs the same however long the text is."""

import tracemalloc

import numpy as np
import pytest
from naive_retention import assert_same, everything, random_case

from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.retention import retention
from minitransformers.linear_attention.retention_recurrent import retention_recurrent


@pytest.mark.parametrize("positions", [1, 2, 3, 4, 5, 8, 9, 10, 24, 25, 26])
def test_equals_the_plain_form_at_every_length_with_every_gradient(positions):
    arguments, dout, decay = random_case(positions, 3, 4, 3, batch=(2, 1))  # kept states stand sqrt(positions) apart, the last fewer
    assert_same(everything(retention_recurrent, arguments, dout, decay=decay), everything(retention, arguments, dout, decay=decay))
    arguments = (*arguments[:-1], None)
    assert_same(everything(retention_recurrent, arguments, dout, decay=decay), everything(retention, arguments, dout, decay=decay))


def test_the_state_is_all_that_is_known_of_the_past():
    (query, key, value, state), _, decay = random_case()
    for n in range(7):
        at = np.s_[:, n : n + 1]
        before = state
        (out, state), _ = retention_recurrent(query[at], key[at], value[at], before, decay=decay)
        expected = decay[:, None, None] * before + key[at].swapaxes(-1, -2) @ value[at]
        np.testing.assert_allclose(state, expected, rtol=0, atol=1e-15)
        np.testing.assert_allclose(out, query[at] @ expected / 3**0.5, rtol=0, atol=1e-14)


def test_it_keeps_sqrt_of_the_states():
    def kept(positions):
        (query, key, value, _), _, decay = random_case(positions, 8, 8)
        tracemalloc.start()
        out = retention_recurrent(query, key, value, decay=decay)
        bytes_, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del out
        return bytes_ - query.nbytes - value.nbytes          # the scaled queries, and out

    state = 2 * 8 * 8 * 8
    assert kept(400) < 1.5 * 20 * state
    assert kept(1600) < 1.5 * 40 * state


def with_the_state_before_the_position(query, key, value, state, *, decay):
    out, backward = retention_recurrent(query, key, value, state, decay=decay)

    def wrong(dout):
        dquery, *rest = backward(dout)
        own = np.vecdot(dout[0], value)[..., None] * key / query.shape[-1] ** 0.5  # what a position has written itself
        return dquery - own, *rest

    return out, wrong


def test_the_checker_refuses_a_query_that_does_not_hear_its_own_key():
    arguments, _, decay = random_case(4)
    report = check_gradients(with_the_state_before_the_position, *arguments, decay=decay)
    assert not report.passed and report.worst.path == "query"
