"""Log-softmax: the logarithm of softmax where both are exact, and more than that where softmax has rounded."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import check_gradients


def textbook_log_softmax(row):
    total = 0.0
    for score in row:
        total = total + anp.exp(score)
    return anp.stack([anp.log(anp.exp(score) / total) for score in row])


def test_equals_the_textbook_formula_and_its_gradient():
    rng = np.random.default_rng(0)
    x, dout = rng.normal(size=5), rng.normal(size=5)
    out, backward = log_softmax(x)
    np.testing.assert_allclose(out, textbook_log_softmax(x), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda x: anp.sum(dout * textbook_log_softmax(x)))(x)
    np.testing.assert_allclose(backward(dout), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", [-1, -2, 0, 1, 2])
def test_works_along_any_axis(axis):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 3, 5))
    last, _ = log_softmax(np.moveaxis(x, axis, -1))
    np.testing.assert_allclose(log_softmax(x, axis=axis)[0], np.moveaxis(last, -1, axis), atol=1e-15)
    assert check_gradients(log_softmax, x, axis=axis).passed


def test_the_probabilities_sum_to_one():
    out, _ = log_softmax(np.random.default_rng(2).normal(size=(4, 7)) * 10)
    assert (out <= 0).all()
    np.testing.assert_allclose(np.exp(out).sum(-1), 1, rtol=1e-14)


def test_doing_it_twice_is_doing_it_once():
    out, _ = log_softmax(np.random.default_rng(3).normal(size=(4, 7)))
    np.testing.assert_allclose(log_softmax(out)[0], out, atol=1e-14)


def test_the_gradient_sums_to_zero():
    rng = np.random.default_rng(4)
    _, backward = log_softmax(rng.normal(size=(4, 7)))
    np.testing.assert_allclose(backward(rng.normal(size=(4, 7))).sum(-1), 0, atol=1e-14)


def test_float32_keeps_a_log_probability_that_softmax_has_rounded_to_zero():
    x = np.array([0, -200], np.float32)
    assert np.exp(x)[1] == 0  # the way over softmax ends in log(0)
    np.testing.assert_array_equal(log_softmax(x)[0], np.array([0, -200], np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_floats_stay_finite(dtype):
    big = np.finfo(dtype).max / 4
    out, backward = log_softmax(np.array([big, 0, -big], dtype))
    np.testing.assert_array_equal(out, np.array([0, -big, -2 * big], dtype))
    np.testing.assert_array_equal(backward(np.array([1, 2, 3], dtype)), [-5, 2, 3])


def test_a_score_of_minus_infinity_stays_so():
    out, backward = log_softmax(np.array([1.0, -np.inf, 1.0]))
    np.testing.assert_allclose(out, [-np.log(2), -np.inf, -np.log(2)])
    np.testing.assert_allclose(backward(np.array([1.0, 0.0, 0.0])), [0.5, 0, -0.5])


def with_a_mean_for_the_sum(x):
    out, _ = log_softmax(x)
    return out, lambda dout: dout - np.exp(out) * dout.mean(-1, keepdims=True)


def test_the_checker_refuses_a_mean_for_the_sum():
    report = check_gradients(with_a_mean_for_the_sum, np.random.default_rng(5).normal(size=(3, 5)))
    assert not report.passed and report.error > 1e-2


@pytest.mark.parametrize("axis", [-1, 0])
def test_a_single_number_has_no_axis_to_sum_over(axis):
    with pytest.raises(ValueError, match=r"^x: got shape \(\), wants at least one axis$"):
        log_softmax(np.array(1.0), axis=axis)


@pytest.mark.parity
@pytest.mark.parametrize("axis", [-1, 1])
def test_parity_with_torch(axis):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    x, dout = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))
    theirs_x = torch.tensor(x, requires_grad=True)
    theirs = torch.log_softmax(theirs_x, axis)
    theirs.backward(torch.tensor(dout))
    out, backward = log_softmax(x, axis=axis)
    np.testing.assert_allclose(out, theirs.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(backward(dout), theirs_x.grad.numpy(), atol=1e-12)
