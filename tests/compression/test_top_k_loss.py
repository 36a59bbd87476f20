"""A teacher behind an interface: k probabilities and the rest in a bucket, k alone, or drawn text; the loops written out, wrong backwards."""

from functools import partial
from itertools import product

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.compression.top_k_loss import renormalised_top_k_loss, top_k_loss
from minitransformers.foundation import check_gradients
from minitransformers.models.distillation_loss import distillation_loss

TARGETS = np.array([[0, 4, -100], [2, 2, 1]])
STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, 2, 3, 5))
ONE = np.float64(1)


def softmax(logits):
    exps = anp.exp(logits - anp.max(logits, axis=-1, keepdims=True))
    return exps / anp.sum(exps, axis=-1, keepdims=True)


def listed(logits, k):
    """What an interface would say of these logits: the k likeliest classes, and their probabilities."""
    p = softmax(logits)
    ids = np.argsort(-p, axis=-1)[..., :k]
    return {"ids": ids, "probabilities": np.take_along_axis(p, ids, axis=-1)}


def textbook(logits, ids, probabilities, targets, *, bucket, reduction="mean"):
    """A loop over positions and classes."""
    loss, count = 0.0, 0
    for place in np.ndindex(targets.shape):
        if targets[place] == -100:
            continue
        count += 1
        q, p = softmax(logits[place]), dict(zip(ids[place].tolist(), probabilities[place].tolist(), strict=True))
        total = sum(p.values())
        for i, chance in p.items():
            loss = loss - chance / (1 if bucket else total) * anp.log(q[i])
        others = [q[j] for j in range(len(q)) if j not in p]
        if bucket and others:
            loss = loss - (1 - total) * anp.log(sum(others))
    return loss / count if reduction == "mean" else loss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("k", [1, 2, 4, 5])
@pytest.mark.parametrize("loss", [top_k_loss, renormalised_top_k_loss])
def test_equals_the_textbook_formula_and_its_gradient(loss, k, reduction):
    said = listed(TEACHER, k)
    out, backward = loss(STUDENT, **said, targets=TARGETS, reduction=reduction)
    oracle = partial(textbook, **said, targets=TARGETS, bucket=loss is top_k_loss, reduction=reduction)
    np.testing.assert_allclose(out, oracle(STUDENT), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), 0.7 * autograd.grad(oracle)(STUDENT), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [top_k_loss, renormalised_top_k_loss])
def test_with_every_class_listed_it_is_the_soft_loss_at_temperature_1_up_to_the_teacher_s_entropy(loss):
    out, backward = loss(STUDENT, **listed(TEACHER, 5), targets=TARGETS)
    expected, expected_backward = distillation_loss(STUDENT, teacher=TEACHER, targets=TARGETS)
    p = softmax(TEACHER)
    entropy = -(p * np.log(p)).sum(axis=-1)[TARGETS != -100].mean()
    np.testing.assert_allclose(out, expected + entropy, rtol=1e-13)
    np.testing.assert_allclose(backward(ONE), expected_backward(ONE), rtol=0, atol=1e-15)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_what_the_bucket_hides_is_at_most_what_the_soft_loss_charges(k):
    """Merging classes never makes two distributions easier to tell apart; it hides nothing where the student's tail is the teacher's."""
    said, full = listed(TEACHER, k), distillation_loss(STUDENT, teacher=TEACHER)[0]
    tail = 1 - said["probabilities"].sum(axis=-1, keepdims=True)
    merged = np.concatenate([said["probabilities"], tail], axis=-1)
    entropy = -(merged * np.log(merged)).sum(axis=-1).mean()
    assert 0 < top_k_loss(STUDENT, **said)[0] - entropy < full
    boost = np.zeros_like(TEACHER)
    np.put_along_axis(boost, said["ids"], np.array([0.3, -0.2, 0.5])[:k], axis=-1)
    alike = TEACHER + boost                                  # the listed classes differ, the others are in the same ratios
    excess = top_k_loss(alike, **said)[0] - entropy
    np.testing.assert_allclose(excess, distillation_loss(alike, teacher=TEACHER)[0], rtol=0, atol=1e-14)


def test_how_the_bucket_is_shared_costs_nothing_and_is_not_changed():
    said = listed(TEACHER, 2)
    moved = STUDENT.copy()
    others = np.setdiff1d(np.arange(5), said["ids"][0, 0])
    moved[0, 0, others] = np.roll(STUDENT[0, 0, others], 1)
    np.testing.assert_allclose(top_k_loss(moved, **said)[0], top_k_loss(STUDENT, **said)[0], rtol=1e-14)
    gradient, q = top_k_loss(STUDENT, **said)[1](ONE), softmax(STUDENT)
    ratio = (gradient / q)[0, 0, others]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)  # all of them by one factor


def test_the_bucket_is_at_rest_at_the_teacher_s_tail_and_the_renormalised_form_empties_it():
    said, q = listed(TEACHER, 2), softmax(TEACHER)
    np.testing.assert_allclose(top_k_loss(TEACHER, **said)[1](ONE), 0, atol=1e-16)
    gradient = renormalised_top_k_loss(TEACHER, **said)[1](ONE)
    beyond = np.ones((2, 3, 5), bool)
    np.put_along_axis(beyond, said["ids"], False, axis=-1)
    np.testing.assert_allclose(gradient[beyond], q[beyond] / 6, rtol=1e-14)  # pushed down, each by its own probability
    logits = {loss: TEACHER.copy() for loss in (top_k_loss, renormalised_top_k_loss)}
    for loss, z in logits.items():
        for _ in range(300):
            z -= 6 * loss(z, **said)[1](ONE)
    tails = {loss: (softmax(z) * beyond).sum(axis=-1) for loss, z in logits.items()}
    np.testing.assert_allclose(tails[top_k_loss], (q * beyond).sum(axis=-1), rtol=1e-12)
    assert np.all(tails[renormalised_top_k_loss] < 0.02) and np.all((q * beyond).sum(axis=-1) > 0.05)


def test_one_listed_class_is_a_question_of_yes_or_no():
    said = listed(TEACHER, 1)
    q, p = np.take_along_axis(softmax(STUDENT), said["ids"], axis=-1), said["probabilities"]
    np.testing.assert_allclose(top_k_loss(STUDENT, **said)[0], -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean(), rtol=1e-13)
    sure = renormalised_top_k_loss(STUDENT, **said)[0]
    np.testing.assert_allclose(sure, cross_entropy(STUDENT, targets=said["ids"][..., 0])[0], rtol=1e-14)


def test_the_order_of_the_list_does_not_matter():
    """But for the order of the sums."""
    said = listed(TEACHER, 3)
    turned = {name: np.flip(part, axis=-1) for name, part in said.items()}
    for loss in (top_k_loss, renormalised_top_k_loss):
        np.testing.assert_allclose(loss(STUDENT, **turned)[0], loss(STUDENT, **said)[0], rtol=1e-14)
        np.testing.assert_allclose(loss(STUDENT, **turned)[1](ONE), loss(STUDENT, **said)[1](ONE), rtol=0, atol=1e-15)


def test_a_sampled_label_s_gradient_is_on_average_that_of_the_soft_targets():
    """20 000 labels drawn by the teacher: no class is further from the soft gradient than three standard errors."""
    z, v = STUDENT[0, :1], TEACHER[0, :1]
    soft = top_k_loss(z, **listed(v, 5))[1](ONE)[0]
    drawn = np.random.default_rng(1).choice(5, size=20_000, p=softmax(v)[0])
    each = np.stack([cross_entropy(z, targets=np.array([c]))[1](ONE)[0] for c in range(5)])[drawn]
    error = each.std(axis=0) / np.sqrt(len(each))
    assert np.all(np.abs(each.mean(axis=0) - soft) < 3 * error) and np.all(error < 0.005)


def test_a_teacher_s_texts_teach_on_average_its_soft_targets_in_its_own_contexts():
    """All texts of three symbols over three, each with its probability: bigram tables stand for the models."""
    rng = np.random.default_rng(2)
    student, teacher = rng.normal(size=(2, 4, 3))            # row 3 is the start
    p = softmax(teacher)
    from_texts, visits = np.zeros((4, 3)), np.zeros(4)
    loss_of_texts = 0.0
    for text in product(range(3), repeat=3):
        before = [3, *text[:-1]]
        chance = np.prod(p[before, text])
        loss, backward = cross_entropy(student[before], targets=np.array(text), reduction="sum")
        loss_of_texts += chance * loss
        np.add.at(from_texts, before, chance * backward(ONE))
        np.add.at(visits, before, chance)
    soft = np.zeros((4, 3))
    loss_of_contexts = 0.0
    for context in range(4):
        loss, backward = top_k_loss(student[context], **listed(teacher[context], 3))
        soft[context] = visits[context] * backward(ONE)
        loss_of_contexts += visits[context] * loss
    np.testing.assert_allclose(loss_of_texts, loss_of_contexts, rtol=1e-13)
    np.testing.assert_allclose(from_texts, soft, rtol=0, atol=1e-14)


def test_probabilities_that_were_rounded_may_exceed_1_a_little_and_fall_short_of_it():
    said = listed(TEACHER, 5)
    for excess in (9e-7, -9e-7, 1e-16, -1e-16):
        rounded = {"ids": said["ids"], "probabilities": said["probabilities"] * (1 + excess)}
        out, backward = top_k_loss(STUDENT, **rounded)
        exact, exact_backward = top_k_loss(STUDENT, **said)
        np.testing.assert_allclose(out, exact, rtol=1e-13)
        np.testing.assert_allclose(backward(ONE), exact_backward(ONE), rtol=0, atol=1e-15)
    quarters, above = ({"ids": said["ids"][..., :4], "probabilities": np.full((2, 3, 4), p)} for p in (0.25, 0.25 * (1 + 9e-7)))
    (out, backward), (exact, exact_backward) = top_k_loss(STUDENT, **above), top_k_loss(STUDENT, **quarters)
    np.testing.assert_allclose(out, exact, rtol=1e-13)       # nothing is left for the fifth class, and nothing less than that
    np.testing.assert_allclose(backward(ONE), exact_backward(ONE), rtol=0, atol=1e-15)


def test_an_empty_tail_costs_nothing_though_the_student_rules_all_of_it_out():
    logits = np.array([[1.0, -np.inf, 0.0, -np.inf]])
    out, backward = top_k_loss(logits, ids=np.array([[0, 2]]), probabilities=np.array([[0.75, 0.25]]))
    q = softmax(np.array([1.0, 0.0]))
    np.testing.assert_allclose(out, -(0.75 * np.log(q[0]) + 0.25 * np.log(q[1])), rtol=1e-14)
    np.testing.assert_allclose(backward(ONE), [[q[0] - 0.75, 0, q[1] - 0.25, 0]], rtol=0, atol=1e-15)


def test_a_listed_class_of_probability_0_costs_nothing_though_it_be_impossible():
    logits = np.array([[1.0, -np.inf, 0.0, 0.0]])
    said = {"ids": np.array([[0, 1]]), "probabilities": np.array([[0.75, 0.0]])}
    for loss in (top_k_loss, renormalised_top_k_loss):
        out, backward = loss(logits, **said)
        assert np.isfinite(out) and backward(ONE)[0, 1] == 0
    possible = {**said, "probabilities": np.array([[0.75, 0.1]])}
    assert top_k_loss(logits, **possible)[0] == renormalised_top_k_loss(logits, **possible)[0] == np.inf


def test_a_tail_that_has_become_too_small_for_a_float_has_a_finite_loss():
    """log of the sum over the tail, where each of its probabilities is 0 as a float."""
    for dtype in (np.float32, np.float64):
        logits = np.array([[0, -2000, -2001, -3000]], dtype)
        out, backward = top_k_loss(logits, ids=np.array([[0]]), probabilities=np.array([[0.75]], dtype))
        assert out.dtype == backward(out).dtype == dtype
        np.testing.assert_allclose(out, 0.25 * (2000 - np.log(1 + np.exp(-1))), rtol=1e-6)
        np.testing.assert_allclose(backward(dtype(1))[0, 1:], [-0.25 * np.e / (1 + np.e), -0.25 / (1 + np.e), 0], rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", [top_k_loss, renormalised_top_k_loss])
def test_a_position_that_is_ignored_may_hold_anything(loss, reduction):
    said = listed(TEACHER[0], 2)
    logits = np.concatenate([STUDENT[0], np.full((1, 5), np.nan)])
    ids, probabilities = np.concatenate([said["ids"], [[9, 9]]]), np.concatenate([said["probabilities"], [[3.0, 0.0]]])
    out, backward = loss(logits, ids=ids, probabilities=probabilities, targets=np.array([1, -100, 3, -100]), reduction=reduction)
    kept = {name: part[[0, 2]] for name, part in said.items()}
    out_kept, backward_kept = loss(STUDENT[0, [0, 2]], **kept, reduction=reduction)
    assert out == out_kept
    np.testing.assert_array_equal(backward(ONE)[[0, 2]], backward_kept(ONE))
    np.testing.assert_array_equal(backward(ONE)[[1, 3]], 0)
    nothing = loss(STUDENT, **listed(TEACHER, 2), targets=np.full((2, 3), 8), ignore_index=8, reduction="sum")
    assert nothing[0] == 0 and not nothing[1](ONE).any()


def with_an_even_tail(logits):
    """The tail's mass given to all of its classes alike, whatever the student thinks."""
    said = listed(TEACHER, 2)
    out, _ = top_k_loss(logits, **said)
    t = np.repeat((1 - said["probabilities"].sum(axis=-1, keepdims=True)) / 3, 5, axis=-1)
    np.put_along_axis(t, said["ids"], said["probabilities"], axis=-1)
    return out, lambda dout: dout * (softmax(logits) - t) / 6


def without_the_tail(logits):
    out, _ = top_k_loss(logits, **listed(TEACHER, 2))
    return out, renormalised_top_k_loss(logits, **listed(TEACHER, 2))[1]


def with_less_than_one_to_give(logits):
    """The k alone, not divided by their sum: belief minus target, though the target does not sum to 1."""
    said = listed(TEACHER, 2)
    out, _ = renormalised_top_k_loss(logits, **said)
    t = np.zeros_like(logits)
    np.put_along_axis(t, said["ids"], said["probabilities"], axis=-1)
    return out, lambda dout: dout * (softmax(logits) - t) / 6


@pytest.mark.parametrize("wrong", [with_an_even_tail, without_the_tail, with_less_than_one_to_give])
def test_the_checker_refuses(wrong):
    assert not check_gradients(wrong, STUDENT).passed


SAID = listed(TEACHER, 2)


@pytest.mark.parametrize("loss", [top_k_loss, renormalised_top_k_loss])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": SAID["probabilities"] - 0.3}, "probabilities: got numbers from -"),
        ({"probabilities": np.full((2, 3, 2), 0.5 * (1 + 2e-6))}, "probabilities: got a sum of 1, wants a sum of at most 1"),
        ({"probabilities": SAID["probabilities"][..., :1]}, "probabilities: got shape"),
        ({"ids": np.full((2, 3, 2), 3)}, "ids: got a class twice at a position"),
        ({"ids": SAID["ids"] + 3}, "ids: got the id [5-7], wants ids from 0 to 4"),
        ({"ids": SAID["ids"] - 5}, "ids: got the id -"),
        ({"targets": np.full((2, 3), -100)}, "targets: got -100 everywhere"),
        ({"targets": np.full((2, 3), 5)}, "targets: got the id 5"),
        ({"logits": np.full((2, 3, 5), np.inf)}, "logits: got a position whose largest"),
    ],
    ids=range(9),
)
def test_what_does_not_fit_is_refused_by_name(loss, changes, message):
    call = {"logits": STUDENT, **SAID, **changes}
    with pytest.raises(ValueError, match=message):
        loss(call.pop("logits"), **call)


def test_a_whole_list_that_leaves_something_over_and_a_tail_that_nobody_can_have_are_refused():
    said = listed(TEACHER, 5)
    with pytest.raises(ValueError, match=r"probabilities: got a sum of 0\.9 over every class, wants a sum of 1"):
        top_k_loss(STUDENT, ids=said["ids"], probabilities=0.9 * said["probabilities"])
    with pytest.raises(ValueError, match="logits: got -inf for every class beyond the ids"):
        top_k_loss(np.array([[0.0, -np.inf, -np.inf]]), ids=np.array([[0]]), probabilities=np.array([[0.9]]))
    with pytest.raises(ValueError, match="probabilities: got 0 for all of a position"):
        renormalised_top_k_loss(STUDENT, ids=SAID["ids"], probabilities=0 * SAID["probabilities"])


@pytest.mark.parity
def test_parity_with_torch():
    """PyTorch's cross-entropy of whole target distributions, on the classes with the tail as one more."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(10)
    student, teacher = 2 * rng.normal(size=(2, 7, 6))
    said = listed(teacher, 3)
    theirs = torch.tensor(student, requires_grad=True)
    ids, p = torch.tensor(said["ids"]), torch.tensor(said["probabilities"])
    beyond = torch.ones_like(theirs, dtype=torch.bool).scatter(1, ids, False)
    rest = torch.where(beyond, theirs, -torch.inf).logsumexp(dim=-1, keepdim=True)
    merged = torch.cat([theirs.gather(1, ids), rest], dim=-1)
    for loss, expected in (
        (top_k_loss, torch.nn.functional.cross_entropy(merged, torch.cat([p, 1 - p.sum(-1, keepdim=True)], dim=-1))),
        (renormalised_top_k_loss, torch.nn.functional.cross_entropy(theirs, torch.zeros_like(theirs).scatter(1, ids, p / p.sum(-1, keepdim=True)))),
    ):
        theirs.grad = None
        (0.7 * expected).backward(retain_graph=True)
        out, backward = loss(student, **said)
        np.testing.assert_allclose(out, expected.item(), rtol=1e-12)
        np.testing.assert_allclose(backward(np.float64(0.7)), theirs.grad.numpy(), rtol=0, atol=1e-12)
