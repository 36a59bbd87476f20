"""Cross-entropy against a distribution: the sum written out, what it shares with the loss of one class, a wrong backward."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.soft_cross_entropy import soft_cross_entropy
from minitransformers.foundation import check_gradients


def case(seed=0, shape=(2, 3), num_classes=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*shape, num_classes)), rng.dirichlet(np.ones(num_classes), size=shape)


def textbook(logits, targets, reduction):
    """A loop over positions and classes."""
    losses = []
    for position in np.ndindex(logits.shape[:-1]):
        total = anp.sum(anp.exp(logits[position]))
        losses.append(sum(-targets[position][j] * anp.log(anp.exp(logits[position][j]) / total) for j in range(logits.shape[-1])))
    if reduction == "none":
        return anp.reshape(anp.stack(losses), logits.shape[:-1])
    return sum(losses) / len(losses) if reduction == "mean" else sum(losses)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(reduction):
    logits, targets = case()
    targets = 1.5 * targets                                  # rows need not sum to one
    out, backward = soft_cross_entropy(logits, targets, reduction=reduction)
    dout = np.random.default_rng(1).normal(size=np.shape(out))
    np.testing.assert_allclose(out, textbook(logits, targets, reduction), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, reduction)), (0, 1))(logits, targets)
    for own, theirs in zip(backward(np.asarray(dout)[()]), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_one_class_is_a_distribution_too(smoothing, reduction):
    logits, _ = case()
    classes = np.array([[0, 4, 3], [2, 2, 1]])
    targets = (1 - smoothing) * np.eye(5)[classes] + smoothing / 5
    soft, soft_backward = soft_cross_entropy(logits, targets, reduction=reduction)
    hard, hard_backward = cross_entropy(logits, targets=classes, label_smoothing=smoothing, reduction=reduction)
    np.testing.assert_allclose(soft, hard, rtol=1e-13)
    np.testing.assert_allclose(soft_backward(np.ones_like(soft))[0], hard_backward(np.ones_like(hard)), rtol=0, atol=1e-14)


def test_a_target_times_class_weights_is_a_weighted_class():
    logits, _ = case()
    classes, each = np.array([[0, 4, 3], [2, 2, 1]]), np.array([1.0, 0.0, 2.0, 0.5, 3.0])
    soft = soft_cross_entropy(logits, each * np.eye(5)[classes], reduction="sum")[0]
    np.testing.assert_allclose(soft, cross_entropy(logits, targets=classes, class_weight=each, reduction="sum")[0], rtol=1e-13)


def test_the_smallest_loss_is_the_entropy_of_the_target_and_there_the_gradient_is_zero():
    _, targets = case()
    out, backward = soft_cross_entropy(np.log(targets) + 7, targets)
    np.testing.assert_allclose(out, -np.sum(targets * np.log(targets)) / 6, rtol=1e-13)
    np.testing.assert_allclose(backward(np.float64(1))[0], 0, atol=1e-14)


def test_what_is_lost_above_the_entropy_is_the_divergence_of_the_two():
    logits, targets = case()
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    divergence = np.sum(targets * np.log(targets / p), axis=-1)
    entropy = -np.sum(targets * np.log(targets), axis=-1)
    np.testing.assert_allclose(soft_cross_entropy(logits, targets, reduction="none")[0] - entropy, divergence, rtol=0, atol=1e-13)


def test_an_impossible_class_that_nobody_asks_for_costs_nothing():
    logits, targets = np.array([[0.0, -np.inf, 0.0]]), np.array([[0.5, 0.0, 0.5]])
    out, backward = soft_cross_entropy(logits, targets)
    np.testing.assert_allclose(out, np.log(2))
    np.testing.assert_allclose(backward(np.float64(1))[0], [[0, 0, 0]], atol=1e-15)
    assert soft_cross_entropy(logits, np.array([[0.5, 0.5, 0.0]]))[0] == np.inf


def test_a_row_of_zeros_counts_for_nothing_in_the_sum():
    logits, targets = case()
    targets[0, 1] = 0
    out, backward = soft_cross_entropy(logits, targets, reduction="sum")
    kept = np.arange(6) != 1
    np.testing.assert_allclose(out, soft_cross_entropy(logits.reshape(6, 5)[kept], targets.reshape(6, 5)[kept], reduction="sum")[0])
    assert not backward(np.float64(1))[0][0, 1].any()


def test_the_checker_refuses_belief_minus_target_where_the_targets_do_not_sum_to_one():
    logits, targets = case()

    def wrong(logits, targets):
        out, backward = soft_cross_entropy(logits, targets)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return out, lambda dout: (dout * (p - targets) / 6, backward(dout)[1])

    assert not check_gradients(wrong, logits, 1.5 * targets).passed
    assert check_gradients(wrong, logits, targets).arguments[0].error < 1e-8  # of true distributions it is right


@pytest.mark.parity
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_is_what_pytorch_computes_for_probabilities(reduction):
    torch = pytest.importorskip("torch")
    logits, targets = case()
    tensors = [torch.tensor(a.reshape(6, 5), requires_grad=True) for a in (logits, targets)]
    theirs = torch.nn.functional.cross_entropy(*tensors, reduction=reduction)
    out, backward = soft_cross_entropy(logits, targets, reduction=reduction)
    np.testing.assert_allclose(np.reshape(out, theirs.shape), theirs.detach(), rtol=0, atol=1e-9)
    dout = np.cos(np.arange(out.size)).reshape(np.shape(out))[()]
    theirs.backward(torch.tensor(np.reshape(dout, theirs.shape)))
    for own, tensor in zip(backward(dout), tensors, strict=True):
        np.testing.assert_allclose(own.reshape(6, 5), tensor.grad, rtol=0, atol=1e-9)
