"""The divergence of two predictions from their mean: a loop written out, its bounds, its symmetry, wrong backwards."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.bias_mitigation.paired_divergence import paired_divergence

RNG = np.random.default_rng(0)
LOGITS, OTHER = RNG.normal(size=(2, 2, 3, 5))
MASK = np.array([[1, 0, 1], [1, 1, 1]], bool)
ONE = np.float64(1)


def softmax(z):
    exps = anp.exp(z - anp.max(z))
    return exps / anp.sum(exps)


def textbook(logits, other, mask=MASK):
    """Two divergences from the mean, a loop over positions and classes."""
    total, count = 0.0, 0
    for place in zip(*np.nonzero(mask), strict=True):
        p, q = softmax(logits[place]), softmax(other[place])
        for i in range(len(p)):
            m = (p[i] + q[i]) / 2
            total = total + 0.5 * p[i] * anp.log(p[i] / m) + 0.5 * q[i] * anp.log(q[i] / m)
        count += 1
    return total / count


def test_equals_the_textbook_formula_and_its_gradients():
    out, backward = paired_divergence(LOGITS, OTHER, mask=MASK)
    np.testing.assert_allclose(out, textbook(LOGITS, OTHER), rtol=0, atol=1e-12)
    expected = autograd.grad(textbook, (0, 1))(LOGITS, OTHER)
    for own, theirs in zip(backward(np.float64(0.7)), expected, strict=True):
        np.testing.assert_allclose(own, 0.7 * theirs, rtol=0, atol=1e-12)


def test_it_takes_no_side():
    out, backward = paired_divergence(LOGITS, OTHER)
    other, other_backward = paired_divergence(OTHER, LOGITS)
    np.testing.assert_allclose(out, other, rtol=1e-14)
    for own, theirs in zip(backward(ONE), other_backward(ONE)[::-1], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-16)


def test_it_is_zero_for_equal_predictions_and_has_no_gradient_there():
    out, backward = paired_divergence(LOGITS, LOGITS + np.arange(6.0).reshape(2, 3, 1))
    assert abs(out) < 1e-15
    for gradient in backward(ONE):
        np.testing.assert_allclose(gradient, 0, atol=1e-15)


def test_it_is_ln_2_where_the_two_agree_in_nothing_and_never_more():
    far = np.array([[800.0, 0.0]])
    np.testing.assert_allclose(paired_divergence(far, far[:, ::-1])[0], np.log(2), rtol=1e-15)
    for seed in range(5):
        one, two = 10 * np.random.default_rng(seed).normal(size=(2, 4, 3))
        assert 0 < paired_divergence(one, two)[0] <= np.log(2)


def test_a_class_below_the_smallest_float_costs_a_finite_amount():
    for dtype in (np.float32, np.float64):
        one, two = np.array([[0, -2000, 1]], dtype), np.array([[0, 3, -5000]], dtype)
        out, backward = paired_divergence(one, two)
        assert out.dtype == dtype and np.isfinite(out) and all(np.isfinite(g).all() for g in backward(dtype(1)))


def test_hidden_positions_may_hold_anything():
    spoiled = np.where(MASK[..., None], OTHER, np.inf)
    out, backward = paired_divergence(LOGITS, spoiled, mask=MASK)
    assert out == paired_divergence(LOGITS, OTHER, mask=MASK)[0]
    assert not any(gradient[~MASK].any() for gradient in backward(ONE))


def test_downhill_both_predictions_move_and_meet():
    one, two = np.log([[0.7, 0.3]]), np.log([[0.2, 0.8]])
    for _ in range(400):
        done, dtwo = paired_divergence(one, two)[1](ONE)
        one, two = one - done, two - dtwo
    p, q = (np.exp(z) / np.exp(z).sum() for z in (one, two))
    np.testing.assert_allclose(p, q, atol=1e-6)
    assert 0.2 < p[0, 0] < 0.7


def of_one_side_only(logits, other):
    out, backward = paired_divergence(logits, other)
    return out, lambda dout: (backward(dout)[0], np.zeros_like(other))


def through_one_slope_of_the_softmax(logits, other):
    """The mean that every probability shares is left out."""
    out, _ = paired_divergence(logits, other)
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (logits, other))
    m = (p + q) / 2
    return out, lambda dout: (dout / 12 * p * np.log(p / m), dout / 12 * q * np.log(q / m))


def of_the_divergence_from_the_other(logits, other):
    """p - q, as for a cross-entropy with the other as its target."""
    out, _ = paired_divergence(logits, other)
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (logits, other))
    return out, lambda dout: (dout / 6 * (p - q), dout / 6 * (q - p))


@pytest.mark.parametrize("wrong", [of_one_side_only, through_one_slope_of_the_softmax, of_the_divergence_from_the_other])
def test_the_checker_refuses(wrong):
    assert not check_gradients(wrong, LOGITS, OTHER).passed


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match="mask: got False everywhere"):
        paired_divergence(LOGITS, OTHER, mask=MASK & False)
    with pytest.raises(ValueError, match="counterfactual: got NaN or infinity"):
        paired_divergence(LOGITS, np.full_like(OTHER, -np.inf))


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    one, two = torch.tensor(LOGITS, requires_grad=True), torch.tensor(OTHER, requires_grad=True)
    log_p, log_q = torch.log_softmax(one, -1).reshape(-1, 5), torch.log_softmax(two, -1).reshape(-1, 5)
    log_m = ((log_p.exp() + log_q.exp()) / 2).log()
    settings = {"reduction": "batchmean", "log_target": True}
    loss = (torch.nn.functional.kl_div(log_m, log_p, **settings) + torch.nn.functional.kl_div(log_m, log_q, **settings)) / 2
    loss.backward()
    out, backward = paired_divergence(LOGITS, OTHER)
    np.testing.assert_allclose(out, loss.item(), rtol=0, atol=1e-12)
    for own, theirs in zip(backward(ONE), (one, two), strict=True):
        np.testing.assert_allclose(own, theirs.grad.numpy(), rtol=0, atol=1e-12)
