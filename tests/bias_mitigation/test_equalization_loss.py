"""Losses that make two words, or sets of words, equally likely: loops written out, what they leave alone, wrong backwards."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.bias_mitigation.equalization_loss import equalization_loss, set_equalization_loss, squared_equalization_loss

RNG = np.random.default_rng(0)
LOGITS, MASK = RNG.normal(size=(2, 3, 7)), np.array([[1, 0, 1], [1, 1, 1]], bool)
PAIRS = np.array([[0, 1], [4, 2], [4, 6]])
SETS = (np.array([0, 3]), np.array([5]), np.array([2, 6, 1]))
ONE = np.float64(1)


def log_probs(z):
    return z - anp.log(anp.sum(anp.exp(z)))


def textbook(logits, *, squared):
    """A loop over positions and pairs, with whole log-probabilities."""
    total, count = 0.0, 0
    for place in zip(*np.nonzero(MASK), strict=True):
        log_p = log_probs(logits[place])
        for f, m in PAIRS:
            apart = log_p[f] - log_p[m]
            total, count = total + (apart**2 if squared else anp.abs(apart)), count + 1
    return total / count


def textbook_of_sets(logits):
    """A loop over positions and pairs of sets, with whole probabilities."""
    total, count = 0.0, 0
    for place in zip(*np.nonzero(MASK), strict=True):
        p = anp.exp(log_probs(logits[place]))
        logs = [anp.log(sum(p[i] for i in words)) for words in SETS]
        for g in range(len(SETS)):
            for h in range(g):
                total, count = total + (logs[g] - logs[h]) ** 2, count + 1
    return total / count


FORMS = [
    (partial(equalization_loss, pairs=PAIRS, mask=MASK), partial(textbook, squared=False)),
    (partial(squared_equalization_loss, pairs=PAIRS, mask=MASK), partial(textbook, squared=True)),
    (partial(set_equalization_loss, sets=SETS, mask=MASK), textbook_of_sets),
]
BY_NAME = {"ids": ["absolute", "squared", "sets"]}


@pytest.mark.parametrize(("loss", "oracle"), FORMS, **BY_NAME)
def test_equals_the_textbook_formula_and_its_gradient(loss, oracle):
    out, backward = loss(LOGITS)
    np.testing.assert_allclose(out, oracle(LOGITS), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(np.float64(0.7)), 0.7 * autograd.grad(oracle)(LOGITS), rtol=0, atol=1e-12)


def test_two_sets_of_one_word_are_a_squared_pair():
    for f, m in PAIRS:
        out, backward = set_equalization_loss(LOGITS, sets=(np.array([f]), np.array([m])))
        theirs, their_backward = squared_equalization_loss(LOGITS, pairs=np.array([[f, m]]))
        np.testing.assert_allclose(out, theirs, rtol=1e-14)
        np.testing.assert_allclose(backward(ONE), their_backward(ONE), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("loss", "_"), FORMS, **BY_NAME)
def test_logits_of_all_other_words_and_of_hidden_positions_have_a_gradient_of_exactly_zero(loss, _):
    words = set(np.concatenate(SETS)) if "sets" in loss.keywords else set(PAIRS.ravel())
    others = [i for i in range(7) if i not in words]
    gradient = loss(LOGITS)[1](ONE)
    assert others and not gradient[..., others].any() and not gradient[~MASK].any()


@pytest.mark.parametrize(("loss", "_"), FORMS, **BY_NAME)
def test_a_constant_on_all_logits_of_a_position_changes_nothing(loss, _):
    """The normaliser is shared: what counts is the logits' difference."""
    shifted = LOGITS + RNG.normal(size=(2, 3, 1))
    np.testing.assert_allclose(loss(shifted)[0], loss(LOGITS)[0], rtol=1e-13)
    np.testing.assert_allclose(loss(log_softmax(LOGITS)[0])[0], loss(LOGITS)[0], rtol=1e-13)


@pytest.mark.parametrize(("loss", "_"), FORMS, **BY_NAME)
def test_the_gradient_moves_no_mass_in_or_out_of_the_words(loss, _):
    np.testing.assert_allclose(loss(LOGITS)[1](ONE).sum(axis=-1), 0, atol=1e-15)


@pytest.mark.parametrize(("loss", "_"), FORMS, **BY_NAME)
def test_hidden_positions_may_hold_anything(loss, _):
    spoiled = np.where(MASK[..., None], LOGITS, np.nan)
    assert loss(spoiled)[0] == loss(LOGITS)[0]


def test_equal_words_cost_nothing_and_have_no_gradient():
    logits = np.zeros((3, 7))
    for loss in (partial(equalization_loss, pairs=PAIRS), partial(squared_equalization_loss, pairs=PAIRS)):
        out, backward = loss(logits)
        assert out == 0 and not backward(ONE).any()


def test_sets_of_equal_total_cost_nothing_though_their_words_differ():
    logits = np.log([[0.1, 0.4, 0.3, 0.2]])
    assert abs(set_equalization_loss(logits, sets=(np.array([0, 1]), np.array([2, 3])))[0]) < 1e-30


def test_the_order_within_a_pair_does_not_matter():
    for loss in (equalization_loss, squared_equalization_loss):
        out, backward = loss(LOGITS, pairs=PAIRS)
        other, other_backward = loss(LOGITS, pairs=PAIRS[:, ::-1])
        assert out == other
        np.testing.assert_array_equal(backward(ONE), other_backward(ONE))


def test_the_absolute_form_pulls_as_hard_at_a_small_distance_and_the_squared_one_does_not():
    pulls = []
    for loss in (equalization_loss, squared_equalization_loss):
        pulls.append([loss(np.array([[far, 0.0]]), pairs=np.array([[0, 1]]))[1](ONE)[0, 0] for far in (1.0, 0.01)])
    np.testing.assert_allclose(pulls, [[1, 1], [2, 0.02]], rtol=1e-15)


def descend(loss, logits, rate, steps=200):
    for _ in range(steps):
        logits = logits - rate * loss(logits)[1](ONE)
    return logits


def test_downhill_the_two_words_meet_and_the_rest_keeps_its_odds():
    start = np.log([[0.6, 0.2, 0.15, 0.05]])
    end = descend(partial(squared_equalization_loss, pairs=np.array([[0, 1]])), start, 0.1)
    p = np.exp(log_softmax(end)[0])[0]
    np.testing.assert_allclose(p[0], p[1], rtol=1e-9)
    np.testing.assert_allclose(p[2] / p[3], 3, rtol=1e-12)


def where_a_word_stands_once(logits, pairs, mask):
    """Assigned in the place of added: of a word in two pairs the second alone is kept."""
    out, _ = squared_equalization_loss(logits, pairs=pairs, mask=mask)

    def backward(dout):
        rows = logits[mask]
        apart = rows[:, pairs[:, 0]] - rows[:, pairs[:, 1]]
        drows = np.zeros_like(rows)
        drows[:, pairs[:, 0]] += dout * 2 / apart.size * apart
        drows[:, pairs[:, 1]] -= dout * 2 / apart.size * apart
        dlogits = np.zeros_like(logits)
        dlogits[mask] = drows
        return dlogits

    return out, backward


def one_sided(logits, pairs, mask):
    """Only the first word of a pair moves."""
    out, backward = equalization_loss(logits, pairs=pairs, mask=mask)
    return out, lambda dout: np.where(np.isin(np.arange(7), pairs[:, 0]), backward(dout), 0)


def through_the_softmax(logits, pairs, mask):
    """The slope with respect to log-probabilities, sent through a softmax, though the normaliser has cancelled."""
    out, backward = squared_equalization_loss(logits, pairs=pairs, mask=mask)
    return out, lambda dout: backward(dout) * np.exp(log_softmax(logits)[0])


@pytest.mark.parametrize("wrong", [where_a_word_stands_once, one_sided, through_the_softmax])
def test_the_checker_refuses(wrong):
    assert not check_gradients(wrong, LOGITS, pairs=PAIRS, mask=MASK).passed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(equalization_loss, pairs=np.array([[0, 7]])), "pairs: got the id 7, wants ids from 0 to 6"),
        (partial(equalization_loss, pairs=np.array([[0, 1], [3, 3]])), "pairs: got the id 3 on both sides of pair 1"),
        (partial(equalization_loss, pairs=PAIRS, mask=MASK & False), "mask: got False everywhere"),
        (partial(set_equalization_loss, sets=SETS[:1]), "sets: got 1 of them"),
        (partial(set_equalization_loss, sets=(SETS[0], np.array([6, 3]))), "sets: got the id 3 twice"),
        (partial(set_equalization_loss, sets=(SETS[0], np.array([], int))), r"sets\.1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(LOGITS)


@pytest.mark.parity
@pytest.mark.parametrize(("loss", "name"), [(FORMS[0][0], "absolute"), (FORMS[1][0], "squared"), (FORMS[2][0], "sets")], **BY_NAME)
def test_parity_with_torch(loss, name):
    torch = pytest.importorskip("torch")
    logits = torch.tensor(LOGITS, requires_grad=True)
    log_p = torch.log_softmax(logits, dim=-1)[torch.tensor(MASK)]
    if name == "sets":
        totals = torch.stack([torch.logsumexp(log_p[:, words], dim=-1) for words in SETS], dim=-1)
        theirs = sum(((totals[:, g] - totals[:, h]) ** 2).mean() for g in range(3) for h in range(g)) / 3
    else:
        apart = log_p[:, PAIRS[:, 0]] - log_p[:, PAIRS[:, 1]]
        theirs = apart.abs().mean() if name == "absolute" else (apart**2).mean()
    theirs.backward()
    out, backward = loss(LOGITS)
    np.testing.assert_allclose(out, theirs.item(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(ONE), logits.grad.numpy(), rtol=0, atol=1e-12)
