"""Sentences about occupations, what is counted in them, and ways to learn from them."""

import numpy as np

from minitransformers.reporting.bias_mitigation import occupation_arms
from minitransformers.reporting.bias_mitigation import occupations as of
from minitransformers.reporting.bias_mitigation.occupation_arms import (
    PLAIN,
    SHARED,
    Arm,
    bought,
    drawn,
    learned,
    losses,
    means,
    neutral_words,
    row,
)


def test_odds_are_of_the_first_group_and_counted_once_a_sentence():
    (one, other), rest = of.JOBS[:2], of.JOBS[2:]
    texts = of.texts_of([["the", one, "said", "that", "she"], ["the", one, one, "and", "she"], ["the", one, "and", "he"], ["the", other, "lost", "his"]])
    found = dict(zip(of.JOBS, of.log_odds(texts), strict=True))
    np.testing.assert_allclose([found[one], found[other]], np.log([2.5 / 1.5, 0.5 / 1.5]), rtol=1e-12)
    assert all(found[job] == 0 for job in rest)


def test_neutral_sentences_have_no_word_of_either_group():
    texts, _ = drawn(np.random.default_rng(0), quick=True)
    assert not {word for text in neutral_words(texts) for word in text} & {*of.SHE, *of.HER, *of.PERSONS}
    assert len(neutral_words(texts)) == len(texts.tokens) == occupation_arms.TEXTS // 10


def test_arms_are_asked_alike_and_an_even_share_has_no_gap():
    arms = {PLAIN: Arm(), "behind a token": Arm(lambda texts, rng: [[of.NEUTRAL, *text] for text in texts.tokens], control=of.NEUTRAL)}
    rng = np.random.default_rng(0)
    every = list(learned(arms, *drawn(rng, quick=True), dict.fromkeys(arms, 0.01), rng, quick=True))
    assert [one.name for one in every] == [PLAIN, SHARED, "behind a token"] and every[0].params is every[1].params
    found = {measure: {one.name: {0: np.array([one.numbers[measure]])} for one in every} for measure in every[0].numbers}
    assert means(found, PLAIN)["nats_more"] == 0 and means(found, SHARED)["gap"] < 1e-6 < means(found, PLAIN)["gap"]
    assert bought(found, SHARED, 0.1) and not bought(found, PLAIN, 0.9)
    assert row(found, SHARED)[0] == "0.00 (0.00 to 0.00)" and len(row(found, PLAIN)) == len(occupation_arms.HEADS)


def test_an_arm_is_tuned_by_its_own_loss():
    arms = {PLAIN: Arm(), "swapped": Arm(lambda texts, rng: of.after_swap(texts)), "with a term": Arm(term=of.diverging, twice=True)}
    found = {name: numbers["loss"] for name, _, numbers in losses(arms, np.random.default_rng(0), quick=True)}
    assert list(found) == list(arms) and len(set(found.values())) == 3
