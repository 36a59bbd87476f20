"""Directions of pairs: a loop written out, its range, what it forgets, where alone it leads, wrong backwards."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.bias_mitigation.alignment_loss import alignment_loss

RNG = np.random.default_rng(0)
ONE_SIDE, OTHER = RNG.normal(size=(2, 3, 5))
ONE = np.float64(1)


def textbook(sentences, counterfactuals):
    total = 0.0
    for u, v in zip(sentences, counterfactuals, strict=True):
        a, b = u / anp.sqrt(anp.sum(u * u)), v / anp.sqrt(anp.sum(v * v))
        total = total + sum((a[i] - b[i]) ** 2 for i in range(len(a)))
    return total / len(sentences)


def test_equals_the_textbook_formula_and_its_gradients():
    out, backward = alignment_loss(ONE_SIDE, OTHER)
    np.testing.assert_allclose(out, textbook(ONE_SIDE, OTHER), rtol=0, atol=1e-12)
    expected = autograd.grad(textbook, (0, 1))(ONE_SIDE, OTHER)
    for own, theirs in zip(backward(np.float64(0.7)), expected, strict=True):
        np.testing.assert_allclose(own, 0.7 * theirs, rtol=0, atol=1e-12)


def test_it_runs_from_0_to_4():
    assert abs(alignment_loss(ONE_SIDE, 3 * ONE_SIDE)[0]) < 1e-30
    np.testing.assert_allclose(alignment_loss(ONE_SIDE, -ONE_SIDE)[0], 4, rtol=1e-14)
    np.testing.assert_allclose(alignment_loss(np.eye(2, 4), np.eye(2, 4)[:, ::-1])[0], 2, rtol=1e-14)


def test_lengths_are_forgotten_and_no_gradient_points_along_a_vector():
    out, backward = alignment_loss(ONE_SIDE * [[2], [3], [0.1]], OTHER)
    np.testing.assert_allclose(out, alignment_loss(ONE_SIDE, OTHER)[0], rtol=1e-13)
    for side, gradient in zip((ONE_SIDE, OTHER), backward(ONE), strict=True):
        np.testing.assert_allclose((side * gradient).sum(axis=-1), 0, atol=1e-14)


def test_it_takes_no_side():
    out, backward = alignment_loss(ONE_SIDE, OTHER)
    other, other_backward = alignment_loss(OTHER, ONE_SIDE)
    assert out == other
    for own, theirs in zip(backward(ONE), other_backward(ONE)[::-1], strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_alone_it_is_smallest_where_all_vectors_are_one():
    """Then nothing can be told from anything: something has to keep sentences apart."""
    assert alignment_loss(np.ones((4, 5)), np.ones((4, 5)))[0] == 0


def test_adding_pairs_changes_the_mean_only():
    parts = [alignment_loss(ONE_SIDE[i : i + 1], OTHER[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(alignment_loss(ONE_SIDE, OTHER)[0], np.mean(parts), rtol=1e-14)


def of_a_frozen_side(sentences, counterfactuals):
    out, backward = alignment_loss(sentences, counterfactuals)
    return out, lambda dout: (backward(dout)[0], np.zeros_like(counterfactuals))


def with_the_part_along(sentences, counterfactuals):
    """The lengths' own gradients forgotten."""
    out, _ = alignment_loss(sentences, counterfactuals)
    length, other = (np.linalg.norm(side, axis=-1, keepdims=True) for side in (sentences, counterfactuals))
    apart = sentences / length - counterfactuals / other
    return out, lambda dout: (2 / 3 * dout * apart / length, -2 / 3 * dout * apart / other)


@pytest.mark.parametrize("wrong", [of_a_frozen_side, with_the_part_along])
def test_the_checker_refuses(wrong):
    assert not check_gradients(wrong, ONE_SIDE, OTHER).passed


def test_a_vector_without_direction_is_refused_by_its_pair():
    with pytest.raises(ValueError, match="counterfactuals: got a vector of length 0 in pair 1"):
        alignment_loss(ONE_SIDE, OTHER * [[1], [0], [1]])


@pytest.mark.parity
def test_parity_with_torch():
    """As in the code of Wang and Isola, on normalised vectors: the squared norm of the difference, and its mean."""
    torch = pytest.importorskip("torch")
    u, v = torch.tensor(ONE_SIDE, requires_grad=True), torch.tensor(OTHER, requires_grad=True)
    a, b = torch.nn.functional.normalize(u, dim=1), torch.nn.functional.normalize(v, dim=1)
    loss = (a - b).norm(p=2, dim=1).pow(2).mean()
    loss.backward()
    out, backward = alignment_loss(ONE_SIDE, OTHER)
    np.testing.assert_allclose(out, loss.item(), rtol=0, atol=1e-12)
    for own, theirs in zip(backward(ONE), (u, v), strict=True):
        np.testing.assert_allclose(own, theirs.grad.numpy(), rtol=0, atol=1e-12)
