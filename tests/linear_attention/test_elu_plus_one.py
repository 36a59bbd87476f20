"""elu(x) + 1: the formula, a slope without a break, and features that stay above zero."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.linear_attention.elu_plus_one import elu_plus_one

X = 2 * np.random.default_rng(0).normal(size=(2, 3, 5))


def test_it_is_the_formula_and_its_gradient_is_autograd_s():
    def formula(x):
        return anp.where(x > 0, x, anp.exp(anp.minimum(x, 0)) - 1) + 1

    features, backward = elu_plus_one(X)
    dout = np.random.default_rng(1).normal(size=X.shape)
    np.testing.assert_allclose(features, formula(X), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(dout), autograd.grad(lambda x: anp.sum(dout * formula(x)))(X), rtol=0, atol=1e-12)


def test_value_and_slope_are_1_on_both_sides_of_zero():
    features, backward = elu_plus_one(np.array([-1e-9, 0.0, 1e-9]))
    np.testing.assert_allclose(features, 1, rtol=0, atol=1e-8)
    np.testing.assert_allclose(backward(np.ones(3)), 1, rtol=0, atol=1e-8)


def test_features_rise_and_are_above_zero_and_so_is_their_slope():
    features, backward = elu_plus_one(np.linspace(-80, 80, 161, dtype=np.float32))
    assert (features > 0).all() and (np.diff(features) > 0).all() and (backward(np.ones_like(features)) > 0).all()


def test_far_below_zero_a_feature_is_nothing_and_nothing_overflows():
    with np.errstate(over="raise", invalid="raise"):
        features, backward = elu_plus_one(np.array([-1e4, 3e38], np.float32))
    assert features.tolist() == [0, np.float32(3e38)] and backward(np.ones(2, np.float32)).tolist() == [0, 1]


def test_the_checker_refuses_the_slope_of_a_relu():
    assert not check_gradients(lambda x: (elu_plus_one(x)[0], lambda dout: dout * (x > 0)), X).passed


@pytest.mark.parity
def test_it_is_pytorch_s_elu_and_1():
    torch = pytest.importorskip("torch")
    x = torch.tensor(X, requires_grad=True)
    theirs = torch.nn.functional.elu(x) + 1
    theirs.backward(torch.tensor(np.cos(X)))
    features, backward = elu_plus_one(X)
    np.testing.assert_allclose(features, theirs.detach(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(backward(np.cos(X)), x.grad, rtol=0, atol=1e-14)
