"""Directions and not lengths: the angle written out, what scaling changes, rows that have no direction, wrong backwards."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.compression.cosine_loss import cosine_loss
from minitransformers.foundation import check_gradients

MASK = np.array([[1, 0, 1], [1, 1, 1]], bool)
STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, 2, 3, 5))
ONE = np.float64(1)


def textbook(hidden, teacher, mask, reduction="mean"):
    """One minus the cosine of each pair of rows, by sums over their features."""
    loss, count = 0.0, 0
    for place in np.ndindex(mask.shape):
        if not mask[place]:
            continue
        count += 1
        products = squares = their_squares = 0.0
        for i in range(hidden.shape[-1]):
            products = products + hidden[place][i] * teacher[place][i]
            squares = squares + hidden[place][i] ** 2
            their_squares = their_squares + teacher[place][i] ** 2
        loss = loss + 1 - products / anp.sqrt(squares * their_squares)
    return loss / count if reduction == "mean" else loss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mask", [MASK, np.ones((2, 3), bool)], ids=["masked", "whole"])
def test_equals_the_textbook_formula_and_its_gradient(mask, reduction):
    out, backward = cosine_loss(STUDENT, teacher=TEACHER, mask=mask, reduction=reduction)
    oracle = partial(textbook, teacher=TEACHER, mask=mask, reduction=reduction)
    np.testing.assert_allclose(out, oracle(STUDENT), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), 0.7 * autograd.grad(oracle)(STUDENT), rtol=0, atol=1e-12)


def test_one_direction_costs_0_a_right_angle_1_the_opposite_2():
    teacher = np.array([3.0, 4.0])
    for student, expected in ((2 * teacher, 0), (np.array([-4.0, 3.0]), 1), (-teacher, 2)):
        np.testing.assert_allclose(cosine_loss(student, teacher=teacher)[0], expected, atol=1e-15)


def test_lengths_on_either_side_change_nothing_and_divide_the_gradient():
    out, backward = cosine_loss(STUDENT, teacher=TEACHER)
    longer, longer_backward = cosine_loss(8 * STUDENT, teacher=TEACHER / 4)
    assert out == longer                                     # powers of two: to the last bit
    np.testing.assert_array_equal(longer_backward(ONE), backward(ONE) / 8)


def test_the_gradient_is_at_right_angles_to_the_row():
    np.testing.assert_allclose((cosine_loss(STUDENT, teacher=TEACHER)[1](ONE) * STUDENT).sum(axis=-1), 0, atol=1e-16)


def test_nearly_equal_directions_keep_their_digits():
    """1 - cos would be 0 or a unit of rounding here; half the squared distance of the directions is right to 1e-7 of itself."""
    teacher = np.array([1.0, 0.0])
    for angle in (1e-4, 1e-8, 1e-9):
        student = np.array([np.cos(angle), np.sin(angle)])
        np.testing.assert_allclose(cosine_loss(student, teacher=teacher)[0], angle**2 / 2, rtol=1e-7)
    rng = np.random.default_rng(1)
    for _ in range(50):
        row = rng.normal(size=7)
        assert cosine_loss(row, teacher=row)[0] == 0         # and never below


@pytest.mark.parametrize("anything", [np.nan, np.inf, 0.0])
def test_a_row_that_does_not_count_may_hold_anything(anything):
    student, teacher = (np.where(MASK[..., None], hidden, anything) for hidden in (STUDENT, TEACHER))
    out, backward = cosine_loss(student, teacher=teacher, mask=MASK)
    expected, expected_backward = cosine_loss(STUDENT[MASK], teacher=TEACHER[MASK])
    assert out == expected
    np.testing.assert_array_equal(backward(ONE)[MASK], expected_backward(ONE))
    np.testing.assert_array_equal(backward(ONE)[~MASK], 0)


def test_the_sum_over_nothing_is_zero():
    out, backward = cosine_loss(STUDENT, teacher=TEACHER, mask=np.zeros((2, 3), bool), reduction="sum")
    assert out == 0
    np.testing.assert_array_equal(backward(ONE), np.zeros((2, 3, 5)))


def as_if_the_length_were_a_constant(hidden):
    out, _ = cosine_loss(hidden, teacher=TEACHER)
    goal, length = TEACHER / np.linalg.norm(TEACHER, axis=-1, keepdims=True), np.linalg.norm(hidden, axis=-1, keepdims=True)
    return out, lambda dout: -dout * goal / length / 6


def without_the_length(hidden):
    out, backward = cosine_loss(hidden, teacher=TEACHER)
    return out, lambda dout: backward(dout) * np.linalg.norm(hidden, axis=-1, keepdims=True)


@pytest.mark.parametrize("wrong", [as_if_the_length_were_a_constant, without_the_length])
def test_the_checker_refuses(wrong):
    assert not check_gradients(wrong, STUDENT).passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": STUDENT * (np.arange(3) > 0)[:, None]}, "hidden: got a row whose length is 0 or not finite"),
        ({"teacher": TEACHER * (np.arange(3) > 0)[:, None]}, "teacher: got a row whose length is 0 or not finite"),
        ({"teacher": np.where(np.arange(5) == 2, np.nan, TEACHER)}, "teacher: got a row"),
        ({"hidden": np.where(np.arange(5) == 2, np.inf, STUDENT)}, "hidden: got a row"),
        ({"teacher": TEACHER[..., :4]}, "teacher: got shape"),
        ({"mask": np.zeros((2, 3), bool)}, "mask: got False everywhere"),
        ({"mask": MASK.astype(int)}, "mask"),
    ],
    ids=range(7),
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"hidden": STUDENT, "teacher": TEACHER, **changes}
    with pytest.raises(ValueError, match=message):
        cosine_loss(call.pop("hidden"), **call)


@pytest.mark.parity
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_parity_with_torch(reduction):
    """PyTorch adds 1e-12 to each squared length, which shows in the twelfth digit."""
    torch = pytest.importorskip("torch")
    student, teacher = np.random.default_rng(10).normal(size=(2, 7, 5))
    theirs = torch.tensor(student, requires_grad=True)
    loss = torch.nn.functional.cosine_embedding_loss(theirs, torch.tensor(teacher), torch.ones(7), reduction=reduction)
    (0.7 * loss).backward()
    out, backward = cosine_loss(student, teacher=teacher, reduction=reduction)
    np.testing.assert_allclose(out, loss.item(), rtol=1e-11)
    np.testing.assert_allclose(backward(np.float64(0.7)), theirs.grad.numpy(), rtol=0, atol=1e-11)
