"""Distillation: the divergence written out, its limits on both sides of T, what a soft label says more than a hard one, two wrong backwards."""

from functools import partial
from itertools import pairwise

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.soft_cross_entropy import soft_cross_entropy
from minitransformers.foundation import check_gradients
from minitransformers.models.distillation_loss import distillation_loss

TARGETS = np.array([[0, 4, -100], [2, 2, 1]])
STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, 2, 3, 5))
SETTINGS = [{}, {"temperature": 3.0}, {"temperature": 0.5, "hard": 0.2}, {"temperature": 2.0, "hard": 0.9}, {"hard": 1.0}]


def softmax(logits):
    exps = anp.exp(logits - anp.max(logits))
    return exps / anp.sum(exps)


def textbook(logits, teacher, targets, *, temperature=1.0, hard=0.0, reduction="mean"):
    """A loop over positions, both parts written out."""
    loss, count = 0.0, 0
    for place in np.ndindex(targets.shape):
        if targets[place] == -100:
            continue
        count += 1
        p, q = softmax(teacher[place] / temperature), softmax(logits[place] / temperature)
        loss = loss + (1 - hard) * temperature**2 * anp.sum(p * anp.log(p / q)) - hard * anp.log(softmax(logits[place])[targets[place]])
    return loss / count if reduction == "mean" else loss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_the_textbook_formula_and_its_gradient(settings, reduction):
    out, backward = distillation_loss(STUDENT, teacher=TEACHER, targets=TARGETS, reduction=reduction, **settings)
    oracle = partial(textbook, teacher=TEACHER, targets=TARGETS, reduction=reduction, **settings)
    np.testing.assert_allclose(out, oracle(STUDENT), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), 0.7 * autograd.grad(oracle)(STUDENT), rtol=0, atol=1e-12)


def test_hard_labels_alone_are_cross_entropy():
    out, backward = distillation_loss(STUDENT, teacher=TEACHER, targets=TARGETS, hard=1.0, temperature=7.0)
    expected, expected_backward = cross_entropy(STUDENT, targets=TARGETS)
    np.testing.assert_allclose(out, expected, rtol=1e-14)
    np.testing.assert_allclose(backward(np.float64(1)), expected_backward(np.float64(1)), rtol=0, atol=1e-15)


def test_gemmas_form_is_cross_entropy_to_the_teacher_less_its_entropy():
    """arXiv:2408.00118: the sum over the vocabulary of - P_T log P_S. The gradient is theirs, to rounding."""
    p = np.array([[softmax(row) for row in text] for text in TEACHER])
    out, backward = distillation_loss(STUDENT, teacher=TEACHER)
    expected, expected_backward = soft_cross_entropy(STUDENT, p)
    entropy = -(p * np.log(p)).sum(axis=-1).mean()
    np.testing.assert_allclose(out, expected - entropy, rtol=1e-13)
    np.testing.assert_allclose(backward(np.float64(1)), expected_backward(np.float64(1))[0], rtol=0, atol=1e-15)


def test_it_is_zero_where_student_and_teacher_agree_and_positive_elsewhere():
    """A constant on all logits of a position is no difference."""
    out, backward = distillation_loss(TEACHER + np.arange(6.0).reshape(2, 3, 1), teacher=TEACHER, temperature=2.0)
    assert abs(out) < 1e-14
    np.testing.assert_allclose(backward(np.float64(1)), 0, atol=1e-14)
    for temperature in (0.1, 1.0, 10.0):
        assert distillation_loss(STUDENT, teacher=TEACHER, temperature=temperature)[0] > 0.01


def test_hot_distributions_match_logits():
    """T^2 keeps the gradient alive where T grows: it tends to half the mean square of the difference of centred logits."""
    centred = [logits - logits.mean(axis=-1, keepdims=True) for logits in (STUDENT, TEACHER)]
    apart = centred[0] - centred[1]
    limit, slope = (apart**2).mean(axis=-1).mean() / 2, apart / 5 / 6
    errors = []
    for temperature in (10.0, 100.0, 1000.0):
        out, backward = distillation_loss(STUDENT, teacher=TEACHER, temperature=temperature)
        errors.append((abs(out - limit), np.abs(backward(np.float64(1)) - slope).max()))
    assert errors[2][0] < 1e-3 * limit and errors[2][1] < 1e-3 * np.abs(slope).max()
    for before, after in pairwise(errors):
        assert after[0] < 0.2 * before[0] and after[1] < 0.2 * before[1]  # as 1/T


def test_cold_distributions_match_the_most_likely_class():
    """T -> 0: the teacher's largest logit is its label; without the square the gradient would be 1/T times as large."""
    temperature = 0.01
    _, backward = distillation_loss(STUDENT, teacher=TEACHER, temperature=temperature)
    picks = np.eye(5)
    expected = temperature * (picks[STUDENT.argmax(axis=-1)] - picks[TEACHER.argmax(axis=-1)]) / 6
    np.testing.assert_allclose(backward(np.float64(1)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_teachers_distribution_is_the_mean_over_the_labels_that_it_would_draw(temperature):
    """What sampled labels give on average, a distribution gives at once: the gradients are equal in expectation, class by class."""
    z, v = STUDENT[0, :1], TEACHER[0, :1]
    _, backward = distillation_loss(z, teacher=v, temperature=temperature)
    p = softmax(v[0] / temperature)
    each = [cross_entropy(z / temperature, targets=np.array([c]))[1](np.float64(1)) for c in range(5)]
    np.testing.assert_allclose(backward(np.float64(1)), temperature * sum(a * b for a, b in zip(p, each, strict=True)), rtol=0, atol=1e-15)


def test_the_mixture_is_linear_in_its_share():
    soft, hard, mixed = (distillation_loss(STUDENT, teacher=TEACHER, targets=TARGETS, hard=h, temperature=2.0)[0] for h in (0.0, 1.0, 0.3))
    np.testing.assert_allclose(mixed, 0.7 * soft + 0.3 * hard, rtol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("hard", [0.0, 0.4])
@pytest.mark.parametrize("anything", [np.nan, np.inf, -np.inf])
def test_a_position_that_is_ignored_may_hold_anything(anything, hard, reduction):
    settings = {"temperature": 2.0, "hard": hard, "reduction": reduction}
    student, teacher = (np.concatenate([logits[0], np.full((1, 5), anything)]) for logits in (STUDENT, TEACHER))
    out, backward = distillation_loss(student, teacher=teacher, targets=np.array([1, -100, 3, -100]), **settings)
    kept = [0, 2]
    out_kept, backward_kept = distillation_loss(student[kept], teacher=teacher[kept], targets=np.array([1, 3]), **settings)
    assert out == out_kept
    dlogits = backward(np.float64(1))
    np.testing.assert_array_equal(dlogits[kept], backward_kept(np.float64(1)))
    np.testing.assert_array_equal(dlogits[[1, 3]], 0)


def test_without_labels_all_positions_count_and_any_labels_are_as_good():
    whole, _ = distillation_loss(STUDENT, teacher=TEACHER)
    labelled, _ = distillation_loss(STUDENT, teacher=TEACHER, targets=np.ones((2, 3), int))
    assert whole == labelled
    own, _ = distillation_loss(STUDENT, teacher=TEACHER, targets=np.array([[7, 1, 2], [3, 7, 0]]), ignore_index=7)
    assert own == distillation_loss(STUDENT, teacher=TEACHER, targets=np.array([[-100, 1, 2], [3, -100, 0]]))[0] != whole


def test_the_sum_over_nothing_is_zero():
    out, backward = distillation_loss(STUDENT, teacher=TEACHER, targets=np.full((2, 3), -100), reduction="sum")
    assert out == 0
    np.testing.assert_array_equal(backward(np.float64(1)), np.zeros((2, 3, 5)))


def test_a_class_that_the_teacher_rules_out_costs_nothing_even_where_the_student_does_too():
    teacher, student = np.array([[0.0, -np.inf, 0.0]]), np.array([[0.0, -np.inf, 0.0]])
    out, backward = distillation_loss(student, teacher=teacher, temperature=2.0)
    assert out == 0
    np.testing.assert_allclose(backward(np.float64(1)), 0, atol=1e-16)
    out, backward = distillation_loss(np.zeros((1, 3)), teacher=teacher)
    np.testing.assert_allclose(out, np.log(1.5))
    np.testing.assert_allclose(backward(np.float64(1)), [[1 / 3 - 1 / 2, 1 / 3, 1 / 3 - 1 / 2]])
    assert distillation_loss(student, teacher=np.zeros((1, 3)))[0] == np.inf  # the student rules out what the teacher does not


def test_the_loss_is_a_scalar_of_the_logits_dtype_and_a_teacher_of_another_is_refused():
    for dtype in (np.float32, np.float64):
        out, backward = distillation_loss(STUDENT.astype(dtype), teacher=TEACHER.astype(dtype), targets=TARGETS, hard=0.5)
        assert out.shape == () and out.dtype == dtype and backward(out).dtype == dtype
    with pytest.raises(ValueError, match="teacher: got float64, wants float32"):
        distillation_loss(STUDENT.astype(np.float32), teacher=TEACHER)


def without_the_square(logits):
    out, backward = distillation_loss(logits, teacher=TEACHER, temperature=3.0)
    return out, lambda dout: backward(dout) / 3


def with_hard_labels_at_the_temperature(logits):
    settings = {"teacher": TEACHER, "targets": TARGETS, "temperature": 2.0}
    out, _ = distillation_loss(logits, hard=0.5, **settings)
    _, soft = distillation_loss(logits, **settings)
    _, hard = cross_entropy(logits / 2, targets=TARGETS)
    return out, lambda dout: 0.5 * soft(dout) + 0.5 * hard(dout)


@pytest.mark.parametrize("wrong", [without_the_square, with_hard_labels_at_the_temperature])
def test_the_checker_refuses_a_temperature_in_the_wrong_place(wrong):
    assert not check_gradients(wrong, STUDENT).passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": None, "hard": 0.1}, "targets: got None, wants a class for each position, as hard is 0.1"),
        ({"targets": np.full((2, 3), -100)}, "targets: got -100 everywhere"),
        ({"targets": np.full((2, 3), 5)}, "targets: got the id 5, wants ids from 0 to 4"),
        ({"targets": TARGETS - 1}, "targets: got the id -101"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"hard": 1.5}, "hard: got 1.5"),
        ({"teacher": TEACHER[:, :, :4]}, "teacher"),
        ({"teacher": np.full((2, 3, 5), -np.inf)}, "teacher: got a position whose largest logit is not finite"),
        ({"teacher": np.full((2, 3, 5), np.nan)}, "teacher: got a position"),
        ({"logits": np.full((2, 3, 5), np.inf)}, "logits: got a position"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    call = {"logits": STUDENT, "teacher": TEACHER, "targets": TARGETS, **changes}
    with pytest.raises(ValueError, match=message):
        distillation_loss(call.pop("logits"), **call)


@pytest.mark.parity
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_parity_with_torch(settings):
    torch = pytest.importorskip("torch")
    temperature, hard = settings.get("temperature", 1.0), settings.get("hard", 0.0)
    rng = np.random.default_rng(10)
    student, teacher, targets = 3 * rng.normal(size=(7, 5)), 3 * rng.normal(size=(7, 5)), rng.integers(0, 5, size=7)
    theirs = torch.tensor(student, requires_grad=True)
    log_softmax = partial(torch.nn.functional.log_softmax, dim=-1)
    soft = torch.nn.functional.kl_div(
        log_softmax(theirs / temperature), log_softmax(torch.tensor(teacher) / temperature), reduction="batchmean", log_target=True
    )
    loss = (1 - hard) * temperature**2 * soft + hard * torch.nn.functional.cross_entropy(theirs, torch.tensor(targets))
    (0.7 * loss).backward()
    out, backward = distillation_loss(student, teacher=teacher, targets=targets, **settings)
    np.testing.assert_allclose(out, loss.item(), rtol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), theirs.grad.numpy(), rtol=0, atol=1e-12)
