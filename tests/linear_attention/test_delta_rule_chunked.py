"""The chunked form: equal to the plain one whatever the chunk, and what its triangular system is."""

import numpy as np
import pytest
from naive_delta_rule import assert_same, everything, random_case

from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.delta_rule import delta_rule
from minitransformers.linear_attention.delta_rule_chunked import chunks_of, delta_rule_chunked, inverse, positions_of


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 10, 11, 12, 64, np.int64(3)])
@pytest.mark.parametrize("given", [True, False])
def test_equals_the_plain_form_whatever_the_chunk_with_every_gradient(chunk, given):
    (*arrays, state), dout = random_case(11, batch=(2, 1))
    arguments = (*arrays, state if given else None)
    assert_same(everything(delta_rule_chunked, arguments, dout, chunk=chunk), everything(delta_rule, arguments, dout), atol=1e-11)


@pytest.mark.parametrize("positions", [1, 2, 31, 32, 33, 100])
def test_equals_the_plain_form_at_every_length(positions):
    arguments, dout = random_case(positions)
    assert_same(everything(delta_rule_chunked, arguments, dout), everything(delta_rule, arguments, dout), atol=1e-11)


def test_equal_keys_are_the_hardest_system_and_still_exact():
    (query, key, value, beta, state), dout = random_case(64)
    arguments = (query, np.tile(key[:1], (64, 1)), value, np.ones_like(beta), state)  # M is all ones below its diagonal
    assert_same(everything(delta_rule_chunked, arguments, dout, chunk=64), everything(delta_rule, arguments, dout), atol=1e-11)


def test_more_keys_than_features_and_single_precision_stay_close_over_a_long_text():
    arguments, dout = random_case(1500, 4, 3)
    single = everything(delta_rule_chunked, [a.astype(np.float32) for a in arguments], [d.astype(np.float32) for d in dout])
    for own, exact in zip(single, everything(delta_rule_chunked, arguments, dout), strict=True):
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_forward_substitution_gives_the_inverse(size):
    below = np.tril(np.random.default_rng(0).normal(size=(2, 3, size, size)), k=-1)
    np.testing.assert_allclose(inverse(below) @ (below + np.eye(size)), np.broadcast_to(np.eye(size), below.shape), rtol=0, atol=1e-10)


@pytest.mark.parametrize("positions, size, chunks", [(1, 1, 1), (6, 3, 2), (7, 3, 3), (2, 5, 1)])
def test_chunks_are_the_positions_and_zeros_after_the_last(positions, size, chunks):
    a = np.random.default_rng(0).normal(size=(2, positions, 3))
    cut = chunks_of(a, size)
    assert cut.shape == (chunks, 2, size, 3) and not positions_of(cut, chunks * size)[:, positions:].any()
    np.testing.assert_array_equal(positions_of(cut, positions), a)


def with_chunks_that_pass_nothing_back(query, key, value, beta, state):
    """A backward in which every chunk is a text of its own."""
    out, _ = delta_rule_chunked(query, key, value, beta, state, chunk=2)

    def wrong(dresult):
        before, parts, dafter = state, [], dresult[1]
        for start in range(0, len(query), 2):
            at = np.s_[start : start + 2]
            (_, after), backward = delta_rule(query[at], key[at], value[at], beta[at], before)
            parts.append(backward((dresult[0][at], dafter)))
            before = after
        return *(np.concatenate([p[i] for p in parts]) for i in range(4)), parts[0][4]

    return out, wrong


def test_the_checker_refuses_chunks_that_pass_no_gradient_back():
    report = check_gradients(with_chunks_that_pass_nothing_back, *random_case(5)[0], second_opinion=False)
    assert {argument.path: argument.error > 1e-3 for argument in report.arguments} == {
        "query": False, "key": True, "value": True, "beta": True, "state": True,
    }  # fmt: skip
