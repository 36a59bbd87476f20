"""Pseudo-log-likelihood: one shared token hidden at a time, with what differs in view; pairs won in a hundred."""

import difflib
import math

import numpy as np
import pytest

from minitransformers.bias_mitigation.pseudo_log_likelihood import crows_score, pseudo_log_likelihood, shared_tokens
from minitransformers.models.bert import bert, init_bert

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(3, 11, 11))
MASK = 10


def model(ids):
    """Logits from the two neighbours and the token itself: a model that sees what is not hidden."""
    left, right = np.roll(ids, 1, axis=-1), np.roll(ids, -1, axis=-1)
    return TABLE[0][left] + TABLE[1][right] + TABLE[2][ids]


def one_at_a_time(ids, places, mask_id=MASK, of=model):
    total = 0.0
    for place in places:
        hidden = [mask_id if i == place else int(token) for i, token in enumerate(ids)]
        logits = of(np.array([hidden]))[0][place].tolist()
        total += logits[ids[place]] - math.log(sum(math.exp(z) for z in logits))
    return total


SENTENCE = np.array([1, 4, 7, 7, 3, 2])


@pytest.mark.parametrize("places", [[1, 2, 4], [0], [5, 3]])
def test_it_is_the_sum_over_tokens_each_hidden_alone(places):
    own = pseudo_log_likelihood(SENTENCE, model=model, mask_id=MASK, places=np.array(places))
    np.testing.assert_allclose(own, one_at_a_time(SENTENCE, places), rtol=0, atol=1e-12)


def test_without_places_all_tokens_are_asked_for():
    own = pseudo_log_likelihood(SENTENCE, model=model, mask_id=MASK)
    np.testing.assert_allclose(own, one_at_a_time(SENTENCE, range(6)), rtol=0, atol=1e-12)


def test_the_model_is_called_once_with_all_copies():
    calls = []

    def watched(ids):
        calls.append(ids.copy())
        return model(ids)

    pseudo_log_likelihood(SENTENCE, model=watched, mask_id=MASK, places=np.array([1, 4]))
    (copies,) = calls
    assert copies.tolist() == [[1, 10, 7, 7, 3, 2], [1, 4, 7, 7, 10, 2]]


def test_a_model_without_context_gives_the_sum_of_its_log_shares():
    share = np.arange(1, 12) / 66
    own = pseudo_log_likelihood(SENTENCE, model=lambda ids: np.broadcast_to(np.log(share), (*ids.shape, 11)), mask_id=MASK)
    np.testing.assert_allclose(own, np.log(share[SENTENCE]).sum(), rtol=0, atol=1e-12)


def test_hiding_all_at_once_or_nothing_is_something_else():
    """Two plausible variants: the shared words hidden together, and none hidden, where the token gives itself away."""
    places = np.array([1, 2, 3, 4])
    own = pseudo_log_likelihood(SENTENCE, model=model, mask_id=MASK, places=places)
    together = SENTENCE.copy()
    together[places] = MASK
    for ids in (together, SENTENCE):
        logits = model(ids[None])[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert abs(own - log_p[places, SENTENCE[places]].sum()) > 1e-6  # far above rounding

    def copying(ids):
        return 50.0 * (ids[..., None] == np.arange(11))

    assert pseudo_log_likelihood(SENTENCE, model=copying, mask_id=MASK, places=places) < -100


def test_the_shared_tokens_are_those_of_difflib_without_the_ends():
    first, second = np.array([1, 5, 6, 7, 8, 9, 2]), np.array([1, 5, 3, 4, 7, 8, 9, 2])
    found = shared_tokens(first, second)
    assert found.first.tolist() == [1, 3, 4, 5] and found.second.tolist() == [1, 4, 5, 6]
    everything = shared_tokens(first, second, ends=0)
    assert everything.first.tolist() == [0, 1, 3, 4, 5, 6] and everything.second.tolist() == [0, 1, 4, 5, 6, 7]


def test_the_shared_tokens_hold_the_same_ids_in_the_same_order():
    for _ in range(50):
        first, second = (np.r_[0, RNG.integers(1, 5, size=RNG.integers(3, 9)), 0] for _ in range(2))
        try:
            found = shared_tokens(first, second)
        except ValueError:
            continue
        np.testing.assert_array_equal(first[found.first], second[found.second])
        assert (np.diff(found.first) > 0).all() and (np.diff(found.second) > 0).all()


def test_what_differs_is_seen_but_not_asked_for():
    first, second = np.array([1, 4, 5, 6, 2]), np.array([1, 9, 5, 6, 2])
    places = shared_tokens(first, second)

    def prefers_nine(ids):                                   # gives the token 9 nearly all, wherever it is
        return np.broadcast_to(np.where(np.arange(11) == 9, 20.0, 0.0), (*ids.shape, 11))

    scores = [pseudo_log_likelihood(ids, model=prefers_nine, mask_id=MASK, places=p) for ids, p in zip((first, second), places, strict=True)]
    assert scores[0] == scores[1]
    seen = [pseudo_log_likelihood(ids, model=model, mask_id=MASK, places=p) for ids, p in zip((first, second), places, strict=True)]
    assert abs(seen[0] - seen[1]) > 1e-3


def test_the_score_counts_wins_and_keeps_ties_in_the_denominator():
    found = crows_score(np.array([-1.0, -2.0, -3.0, -4.0]), np.array([-2.0, -1.0, -3.0, -5.0]))
    assert found == (50.0, 2, 1, 4)


def test_a_difference_below_the_rounding_is_a_tie():
    more, less = np.array([-1.0001, -1.0006]), np.array([-1.0004, -1.0004])
    assert crows_score(more, less) == (0.0, 0, 1, 2)         # -1.000 beside -1.000, and -1.001 beside -1.000
    assert crows_score(more, less, decimals=None) == (50.0, 1, 0, 2)


def test_exchanging_the_two_sides_gives_the_rest_less_the_ties():
    more, less = (np.round(RNG.normal(size=200), 1) for _ in range(2))
    one, other = crows_score(more, less), crows_score(less, more)
    assert one.ties == other.ties > 0
    np.testing.assert_allclose(one.score + other.score, 100 - 100 * one.ties / 200, rtol=0, atol=1e-12)


def test_rounding_is_that_of_python():
    more, less = RNG.normal(size=(2, 500)) / 50
    wins = sum(round(float(a), 3) > round(float(b), 3) for a, b in zip(more, less, strict=True))
    assert crows_score(more, less).wins == wins


def test_it_reads_a_bert():
    params = init_bert(RNG, num_layers=1, d_model=6, num_heads=2, d_hidden=8, vocabulary=11, context=7, std=0.5, dtype=np.float64)
    reader = lambda ids: bert(params, ids=ids, num_heads=2)[0].tokens  # noqa: E731
    own = pseudo_log_likelihood(SENTENCE, model=reader, mask_id=MASK, places=np.array([1, 3]))
    np.testing.assert_allclose(own, one_at_a_time(SENTENCE, [1, 3], of=reader), rtol=0, atol=1e-10)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="first: got 2 tokens shared with second, wants more than 2"):
        shared_tokens(np.array([1, 4, 2]), np.array([1, 5, 2]))
    with pytest.raises(ValueError, match=r"ids: got mask_id, 10, at a place that is asked for"):
        pseudo_log_likelihood(np.array([1, 10, 2]), model=model, mask_id=MASK)
    with pytest.raises(ValueError, match=r"mask_id: got ids from 1 to 11, wants 0 to 10"):
        pseudo_log_likelihood(SENTENCE, model=lambda ids: np.zeros((*ids.shape, 11)), mask_id=11)


@pytest.mark.parity
def test_it_is_the_score_of_the_authors_formula_with_a_published_kind_of_model():
    """One masked copy of each sentence at a time, spans by difflib over the ids as texts, sums rounded to 3 decimals."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    configuration = transformers.BertConfig(vocab_size=11, hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, initializer_range=0.7)
    theirs = transformers.BertForMaskedLM(configuration).eval().double()

    def reader(ids):
        with torch.no_grad():
            return theirs(torch.tensor(ids)).logits.numpy()

    rng, own, reference = np.random.default_rng(1), [], []
    for _ in range(12):
        first = np.r_[1, rng.integers(3, 10, size=6), 2]
        second = first.copy()
        second[rng.integers(1, 7)] = rng.integers(3, 10)
        places = shared_tokens(first, second)
        own.append([pseudo_log_likelihood(ids, model=reader, mask_id=MASK, places=p) for ids, p in zip((first, second), places, strict=True)])
        spans = difflib.SequenceMatcher(None, [str(i) for i in first], [str(i) for i in second]).get_opcodes()
        equal = [(a, b) for op, a0, a1, b0, b1 in spans if op == "equal" for a, b in zip(range(a0, a1), range(b0, b1), strict=True)]
        sums = [0.0, 0.0]
        for k in range(1, len(equal) - 1):
            for side, ids in enumerate((first, second)):
                masked = torch.tensor(ids)[None].clone()
                masked[0, equal[k][side]] = MASK
                with torch.no_grad():
                    sums[side] += torch.log_softmax(theirs(masked).logits[0, equal[k][side]], dim=0)[ids[equal[k][side]]].item()
        reference.append(sums)
    np.testing.assert_allclose(own, reference, rtol=1e-12, atol=1e-12)
    wins = sum(round(a, 3) > round(b, 3) for a, b in reference)
    assert crows_score(*np.array(own).T).score == 100 * wins / 12
