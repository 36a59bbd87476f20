"""The chunked form: equal to the plain one whatever the chunk, however fast rows fade, and what its pairs are."""

import tracemalloc

import numpy as np
import pytest
from naive_delta_rule import assert_same, everything
from test_rank_one_recurrence import random_case

from minitransformers.foundation import check_gradients
from minitransformers.linear_attention import rank_one_recurrence_chunked as module
from minitransformers.linear_attention.rank_one_recurrence import rank_one_recurrence
from minitransformers.linear_attention.rank_one_recurrence_chunked import rank_one_recurrence_chunked


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 8, 11, 16, 100, np.int64(4)])
@pytest.mark.parametrize("given", [True, False])
def test_equals_the_plain_form_whatever_the_chunk_with_every_gradient(chunk, given):
    (*arrays, state), dout = random_case(11, batch=(2, 1))
    arguments = (*arrays, state if given else None)
    assert_same(everything(rank_one_recurrence_chunked, arguments, dout, chunk=chunk), everything(rank_one_recurrence, arguments, dout), atol=1e-11)


@pytest.mark.parametrize("positions", [1, 2, 3, 15, 16, 17, 33, 70])
def test_equals_the_plain_form_at_every_length(positions):
    arguments, dout = random_case(positions)
    assert_same(everything(rank_one_recurrence_chunked, arguments, dout), everything(rank_one_recurrence, arguments, dout), atol=1e-11)


@pytest.mark.parametrize("rate", [0.0, 1e-6, 1.0, 40.0, 1e4])
def test_rows_may_fade_at_any_rate_and_at_different_ones(rate):
    # exp(-sum of log_decay), the factor of the textbook's form, would be exp(16 * 40) here: infinite even in float64.
    (query, key, value, log_decay, read, write, state), dout = random_case(33)
    log_decay = rate * log_decay * np.array([1.0, 0.01, 0.0])
    arguments = query, key, value, log_decay, read, write, state
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        own = everything(rank_one_recurrence_chunked, arguments, dout)
    assert_same(own, everything(rank_one_recurrence, arguments, dout), atol=1e-11)


def test_single_precision_stays_close_over_a_long_text():
    # As RWKV-7 has them: what reads is minus a direction, a share of which is written, and decays are exp(-0.6) or slower.
    (query, key, value, log_decay, read, _, state), dout = random_case(1500, 4, 3)
    write = -read * np.random.default_rng(1).uniform(size=read.shape)
    arguments = query, key, value, 0.6 * log_decay, read, write, state
    single = everything(rank_one_recurrence_chunked, [a.astype(np.float32) for a in arguments], [d.astype(np.float32) for d in dout])
    for own, exact in zip(single, everything(rank_one_recurrence_chunked, arguments, dout), strict=True):
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("half", [1, 2, 4])
def test_the_pairs_of_a_size_are_a_view_of_second_halves_by_first(half):
    weights = np.random.default_rng(0).normal(size=(2, 8, 8))
    pairs = module._between(weights, half)
    assert pairs.shape == (2, 8 // (2 * half), half, half) and np.shares_memory(pairs, weights)
    for block in range(pairs.shape[1]):
        start = 2 * half * block
        np.testing.assert_array_equal(pairs[:, block], weights[:, start + half : start + 2 * half, start : start + half])


def test_every_pair_of_a_chunk_is_in_one_size_and_only_one():
    seen = np.eye(16)
    for half in (1, 2, 4, 8):
        module._between(seen, half)[...] += 1
    np.testing.assert_array_equal(seen, np.tri(16))


@pytest.mark.parametrize(("positions", "chunk", "size"), [(70, 16, 16), (70, 11, 16), (70, 17, 32), (5, 16, 8), (4, 16, 4), (1, 16, 1), (70, 1, 1), (70, 2, 2)])
def test_a_chunk_is_the_next_power_of_two_and_no_longer_than_the_text_needs(positions, chunk, size, monkeypatch):
    shapes, fading = [], module.fading_levels
    monkeypatch.setattr(module, "fading_levels", lambda decay, size: shapes.append((*decay.shape, size)) or fading(decay, size))
    rank_one_recurrence_chunked(*random_case(positions)[0], chunk=chunk)
    assert shapes == [(-(-positions // size), size, 3, size)]


def test_memory_grows_with_the_length_and_no_faster():
    def peak(positions):
        arguments, dout = random_case(positions, 8, 8)
        tracemalloc.start()
        everything(rank_one_recurrence_chunked, arguments, dout)
        _, bytes_ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return bytes_

    assert peak(1024) < 2.1 * peak(512)
    assert peak(1024) < 1024 * 1024 * 8                      # the weights of all pairs, once


def with_chunks_that_pass_nothing_back(query, key, value, log_decay, read, write, state):
    """A backward in which every chunk is a text of its own."""
    arrays = query, key, value, log_decay, read, write
    out, _ = rank_one_recurrence_chunked(*arrays, state, chunk=2)

    def wrong(dresult):
        before, parts, dafter = state, [], dresult[1]
        for start in range(0, len(query), 2):
            at = np.s_[start : start + 2]
            (_, after), backward = rank_one_recurrence(*(a[at] for a in arrays), before)
            parts.append(backward((dresult[0][at], dafter)))
            before = after
        return *(np.concatenate([p[i] for p in parts]) for i in range(6)), parts[0][6]

    return out, wrong


def test_the_checker_refuses_chunks_that_pass_no_gradient_back():
    report = check_gradients(with_chunks_that_pass_nothing_back, *random_case(5)[0], second_opinion=False)
    assert {argument.path for argument in report.arguments if argument.error > 1e-3} == {"key", "value", "log_decay", "read", "write", "state"}
