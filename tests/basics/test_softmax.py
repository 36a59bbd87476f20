"""Softmax: the textbook formula, what makes it softmax, and the backward that all-ones dout cannot judge."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.softmax import softmax
from minitransformers.foundation import check_gradients


def textbook_softmax(row):
    total = 0.0
    for score in row:
        total = total + anp.exp(score)
    return anp.stack([anp.exp(score) / total for score in row])


def test_equals_the_textbook_formula_and_its_gradient():
    rng = np.random.default_rng(0)
    x, dout = rng.normal(size=5), rng.normal(size=5)
    weights, backward = softmax(x)
    np.testing.assert_allclose(weights, textbook_softmax(x), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda x: anp.sum(dout * textbook_softmax(x)))(x)
    np.testing.assert_allclose(backward(dout), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", [-1, -2, 0, 1, 2])
def test_works_along_any_axis(axis):
    rng = np.random.default_rng(1)
    x, dout = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))
    weights, backward = softmax(x, axis=axis)
    last, backward_last = softmax(np.moveaxis(x, axis, -1))
    np.testing.assert_allclose(weights, np.moveaxis(last, -1, axis), atol=1e-15)
    np.testing.assert_allclose(backward(dout), np.moveaxis(backward_last(np.moveaxis(dout, axis, -1)), -1, axis), atol=1e-15)
    assert check_gradients(softmax, x, axis=axis).passed


def test_weights_are_positive_and_sum_to_one():
    weights, _ = softmax(np.random.default_rng(2).normal(size=(4, 7)) * 10)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-14)


def test_adding_a_constant_changes_nothing_so_the_gradient_sums_to_zero():
    rng = np.random.default_rng(3)
    x, dout = rng.normal(size=(4, 7)), rng.normal(size=(4, 7))
    weights, backward = softmax(x)
    np.testing.assert_allclose(softmax(x + 123.0)[0], weights, rtol=1e-12)
    np.testing.assert_allclose(backward(dout).sum(-1), 0, atol=1e-15)


def test_two_scores_are_a_sigmoid_of_their_difference():
    weights, _ = softmax(np.array([2.0, 0.5]))
    np.testing.assert_allclose(weights[0], 1 / (1 + np.exp(-1.5)), rtol=1e-15)


def test_low_temperature_picks_the_largest_and_high_temperature_forgets():
    x = np.array([1.0, 3.0, 2.0])
    np.testing.assert_allclose(softmax(x / 0.01)[0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(softmax(x / 1e6)[0], np.full(3, 1 / 3), rtol=1e-5)


def test_the_jacobian_is_symmetric_and_has_no_negative_eigenvalue():
    weights, backward = softmax(np.random.default_rng(4).normal(size=5))
    jacobian = np.stack([backward(row) for row in np.eye(5)])
    np.testing.assert_allclose(jacobian, np.diag(weights) - np.outer(weights, weights), atol=1e-15)
    assert np.linalg.eigvalsh(jacobian).min() > -1e-15


def without_the_shared_term(x):
    weights, _ = softmax(x)
    return weights, lambda dout: weights * dout


def test_the_checker_refuses_a_backward_without_the_shared_term():
    report = check_gradients(without_the_shared_term, np.random.default_rng(5).normal(size=(3, 5)))
    assert not report.passed and report.error > 1e-2


def test_all_ones_dout_gives_zero_whatever_the_scores():
    _, backward = softmax(np.random.default_rng(6).normal(size=(3, 5)))
    np.testing.assert_allclose(backward(np.ones((3, 5))), 0, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_floats_stay_finite(dtype):
    big = np.finfo(dtype).max / 2
    weights, backward = softmax(np.array([big, 0, -big], dtype))
    np.testing.assert_array_equal(weights, [1, 0, 0])
    assert np.isfinite(backward(np.ones(3, dtype))).all()


def test_a_score_of_minus_infinity_gets_no_weight_and_no_gradient():
    weights, backward = softmax(np.array([1.0, -np.inf, 2.0]))
    np.testing.assert_allclose(weights, [1 / (1 + np.e), 0, np.e / (1 + np.e)], rtol=1e-15)
    assert backward(np.array([1.0, 5.0, -2.0]))[1] == 0


def test_not_a_number_goes_through_and_is_seen():
    assert np.isnan(softmax(np.array([1.0, np.nan]))[0]).all()


@pytest.mark.parametrize("axis", [-1, 0])
def test_a_single_number_has_no_axis_to_sum_over(axis):
    with pytest.raises(ValueError, match=r"^x: got shape \(\), wants at least one axis$"):
        softmax(np.array(1.0), axis=axis)


@pytest.mark.parity
@pytest.mark.parametrize("axis", [-1, 1])
def test_parity_with_torch(axis):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    x, dout = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))
    theirs_x = torch.tensor(x, requires_grad=True)
    theirs = torch.softmax(theirs_x, axis)
    theirs.backward(torch.tensor(dout))
    weights, backward = softmax(x, axis=axis)
    np.testing.assert_allclose(weights, theirs.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(backward(dout), theirs_x.grad.numpy(), atol=1e-12)
