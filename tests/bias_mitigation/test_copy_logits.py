"""The copy mixture: a token is written or copied, and both ways send their gradients."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.softmax import softmax
from minitransformers.bias_mitigation.copy_logits import copy_logits

RNG = np.random.default_rng(0)
LOGITS, SCORES, GATE, DOUT = RNG.normal(size=(3, 6)), RNG.normal(size=(3, 5)), RNG.normal(size=3), RNG.normal(size=(3, 6))
SOURCE = np.array([4, 1, 4, 0, 4])
MASKS = [None, np.array([True, True, False, True, False])]


def textbook(logits, scores, gate, mask=None):
    """Probabilities, one position and one word at a time."""
    rows = []
    for t in range(3):
        p = anp.exp(logits[t]) / anp.sum(anp.exp(logits[t]))
        kept = [j for j in range(5) if mask is None or mask[j]]
        w = {j: anp.exp(scores[t, j]) / sum(anp.exp(scores[t, k]) for k in kept) for j in kept}
        g = 1 / (1 + anp.exp(-gate[t]))
        rows.append(anp.stack([anp.log(g * p[v] + (1 - g) * sum((w[j] for j in kept if SOURCE[j] == v), 0.0)) for v in range(6)]))
    return anp.stack(rows)


@pytest.mark.parametrize("mask", MASKS)
def test_it_is_the_mixture_word_by_word_and_its_gradients_are_autograd_s(mask):
    out, backward = copy_logits(LOGITS, SCORES, GATE, source=SOURCE, mask=mask)
    np.testing.assert_allclose(out, textbook(LOGITS, SCORES, GATE, mask), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *args: anp.sum(DOUT * textbook(*args, mask)), (0, 1, 2))(LOGITS, SCORES, GATE)
    for own, their in zip(backward(DOUT), expected, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


def test_probabilities_sum_to_one_so_it_is_its_own_log_softmax():
    out, _ = copy_logits(LOGITS, SCORES, GATE, source=SOURCE)
    np.testing.assert_allclose(np.exp(out).sum(-1), 1, rtol=0, atol=1e-14)
    np.testing.assert_allclose(softmax(out)[0], np.exp(out), rtol=0, atol=1e-14)
    targets = np.array([4, 2, 1])
    assert cross_entropy(out, targets=targets)[0] == pytest.approx(-out[np.arange(3), targets].mean(), abs=1e-14)


def test_an_open_gate_writes_and_a_closed_one_copies():
    write, copy = (np.exp(copy_logits(LOGITS, SCORES, np.full(3, g), source=SOURCE)[0]) for g in (800.0, -800.0))
    np.testing.assert_allclose(write, softmax(LOGITS)[0], rtol=0, atol=1e-14)
    weights = softmax(SCORES)[0]
    np.testing.assert_allclose(copy[:, 4], weights[:, [0, 2, 4]].sum(-1), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(copy[:, [2, 3, 5]], np.zeros((3, 3)))


def test_a_token_that_was_never_written_can_be_copied():
    unseen = LOGITS.copy()
    unseen[:, 4] = -1e4
    assert (np.exp(copy_logits(unseen, SCORES, GATE, source=SOURCE)[0][:, 4]) > 0.05).all()
    without = np.array([1, 1, 0, 0, 1])
    assert (copy_logits(unseen, SCORES, GATE, source=without)[0][:, 4] < -9000).all()


def test_a_place_that_is_masked_neither_gives_nor_learns():
    mask = MASKS[1]
    out, backward = copy_logits(LOGITS, SCORES, GATE, source=SOURCE, mask=mask)
    moved = SCORES + 5 * ~mask
    np.testing.assert_array_equal(copy_logits(LOGITS, moved, GATE, source=SOURCE, mask=mask)[0], out)
    assert not backward(DOUT)[1][:, ~mask].any()


def test_shares_that_exp_cannot_hold_do_not_vanish():
    """A closed gate and an unlikely word: both ways to it are far below the smallest float, and their ratio still decides."""
    logits, scores = np.array([[0.0, -900.0]]), np.array([[0.0, -901.0]])
    out, backward = copy_logits(logits, scores, np.zeros(1), source=np.array([0, 1]))
    assert out[0, 1] == pytest.approx(np.log(0.5) - 900 + np.log1p(np.exp(-1)), abs=1e-10)
    dlogits, dscores, _ = backward(np.array([[0.0, 1.0]]))
    assert dlogits[0, 1] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-10) and dscores[0, 1] == pytest.approx(1 / (1 + np.e), abs=1e-10)


def first_place_only(logits, scores, gate):
    """A plausible slip: of a token that stands in the source several times the last place gets the gradient."""
    out, backward = copy_logits(logits, scores, gate, source=SOURCE)

    def wrong(dout):
        dlogits, dscores, dgate = backward(dout)
        return dlogits, np.where(np.isin(np.arange(5), [0, 2]), 0, dscores), dgate

    return out, wrong


def without_the_gate_s_second_term(logits, scores, gate):
    out, backward = copy_logits(logits, scores, gate, source=SOURCE)
    g = 1 / (1 + np.exp(-gate))

    def wrong(dout):
        dlogits, dscores, _ = backward(dout)
        written = np.exp(np.log(g)[:, None] + np.log(softmax(logits)[0]) - out) * dout
        return dlogits, dscores, (1 - g) * written.sum(-1)

    return out, wrong


@pytest.mark.parametrize("wrong", [first_place_only, without_the_gate_s_second_term])
def test_the_checker_refuses(wrong):
    assert not check_gradients(wrong, LOGITS, SCORES, GATE).passed


@pytest.mark.parity
@pytest.mark.parametrize("mask", MASKS)
def test_it_is_a_scatter_add_in_pytorch(mask):
    torch = pytest.importorskip("torch")
    args = [torch.tensor(a, requires_grad=True) for a in (LOGITS, SCORES, GATE)]
    weights = torch.softmax(args[1] if mask is None else args[1].masked_fill(~torch.tensor(mask), -torch.inf), -1)
    g = torch.sigmoid(args[2])[:, None]
    final = (g * torch.softmax(args[0], -1)).scatter_add(1, torch.tensor(np.tile(SOURCE, (3, 1))), (1 - g) * weights).log()
    final.backward(torch.tensor(DOUT))
    out, backward = copy_logits(LOGITS, SCORES, GATE, source=SOURCE, mask=mask)
    np.testing.assert_allclose(out, final.detach().numpy(), rtol=0, atol=1e-12)
    for own, their in zip(backward(DOUT), args, strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-12)
