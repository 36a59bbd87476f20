"""Balanced texts: every combination once, so that every table of two factors is constant."""

import itertools

import numpy as np
import pytest

from minitransformers.bias_mitigation.balanced_generation import balanced_texts, factor_table

TEMPLATES = [["the", "{job}", "said", "that", "{who}", "left", "{when}"], ["{when}", "{who}", "met", "the", "{job}"]]
SLOTS = {"job": ["nurse", "clerk", "cook"], "who": ["<g1>", "<g2>", "<g3>", "<g4>"], "when": ["today", "often"]}


@pytest.fixture
def out():
    return balanced_texts(TEMPLATES, slots=SLOTS)


def test_texts_are_those_of_nested_loops(out):
    expected = []
    for template in TEMPLATES:
        for job in SLOTS["job"]:
            for who in SLOTS["who"]:
                for when in SLOTS["when"]:
                    expected.append(" ".join(template).replace("{job}", job).replace("{who}", who).replace("{when}", when).split())
    assert out.texts == expected
    assert out.names == ["template", "job", "who", "when"]


def test_every_text_is_another_one(out):
    assert len({tuple(text) for text in out.texts}) == len(out.texts) == 2 * 3 * 4 * 2


@pytest.mark.parametrize(("one", "other"), itertools.combinations(range(4), 2))
def test_the_table_of_any_two_factors_is_constant_and_its_chi_square_zero(out, one, other):
    table = factor_table(out.factors[:, one], out.factors[:, other])
    assert len(np.unique(table.counts)) == 1 and table.counts.sum() == len(out.texts)
    assert table.chi_square == 0.0


def test_several_factors_together_tell_nothing_of_another(out):
    rest = out.factors[:, [0, 1, 3]] @ [6, 2, 1]
    assert factor_table(rest, out.factors[:, 2]).chi_square == 0.0


def test_factors_say_what_is_in_the_text(out):
    for text, (_, job, who, when) in zip(out.texts, out.factors, strict=True):
        assert {SLOTS["job"][job], SLOTS["who"][who], SLOTS["when"][when]} <= set(text)


def test_texts_that_are_drawn_are_not_balanced():
    """The negative control: drawing each word at random is balanced on average, and never in the sample."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(n, size=48) for n in (3, 4)]
    table = factor_table(*draws)
    assert table.chi_square > 1 and len(np.unique(table.counts)) > 1


def test_pairs_that_never_meet_are_counted_as_none():
    table = factor_table(np.array([0, 0, 1]), np.array([0, 1, 0]))
    np.testing.assert_array_equal(table.counts, [[1, 1], [1, 0]])
    assert table.chi_square == pytest.approx(0.75)


def test_the_chi_square_is_scipy_s():
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    table = factor_table(rng.integers(3, size=90), rng.integers(5, size=90))
    expected = scipy_stats.chi2_contingency(table.counts, correction=False).statistic
    np.testing.assert_allclose(table.chi_square, expected, rtol=1e-13)


def test_what_would_give_one_text_twice_is_refused_by_name():
    with pytest.raises(ValueError, match="lacks the slot 'who'"):
        balanced_texts([["the", "{job}", "{when}"]], slots=SLOTS)
    with pytest.raises(ValueError, match="has the slot 'why'"):
        balanced_texts([[*TEMPLATES[0], "{why}"]], slots=SLOTS)
    with pytest.raises(ValueError, match="a word twice for 'job'"):
        balanced_texts(TEMPLATES, slots={**SLOTS, "job": ["clerk", "clerk"]})
    with pytest.raises(ValueError, match=r"\[\] for 'who'"):
        balanced_texts(TEMPLATES, slots={**SLOTS, "who": []})
