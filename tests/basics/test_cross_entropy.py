"""Cross-entropy: the sum over classes written out, what smoothing and ignoring must do, and two wrong backwards."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import check_gradients

TARGETS = np.array([[0, 4, -100], [2, 2, 1]])


def textbook_cross_entropy(logits, targets, ignore_index, smoothing, reduction):
    """A loop over positions and classes, with the whole smoothed target written out."""
    num_classes, loss, count = logits.shape[-1], 0.0, 0
    for position in np.ndindex(targets.shape):
        if targets[position] == ignore_index:
            continue
        count += 1
        total = anp.sum(anp.exp(logits[position]))
        for j in range(num_classes):
            target = smoothing / num_classes + (1 - smoothing) * (j == targets[position])
            loss = loss - target * anp.log(anp.exp(logits[position][j]) / total)
    return loss / count if reduction == "mean" else loss


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_equals_the_textbook_formula_and_its_gradient(smoothing, reduction):
    logits = np.random.default_rng(0).normal(size=(2, 3, 5))
    out, backward = cross_entropy(logits, targets=TARGETS, label_smoothing=smoothing, reduction=reduction)
    oracle = lambda z: textbook_cross_entropy(z, TARGETS, -100, smoothing, reduction)  # noqa: E731
    np.testing.assert_allclose(out, oracle(logits), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), 0.7 * autograd.grad(oracle)(logits), rtol=0, atol=1e-12)


def test_equals_the_log_softmax_of_the_target_class():
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(6, 5)), rng.integers(0, 5, size=6)
    log_probabilities, log_backward = log_softmax(logits)
    out, backward = cross_entropy(logits, targets=targets)
    np.testing.assert_allclose(out, -log_probabilities[np.arange(6), targets].mean(), rtol=1e-14)
    dlog = np.zeros((6, 5))
    dlog[np.arange(6), targets] = -1 / 6
    np.testing.assert_allclose(backward(np.float64(1)), log_backward(dlog), atol=1e-15)


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_number_of_classes():
    out, _ = cross_entropy(np.zeros((3, 7)), targets=np.array([0, 3, 6]))
    np.testing.assert_allclose(out, np.log(7), rtol=1e-15)


def test_the_gradient_is_belief_minus_target():
    logits = np.log(np.array([[0.7, 0.2, 0.1]]))
    _, backward = cross_entropy(logits, targets=np.array([1]))
    np.testing.assert_allclose(backward(np.float64(1)), [[0.7, 0.2 - 1, 0.1]], atol=1e-15)


def test_the_gradient_of_every_position_sums_to_zero():
    logits = np.random.default_rng(2).normal(size=(2, 3, 5))
    _, backward = cross_entropy(logits, targets=TARGETS, label_smoothing=0.1)
    np.testing.assert_allclose(backward(np.float64(1)).sum(-1), 0, atol=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_ignored_position_counts_for_nothing(reduction):
    rng = np.random.default_rng(3)
    logits, targets = rng.normal(size=(4, 5)), np.array([1, -1, 3, -1])
    out, backward = cross_entropy(logits, targets=targets, ignore_index=-1, reduction=reduction)
    kept = logits[[0, 2]]
    out_kept, backward_kept = cross_entropy(kept, targets=targets[[0, 2]], reduction=reduction)
    np.testing.assert_allclose(out, out_kept, rtol=1e-15)
    dlogits = backward(np.float64(1))
    np.testing.assert_array_equal(dlogits[[1, 3]], 0)
    np.testing.assert_allclose(dlogits[[0, 2]], backward_kept(np.float64(1)), atol=1e-16)


def test_an_ignored_position_may_name_a_real_class():
    logits = np.random.default_rng(4).normal(size=(3, 5))
    out, _ = cross_entropy(logits, targets=np.array([0, 2, 0]), ignore_index=0)
    np.testing.assert_allclose(out, cross_entropy(logits[1:2], targets=np.array([2]))[0], rtol=1e-15)


def test_the_smallest_smoothed_loss_is_the_entropy_of_the_smoothed_target():
    smoothing, num_classes = 0.1, 5
    target = smoothing / num_classes + (1 - smoothing) * np.eye(num_classes)[[2]]
    out, backward = cross_entropy(np.log(target), targets=np.array([2]), label_smoothing=smoothing)
    np.testing.assert_allclose(out, -np.sum(target * np.log(target)), rtol=1e-14)
    np.testing.assert_allclose(backward(np.float64(1)), 0, atol=1e-15)


def test_smoothing_is_linear_between_the_class_and_all_classes():
    logits = np.random.default_rng(5).normal(size=(3, 5))
    targets = np.array([0, 2, 4])
    plain, even, mixed = (cross_entropy(logits, targets=targets, label_smoothing=s)[0] for s in (0.0, 1.0, 0.3))
    np.testing.assert_allclose(mixed, 0.7 * plain + 0.3 * even, rtol=1e-14)


def test_order_of_positions_does_not_matter():
    rng = np.random.default_rng(6)
    logits, targets, order = rng.normal(size=(6, 5)), rng.integers(0, 5, size=6), rng.permutation(6)
    np.testing.assert_allclose(
        cross_entropy(logits[order], targets=targets[order])[0], cross_entropy(logits, targets=targets)[0], rtol=1e-14
    )


@pytest.mark.parametrize("ids", [np.int32, np.int64, np.uint8])
def test_ids_of_any_integer_dtype(ids):
    logits = np.random.default_rng(7).normal(size=(3, 5))
    out, _ = cross_entropy(logits, targets=np.array([0, 2, 4], ids))
    assert out == cross_entropy(logits, targets=np.array([0, 2, 4]))[0]


def test_the_loss_is_a_scalar_of_the_logits_dtype():
    for dtype in (np.float32, np.float64):
        out, backward = cross_entropy(np.zeros((3, 5), dtype), targets=np.array([0, 2, 4]), label_smoothing=0.1)
        assert out.shape == () and out.dtype == dtype and backward(out).dtype == dtype


def test_float32_scores_near_overflow():
    big = np.float32(1e38)
    out, backward = cross_entropy(np.array([[big, 0, -big]], np.float32), targets=np.array([2]))
    assert out == 2 * big
    np.testing.assert_array_equal(backward(np.float32(1)), [[1, 0, -1]])


def test_a_class_that_cannot_come_costs_nothing_and_is_infinitely_wrong():
    logits = np.array([[0.0, -np.inf, 0.0]])
    out, backward = cross_entropy(logits, targets=np.array([0]))
    np.testing.assert_allclose(out, np.log(2))
    np.testing.assert_allclose(backward(np.float64(1)), [[-0.5, 0, 0.5]])
    assert cross_entropy(logits, targets=np.array([1]))[0] == np.inf


def without_the_division_by_the_kept(logits):
    out, backward = cross_entropy(logits, targets=TARGETS)
    return out, lambda dout: 5 / 6 * backward(dout)  # 6 positions, 5 kept


def test_the_checker_names_the_factor_when_ignored_positions_are_counted():
    report = check_gradients(without_the_division_by_the_kept, np.random.default_rng(8).normal(size=(2, 3, 5)))
    assert not report.passed and "a factor 1.2 is missing" in report.worst.cause


def smoothed_without_its_share_for_the_others(logits):
    smoothing, num_classes = 0.1, logits.shape[-1]
    out, _ = cross_entropy(logits, targets=np.array([0, 2]), label_smoothing=smoothing)
    belief = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return out, lambda dout: dout / 2 * (belief - (1 - smoothing) * np.eye(num_classes)[[0, 2]])


def test_the_checker_refuses_a_smoothed_target_that_forgets_the_other_classes():
    report = check_gradients(smoothed_without_its_share_for_the_others, np.random.default_rng(9).normal(size=(2, 5)))
    assert not report.passed and "off by a number that is the same" in report.worst.cause


@pytest.mark.parity
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_parity_with_torch(smoothing, reduction):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(10)
    logits, targets = rng.normal(size=(7, 5)) * 3, rng.integers(0, 5, size=7)
    targets[3] = -100
    theirs_logits = torch.tensor(logits, requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(
        theirs_logits, torch.tensor(targets), label_smoothing=smoothing, reduction=reduction
    )
    (0.7 * theirs).backward()
    out, backward = cross_entropy(logits, targets=targets, label_smoothing=smoothing, reduction=reduction)
    np.testing.assert_allclose(out, theirs.item(), rtol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), theirs_logits.grad.numpy(), atol=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_class_weights_and_no_reduction_are_pytorchs(weighted, smoothing, reduction):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(12)
    logits, targets, weight = rng.normal(size=(2, 7, 5)), rng.integers(0, 5, size=(2, 7)), np.array([0.5, 2.0, 0.0, 1.0, 3.0])
    targets[0, 3] = -100
    theirs_logits = torch.tensor(logits, requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(
        theirs_logits.transpose(1, 2), torch.tensor(targets), weight=torch.tensor(weight) if weighted else None,
        label_smoothing=smoothing, reduction=reduction,
    )  # fmt: skip
    dout = rng.normal(size=theirs.shape)
    theirs.backward(torch.tensor(dout))
    settings = {"label_smoothing": smoothing, "reduction": reduction, "class_weight": weight if weighted else None}
    out, backward = cross_entropy(logits, targets=targets, **settings)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(backward(dout), theirs_logits.grad.numpy(), atol=1e-12)
    report = check_gradients(cross_entropy, logits, targets=targets, **settings)
    assert report.passed, str(report)


def test_equal_weights_change_nothing_in_a_mean_and_a_class_without_weight_is_not_learned():
    rng = np.random.default_rng(13)
    logits, targets = rng.normal(size=(6, 4)), np.array([0, 1, 2, 3, 1, 0])
    plain, equal = (cross_entropy(logits, targets=targets, class_weight=w)[0] for w in (None, np.full(4, 7.0)))
    np.testing.assert_allclose(equal, plain, rtol=1e-14)
    _, backward = cross_entropy(logits, targets=targets, class_weight=np.array([1.0, 0.0, 1.0, 1.0]), reduction="none")
    np.testing.assert_array_equal(np.flatnonzero(backward(np.ones(6)).any(-1)), [0, 2, 3, 5])


ANYTHING = {
    "nan": [np.nan] * 4, "inf": [np.inf] * 4, "-inf": [-np.inf] * 4, "one inf": [np.inf, 0, 0, 0], "both": [np.inf, -np.inf, 0, 1],
    "all three": [np.nan, np.inf, -np.inf, 0], "the largest": [1e308, -1e308, 1e308, -1e308],
}  # fmt: skip


@pytest.mark.parametrize("ignored", ANYTHING.values(), ids=ANYTHING)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_a_position_that_is_ignored_may_hold_anything(ignored, reduction, smoothing):
    """Without a warning, which would be an error here."""
    settings = {"label_smoothing": smoothing, "reduction": reduction}
    kept = np.random.default_rng(11).normal(size=(2, 4))
    logits, targets = np.stack([kept[0], ignored, kept[1], ignored]), np.array([2, -100, 0, -100])
    out, backward = cross_entropy(logits, targets=targets, **settings)
    out_kept, backward_kept = cross_entropy(kept, targets=targets[[0, 2]], **settings)
    assert out == out_kept
    dlogits = backward(np.ones_like(out))
    np.testing.assert_array_equal(dlogits[[0, 2]], backward_kept(np.ones_like(out)))
    np.testing.assert_array_equal(dlogits[[1, 3]], 0)


def test_the_sum_over_nothing_is_zero_whatever_is_ignored():
    out, backward = cross_entropy(np.full((2, 4), np.nan), targets=np.array([-100, -100]), reduction="sum")
    assert out == 0
    np.testing.assert_array_equal(backward(np.ones_like(out)), np.zeros((2, 4)))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_a_position_that_counts_has_a_finite_largest_logit(value):
    with pytest.raises(ValueError, match="logits: got"):
        cross_entropy(np.full((1, 4), value), targets=np.array([2]))


def test_smoothing_from_an_array_leaves_the_dtype():
    out, _ = cross_entropy(np.zeros((1, 4), np.float32), targets=np.array([2]), label_smoothing=np.linspace(0, 0.1, 2)[1])
    assert out.dtype == np.float32
