"""Weighted cross-entropy: a weight does what so many copies of the example would."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.bias_mitigation.weighted_cross_entropy import weighted_cross_entropy

RNG = np.random.default_rng(0)
LOGITS, TARGETS, WEIGHTS = RNG.normal(size=(2, 3, 5)), np.array([[0, 4, -100], [2, 2, 1]]), RNG.uniform(0.2, 3.0, size=(2, 3))
DOUT = np.float64(0.7)


def one_by_one(logits):
    total = sum(WEIGHTS[i, j] for i in range(2) for j in range(3) if TARGETS[i, j] >= 0)
    out = 0.0
    for i in range(2):
        for j in range(3):
            if TARGETS[i, j] >= 0:
                out = out + WEIGHTS[i, j] / total * (anp.log(anp.sum(anp.exp(logits[i, j]))) - logits[i, j, TARGETS[i, j]])
    return out


def test_it_is_the_weighted_mean_and_its_gradient_is_autograd_s():
    out, backward = weighted_cross_entropy(LOGITS, targets=TARGETS, weights=WEIGHTS)
    np.testing.assert_allclose(out, one_by_one(LOGITS), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(DOUT), DOUT * autograd.grad(one_by_one)(LOGITS), rtol=0, atol=1e-12)


def test_whole_weights_are_copies():
    logits, targets, copies = RNG.normal(size=(4, 3)), np.array([0, 2, 1, 1]), np.array([1, 3, 2, 0])
    out, backward = weighted_cross_entropy(logits, targets=targets, weights=copies.astype(float))
    index = np.repeat(np.arange(4), copies)
    other, other_backward = cross_entropy(logits[index], targets=targets[index])
    np.testing.assert_allclose(out, other, rtol=0, atol=1e-14)
    summed = np.zeros_like(logits)
    np.add.at(summed, index, other_backward(DOUT))
    np.testing.assert_allclose(backward(DOUT), summed, rtol=0, atol=1e-14)


def test_equal_weights_are_no_weights_and_their_size_does_not_matter():
    plain, plain_backward = cross_entropy(LOGITS, targets=TARGETS)
    for size in (1.0, 12.5):
        out, backward = weighted_cross_entropy(LOGITS, targets=TARGETS, weights=np.full((2, 3), size))
        np.testing.assert_allclose(out, plain, rtol=0, atol=1e-14)
        np.testing.assert_allclose(backward(DOUT), plain_backward(DOUT), rtol=0, atol=1e-14)


def test_a_weight_by_class_is_cross_entropy_s_own():
    each = RNG.uniform(0.2, 3.0, size=5)
    kept = np.where(TARGETS < 0, 1.0, each[np.maximum(TARGETS, 0)])
    out, backward = weighted_cross_entropy(LOGITS, targets=TARGETS, weights=kept)
    other, other_backward = cross_entropy(LOGITS, targets=TARGETS, class_weight=each)
    np.testing.assert_allclose(out, other, rtol=0, atol=1e-14)
    np.testing.assert_allclose(backward(DOUT), other_backward(DOUT), rtol=0, atol=1e-14)


def test_an_example_of_weight_zero_or_ignored_gets_exactly_no_gradient():
    weights = WEIGHTS.copy()
    weights[1, 0] = 0
    dlogits = weighted_cross_entropy(LOGITS, targets=TARGETS, weights=weights)[1](DOUT)
    assert (dlogits[1, 0] == 0).all() and (dlogits[0, 2] == 0).all() and (dlogits[0, 0] != 0).all()


def test_the_weight_of_an_ignored_example_does_not_count():
    heavy = WEIGHTS.copy()
    heavy[0, 2] = 1e6
    assert weighted_cross_entropy(LOGITS, targets=TARGETS, weights=heavy)[0] == weighted_cross_entropy(LOGITS, targets=TARGETS, weights=WEIGHTS)[0]


@pytest.mark.parametrize("ignored", [3, -1])
def test_another_id_may_be_the_one_to_ignore(ignored):
    out, backward = weighted_cross_entropy(LOGITS, targets=np.where(TARGETS < 0, ignored, TARGETS), weights=WEIGHTS, ignore_index=ignored)
    other, other_backward = weighted_cross_entropy(LOGITS, targets=TARGETS, weights=WEIGHTS)
    assert out == other
    np.testing.assert_array_equal(backward(DOUT), other_backward(DOUT))


@pytest.mark.parametrize("forgotten", ["the weights", "their sum"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(logits):
        out, backward = weighted_cross_entropy(logits, targets=TARGETS, weights=WEIGHTS)
        total = WEIGHTS[TARGETS >= 0].sum()
        return out, cross_entropy(logits, targets=TARGETS)[1] if forgotten == "the weights" else lambda dout: total * backward(dout)

    assert not check_gradients(wrong, LOGITS).passed


def test_no_weight_at_all_is_refused():
    with pytest.raises(ValueError, match="weights: got 0 for all examples that are not ignored"):
        weighted_cross_entropy(LOGITS, targets=TARGETS, weights=(TARGETS < 0).astype(float))


@pytest.mark.parity
def test_it_is_torch_s_loss_of_each_example_times_its_weight():
    torch = pytest.importorskip("torch")
    logits = torch.tensor(LOGITS.reshape(-1, 5), requires_grad=True)
    kept, weights = torch.tensor(TARGETS.ravel() >= 0), torch.tensor(WEIGHTS.ravel())
    each = torch.nn.functional.cross_entropy(logits, torch.tensor(TARGETS.ravel()), reduction="none")
    loss = (weights * each).sum() / weights[kept].sum()
    loss.backward()
    out, backward = weighted_cross_entropy(LOGITS, targets=TARGETS, weights=WEIGHTS)
    np.testing.assert_allclose(out, loss.item(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(1)).reshape(-1, 5), logits.grad.numpy(), rtol=0, atol=1e-12)
