"""Counterfactual logit pairing: the mean distance of two logits, pulled together by equal and opposite gradients."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.bias_mitigation.logit_pairing_loss import logit_pairing_loss

RNG = np.random.default_rng(0)
LOGITS, PAIRED, DOUT = RNG.normal(size=(3, 5)), RNG.normal(size=(3, 5)), np.float64(1.3)


def one_by_one(logits, paired):
    total = 0.0
    for i in range(3):
        for j in range(5):
            total = total + anp.abs(logits[i, j] - paired[i, j])
    return 0.7 * total / 15


def test_it_is_the_mean_distance_and_its_gradients_are_autograd_s():
    out, backward = logit_pairing_loss(LOGITS, PAIRED, strength=0.7)
    np.testing.assert_allclose(out, one_by_one(LOGITS, PAIRED), rtol=0, atol=1e-14)
    for own, their in zip(backward(DOUT), autograd.grad(one_by_one, (0, 1))(LOGITS, PAIRED), strict=True):
        np.testing.assert_allclose(own, DOUT * their, rtol=0, atol=1e-14)


def test_every_pair_pulls_equally_hard_however_far_apart_it_is():
    dlogits, dpaired = logit_pairing_loss(np.array([0.1, 50.0]), np.array([0.0, -7.0]))[1](DOUT)
    assert dlogits.tolist() == [DOUT / 2, DOUT / 2] and dpaired.tolist() == [-DOUT / 2, -DOUT / 2]


def test_exchanging_sentence_and_counterfactual_changes_nothing_but_the_order_of_the_gradients():
    (one, back), (other, other_back) = logit_pairing_loss(LOGITS, PAIRED), logit_pairing_loss(PAIRED, LOGITS)
    assert one == other
    for own, their in zip(back(DOUT), other_back(DOUT)[::-1], strict=True):
        np.testing.assert_array_equal(own, their)


def test_equal_logits_cost_nothing_and_are_left_alone():
    out, backward = logit_pairing_loss(LOGITS, LOGITS.copy())
    assert out == 0 and not any(part.any() for part in backward(DOUT))


def test_a_shift_of_both_costs_nothing_but_one_of_a_single_side_does():
    np.testing.assert_allclose(logit_pairing_loss(LOGITS + 2, PAIRED + 2)[0], logit_pairing_loss(LOGITS, PAIRED)[0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(logit_pairing_loss(LOGITS + 2, LOGITS)[0], 2, rtol=0, atol=1e-14)


def test_of_strength_zero_it_is_nothing():
    out, backward = logit_pairing_loss(LOGITS, PAIRED, strength=0)
    assert out == 0 and not any(part.any() for part in backward(DOUT))


@pytest.mark.parametrize("wrong", ["one side only", "the square's", "a sum"])
def test_the_checker_refuses(wrong):
    def spoiled(logits, paired):
        out, backward = logit_pairing_loss(logits, paired, strength=0.7)

        def other(dout):
            dlogits, dpaired = backward(dout)
            if wrong == "one side only":
                return dlogits, 0 * dpaired
            return (2 * dlogits * np.abs(logits - paired),) * 2 if wrong == "the square's" else (logits.size * dlogits, logits.size * dpaired)

        return out, other

    assert not check_gradients(spoiled, LOGITS, PAIRED).passed


@pytest.mark.parity
def test_it_is_torch_s_mean_absolute_error():
    torch = pytest.importorskip("torch")
    logits, paired = torch.tensor(LOGITS, requires_grad=True), torch.tensor(PAIRED, requires_grad=True)
    loss = 0.7 * torch.nn.functional.l1_loss(logits, paired)
    loss.backward()
    out, backward = logit_pairing_loss(LOGITS, PAIRED, strength=0.7)
    np.testing.assert_allclose(out, loss.item(), rtol=0, atol=1e-12)
    for own, their in zip(backward(np.float64(1)), (logits, paired), strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-12)
