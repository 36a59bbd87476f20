"""StereoSet: preference by target term, sense beside an unrelated ending, and both in one number."""

import math
from collections import defaultdict

import numpy as np
import pytest

from minitransformers.bias_mitigation.stereoset import mean_log_probability, stereoset_score
from minitransformers.models.gpt2 import gpt2, init_gpt2

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(9, 9))


def bigram(ids):
    return TABLE[ids]


def test_it_is_the_mean_over_tokens_that_have_something_before_them():
    ids = RNG.integers(9, size=(2, 5))
    for given in (1, 3):
        expected = []
        for text in ids.tolist():
            logs = [TABLE[a][b] - math.log(sum(math.exp(z) for z in TABLE[a])) for a, b in zip(text[given - 1 :], text[given:], strict=False)]
            expected.append(sum(logs) / len(logs))
        np.testing.assert_allclose(mean_log_probability(ids, model=bigram, given=given), expected, rtol=0, atol=1e-12)


def test_a_uniform_model_gives_every_text_the_same_whatever_its_length():
    for length in (2, 3, 7):
        found = mean_log_probability(RNG.integers(9, size=length), model=lambda ids: np.zeros((*ids.shape, 9)))
        np.testing.assert_allclose(found, -math.log(9), rtol=0, atol=1e-12)


def test_a_shift_by_one_token_is_another_number():
    """The plausible mistake: the logits at a token, asked for the token itself."""
    ids = RNG.integers(9, size=6)
    log_p = TABLE[ids] - np.log(np.exp(TABLE[ids]).sum(-1, keepdims=True))
    assert abs(mean_log_probability(ids, model=bigram) - log_p[np.arange(1, 6), ids[1:]].mean()) > 1e-3


def by_hand(stereo, anti, unrelated, terms):
    """Counts term by term, then means over terms, as the published evaluation does."""
    counts = defaultdict(lambda: [0, 0, 0])
    for s, a, u, term in zip(stereo, anti, unrelated, terms, strict=True):
        counts[term][0] += s > a
        counts[term][1] += (s > u) + (a > u)
        counts[term][2] += 1
    ss = sum(100 * pro / total for pro, _, total in counts.values()) / len(counts)
    lms = sum(100 * related / (2 * total) for _, related, total in counts.values()) / len(counts)
    return ss, lms, lms * min(ss, 100 - ss) / 50


def test_it_is_the_mean_over_terms_of_shares():
    for _ in range(20):
        scores, terms = np.round(RNG.normal(size=(3, 30)), 1), RNG.integers(5, size=30) * 7 - 3
        found = stereoset_score(*scores, terms=terms)
        np.testing.assert_allclose(found[:3], by_hand(*scores.tolist(), terms.tolist()), rtol=0, atol=1e-12)
        assert found.terms == len(set(terms.tolist())) and found.ties == int(np.sum(scores[0] == scores[1]))


def test_a_term_of_many_examples_counts_as_much_as_one_of_few():
    stereo, anti, unrelated = np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.0, 1.0, 1.0, 1.0]), np.full(4, -1.0)
    assert stereoset_score(stereo, anti, unrelated, terms=np.array([0, 1, 1, 1])).ss == 50
    assert stereoset_score(stereo, anti, unrelated).ss == 25


def test_the_ideal_model_has_a_hundred_and_the_extremes_have_nothing():
    high, low, never = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([-1.0, -1.0])
    assert stereoset_score(high, low, never)[:3] == (50, 100, 100)
    assert stereoset_score(high + 2, low, never).icat == 0   # always the stereotype
    assert stereoset_score(high, low, never + 9)[:3] == (50, 0, 0)  # no sense


def test_a_tie_counts_as_the_opposite():
    """A model that does not tell the endings apart has ss 0, not 50: ties decide."""
    same = np.zeros(4)
    found = stereoset_score(same, same, same - 1)
    assert found[:3] == (0, 100, 0) and found.ties == 4


def test_only_the_order_matters():
    scores = RNG.normal(size=(3, 12))
    assert stereoset_score(*scores) == stereoset_score(*np.exp(3 * scores))


def test_a_random_model_is_near_fifty_everywhere():
    scores = np.random.default_rng(1).normal(size=(3, 20_000))
    found = stereoset_score(*scores)
    assert abs(found.ss - 50) < 1.5 and abs(found.lms - 50) < 1.5 and abs(found.icat - 50) < 2.5  # four standard errors


def test_it_reads_a_gpt2():
    params = init_gpt2(RNG, num_layers=1, d_model=6, num_heads=2, vocabulary=9, context=7, std=0.5, dtype=np.float64)
    ids = RNG.integers(9, size=(2, 5))
    found = mean_log_probability(ids, model=lambda ids: gpt2(params, ids=ids, num_heads=2)[0])
    assert found.shape == (2,) and (found < 0).all()


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="given: got 3, wants less than 3"):
        mean_log_probability(np.array([1, 2, 3]), model=bigram, given=3)
    with pytest.raises(ValueError, match="unrelated: got numbers from nan"):
        stereoset_score(np.zeros(2), np.ones(2), np.array([0.0, np.nan]))
