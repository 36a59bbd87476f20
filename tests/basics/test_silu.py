"""SiLU: x times its own sigmoid."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.sigmoid import sigmoid
from minitransformers.basics.silu import silu
from minitransformers.foundation import check_gradients

rng = np.random.default_rng(1)
x, dout = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))


def test_output_and_gradient_agree_with_the_textbook():
    def naive(x):
        return x * anp.exp(x) / (1 + anp.exp(x))

    out, backward = silu(x)
    np.testing.assert_allclose(out, naive(x), atol=1e-12)
    np.testing.assert_allclose(backward(dout), autograd.grad(lambda x: anp.sum(dout * naive(x)))(x), atol=1e-10)


def test_it_differs_from_its_mirror_image_by_x():
    np.testing.assert_allclose(silu(x)[0] - silu(-x)[0], x, atol=1e-15)


def test_it_gates_x_with_its_sigmoid():
    np.testing.assert_allclose(silu(x)[0], x * sigmoid(x)[0], atol=1e-15)


def test_the_lowest_point_is_where_the_slope_is_zero():
    """Elfwing et al.: a global minimum of about -0.28 at x of about -1.28, unlike ReLU."""
    out, backward = silu(np.linspace(-8, 8, 16_001))
    lowest = np.argmin(out)
    np.testing.assert_allclose([out[lowest], np.linspace(-8, 8, 16_001)[lowest]], [-0.2785, -1.2785], atol=1e-3)
    assert abs(backward(np.ones(16_001))[lowest]) < 1e-3


def test_the_slope_rises_above_one_and_falls_below_zero():
    slope = silu(np.linspace(-8, 8, 1601))[1](np.ones(1601))
    np.testing.assert_allclose([slope.min(), slope.max()], [-0.0998, 1.0998], atol=1e-4)


@pytest.mark.parametrize("size", [32_767, 32_768, 70_000])
def test_pieces_that_fit_the_cache_give_what_the_whole_gives(size):
    values = np.random.default_rng(size).normal(size=size)
    gate = sigmoid(values)[0]
    out, backward = silu(values)
    np.testing.assert_allclose(out, values * gate, atol=1e-15)
    np.testing.assert_allclose(backward(np.ones(size)), gate + values * gate * (1 - gate), atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_input_overflows(dtype):
    largest = np.finfo(dtype).max
    out, backward = silu(np.array([-largest, -1e4, 1e4, largest], dtype))
    np.testing.assert_array_equal(out, np.array([0, 0, 1e4, largest], dtype))
    np.testing.assert_array_equal(backward(np.ones(4, dtype)), [0, 0, 1, 1])


def test_checker_refuses_a_gate_treated_as_a_constant():
    def constant_gate(x):
        return silu(x)[0], lambda dout: dout * sigmoid(x)[0]

    assert not check_gradients(constant_gate, x).passed


@pytest.mark.parity
def test_parity_with_pytorch():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(x, requires_grad=True)
    out, backward = silu(x)
    reference = torch.nn.functional.silu(tensor)
    reference.backward(torch.tensor(dout))
    np.testing.assert_allclose(out, reference.detach(), atol=1e-9)
    np.testing.assert_allclose(backward(dout), tensor.grad, atol=1e-9)
