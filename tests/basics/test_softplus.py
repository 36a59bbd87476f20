"""Softplus: a smooth, positive ReLU."""

import math

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.relu import relu
from minitransformers.basics.sigmoid import sigmoid
from minitransformers.basics.softplus import softplus
from minitransformers.foundation import check_gradients

rng = np.random.default_rng(1)
x, dout = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))


def test_output_and_gradient_agree_with_the_textbook():
    def naive(x):
        return anp.log(1 + anp.exp(x))

    out, backward = softplus(x)
    np.testing.assert_allclose(out, naive(x), atol=1e-12)
    np.testing.assert_allclose(backward(dout), autograd.grad(lambda x: anp.sum(dout * naive(x)))(x), atol=1e-10)


def test_its_slope_is_the_sigmoid():
    np.testing.assert_array_equal(softplus(x)[1](np.ones(x.shape)), sigmoid(x)[0])


def test_it_differs_from_its_mirror_image_by_x():
    np.testing.assert_allclose(softplus(x)[0] - softplus(-x)[0], x, atol=1e-15)


def test_it_lies_above_relu_by_at_most_log_two():
    gap = softplus(x)[0] - relu(x)[0]
    assert gap.min() > 0
    assert gap.max() < math.log(2)
    assert softplus(np.zeros(1))[0] == math.log(2)


@pytest.mark.parametrize("dtype, relative", [(np.float32, 1e-5), (np.float64, 1e-14)])
def test_very_negative_inputs_keep_their_digits(dtype, relative):
    out, backward = softplus(np.array([-80.0, -40.0], dtype))        # log(1 + exp(-40)) as written is 0
    expected = [math.exp(-80), math.exp(-40)]
    np.testing.assert_allclose(out, expected, rtol=relative)
    np.testing.assert_allclose(backward(np.ones(2, dtype)), expected, rtol=relative)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_input_overflows(dtype):
    largest = np.finfo(dtype).max
    out, backward = softplus(np.array([-np.inf, -largest, 1e4, largest], dtype))
    np.testing.assert_array_equal(out, np.array([0, 0, 1e4, largest], dtype))
    np.testing.assert_array_equal(backward(np.ones(4, dtype)), [0, 0, 1, 1])


def test_checker_refuses_the_sigmoid_of_the_wrong_side():
    report = check_gradients(lambda x: (softplus(x)[0], lambda dout: dout * sigmoid(-x)[0]), x)
    assert not report.passed


@pytest.mark.parity
def test_parity_with_pytorch():
    torch = pytest.importorskip("torch")
    values = np.concatenate([x.ravel(), [-50.0, 19.0]])             # above 20 PyTorch returns x itself: 2e-9 away
    tensor = torch.tensor(values, requires_grad=True)
    out, backward = softplus(values)
    reference = torch.nn.functional.softplus(tensor)
    reference.backward(torch.ones(32, dtype=torch.float64))
    np.testing.assert_allclose(out, reference.detach(), atol=1e-9)
    np.testing.assert_allclose(backward(np.ones(32)), tensor.grad, atol=1e-9)
