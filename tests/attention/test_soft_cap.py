import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.soft_cap import soft_cap
from minitransformers.foundation import check_gradients

X = 3 * np.random.default_rng(0).normal(size=(2, 3, 5))


@pytest.mark.parametrize("cap", [0.5, 2.0, 50.0])
def test_it_is_the_formula_and_its_gradient_is_autograd_s(cap):
    def formula(x):
        power = anp.exp(2 * x / cap)
        return cap * (power - 1) / (power + 1)

    out, backward = soft_cap(X, cap=cap)
    dout = np.random.default_rng(1).normal(size=X.shape)
    np.testing.assert_allclose(out, formula(X), rtol=0, atol=1e-10)
    np.testing.assert_allclose(backward(dout), autograd.grad(lambda x: anp.sum(dout * formula(x)))(X), rtol=0, atol=1e-10)


def test_it_is_odd_increasing_and_inside_the_cap():
    x = np.linspace(-10, 10, 101)
    out = soft_cap(x, cap=2.0)[0]
    assert np.array_equal(soft_cap(-x, cap=2.0)[0], -out)
    assert np.all(np.diff(out) > 0) and np.all(np.abs(out) < 2)


def test_its_slope_at_zero_is_one():
    assert soft_cap(np.zeros(3), cap=0.7)[1](np.ones(3)) == pytest.approx(1)


def test_small_scores_hardly_change():
    x = np.linspace(-3, 3, 61)                               # up to a tenth of the cap
    assert np.all(np.abs(soft_cap(x, cap=30.0)[0] - x) <= np.abs(x) ** 3 / (3 * 30.0**2) + 1e-15)


def test_the_largest_score_stays_the_largest():
    assert np.array_equal(soft_cap(X, cap=2.0)[0].argmax(-1), X.argmax(-1))


def test_far_beyond_the_cap_only_rounding_reaches_it():
    out, backward = soft_cap(np.array([3e38, -3e38], np.float32), cap=50.0)
    assert out.tolist() == [50.0, -50.0] and backward(np.ones(2, np.float32)).tolist() == [0.0, 0.0]


def test_the_checker_refuses_the_gradient_of_a_clip():
    def wrong(x):
        return soft_cap(x, cap=2.0)[0], lambda dout: dout * (np.abs(x) < 2)

    assert not check_gradients(wrong, X).passed


@pytest.mark.parity
def test_it_is_what_pytorch_computes():
    torch = pytest.importorskip("torch")
    x = torch.tensor(X, requires_grad=True)
    theirs = torch.tanh(x / 2.0) * 2.0                       # as Gemma 2 writes it
    out, backward = soft_cap(X, cap=2.0)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    theirs.backward(torch.tensor(np.cos(X)))
    np.testing.assert_allclose(backward(np.cos(X)), x.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("cap", [1e39, 1e-46])
def test_a_cap_that_the_dtype_does_not_hold_is_refused(cap):
    with pytest.raises(ValueError, match="cap: got"):
        soft_cap(np.ones(3, np.float32), cap=cap)
