"""A layer that is nothing forward and a change of sign backward."""

import math
from itertools import pairwise

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.bias_mitigation.gradient_reversal import gradient_reversal, reversal_strength

RNG = np.random.default_rng(0)
X, DOUT = RNG.normal(size=(2, 3, 5)), RNG.normal(size=(2, 3, 5))


def test_forward_it_is_the_identity_to_the_last_bit():
    np.testing.assert_array_equal(gradient_reversal(X, strength=0.7)[0], X)


def test_backward_it_is_the_gradient_of_minus_strength_x():
    expected = autograd.grad(lambda x: anp.sum(DOUT * -0.7 * x))(X)
    np.testing.assert_allclose(gradient_reversal(X, strength=0.7)[1](DOUT), expected, rtol=0, atol=1e-15)


def test_it_is_not_the_gradient_of_its_own_forward():
    report = check_gradients(lambda x: gradient_reversal(x, strength=0.7), X)
    assert not report.passed
    assert check_gradients(lambda x: gradient_reversal(x, strength=0.7), X, gradient_of=lambda x: lambda new: -0.7 * new).passed


def test_at_strength_0_nothing_gets_past():
    assert not gradient_reversal(X, strength=0.0)[1](DOUT).any()


def test_two_in_a_row_turn_it_back():
    out, first = gradient_reversal(X, strength=0.5)
    _, second = gradient_reversal(out, strength=2.0)
    np.testing.assert_array_equal(first(second(DOUT)), DOUT)


def without_the_sign(x):
    return x, lambda dout: 0.7 * dout


def in_the_forward(x):
    """The sign put into the forward: then it is a plain product, and what stands behind it sees -x."""
    return -0.7 * x, lambda dout: -0.7 * dout


def test_the_checker_refuses_a_lost_sign_and_the_forward_shows_a_misplaced_one():
    assert not check_gradients(without_the_sign, X, gradient_of=lambda x: lambda new: -0.7 * new).passed
    assert check_gradients(in_the_forward, X).passed and np.abs(in_the_forward(X)[0] - X).max() > 1


def test_the_strength_grows_from_0_to_nearly_1():
    values = [reversal_strength(p) for p in np.linspace(0, 1, 11)]
    assert values[0] == 0 and 0.9999 < values[-1] < 1
    assert all(a < b for a, b in pairwise(values))


def test_the_strength_is_that_of_the_paper():
    for progress in (0.1, 0.37, 1.0):
        np.testing.assert_allclose(reversal_strength(progress), (1 - math.exp(-10 * progress)) / (1 + math.exp(-10 * progress)), rtol=1e-14)
        np.testing.assert_allclose(reversal_strength(progress, steepness=4.0), math.tanh(2 * progress), rtol=1e-14)


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match="strength"):
        gradient_reversal(X, strength=-0.1)
    with pytest.raises(ValueError, match="progress"):
        reversal_strength(1.1)


@pytest.mark.parity
def test_parity_with_an_autograd_function_of_torch():
    torch = pytest.importorskip("torch")

    class Reversal(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, strength):
            ctx.strength = strength
            return x.view_as(x)

        @staticmethod
        def backward(ctx, dout):
            return dout.neg() * ctx.strength, None

    x = torch.tensor(X, requires_grad=True)
    theirs = Reversal.apply(x, 0.7)
    theirs.backward(torch.tensor(DOUT))
    out, backward = gradient_reversal(X, strength=0.7)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=0)
    np.testing.assert_allclose(backward(DOUT), x.grad.numpy(), rtol=0, atol=1e-15)
