"""Sigmoid attention: one key at a time, keys that do not compete, and how much a row weighs."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from attention_cases import assert_refuses_masks_that_do_not_fit, assert_takes_the_softmax_s_place

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.sigmoid_attention import SigmoidAttention, sigmoid_attention, sigmoid_weights
from minitransformers.foundation import check_gradients


def textbook(scores, offset, mask):
    """One number of (heads, queries, keys) at a time; offset None is minus the log of the keys that a query sees."""
    heads = []
    for h in range(scores.shape[0]):
        rows = []
        for i in range(scores.shape[1]):
            seen = sum(1 for j in range(scores.shape[2]) if mask[h, i, j])
            b = offset[h] if offset is not None else -np.log(seen or 1)
            rows.append(anp.stack([1 / (1 + anp.exp(-scores[h, i, j] - b)) if mask[h, i, j] else 0.0 * b for j in range(scores.shape[2])]))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


def case(seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((3, 4, 5)) < 0.6
    mask[1, 2] = False
    return rng.normal(size=(3, 4, 5)), rng.normal(size=3), mask, rng.normal(size=(3, 4, 5))


@pytest.mark.parametrize("masked", [True, False])
def test_it_is_the_textbook_sigmoid_and_its_gradients_are_autograd_s(masked):
    scores, offset, mask, dweights = case()
    allowed = mask if masked else np.ones_like(mask)
    weights, backward = sigmoid_weights(SigmoidAttention(offset), scores, mask=mask if masked else None)
    np.testing.assert_allclose(weights, textbook(scores, offset, allowed), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda s, b: anp.sum(dweights * textbook(s, b, allowed)), (0, 1))(scores, offset)
    (doffset,), dscores = backward(dweights)
    np.testing.assert_allclose(dscores, expected[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(doffset, expected[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("masked", [True, False])
def test_without_an_offset_it_is_minus_the_log_of_the_keys_that_a_query_sees(masked):
    scores, _, mask, dweights = case()
    allowed = mask if masked else np.ones_like(mask)
    weights, backward = sigmoid_weights(None, scores, mask=mask if masked else None)
    np.testing.assert_allclose(weights, textbook(scores, None, allowed), rtol=0, atol=1e-14)
    doffset, dscores = backward(dweights)
    expected = autograd.grad(lambda s: anp.sum(dweights * textbook(s, None, allowed)))(scores)
    np.testing.assert_allclose(dscores, expected, rtol=0, atol=1e-13)
    assert doffset is None


@pytest.mark.parametrize("n", [1, 2, 16, 1000])
def test_n_equal_scores_of_zero_weigh_n_over_n_plus_one_together(n):
    np.testing.assert_allclose(sigmoid_weights(None, np.zeros((1, n)))[0].sum(), n / (n + 1), rtol=1e-13)


def test_with_a_fixed_offset_of_zero_the_output_grows_with_the_number_of_keys():
    sizes = np.array([16, 64, 256])
    sums = [sigmoid_weights(SigmoidAttention(np.zeros(1)), np.zeros((1, n)))[0].sum() for n in sizes]
    np.testing.assert_allclose(sums, sizes / 2)


def test_keys_do_not_compete_unlike_in_a_softmax():
    scores, offset, _, _ = case()
    raised, params = scores.copy(), SigmoidAttention(offset)
    raised[..., 2] += 5
    weights, higher = sigmoid_weights(params, scores)[0], sigmoid_weights(params, raised)[0]
    np.testing.assert_array_equal(np.delete(higher, 2, axis=-1), np.delete(weights, 2, axis=-1))
    dweights = np.zeros_like(scores)
    dweights[..., 2] = 1
    assert not np.delete(sigmoid_weights(params, scores)[1](dweights)[1], 2, axis=-1).any()


def test_minus_the_log_of_n_is_counted_for_every_query_under_a_causal_mask():
    weights = sigmoid_weights(None, np.zeros((5, 5)), mask=causal_mask(5))[0]
    np.testing.assert_allclose(np.diag(weights), 1 / (1 + np.arange(1, 6)), rtol=1e-14)


def test_one_offset_for_many_rows_gets_the_sum_of_their_gradients():
    rng = np.random.default_rng(2)
    scores, dweights = rng.normal(size=(2, 2, 3, 4, 5))
    mask = rng.random((2, 3, 4, 5)) < 0.6
    for heads in (3, 1):
        offset = rng.normal(size=heads)
        found = sigmoid_weights(SigmoidAttention(offset), scores, mask=mask)[1](dweights)[0].offset
        expected = np.zeros(heads)
        for b, h, i in np.ndindex(2, 3, 4):
            row = np.s_[b, h, i : i + 1]
            one = SigmoidAttention(offset[h % heads : h % heads + 1])
            expected[h % heads] += sigmoid_weights(one, scores[row], mask=mask[row])[1](dweights[row])[0].offset[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_extreme_scores_stay_finite_in_float32():
    scores = np.array([[3e38, -3e38, 0.0]], np.float32)
    weights, backward = sigmoid_weights(SigmoidAttention(np.zeros(1, np.float32)), scores)
    np.testing.assert_array_equal(weights, [[1, 0, 0.5]])
    np.testing.assert_array_equal(backward(np.ones_like(scores))[1], [[0, 0, 0.25]])


def test_the_checker_refuses_the_backward_of_a_softmax():
    def wrong(scores):
        weights, _ = sigmoid_weights(None, scores)
        return weights, lambda dweights: weights * (dweights - np.vecdot(dweights, weights)[..., None])

    report = check_gradients(wrong, case()[0])
    assert not report.passed and report.error > 1e-2


def test_the_checker_refuses_a_backward_that_forgets_the_mask():
    mask = case()[2]

    def wrong(scores):
        weights = sigmoid_weights(None, scores, mask=mask)[0]
        return weights, lambda dweights: sigmoid_weights(None, scores)[1](dweights)[1]

    assert not check_gradients(wrong, case()[0]).passed


def test_as_a_core_it_takes_the_softmax_s_place_under_scale_bias_and_mask():
    assert_takes_the_softmax_s_place(sigmoid_attention, sigmoid_weights, SigmoidAttention(np.array([0.3, -1.0, 2.0])))


def test_a_mask_must_broadcast_to_the_scores():
    assert_refuses_masks_that_do_not_fit(sigmoid_weights, SigmoidAttention(np.ones(3)))


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    q, k, v = (rng.normal(size=(2, 3, 5, 4)) for _ in range(3))
    offset, dout = rng.normal(size=3), rng.normal(size=(2, 3, 5, 4))
    tq, tk, tv, tb = (torch.tensor(a, requires_grad=True) for a in (q, k, v, offset))
    logits = (tq @ tk.transpose(-1, -2) / 2 + tb[:, None, None]).masked_fill(torch.tensor(~causal_mask(5)), -torch.inf)
    theirs = torch.sigmoid(logits) @ tv
    theirs.backward(torch.tensor(dout))
    out, backward = sigmoid_attention(SigmoidAttention(offset), q, k, v, mask=causal_mask(5))
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    (doffset,), dq, dk, dv, _ = backward(dout)
    for own, their in zip((dq, dk, dv, doffset), (tq, tk, tv, tb), strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-9)
