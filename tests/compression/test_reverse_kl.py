"""The divergence the other way round: a loop written out, what it seeks and what it covers, what a sampled text would teach, wrong backwards."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.compression.reverse_kl import reverse_kl
from minitransformers.foundation import check_gradients
from minitransformers.models.distillation_loss import distillation_loss

TARGETS = np.array([[0, 4, -100], [2, 2, 1]])
STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, 2, 3, 5))
ONE = np.float64(1)


def softmax(logits):
    exps = anp.exp(logits - anp.max(logits))
    return exps / anp.sum(exps)


def textbook(logits, teacher, targets, *, reduction="mean"):
    """A loop over positions and classes."""
    loss, count = 0.0, 0
    for place in np.ndindex(targets.shape):
        if targets[place] == -100:
            continue
        count += 1
        q, p = softmax(logits[place]), softmax(teacher[place])
        for i in range(len(p)):
            loss = loss + q[i] * (anp.log(q[i]) - anp.log(p[i]))
    return loss / count if reduction == "mean" else loss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_the_textbook_formula_and_its_gradient(reduction):
    out, backward = reverse_kl(STUDENT, teacher=TEACHER, targets=TARGETS, reduction=reduction)
    oracle = partial(textbook, teacher=TEACHER, targets=TARGETS, reduction=reduction)
    np.testing.assert_allclose(out, oracle(STUDENT), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), 0.7 * autograd.grad(oracle)(STUDENT), rtol=0, atol=1e-12)


def test_it_is_zero_where_student_and_teacher_agree_and_positive_elsewhere():
    """A constant on all logits of a position is no difference."""
    out, backward = reverse_kl(TEACHER + np.arange(6.0).reshape(2, 3, 1), teacher=TEACHER)
    assert abs(out) < 1e-14
    np.testing.assert_allclose(backward(ONE), 0, atol=1e-14)
    for seed in range(5):
        student = np.random.default_rng(seed + 1).normal(size=STUDENT.shape)
        assert reverse_kl(student, teacher=TEACHER)[0] > 0.01


def test_it_is_the_soft_loss_with_student_and_teacher_exchanged_in_its_value_only():
    out, backward = reverse_kl(STUDENT, teacher=TEACHER)
    exchanged, exchanged_backward = distillation_loss(TEACHER, teacher=STUDENT)
    np.testing.assert_allclose(out, exchanged, rtol=1e-13)
    assert np.abs(backward(ONE) - exchanged_backward(ONE)).max() > 0.01


def test_close_to_the_teacher_the_two_directions_are_one():
    """To second order both are half the variance of the difference: they part in the third."""
    apart = []
    for step in (1e-1, 1e-2, 1e-3):
        near = TEACHER + step * STUDENT
        forth, back = distillation_loss(near, teacher=TEACHER)[0], reverse_kl(near, teacher=TEACHER)[0]
        apart.append(abs(forth - back) / back)
    assert apart[1] < 0.2 * apart[0] and apart[2] < 0.2 * apart[1]


def test_a_student_too_small_for_two_peaks_takes_one_and_the_soft_loss_takes_the_middle():
    """Students are single peaks on a line of 21 classes, teachers two: every place and width is tried."""
    line = np.arange(21.0)
    teacher = np.log(np.exp(-((line - 4) ** 2) / 4) + np.exp(-((line - 16) ** 2) / 4))[None]
    students = [(place, width) for place in line for width in (1.0, 2.0, 4.0, 8.0)]

    def best(loss):
        return min(students, key=lambda s: loss(-((line - s[0]) ** 2)[None] / (2 * s[1] ** 2), teacher=teacher)[0])

    place, width = best(reverse_kl)
    assert place in (4, 16) and width == 1
    place, width = best(distillation_loss)
    assert place == 10 and width == 8


def test_its_gradient_is_that_of_a_student_that_draws_and_is_charged_for_what_it_drew():
    """Each class c that it might draw costs log q_c - log p_c, and the gradient of log q_c is e_c - q: the mean over all draws."""
    z, v = STUDENT[0, 0], TEACHER[0, 0]
    q, p = softmax(z), softmax(v)
    mean = sum(q[c] * np.log(q[c] / p[c]) * (np.eye(5)[c] - q) for c in range(5))
    np.testing.assert_allclose(reverse_kl(z, teacher=v)[1](ONE), mean, rtol=0, atol=1e-15)
    rng = np.random.default_rng(1)
    drawn = rng.choice(5, size=20_000, p=q)
    each = np.log(q / p)[drawn, None] * (np.eye(5)[drawn] - q)
    error = each.std(axis=0) / np.sqrt(len(each))
    assert np.all(np.abs(each.mean(axis=0) - mean) < 3 * error)


def test_each_gradient_sums_to_zero_over_the_classes():
    np.testing.assert_allclose(reverse_kl(STUDENT, teacher=TEACHER)[1](ONE).sum(axis=-1), 0, atol=1e-16)


def test_a_class_that_the_student_rules_out_costs_nothing_even_where_the_teacher_does_too():
    student = np.array([[0.0, -np.inf, 0.0]])
    for teacher in (np.array([[0.0, -np.inf, 0.0]]), np.array([[1.0, 5.0, 1.0]])):
        out, backward = reverse_kl(student, teacher=teacher)
        expected = 0 if teacher[0, 1] == -np.inf else 1 - 1 + np.log((2 * np.e + np.exp(5)) / (2 * np.e))
        np.testing.assert_allclose(out, expected, atol=1e-15)
        assert backward(ONE)[0, 1] == 0 and np.isfinite(backward(ONE)).all()


def test_a_class_that_only_the_teacher_rules_out_is_refused():
    """The soft loss charges nothing for it; here it is the one thing that costs infinitely much."""
    teacher = np.array([[0.0, -np.inf, 0.0]])
    assert np.isfinite(distillation_loss(np.zeros((1, 3)), teacher=teacher)[0])
    with pytest.raises(ValueError, match="teacher: got -inf for a class that the student finds possible"):
        reverse_kl(np.zeros((1, 3)), teacher=teacher)


def test_a_class_that_has_become_too_small_for_a_float_costs_nothing():
    for dtype in (np.float32, np.float64):
        student, teacher = np.array([[0, -2000, 0]], dtype), np.array([[0, -5000, 1]], dtype)
        out, backward = reverse_kl(student, teacher=teacher)
        assert out.dtype == dtype and np.isfinite(out) and np.isfinite(backward(out)).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("anything", [np.nan, np.inf, -np.inf])
def test_a_position_that_is_ignored_may_hold_anything(anything, reduction):
    student, teacher = (np.concatenate([logits[0], np.full((1, 5), anything)]) for logits in (STUDENT, TEACHER))
    out, backward = reverse_kl(student, teacher=teacher, targets=np.array([1, -100, 3, -100]), reduction=reduction)
    kept = [0, 2]
    out_kept, backward_kept = reverse_kl(student[kept], teacher=teacher[kept], reduction=reduction)
    assert out == out_kept
    np.testing.assert_array_equal(backward(ONE)[kept], backward_kept(ONE))
    np.testing.assert_array_equal(backward(ONE)[[1, 3]], 0)


def test_labels_say_only_which_positions_count():
    whole, _ = reverse_kl(STUDENT, teacher=TEACHER)
    assert whole == reverse_kl(STUDENT, teacher=TEACHER, targets=np.ones((2, 3), int))[0]
    own, _ = reverse_kl(STUDENT, teacher=TEACHER, targets=np.array([[7, 1, 2], [3, 7, 0]]), ignore_index=7)
    assert own == reverse_kl(STUDENT, teacher=TEACHER, targets=np.array([[-100, 1, 2], [3, -100, 0]]))[0] != whole


def test_the_sum_over_nothing_is_zero():
    out, backward = reverse_kl(STUDENT, teacher=TEACHER, targets=np.full((2, 3), -100), reduction="sum")
    assert out == 0
    np.testing.assert_array_equal(backward(ONE), np.zeros((2, 3, 5)))


def of_the_soft_loss(logits):
    """Belief minus target, though the divergence has been turned round."""
    return reverse_kl(logits, teacher=TEACHER)[0], distillation_loss(logits, teacher=TEACHER)[1]


def with_the_weights_held(logits):
    """As if the student's probabilities in front of the logarithm were constants."""
    out, _ = reverse_kl(logits, teacher=TEACHER)
    return out, lambda dout: np.zeros_like(logits)


def without_the_mean(logits):
    out, _ = reverse_kl(logits, teacher=TEACHER)
    q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p = np.exp(TEACHER) / np.exp(TEACHER).sum(-1, keepdims=True)
    return out, lambda dout: dout / 6 * q * np.log(q / p)


@pytest.mark.parametrize("wrong", [of_the_soft_loss, with_the_weights_held, without_the_mean])
def test_the_checker_refuses(wrong):
    assert not check_gradients(wrong, STUDENT).passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": np.full((2, 3), -100)}, "targets: got -100 everywhere"),
        ({"targets": np.full((2, 3), 5)}, "targets: got the id 5, wants ids from 0 to 4, or -100 to ignore"),
        ({"targets": TARGETS - 1}, "targets: got the id -101"),
        ({"teacher": TEACHER[:, :, :4]}, "teacher"),
        ({"teacher": TEACHER.astype(np.float32)}, "teacher: got float32, wants float64"),
        ({"teacher": np.full((2, 3, 5), -np.inf)}, "teacher: got a position whose largest logit is not finite"),
        ({"logits": np.full((2, 3, 5), np.nan)}, "logits: got a position whose largest"),
        ({"reduction": "none"}, "reduction"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"logits": STUDENT, "teacher": TEACHER, "targets": TARGETS, **changes}
    with pytest.raises(ValueError, match=message):
        reverse_kl(call.pop("logits"), **call)


@pytest.mark.parity
@pytest.mark.parametrize("reduction", ["batchmean", "sum"])
def test_parity_with_torch(reduction):
    """kl_div(input, target) is the divergence of target from input: the student is the target, and has the gradient."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(10)
    student, teacher = 3 * rng.normal(size=(2, 7, 5))
    theirs = torch.tensor(student, requires_grad=True)
    log_q, log_p = torch.log_softmax(theirs, dim=-1), torch.log_softmax(torch.tensor(teacher), dim=-1)
    loss = torch.nn.functional.kl_div(log_p, log_q, reduction=reduction, log_target=True)
    (0.7 * loss).backward()
    out, backward = reverse_kl(student, teacher=teacher, reduction="sum" if reduction == "sum" else "mean")
    np.testing.assert_allclose(out, loss.item(), rtol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), theirs.grad.numpy(), rtol=0, atol=1e-12)
