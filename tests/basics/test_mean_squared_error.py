"""Mean squared error: the sum written out, its symmetry, and the factor that is forgotten."""

import autograd
import numpy as np
import pytest

from minitransformers.basics.mean_squared_error import mean_squared_error
from minitransformers.foundation import check_gradients


def textbook_error(prediction, target):
    total = 0.0
    for index in np.ndindex(target.shape):
        total = total + (prediction[index] - target[index]) ** 2
    return total / target.size


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 1, 3)])
def test_equals_the_textbook_formula_and_its_gradients(shape):
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=shape), rng.normal(size=shape)
    out, backward = mean_squared_error(prediction, target)
    np.testing.assert_allclose(out, textbook_error(prediction, target), rtol=1e-14)
    expected = autograd.grad(textbook_error, argnum=(0, 1))(prediction, target)
    for own, theirs in zip(backward(np.float64(0.7)), expected, strict=True):
        np.testing.assert_allclose(own, 0.7 * theirs, atol=1e-14)


def test_the_two_may_change_places():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    out, backward = mean_squared_error(a, b)
    swapped, backward_swapped = mean_squared_error(b, a)
    assert out == swapped
    np.testing.assert_array_equal(backward(np.float64(1)), backward_swapped(np.float64(1))[::-1])


def test_the_best_constant_prediction_is_the_mean_and_leaves_the_variance():
    target = np.random.default_rng(2).normal(size=(3, 4))
    constant = np.full((3, 4), target.mean())
    out, backward = mean_squared_error(constant, target)
    np.testing.assert_allclose(out, target.var(), rtol=1e-14)
    np.testing.assert_allclose(backward(np.float64(1))[0].sum(), 0, atol=1e-15)


def test_a_perfect_prediction_has_no_loss_and_no_gradient():
    target = np.random.default_rng(3).normal(size=(2, 3))
    out, backward = mean_squared_error(target.copy(), target)
    assert out == 0 and not np.any(backward(np.float64(1)))


def test_the_loss_is_a_scalar_of_the_arguments_dtype():
    for dtype in (np.float32, np.float64):
        out, _ = mean_squared_error(np.ones((2, 3), dtype), np.zeros((2, 3), dtype))
        assert out.shape == () and out.dtype == dtype and out == 1


def without_the_factor_two(prediction, target):
    out, backward = mean_squared_error(prediction, target)
    return out, lambda dout: tuple(0.5 * gradient for gradient in backward(dout))


def test_the_checker_names_the_missing_factor_two():
    rng = np.random.default_rng(4)
    report = check_gradients(without_the_factor_two, rng.normal(size=(2, 3)), rng.normal(size=(2, 3)))
    assert not report.passed and "a factor 2 is missing" in report.worst.cause


def with_the_targets_sign_forgotten(prediction, target):
    out, backward = mean_squared_error(prediction, target)
    return out, lambda dout: (backward(dout)[0], backward(dout)[0])


def test_the_checker_finds_the_sign_of_the_target():
    rng = np.random.default_rng(5)
    report = check_gradients(with_the_targets_sign_forgotten, rng.normal(size=(2, 3)), rng.normal(size=(2, 3)))
    assert not report.passed and report.worst.path == "target"


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    prediction, target = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    theirs = [torch.tensor(a, requires_grad=True) for a in (prediction, target)]
    loss = torch.nn.functional.mse_loss(*theirs)
    (0.7 * loss).backward()
    out, backward = mean_squared_error(prediction, target)
    np.testing.assert_allclose(out, loss.item(), rtol=1e-12)
    for own, tensor in zip(backward(np.float64(0.7)), theirs, strict=True):
        np.testing.assert_allclose(own, tensor.grad.numpy(), atol=1e-12)
