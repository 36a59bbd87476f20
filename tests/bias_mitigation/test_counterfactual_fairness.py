"""Counterfactual token fairness: how far a score moves when one term stands where another stood."""

import numpy as np
import pytest

from minitransformers.bias_mitigation.counterfactual_fairness import counterfactual_token_fairness, identity_substitutions

TERMS = ("<name1>", "<name2>", "<name3>")
WORDS = {"<name1>": 0.5, "<name2>": -1.0, "<name3>": 0.25, "tea": 2.0, "rain": -0.5}
SENTENCES = [["<name1>", "likes", "tea"], ["rain", "fell"], ["<name2>", "met", "<name1>"], ["<name3>", "and", "<name3>"], ["the", "<name2>", "prize"]]


def score(sentences):
    """Not linear, so that a mean of scores is no score of a mean."""
    return np.array([np.tanh(sum(WORDS.get(token, 0.1) for token in sentence)) for sentence in sentences])


def by_hand(sentences, of=score):
    gaps = []
    for sentence in sentences:
        apart = []
        for term in TERMS:
            for other in TERMS:
                if term in sentence and other != term:
                    changed = [other if token == term else token for token in sentence]
                    apart.append(abs(of([sentence])[0] - of([changed])[0]))
        if apart:
            gaps.append(sum(apart) / len(apart))
    return gaps


def test_it_is_the_mean_over_sentences_of_the_mean_over_substitutions():
    found = counterfactual_token_fairness(SENTENCES, score=score, terms=TERMS)
    expected = by_hand(SENTENCES)
    np.testing.assert_allclose(found.each, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.gap, np.mean(expected), rtol=0, atol=1e-14)
    assert found.places.tolist() == [0, 2, 3, 4] and (found.skipped, found.excluded) == (1, 0)


def test_a_sentence_that_holds_an_excluded_phrase_is_counted_apart():
    found = counterfactual_token_fairness(SENTENCES, score=score, terms=TERMS, exclude=(("<name2>", "prize"), ("no", "such")))
    assert found.places.tolist() == [0, 2, 3] and (found.skipped, found.excluded) == (1, 1)
    np.testing.assert_allclose(found.gap, np.mean(by_hand(SENTENCES[:4])), rtol=0, atol=1e-14)
    assert counterfactual_token_fairness(SENTENCES, score=score, terms=TERMS, exclude=(("prize", "<name2>"),)).excluded == 0


def test_substitutions_change_all_places_of_one_term_and_no_other():
    assert identity_substitutions(SENTENCES[3], terms=TERMS) == [["<name1>", "and", "<name1>"], ["<name2>", "and", "<name2>"]]
    assert identity_substitutions(SENTENCES[2], terms=TERMS) == [
        ["<name2>", "met", "<name2>"], ["<name2>", "met", "<name3>"], ["<name1>", "met", "<name1>"], ["<name3>", "met", "<name1>"],
    ]  # fmt: skip
    assert identity_substitutions(SENTENCES[1], terms=TERMS) == []


def test_a_model_that_does_not_see_terms_has_no_gap():
    blind = lambda sentences: score([[token for token in sentence if token not in TERMS] for sentence in sentences])  # noqa: E731
    found = counterfactual_token_fairness(SENTENCES, score=blind, terms=TERMS)
    assert found.gap == 0 and (found.each == 0).all()


def test_a_model_that_is_always_wrong_has_no_gap_either():
    """What the measure cannot see: it never asks what is right."""
    assert counterfactual_token_fairness(SENTENCES, score=lambda sentences: np.full(len(sentences), 3.0), terms=TERMS).gap == 0


def test_the_gap_has_the_unit_of_the_score():
    one = counterfactual_token_fairness(SENTENCES, score=score, terms=TERMS).gap
    twice = counterfactual_token_fairness(SENTENCES, score=lambda sentences: 5 - 2 * score(sentences), terms=TERMS).gap
    np.testing.assert_allclose(twice, 2 * one, rtol=0, atol=1e-14)


def test_differences_with_signs_would_cancel():
    """The plausible mistake: |mean f(x')  - f(x)| is smaller."""
    signed = []
    for sentence in (SENTENCES[i] for i in (0, 2, 3, 4)):
        signed.append(abs(score([sentence])[0] - score(identity_substitutions(sentence, terms=TERMS)).mean()))
    assert np.mean(signed) < counterfactual_token_fairness(SENTENCES, score=score, terms=TERMS).gap - 0.01


def test_the_score_is_asked_once_and_for_nothing_that_is_not_needed():
    calls = []

    def watched(sentences):
        calls.append(len(sentences))
        return score(sentences)

    counterfactual_token_fairness(SENTENCES, score=watched, terms=TERMS)
    assert calls == [4 + 2 + 4 + 2 + 2]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="terms: got '<name1>' twice"):
        counterfactual_token_fairness(SENTENCES, score=score, terms=("<name1>", "<name1>"))
    with pytest.raises(ValueError, match="sentences: got none that has a counterfactual"):
        counterfactual_token_fairness([["rain", "fell"]], score=score, terms=TERMS)
    with pytest.raises(ValueError, match=r"sentences.1: got no tokens"):
        counterfactual_token_fairness([["rain"], []], score=score, terms=TERMS)
    with pytest.raises(ValueError, match="score: got a number that is not finite"):
        counterfactual_token_fairness(SENTENCES, score=lambda sentences: np.full(len(sentences), np.inf), terms=TERMS)
