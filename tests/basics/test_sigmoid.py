"""Sigmoid: a number between 0 and 1."""

import math

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.sigmoid import sigmoid
from minitransformers.foundation import check_gradients

rng = np.random.default_rng(1)
x, dout = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))


def test_output_and_gradient_agree_with_the_textbook():
    def naive(x):
        return anp.exp(x) / (1 + anp.exp(x))

    out, backward = sigmoid(x)
    np.testing.assert_allclose(out, naive(x), atol=1e-12)
    np.testing.assert_allclose(backward(dout), autograd.grad(lambda x: anp.sum(dout * naive(x)))(x), atol=1e-10)


def test_the_two_sides_add_up_to_one():
    np.testing.assert_allclose(sigmoid(x)[0] + sigmoid(-x)[0], 1, atol=1e-15)
    np.testing.assert_allclose(sigmoid(x)[1](dout), sigmoid(-x)[1](dout), atol=1e-15)


def test_it_is_tanh_halved_and_raised():
    np.testing.assert_allclose(sigmoid(x)[0], (1 + np.tanh(x / 2)) / 2, atol=1e-15)


def test_the_slope_is_largest_at_zero_and_is_a_quarter():
    assert sigmoid(np.zeros(1))[1](np.ones(1)) == 0.25
    assert sigmoid(x)[1](np.ones(x.shape)).max() < 0.25


@pytest.mark.parametrize("dtype, relative", [(np.float32, 1e-5), (np.float64, 1e-14)])
def test_small_outputs_keep_their_digits(dtype, relative):
    out, backward = sigmoid(np.array([-80.0, -40.0], dtype))
    expected = [math.exp(-80), math.exp(-40)]
    np.testing.assert_allclose(out, expected, rtol=relative)
    np.testing.assert_allclose(backward(np.ones(2, dtype)), expected, rtol=relative)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_input_overflows(dtype):
    largest = np.finfo(dtype).max
    out, backward = sigmoid(np.array([-np.inf, -largest, -1e4, 1e4, largest, np.inf], dtype))
    np.testing.assert_array_equal(out, [0, 0, 0, 1, 1, 1])
    assert not backward(np.ones(6, dtype)).any()


def test_checker_refuses_a_missing_factor():
    def without_the_other_side(x):
        out, _ = sigmoid(x)
        return out, lambda dout: dout * out

    assert not check_gradients(without_the_other_side, x).passed


@pytest.mark.parity
def test_parity_with_pytorch():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(x, requires_grad=True)
    out, backward = sigmoid(x)
    reference = torch.sigmoid(tensor)
    reference.backward(torch.tensor(dout))
    np.testing.assert_allclose(out, reference.detach(), atol=1e-9)
    np.testing.assert_allclose(backward(dout), tensor.grad, atol=1e-9)
