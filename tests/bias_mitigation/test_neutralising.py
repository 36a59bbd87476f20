"""Neutralising: both words of a pair become one, and which of them it was cannot be told."""

import numpy as np
import pytest
from swapped_texts import SWAPS, TEXTS

from minitransformers.bias_mitigation.counterfactual_augmentation import NAMES, PAIRS, TAGGED, counterfactual, swap_map
from minitransformers.bias_mitigation.neutralising import NEUTRAL, NEUTRAL_TAGGED, VERBS, neutral_map, neutralise_words

NEUTRALISE = neutral_map(NEUTRAL, tagged=NEUTRAL_TAGGED, names=["Mary", "John"])


@pytest.mark.parametrize(("tokens", "tags"), TEXTS)
def test_a_text_and_its_counterfactual_become_the_same(tokens, tags):
    swapped = counterfactual(tokens, tags, swaps=SWAPS)
    assert neutralise_words(swapped, tags, neutral=NEUTRALISE) == neutralise_words(tokens, tags, neutral=NEUTRALISE)


@pytest.mark.parametrize(("tokens", "tags"), TEXTS)
def test_doing_it_twice_changes_no_more(tokens, tags):
    once = neutralise_words(tokens, tags, neutral=NEUTRALISE)
    assert len(once) == len(tokens)
    assert neutralise_words(once, tags, neutral=NEUTRALISE) == once


def test_no_word_of_the_lists_is_left():
    lists = {w for row in (*PAIRS, *NAMES) for w in row} | {w for a, b, _ in TAGGED for w in (a, b)}
    for tokens, tags in TEXTS:
        out = neutralise_words(tokens, tags, neutral=NEUTRALISE)
        assert not [w for w in out if w != "sHe" and (w.lower() in lists or w in lists)]


def test_it_covers_every_pair_that_the_swap_has():
    assert {frozenset(pair) for pair in PAIRS} == {frozenset(row[:2]) for row in NEUTRAL}
    assert {(frozenset(row[:2]), row[2]) for row in TAGGED} == {(frozenset(row[:2]), row[3]) for row in NEUTRAL_TAGGED}


def test_verbs_follow_where_their_tag_says_so_and_only_there():
    tokens, tags = ["She", "was", "late", "and", "it", "WAS", "cold"], ["", "agrees", "", "", "", "", ""]
    assert neutralise_words(tokens, tags, neutral=NEUTRALISE) == ["They", "were", "late", "and", "it", "WAS", "cold"]
    for one, many in VERBS:
        tokens = ["He", one.upper()]
        assert neutralise_words(tokens, ["", "agrees"], neutral=NEUTRALISE) == ["They", many.upper()]


def test_a_verb_that_it_does_not_know_is_named():
    with pytest.raises(ValueError, match="'agrees' at 'walks'"):
        neutralise_words(["she", "walks"], ["", "agrees"], neutral=NEUTRALISE)
    out = neutralise_words(["she", "walks"], ["", "agrees"], neutral=NEUTRALISE, verbs=[("walks", "walk")])
    assert out == ["they", "walk"]


def test_placeholders_keep_their_case_and_names_become_one():
    out = neutralise_words(["FEMALE", "Male", "Mary", "John"], neutral=NEUTRALISE)
    assert out == ["<gender>", "<gender>", "<name>", "<name>"]


def test_any_number_of_groups_may_share_a_target():
    three = neutral_map([("<a1>", "<b1>", "<c1>", "<n1>")])
    assert neutralise_words(["<a1>", "x", "<c1>", "<b1>"], neutral=three) == ["<n1>", "x", "<n1>", "<n1>"]


def test_without_a_tag_her_is_refused():
    with pytest.raises(ValueError, match="'her'"):
        neutralise_words(["saw", "her"], neutral=NEUTRALISE)


def test_it_may_guess_and_it_may_keep_a_name():
    guess = neutral_map(NEUTRAL, tagged=NEUTRAL_TAGGED, guess=True, keep=[["Man", "Island"]])
    assert neutralise_words(["his", "Man", "Island", "Man"], neutral=guess) == ["their", "Man", "Island", "Person"]


def test_a_target_that_is_itself_replaced_is_refused():
    """Else doing it twice would change more: the check is what the property rests on."""
    with pytest.raises(ValueError, match="the target 'he'"):
        neutral_map([("she", "he"), ("he", "they")])
    with pytest.raises(ValueError, match="the target 'her'"):
        neutral_map([("she", "her")], tagged=NEUTRAL_TAGGED)
    with pytest.raises(ValueError, match="names"):
        neutral_map(NEUTRAL, names=["Mary", "Alex"], name="Alex")


def test_a_swap_is_no_neutraliser():
    """The negative control: sending each word to its partner keeps the group's information."""
    tokens, tags = TEXTS[0]
    swapped = counterfactual(tokens, tags, swaps=SWAPS)
    assert counterfactual(swapped, tags, swaps=SWAPS) != swapped


def test_what_is_not_in_the_lists_still_tells_the_group():
    """Texts of two groups that use other words besides: after neutralising, these words alone still tell them apart."""
    rng = np.random.default_rng(0)
    texts, groups = [], []
    for _ in range(400):
        group = int(rng.integers(2))
        other = f"<word{int(rng.random() < (0.2, 0.8)[group])}>"
        texts.append([("she", "he")[group], "likes", other])
        groups.append(group)
    out = [neutralise_words(text, neutral=neutral_map(NEUTRAL)) for text in texts]
    guess = [text[2] == "<word1>" for text in out]
    assert all(text[0] == "they" for text in out)
    assert np.mean(np.array(guess) == np.array(groups)) > 0.7


def test_the_map_of_the_swap_is_another_table():
    assert swap_map(PAIRS).plain["she"] == "he" and NEUTRALISE.plain["she"] == NEUTRALISE.plain["he"] == "they"
