"""Hidden states through a learned map: the loop written out, what the best map is, which layer teaches which, wrong backwards."""

from functools import partial

import autograd
import numpy as np
import pytest

from minitransformers.basics.linear import Linear, init_linear
from minitransformers.basics.mean_squared_error import mean_squared_error
from minitransformers.compression.hidden_state_loss import hidden_state_loss, uniform_layers
from minitransformers.foundation import check_gradients

RNG = np.random.default_rng(0)
MASK = np.array([[1, 0, 1], [1, 1, 1]], bool)
STUDENT, TEACHER = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3, 5))
PARAMS = Linear(RNG.normal(size=(4, 5)), RNG.normal(size=5))
ONE = np.float64(1)


def textbook(weight, bias, hidden, teacher, mask):
    """The mean over features of positions that count, one at a time."""
    loss, count = 0.0, 0
    for place in np.ndindex(mask.shape):
        if not mask[place]:
            continue
        for j in range(teacher.shape[-1]):
            count += 1
            mapped = bias[j]
            for i in range(hidden.shape[-1]):
                mapped = mapped + hidden[place][i] * weight[i, j]
            loss = loss + (mapped - teacher[place][j]) ** 2
    return loss / count


@pytest.mark.parametrize("mask", [MASK, None], ids=["masked", "whole"])
def test_equals_the_textbook_formula_and_its_gradients(mask):
    out, backward = hidden_state_loss(PARAMS, STUDENT, teacher=TEACHER, mask=mask)
    oracle = partial(textbook, teacher=TEACHER, mask=np.ones((2, 3), bool) if mask is None else mask)
    np.testing.assert_allclose(out, oracle(*PARAMS, STUDENT), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *args: 0.7 * oracle(*args), (0, 1, 2))(*PARAMS, STUDENT)
    (dweight, dbias), dhidden = backward(np.float64(0.7))
    for own, their in zip((dweight, dbias, dhidden), expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-12)


def test_a_map_without_a_bias_has_one_of_zeros_and_no_gradient_for_it():
    out, backward = hidden_state_loss(Linear(PARAMS.weight, None), STUDENT, teacher=TEACHER)
    expected, expected_backward = hidden_state_loss(Linear(PARAMS.weight, np.zeros(5)), STUDENT, teacher=TEACHER)
    assert out == expected
    dparams, dhidden = backward(ONE)
    assert dparams.bias is None
    np.testing.assert_array_equal(dparams.weight, expected_backward(ONE)[0].weight)
    np.testing.assert_array_equal(dhidden, expected_backward(ONE)[1])


def test_with_the_identity_as_its_map_it_is_the_mean_squared_error():
    student = RNG.normal(size=(2, 3, 5))
    out, backward = hidden_state_loss(Linear(np.eye(5), None), student, teacher=TEACHER)
    expected, expected_backward = mean_squared_error(student, TEACHER)
    np.testing.assert_allclose(out, expected, rtol=1e-14)
    np.testing.assert_allclose(backward(ONE)[1], expected_backward(ONE)[0], rtol=0, atol=1e-16)


def test_a_turned_basis_costs_nothing_once_the_map_has_learned_it():
    """What the student must know is the space that the teacher's states span, not its axes."""
    turn, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
    out, backward = hidden_state_loss(Linear(turn, None), TEACHER @ turn.T, teacher=TEACHER)
    assert out < 1e-28
    np.testing.assert_allclose(backward(ONE)[1], 0, atol=1e-14)


def test_a_narrow_student_can_be_no_nearer_than_the_teacher_s_best_plane():
    """With all freedom in student and map, what is left are the singular values beyond the student's width (Eckart and Young)."""
    rows = RNG.normal(size=(30, 5))
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    hidden, weight = left[:, :3] * values[:3], right[:3]
    out, backward = hidden_state_loss(Linear(weight, None), hidden, teacher=rows)
    np.testing.assert_allclose(out, (values[3:] ** 2).sum() / rows.size, rtol=1e-12)
    dparams, dhidden = backward(ONE)
    np.testing.assert_allclose(dparams.weight, 0, atol=1e-14)  # nothing moves any more
    np.testing.assert_allclose(dhidden, 0, atol=1e-14)
    for _ in range(20):
        nearby = Linear(weight + 0.1 * RNG.normal(size=weight.shape), None)
        assert hidden_state_loss(nearby, hidden + 0.1 * RNG.normal(size=hidden.shape), teacher=rows)[0] > out


@pytest.mark.parametrize("anything", [np.nan, np.inf, 7.0])
def test_a_position_that_does_not_count_may_hold_anything_and_does_not_dilute_the_mean(anything):
    student, teacher = (np.where(MASK[..., None], hidden, anything) for hidden in (STUDENT, TEACHER))
    out, backward = hidden_state_loss(PARAMS, student, teacher=teacher, mask=MASK)
    expected, expected_backward = hidden_state_loss(PARAMS, STUDENT[MASK], teacher=TEACHER[MASK])
    assert out == expected
    dparams, dhidden = backward(ONE)
    np.testing.assert_array_equal(dparams.weight, expected_backward(ONE)[0].weight)
    np.testing.assert_array_equal(dhidden[MASK], expected_backward(ONE)[1])
    np.testing.assert_array_equal(dhidden[~MASK], 0)


def test_two_layers_that_share_a_map_add_their_gradients_to_it():
    """Hidden states of all layers, laid side by side, are one call."""
    both, teachers = RNG.normal(size=(2, 2, 3, 4)), RNG.normal(size=(2, 2, 3, 5))
    out, backward = hidden_state_loss(PARAMS, both, teacher=teachers)
    each = [hidden_state_loss(PARAMS, h, teacher=t) for h, t in zip(both, teachers, strict=True)]
    np.testing.assert_allclose(2 * out, sum(loss for loss, _ in each), rtol=1e-14)
    dweight = sum(back(ONE)[0].weight for _, back in each)
    np.testing.assert_allclose(2 * backward(ONE)[0].weight, dweight, rtol=0, atol=1e-14)


def mapped_back_without_the_transpose(params, hidden):
    out, backward = hidden_state_loss(params, hidden, teacher=TEACHER[..., :4])
    return out, lambda dout: (backward(dout)[0], backward(dout)[1] @ np.linalg.inv(params.weight.T) @ params.weight)


def padding_in_the_count(params, hidden):
    out, backward = hidden_state_loss(params, hidden, teacher=TEACHER, mask=MASK)
    return out, lambda dout: backward(dout * 5 / 6)


def test_the_checker_refuses():
    assert not check_gradients(mapped_back_without_the_transpose, Linear(PARAMS.weight[:, :4], None), STUDENT).passed
    assert not check_gradients(padding_in_the_count, PARAMS, STUDENT).passed


@pytest.mark.parametrize(("student", "teacher"), [(1, 1), (1, 7), (3, 6), (4, 12), (6, 12), (5, 5)])
def test_uniform_layers_meet_at_both_ends_and_lie_evenly_between(student, teacher):
    layers = uniform_layers(student, teacher)
    assert layers.tolist() == [m * teacher // student for m in range(student + 1)]
    assert layers[0] == 0 and layers[-1] == teacher and len(set(np.diff(layers))) == 1


def test_counting_from_the_first_block_would_leave_the_last_one_out():
    """The same step without the embeddings at 0: layer 1 teaches layer 1, and the last of the teacher nobody."""
    shifted = 1 + np.arange(4) * (12 // 4)
    assert shifted[-1] != 12 and uniform_layers(4, 12)[1:].tolist() == (shifted + 2).tolist()


@pytest.mark.parametrize(("student", "teacher"), [(5, 12), (8, 12), (24, 12)])
def test_layers_that_do_not_divide_are_refused(student, teacher):
    with pytest.raises(ValueError, match=f"student: got {student}, wants a number of layers that divides {teacher}"):
        uniform_layers(student, teacher)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": TEACHER[..., :4]}, "teacher: got shape"),
        ({"teacher": np.where(np.arange(5) == 2, np.nan, TEACHER)}, "teacher: got NaN or infinity where a position counts"),
        ({"hidden": np.where(np.arange(4) == 2, np.inf, STUDENT)}, "hidden: got NaN or infinity"),
        ({"mask": np.zeros((2, 3), bool)}, "mask: got False everywhere, wants at least one position that counts"),
        ({"mask": MASK[:1]}, "mask: got shape"),
        ({"params": Linear(PARAMS.weight.T, PARAMS.bias)}, "params|hidden"),
    ],
    ids=range(6),
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"params": PARAMS, "hidden": STUDENT, "teacher": TEACHER, **changes}
    with pytest.raises(ValueError, match=message):
        hidden_state_loss(call.pop("params"), call.pop("hidden"), **call)


def test_float32_stays_float32():
    params = init_linear(RNG, 4, 5, bias=False)
    out, backward = hidden_state_loss(params, STUDENT.astype(np.float32), teacher=TEACHER.astype(np.float32))
    dparams, dhidden = backward(out)
    assert out.dtype == dparams.weight.dtype == dhidden.dtype == np.float32


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    fit = torch.nn.Linear(4, 5, dtype=torch.float64)
    hidden = torch.tensor(STUDENT, requires_grad=True)
    loss = torch.nn.MSELoss()(fit(hidden), torch.tensor(TEACHER))
    (0.7 * loss).backward()
    params = Linear(fit.weight.detach().numpy().T, fit.bias.detach().numpy())
    out, backward = hidden_state_loss(params, STUDENT, teacher=TEACHER)
    (dweight, dbias), dhidden = backward(np.float64(0.7))
    np.testing.assert_allclose(out, loss.item(), rtol=1e-12)
    np.testing.assert_allclose(dweight, fit.weight.grad.numpy().T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dbias, fit.bias.grad.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(dhidden, hidden.grad.numpy(), rtol=0, atol=1e-12)
