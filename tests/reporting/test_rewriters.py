"""Sentences in which some words change and names stay, and who rewrites them."""

import numpy as np
import pytest

from minitransformers.reporting.bias_mitigation import rewriters as of


def test_what_changes_is_a_listed_word_that_no_title_makes_a_name():
    rng = np.random.default_rng(0)
    asked = of.to_be_asked(of.templates(rng, 20), of.templates(rng, 10), rng)
    for name, (source, target, rows) in asked.items():
        at = source != target
        named = np.roll(source == of.TITLE, 1, axis=1)
        assert (target[at] == source[at] - of.NOUN + of.NEUTRAL).all() and not (at & named).any() and len(rows) == of.ASKED
        assert at.any() == (name != of.NONE) and at.sum(axis=1).max() <= 1


def test_a_rule_with_its_exception_is_right_where_it_knows_the_word_and_does_nothing_elsewhere():
    rng = np.random.default_rng(1)
    asked = of.to_be_asked(of.templates(rng, 20), of.templates(rng, 10), rng)
    source, target, _ = asked[of.NEW]
    assert (of.by_rule(source, exception=True) == target).all() and not (of.by_rule(source, exception=False) == target).all()
    assert (of.by_rule(asked[of.WORD][0], exception=False) == asked[of.WORD][0]).all()


def test_shares_are_of_sentences_and_of_words():
    source, target = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[1, 9, 3], [4, 5, 6]])
    found = of.measured(np.array([[1, 9, 3], [4, 7, 7]]), (source, target, np.array([0, 1])), np.random.default_rng(2), quick=True)
    assert [found[name] for name in ("exact", "right", "over")] == [0.5, 1, 0.4]


@pytest.mark.parametrize("way", [of.TOKEN, of.SEQUENCE])
def test_either_network_learns_and_writes(way):
    rng = np.random.default_rng(3)
    params = of.trained(way, of.templates(rng, 10), rng, 0.01, quick=True)
    source, _, _ = of.sentences(of.templates(rng, 5), rng, 4, of.NOUN, of.NEUTRAL)
    assert of.written(way, params, source).shape == source.shape
    assert np.isfinite(of.lost(way, 10, rng, 0.01, quick=True))
