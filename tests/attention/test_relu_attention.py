"""ReLU attention: one key at a time, its scaling with the length, and the queries that find nothing."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from attention_cases import assert_refuses_masks_that_do_not_fit, assert_takes_the_softmax_s_place

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.relu_attention import relu_attention, relu_weights
from minitransformers.foundation import check_gradients, slot


def textbook(scores, mask):
    """One number of (queries, keys) at a time."""
    rows = []
    for i in range(scores.shape[0]):
        seen = [j for j in range(scores.shape[1]) if mask[i, j]]
        rows.append(anp.stack([scores[i, j] / len(seen) if j in seen and scores[i, j] > 0 else 0 * scores[i, j] for j in range(scores.shape[1])]))
    return anp.stack(rows)


def case(seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((4, 6)) < 0.7
    mask[2] = False
    return rng.normal(size=(4, 6)), mask, rng.normal(size=(4, 6))


@pytest.mark.parametrize("masked", [True, False])
def test_it_is_the_textbook_quotient_and_its_gradient_is_autograd_s(masked):
    scores, mask, dweights = case()
    allowed = mask if masked else np.ones_like(mask)
    weights, backward = relu_weights(scores, mask=mask if masked else None)
    np.testing.assert_allclose(weights, textbook(scores, allowed), rtol=0, atol=1e-15)
    expected = autograd.grad(lambda s: anp.sum(dweights * textbook(s, allowed)))(scores)
    np.testing.assert_allclose(backward(dweights), expected, rtol=0, atol=1e-15)


def test_a_longer_query_makes_the_weights_longer_and_nothing_else():
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(3, 4)), rng.normal(size=(5, 4))
    long, short = (relu_attention(None, query, k, np.eye(5))[0] for query in (7 * q, q))
    np.testing.assert_allclose(long, 7 * short)


def test_keys_do_not_compete():
    scores, _, _ = case()
    raised = scores.copy()
    raised[:, 2] += 5
    np.testing.assert_array_equal(np.delete(relu_weights(raised)[0], 2, axis=-1), np.delete(relu_weights(scores)[0], 2, axis=-1))


def test_dividing_by_the_number_of_keys_keeps_the_weight_of_a_row_as_the_sequence_grows():
    rng = np.random.default_rng(2)
    sums = [relu_weights(rng.normal(size=(200, n)))[0].sum(-1).mean() for n in (16, 256)]
    np.testing.assert_allclose(sums, 1 / np.sqrt(2 * np.pi), rtol=0.05)  # the mean of a normal variable's positive part


def test_each_query_divides_by_the_keys_that_it_sees():
    weights = relu_weights(np.ones((5, 5)), mask=causal_mask(5))[0]
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-14)


def test_a_query_that_finds_nothing_reads_zero_and_learns_nothing():
    scores = -np.abs(case()[0])
    weights, backward = relu_weights(scores)
    assert not weights.any() and not backward(np.ones_like(scores)).any()


def test_at_the_kink_the_gradient_is_zero():
    np.testing.assert_array_equal(relu_weights(np.array([[0.0, 1.0]]))[1](np.ones((1, 2))), [[0, 0.5]])


def test_extreme_scores_stay_finite_in_float32():
    weights, backward = relu_weights(np.array([[3e38, -3e38, 3e38]], np.float32))
    assert np.isfinite(weights).all() and weights.dtype == np.float32 and weights.sum() > 1e38
    np.testing.assert_allclose(backward(np.ones((1, 3), np.float32)), [[1 / 3, 0, 1 / 3]], rtol=1e-6)


def test_the_checker_refuses_a_backward_that_forgets_to_divide_or_to_cut():
    scores, _, _ = case()

    def undivided(scores):
        return relu_weights(scores)[0], lambda dweights: dweights * (scores > 0)

    def uncut(scores):
        return relu_weights(scores)[0], lambda dweights: dweights / scores.shape[-1]

    assert not check_gradients(undivided, scores).passed
    assert not check_gradients(uncut, scores).passed


def test_the_checker_refuses_a_backward_that_forgets_the_mask():
    scores, mask, _ = case()

    def wrong(scores):
        return relu_weights(scores, mask=mask)[0], relu_weights(scores)[1]

    assert not check_gradients(wrong, scores).passed


def test_as_a_core_it_takes_the_softmax_s_place_under_scale_bias_and_mask():
    assert_takes_the_softmax_s_place(relu_attention, slot(relu_weights), None)


def test_a_mask_must_broadcast_to_the_scores():
    assert_refuses_masks_that_do_not_fit(slot(relu_weights), None)


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    q, k, v, dout = (rng.normal(size=(2, 3, 5, 4)) for _ in range(4))
    tq, tk, tv = (torch.tensor(a, requires_grad=True) for a in (q, k, v))
    counts = torch.arange(1, 6, dtype=torch.float64)[:, None]
    theirs = torch.relu((tq @ tk.transpose(-1, -2) / 2).masked_fill(torch.tensor(~causal_mask(5)), -torch.inf)) / counts @ tv
    theirs.backward(torch.tensor(dout))
    out, backward = relu_attention(None, q, k, v, mask=causal_mask(5))
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    for own, their in zip(backward(dout)[1:4], (tq, tk, tv), strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-9)
