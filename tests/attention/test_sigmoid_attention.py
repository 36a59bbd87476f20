"""Sigmoid attention: one key at a time, keys that do not compete, and how much a row weighs."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.sigmoid_attention import sigmoid_attention
from minitransformers.foundation import check_gradients


def textbook(scores, offset, mask):
    """One number of (heads, queries, keys) at a time; offset None is minus the log of the keys that a query sees."""
    heads = []
    for h in range(scores.shape[0]):
        rows = []
        for i in range(scores.shape[1]):
            seen = sum(1 for j in range(scores.shape[2]) if mask[h, i, j])
            b = offset[h, 0] if offset is not None else -np.log(seen or 1)
            rows.append(anp.stack([1 / (1 + anp.exp(-scores[h, i, j] - b)) if mask[h, i, j] else 0.0 * b for j in range(scores.shape[2])]))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


def case(seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((3, 4, 5)) < 0.6
    mask[1, 2] = False
    return rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 1)), mask, rng.normal(size=(3, 4, 5))


@pytest.mark.parametrize("masked", [True, False])
def test_it_is_the_textbook_sigmoid_and_its_gradients_are_autograd_s(masked):
    scores, offset, mask, dweights = case()
    allowed = mask if masked else np.ones_like(mask)
    weights, backward = sigmoid_attention(scores, offset, mask=mask if masked else None)
    np.testing.assert_allclose(weights, textbook(scores, offset, allowed), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda s, b: anp.sum(dweights * textbook(s, b, allowed)), (0, 1))(scores, offset)
    for own, theirs in zip(backward(dweights), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("masked", [True, False])
def test_without_an_offset_it_is_minus_the_log_of_the_keys_that_a_query_sees(masked):
    scores, _, mask, dweights = case()
    allowed = mask if masked else np.ones_like(mask)
    weights, backward = sigmoid_attention(scores, mask=mask if masked else None)
    np.testing.assert_allclose(weights, textbook(scores, None, allowed), rtol=0, atol=1e-14)
    dscores, doffset = backward(dweights)
    expected = autograd.grad(lambda s: anp.sum(dweights * textbook(s, None, allowed)))(scores)
    np.testing.assert_allclose(dscores, expected, rtol=0, atol=1e-13)
    assert doffset is None


@pytest.mark.parametrize("n", [1, 2, 16, 1000])
def test_n_equal_scores_of_zero_weigh_n_over_n_plus_one_together(n):
    np.testing.assert_allclose(sigmoid_attention(np.zeros((1, n)))[0].sum(), n / (n + 1), rtol=1e-13)


def test_with_a_fixed_offset_of_zero_the_output_grows_with_the_number_of_keys():
    sizes = np.array([16, 64, 256])
    sums = [sigmoid_attention(np.zeros((1, n)), np.zeros(1))[0].sum() for n in sizes]
    np.testing.assert_allclose(sums, sizes / 2)


def test_keys_do_not_compete_unlike_in_a_softmax():
    scores, offset, _, _ = case()
    raised = scores.copy()
    raised[..., 2] += 5
    weights, higher = sigmoid_attention(scores, offset)[0], sigmoid_attention(raised, offset)[0]
    np.testing.assert_array_equal(np.delete(higher, 2, axis=-1), np.delete(weights, 2, axis=-1))
    dweights = np.zeros_like(scores)
    dweights[..., 2] = 1
    assert not np.delete(sigmoid_attention(scores, offset)[1](dweights)[0], 2, axis=-1).any()


def test_minus_the_log_of_n_is_counted_for_every_query_under_a_causal_mask():
    weights = sigmoid_attention(np.zeros((5, 5)), mask=causal_mask(5))[0]
    np.testing.assert_allclose(np.diag(weights), 1 / (1 + np.arange(1, 6)), rtol=1e-14)


@pytest.mark.parametrize("shape", [(3, 1), (1, 4), (4,), (1,), (3, 4)])
def test_one_offset_for_many_rows_gets_the_sum_of_their_gradients(shape):
    scores, _, mask, dweights = case()
    offset = np.random.default_rng(2).normal(size=shape)
    doffset = sigmoid_attention(scores, offset, mask=mask)[1](dweights)[1]
    own = sigmoid_attention(scores, np.broadcast_to(offset, (3, 4)).copy(), mask=mask)[1](dweights)[1]
    if len(shape) == 1:
        own = own.sum(0)
    np.testing.assert_allclose(doffset, own.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True), rtol=0, atol=1e-14)


def test_extreme_scores_stay_finite_in_float32():
    scores = np.array([[3e38, -3e38, 0.0]], np.float32)
    weights, backward = sigmoid_attention(scores, np.zeros(1, np.float32))
    np.testing.assert_array_equal(weights, [[1, 0, 0.5]])
    np.testing.assert_array_equal(backward(np.ones_like(scores))[0], [[0, 0, 0.25]])


def test_the_checker_refuses_the_backward_of_a_softmax():
    def wrong(scores):
        weights, _ = sigmoid_attention(scores)
        return weights, lambda dweights: weights * (dweights - np.vecdot(dweights, weights)[..., None])

    report = check_gradients(wrong, case()[0])
    assert not report.passed and report.error > 1e-2


def test_the_checker_refuses_a_backward_that_forgets_the_mask():
    mask = case()[2]

    def wrong(scores):
        weights = sigmoid_attention(scores, mask=mask)[0]
        return weights, sigmoid_attention(scores)[1]

    assert not check_gradients(wrong, case()[0]).passed


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    q, k, v = (rng.normal(size=(2, 3, 5, 4)) for _ in range(3))
    offset, dout = rng.normal(size=(3, 1)), rng.normal(size=(2, 3, 5, 4))
    tq, tk, tv, tb = (torch.tensor(a, requires_grad=True) for a in (q, k, v, offset))
    logits = (tq @ tk.transpose(-1, -2) / 2 + tb[..., None]).masked_fill(torch.tensor(~causal_mask(5)), -torch.inf)
    theirs = torch.sigmoid(logits) @ tv
    theirs.backward(torch.tensor(dout))
    out, backward = scaled_dot_product_attention(q, k, v, None, offset, mask=causal_mask(5), weighting=sigmoid_attention)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    dq, dk, dv, _, doffset = backward(dout)
    for own, their in zip((dq, dk, dv, doffset), (tq, tk, tv, tb), strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-9)
