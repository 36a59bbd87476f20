"""GELU: x times the probability that a standard normal number is below it, exactly or through tanh."""

import math

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from autograd.scipy.special import erf

from minitransformers.basics.gelu import gelu, gelu_exact
from minitransformers.foundation import assert_gradients, check_gradients

rng = np.random.default_rng(1)
x, dout = 2 * rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))
FORMS = {"tanh": gelu, "none": gelu_exact}  # as PyTorch calls them
both = pytest.mark.parametrize("approximate", ["tanh", "none"])


def naive(x, approximate):
    if approximate == "none":
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + anp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@both
def test_output_and_gradient_agree_with_the_textbook(approximate):
    out, backward = FORMS[approximate](x)
    np.testing.assert_allclose(out, naive(x, approximate), atol=1e-12)
    expected = autograd.grad(lambda x: anp.sum(dout * naive(x, approximate)))(x)
    np.testing.assert_allclose(backward(dout), expected, atol=1e-10)


def test_exact_form_passes_the_gradient_check():
    assert_gradients(gelu_exact, x)


def test_exact_form_has_the_digits_of_float64():
    values = np.linspace(-12, 12, 4801)
    expected = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in values])
    np.testing.assert_allclose(gelu_exact(values)[0], expected, atol=3e-16, rtol=3e-16)


def test_the_two_forms_differ_by_up_to_4_7e_4():
    values = np.linspace(-6, 6, 12_001)
    difference = np.abs(gelu_exact(values)[0] - gelu(values)[0])
    assert round(difference.max(), 5) == 4.7e-4


@both
def test_it_differs_from_its_mirror_image_by_x(approximate):
    np.testing.assert_allclose(FORMS[approximate](x)[0] - FORMS[approximate](-x)[0], x, atol=1e-14)


def test_it_is_the_mean_of_x_kept_with_the_probability_that_a_normal_number_is_below():
    """Hendrycks and Gimpel: the expectation of x times a 0-1 mask drawn with probability Phi(x)."""
    mask = rng.normal(size=(200_000, 1)) < x[0, 0]
    np.testing.assert_allclose((mask * x[0, 0]).mean(axis=0), gelu_exact(x[0, 0])[0], atol=0.02)


def test_it_is_not_monotonic():
    out, backward = gelu_exact(np.array([-3.0, -0.75, 0.0, 3.0]))
    assert out[1] < out[0] < out[2] == 0
    assert backward(np.ones(4))[2] == 0.5


@both
@pytest.mark.parametrize("size", [32_767, 32_768, 32_769, 70_000])
def test_pieces_that_fit_the_cache_give_what_the_whole_gives(approximate, size):
    values = np.random.default_rng(size).normal(size=size)
    out, backward = FORMS[approximate](values)
    np.testing.assert_allclose(out, naive(values, approximate), atol=1e-14)
    ends = [0, 1, 32_766, -1]
    part, part_backward = FORMS[approximate](values[ends])
    np.testing.assert_allclose(out[ends], part, atol=1e-15)
    np.testing.assert_allclose(backward(np.ones(size))[ends], part_backward(np.ones(4)), atol=1e-15)


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_input_overflows(approximate, dtype):
    largest = np.finfo(dtype).max
    out, backward = FORMS[approximate](np.array([-largest, -1e4, -0.0, 0.0, 1e4, largest], dtype))
    np.testing.assert_array_equal(out, np.array([0, 0, 0, 0, 1e4, largest], dtype))
    np.testing.assert_array_equal(backward(np.ones(6, dtype)), [0, 0, 0.5, 0.5, 1, 1])


@both
def test_checker_refuses_a_gate_treated_as_a_constant(approximate):
    def constant_gate(x):
        out, _ = FORMS[approximate](x)
        return out, lambda dout: dout * out / x

    assert not check_gradients(constant_gate, x).passed


def test_checker_refuses_an_inner_derivative_without_its_three():
    def without_the_three(x):
        k, c = math.sqrt(2 / math.pi), 0.044715
        gate = 0.5 + 0.5 * np.tanh(k * x * (1 + c * x * x))
        slope = gate + x * 2 * gate * (1 - gate) * k * (1 + c * x * x)
        return x * gate, lambda dout: dout * slope

    assert not check_gradients(without_the_three, x).passed


def test_checker_refuses_the_slope_of_the_other_form():
    def mixed(x):
        return gelu(x)[0], gelu_exact(x)[1]

    assert not check_gradients(mixed, x).passed


@both
@pytest.mark.parity
def test_parity_with_pytorch(approximate):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(x, requires_grad=True)
    out, backward = FORMS[approximate](x)
    reference = torch.nn.functional.gelu(tensor, approximate=approximate)
    reference.backward(torch.tensor(dout))
    np.testing.assert_allclose(out, reference.detach(), atol=1e-9)
    np.testing.assert_allclose(backward(dout), tensor.grad, atol=1e-9)


@pytest.mark.parity
def test_the_default_is_the_one_of_gpt2():
    activations = pytest.importorskip("transformers.activations")
    torch = pytest.importorskip("torch")
    np.testing.assert_allclose(gelu(x)[0], activations.ACT2FN["gelu_new"](torch.tensor(x)), atol=1e-9)
    np.testing.assert_allclose(gelu_exact(x)[0], activations.ACT2FN["gelu"](torch.tensor(x)), atol=1e-9)
