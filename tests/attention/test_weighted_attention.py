"""The frame: what it gives a weighting to see, and what it makes of the weights and of their backward."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.weighted_attention import weighted_attention
from minitransformers.foundation import check_gradients

pytestmark = pytest.mark.usefixtures("few_or_many_queries")


def softened(cold, scores, *, mask):
    """A softmax of cold * scores, with a gradient for cold; None for a factor of 1."""
    factor = 1.0 if cold is None else cold[0]
    powers = np.exp(factor * scores) * (True if mask is None else mask)
    weights = powers / np.maximum(powers.sum(-1, keepdims=True), 1e-300)

    def backward(dweights):
        dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
        return None if cold is None else np.array([(dlogits * scores).sum()]), factor * dlogits

    return weights, backward


def squared(gain, scores, *, mask):
    """Weights that neither sum to one nor compete: gain * scores^2."""
    allowed = True if mask is None else mask
    return gain * scores**2 * allowed, lambda dweights: (np.sum(dweights * scores**2 * allowed), 2 * gain * scores * allowed * dweights)


def case(seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(3, n, d)) for n, d in ((4, 5), (6, 5), (6, 2)))
    mask = rng.random((3, 4, 6)) < 0.6
    mask[-1, 2] = False                                      # a query that may attend to nothing
    return q, k, v, rng.normal(size=(3, 4, 6)), mask


def textbook(gain, q, k, v, bias, mask, scale):
    """One query and one key at a time."""
    heads = []
    for h in range(len(q)):
        rows = []
        for i in range(q.shape[1]):
            row = 0.0 * v[h, 0]
            for j in np.flatnonzero(mask[h, i]):
                row = row + gain * (scale * anp.sum(q[h, i] * k[h, j]) + bias[h, i, j]) ** 2 * v[h, j]
            rows.append(row)
        heads.append(anp.stack(rows))
    return anp.stack(heads)


@pytest.mark.parametrize("scale", [None, 0.3, -1.5])
@pytest.mark.parametrize("masked", [True, False])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(masked, scale):
    *args, mask = case()
    allowed, factor = mask if masked else np.ones_like(mask), 5**-0.5 if scale is None else scale
    gain = np.array(0.7)
    out, backward = weighted_attention(gain, *args, weighting=squared, mask=mask if masked else None, scale=scale)
    dout = np.random.default_rng(1).normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(gain, *args, allowed, factor), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, allowed, factor)), (0, 1, 2, 3, 4))(gain, *args)
    for own, theirs in zip(backward(dout), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("v_batch", [(2, 3), (2, 1), (4, 2, 1)])
def test_the_softmax_as_a_weighting_is_scaled_dot_product_attention(v_batch):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=shape) for shape in ((2, 3, 4, 5), (2, 1, 6, 5), (*v_batch, 6, 7)))
    bias, mask = rng.normal(size=(3, 4, 6)), rng.random((1, 3, 4, 6)) < 0.7
    mask[0, 1, 2] = False
    out, backward = weighted_attention(None, q, k, v, bias, weighting=softened, mask=mask)
    wanted, wanted_backward = scaled_dot_product_attention(q, k, v, bias, mask=mask)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-14)
    nothing, *gradients = backward(np.cos(out))
    assert nothing is None
    for own, theirs in zip(gradients, wanted_backward(np.cos(out)), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("heads_of_values", [3, 1, 2 * 3])
def test_what_a_weighting_learns_gets_its_gradient_however_the_values_broadcast(heads_of_values):
    q, k, v, bias, mask = case()
    v = v[:1] if heads_of_values == 1 else v if heads_of_values == 3 else np.stack([v, 2 * v])
    report = check_gradients(weighted_attention, np.array([0.7]), q, k, v, bias, mask=mask, weighting=softened)
    assert report.passed, report


def test_a_mask_may_have_leading_axes_that_nothing_else_has_and_the_weighting_sees_a_score_for_each():
    q, k, v, _, mask = case()
    seen, masks = [], np.stack([mask[0], ~mask[0]])

    def spy(params, scores, *, mask):
        seen.append(scores.shape)
        return softened(params, scores, mask=mask)

    out, backward = weighted_attention(None, q[0], k[0], v[0], weighting=spy, mask=masks)
    assert seen == [(2, 4, 6)]
    for own, one in zip(out, masks, strict=True):
        np.testing.assert_allclose(own, scaled_dot_product_attention(q[0], k[0], v[0], mask=one)[0], rtol=0, atol=1e-14)
    wanted = [scaled_dot_product_attention(q[0], k[0], v[0], mask=one)[1](np.cos(row)) for one, row in zip(masks, out, strict=True)]
    for own, first, second in zip(backward(np.cos(out))[1:4], *(gradients[:3] for gradients in wanted), strict=True):
        np.testing.assert_allclose(own, first + second, rtol=0, atol=1e-13)


@pytest.mark.parametrize("masked", [True, False])
def test_the_weighting_sees_finite_scores_and_all_that_mask_and_bias_forbid(masked):
    q, k, v, bias, mask = case()
    hidden = np.random.default_rng(9).random(bias.shape) < 0.3
    seen = []

    def spy(params, scores, *, mask):
        seen.append((scores, mask))
        return softened(params, scores, mask=mask)

    weighted_attention(None, q, k, v, np.where(hidden, -np.inf, bias), mask=mask if masked else None, weighting=spy)
    (scores, allowed), expected = seen[0], q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + np.where(hidden, 0, bias)
    np.testing.assert_array_equal(np.broadcast_to(allowed, scores.shape), np.broadcast_to(mask & ~hidden if masked else ~hidden, scores.shape))
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(np.where(hidden, 0, scores), np.where(hidden, 0, expected), rtol=0, atol=1e-13)


def test_a_score_that_is_no_number_is_not_taken_for_a_forbidden_one():
    q, k, v, _, _ = case()
    q[0, 0, 0] = np.nan
    assert np.isnan(weighted_attention(None, q, k, v, weighting=softened)[0][0, 0]).all()


def test_each_score_needs_a_weight():
    q, k, v, _, _ = case()
    with pytest.raises(ValueError, match=r"weighting: got weights of shape \(3, 4, 1\)"):
        weighted_attention(None, q, k, v, weighting=lambda params, scores, mask: (scores[..., :1], None))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bias_only_adds_or_forbids(bad):
    q, k, v, bias, _ = case()
    bias[1, 2, 3] = bad
    with pytest.raises(ValueError, match="bias: got NaN or"):
        weighted_attention(None, q, k, v, bias, weighting=softened)


def test_the_checker_refuses_a_frame_that_takes_the_weights_for_constants():
    """The values alone get a right gradient where nothing goes back through the weighting."""
    q, k, v, _, _ = case()

    def wrong(q, k, v):
        out, backward = weighted_attention(None, q, k, v, weighting=softened)
        return out, lambda dout: (0 * q, 0 * k, backward(dout)[3])

    report = check_gradients(wrong, q, k, v)
    assert [a.error > 1e-2 for a in report.arguments] == [True, True, False]


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    q, k, v, bias, mask = case()
    tensors = [torch.tensor(a, requires_grad=True) for a in (np.array(0.7), q, k, v, bias)]
    gain, tq, tk, tv, tb = tensors
    theirs = (gain * (tq @ tk.transpose(-1, -2) / 5**0.5 + tb) ** 2).masked_fill(torch.tensor(~mask), 0) @ tv
    theirs.backward(torch.tensor(np.cos(theirs.detach().numpy())))
    out, backward = weighted_attention(np.array(0.7), q, k, v, bias, weighting=squared, mask=mask)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    for own, their in zip(backward(np.cos(out)), tensors, strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-9)
