"""The semiseparable matrix: the loop that it is, its ranks, and what it becomes when the decay is special."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.softmax import softmax
from minitransformers.foundation import check_gradients
from minitransformers.state_space import semiseparable as semiseparable_module
from minitransformers.state_space.semiseparable import off_diagonal_ranks, segsum, semiseparable, sum_over_crossings


def textbook(log_decay, B, C):
    """One entry at a time, each with the product of the decays between the two positions."""
    n = len(B)
    entry = lambda i, j: anp.dot(C[i], B[j]) * anp.prod(anp.exp(log_decay[j + 1 : i + 1])) if j <= i else 0.0  # noqa: E731
    return anp.stack([anp.stack([entry(i, j) for j in range(n)]) for i in range(n)])


def case(n=7, d_state=3, seed=0):
    rng = np.random.default_rng(seed)
    return -rng.uniform(0.01, 1.0, size=n), rng.normal(size=(n, d_state)), rng.normal(size=(n, d_state))


@pytest.mark.parametrize("n, d_state", [(1, 2), (2, 1), (7, 3)])
def test_equals_the_product_of_decays_entry_by_entry_and_its_gradients(n, d_state):
    arguments, dM = case(n, d_state), np.random.default_rng(1).normal(size=(n, n))
    M, backward = semiseparable(*arguments)
    np.testing.assert_allclose(M, textbook(*arguments), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda both: anp.sum(dM * textbook(*both)))(arguments)
    for own, theirs in zip(backward(dM), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_multiplying_by_it_is_running_the_recurrence():
    log_decay, B, C = case()
    x, state, outputs = np.random.default_rng(1).normal(size=7), np.zeros(3), []
    for t in range(7):
        state = np.exp(log_decay[t]) * state + B[t] * x[t]
        outputs.append(C[t] @ state)
    np.testing.assert_allclose(semiseparable(log_decay, B, C)[0] @ x, outputs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("d_state", [1, 3, 5])
def test_every_block_below_the_diagonal_has_rank_d_state_at_most(d_state):
    M, _ = semiseparable(*case(16, d_state))
    ranks = off_diagonal_ranks(M)
    assert ranks.tolist() == [min(d_state, i, 16 - i) for i in range(1, 16)]


def test_a_softmax_matrix_has_blocks_of_full_rank():
    _, B, C = case(16, 3)
    scores = C @ B.T
    weights, _ = softmax(np.where(np.tril(np.ones((16, 16), bool)), scores, -np.inf))
    assert off_diagonal_ranks(scores).max() == 3             # the scores are no richer than those of the recurrence
    assert off_diagonal_ranks(weights).tolist() == [min(i, 16 - i) for i in range(1, 16)]


def test_without_decay_it_is_causal_linear_attention():
    _, B, C = case()
    np.testing.assert_allclose(semiseparable(np.zeros(7), B, C)[0], np.tril(C @ B.T), rtol=0, atol=1e-14)


def test_with_one_decay_for_all_it_is_the_mask_of_retention():
    _, B, C = case()
    distance = np.arange(7)[:, None] - np.arange(7)
    mask = np.where(distance >= 0, 0.8 ** np.maximum(distance, 0), 0)
    np.testing.assert_allclose(semiseparable(np.full(7, np.log(0.8)), B, C)[0], mask * (C @ B.T), rtol=0, atol=1e-14)


def test_with_one_number_of_state_and_ones_it_is_the_cumulative_sum():
    x, ones = np.random.default_rng(1).normal(size=9), np.ones((9, 1))
    np.testing.assert_allclose(semiseparable(np.zeros(9), ones, ones)[0] @ x, np.cumsum(x), rtol=0, atol=1e-14)


def test_the_first_decay_has_no_part_in_it():
    log_decay, B, C = case()
    M, backward = semiseparable(log_decay, B, C)
    np.testing.assert_array_equal(M, semiseparable(log_decay - np.eye(7)[0], B, C)[0])
    assert backward(np.ones((7, 7)))[0][0] == 0


@pytest.mark.parametrize("n", [5, 200])
def test_segment_sums_are_the_sums_of_their_segments(n):
    # 200 is beyond the length up to which they are made by a product
    log_decay = -np.random.default_rng(2).uniform(size=(2, n))
    sums = segsum(log_decay)
    for i, j in ((0, 0), (1, 0), (n - 1, 0), (n - 1, 3), (3, 3), (n - 2, n - 3)):
        np.testing.assert_allclose(sums[:, i, j], log_decay[:, j + 1 : i + 1].sum(-1), rtol=0, atol=1e-12)
    assert np.isneginf(sums[:, np.triu(np.ones((n, n), bool), 1)]).all()


@pytest.mark.parametrize("n", [6, 130])
def test_the_sum_over_crossings_is_the_sum_of_rectangles(n):
    entries = np.random.default_rng(3).normal(size=(2, n, n))
    expected = [entries[:, k:, :k].sum((-1, -2)) for k in range(n)]
    np.testing.assert_allclose(sum_over_crossings(entries), np.stack(expected, axis=-1), rtol=0, atol=1e-12)


def test_the_matrix_may_be_overwritten_before_the_backward():
    arguments, dM = case(), np.random.default_rng(1).normal(size=(7, 7))
    expected = semiseparable(*arguments)[1](dM)
    M, backward = semiseparable(*arguments)
    M *= 2
    for own, theirs in zip(backward(dM), expected, strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_many_lengths_do_not_pile_up_in_memory():
    for n in range(1, 40):
        sum_over_crossings(np.exp(segsum(-np.ones(n))))
    assert max(made.cache_info().currsize for made in (semiseparable_module._ones_below, semiseparable_module._never_above)) <= 8


def test_a_reset_does_not_blur_what_follows_it_in_float32():
    log_decay = np.full(6, -0.125, np.float32)
    log_decay[2] = -1e9
    sums = segsum(log_decay)
    assert sums[5, 2] == -0.375 and np.exp(sums[2, 1]) == 0
    running = np.cumsum(log_decay)
    assert running[5] - running[2] == 0                      # the difference of running sums has lost it


def test_the_mask_comes_before_the_exponential():
    log_decay = np.full(300, -5.0, np.float32)               # exp(+1500) above the diagonal would be inf, and inf * 0 nan
    M, backward = semiseparable(log_decay, np.ones((300, 1), np.float32), np.ones((300, 1), np.float32))
    assert np.isfinite(M).all() and all(np.isfinite(g).all() for g in backward(np.ones_like(M)))


def test_ranks_of_a_stack_of_matrices():
    stack = np.stack([semiseparable(*case(6, d))[0] for d in (1, 2)])
    assert off_diagonal_ranks(stack).tolist() == [[1, 1, 1, 1, 1], [1, 2, 2, 2, 1]]


def with_decay_of_the_entry_only(log_decay, B, C):
    M, backward = semiseparable(log_decay, B, C)

    def wrong(dM):
        _, dB, dC = backward(dM)
        return (dM * M).sum(-1), dB, dC                      # as if row i knew its own decay only

    return M, wrong


def test_the_checker_refuses_decays_that_forget_the_paths_across_them():
    report = check_gradients(with_decay_of_the_entry_only, *case())
    assert not report.passed and report.worst.path == "log_decay"
