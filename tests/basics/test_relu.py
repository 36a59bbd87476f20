"""ReLU: the positive part."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.relu import relu
from minitransformers.foundation import check_gradients

rng = np.random.default_rng(1)
x, dout = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))


def test_output_and_gradient_agree_with_a_choice_by_element():
    def naive(x):
        return anp.array([element if element > 0 else 0.0 for element in x])

    out, backward = relu(x)
    np.testing.assert_allclose(out.ravel(), naive(x.ravel()), atol=1e-12)
    expected = autograd.grad(lambda x: anp.sum(dout.ravel() * naive(x)))(x.ravel())
    np.testing.assert_allclose(backward(dout).ravel(), expected, atol=1e-10)


def test_the_derivative_at_zero_is_zero():
    out, backward = relu(np.array([-1.0, -0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(out, [0, 0, 0, 1])
    np.testing.assert_array_equal(backward(np.full(4, 3.0)), [0, 0, 0, 3])


def test_twice_is_once():
    once, _ = relu(x)
    np.testing.assert_array_equal(relu(once)[0], once)


def test_positive_part_minus_that_of_the_negative_is_x():
    np.testing.assert_array_equal(relu(x)[0] - relu(-x)[0], x)


def test_scaling_by_a_positive_number_passes_through():
    np.testing.assert_allclose(relu(7 * x)[0], 7 * relu(x)[0])
    np.testing.assert_array_equal(relu(7 * x)[1](dout), relu(x)[1](dout))


def test_checker_refuses_a_backward_that_lets_everything_pass():
    assert not check_gradients(lambda x: (relu(x)[0], lambda dout: dout), x).passed


def test_largest_float32_passes():
    largest = np.finfo(np.float32).max
    out, backward = relu(np.array([-largest, largest]))
    np.testing.assert_array_equal(out, np.array([0, largest]))
    np.testing.assert_array_equal(backward(np.ones(2, np.float32)), [0, 1])


@pytest.mark.parity
def test_parity_with_pytorch():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(np.append(x, 0.0), requires_grad=True)
    out, backward = relu(tensor.detach().numpy())
    reference = torch.relu(tensor)
    reference.backward(torch.tensor(np.append(dout, 1.0)))
    np.testing.assert_allclose(out, reference.detach(), atol=1e-9)
    np.testing.assert_allclose(backward(np.append(dout, 1.0)), tensor.grad, atol=1e-9)
