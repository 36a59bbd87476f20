"""Counterfactual augmentation: what a swap does to a text, and to the counts of a corpus."""

from collections import Counter

import numpy as np
import pytest
from swapped_texts import SWAPS, TEXTS

from minitransformers.bias_mitigation.counterfactual_augmentation import (
    NAMES,
    PAIRS,
    TAGGED,
    augment,
    counterfactual,
    substitute,
    swap_map,
)


def naive(tokens, tags):
    """By a long chain of questions."""
    out = []
    for token, tag in zip(tokens, tags, strict=True):
        target = None
        for a, b in [*PAIRS, *NAMES]:
            for one, other in ((a, b), (b, a)):
                if token.lower() == one.lower():
                    target = other
        for a, b, kind in TAGGED:
            if tag == kind and token.lower() in (a, b):
                target = b if token.lower() == a else a
        if target is None or token == "sHe":
            out.append(token)
        elif token.isupper():
            out.append(target.upper())
        else:
            out.append(target.capitalize() if token[0].isupper() else target)
    return out


@pytest.mark.parametrize(("tokens", "tags"), TEXTS)
def test_every_word_of_the_lists_is_swapped_and_no_other(tokens, tags):
    assert counterfactual(tokens, tags, swaps=SWAPS) == naive(tokens, tags)


@pytest.mark.parametrize(("tokens", "tags"), TEXTS)
def test_swapping_twice_gives_the_text(tokens, tags):
    once = counterfactual(tokens, tags, swaps=SWAPS)
    assert len(once) == len(tokens)
    assert counterfactual(once, tags, swaps=SWAPS) == tokens


def test_her_is_him_or_his_as_its_tag_says():
    tokens = ["Her", "aunt", "saw", "her", ";", "it", "was", "hers"]
    tags = ["possessive", "", "", "object", "", "", "", "absolute"]
    assert counterfactual(tokens, tags, swaps=SWAPS) == ["His", "aunt", "saw", "him", ";", "it", "was", "his"]


def test_without_a_tag_a_word_with_two_partners_is_refused_by_name():
    for word in ("her", "his", "HIS"):
        with pytest.raises(ValueError, match=f"tags: got '' for '{word.lower()}' at 1"):
            counterfactual(["saw", word], swaps=SWAPS)
    with pytest.raises(ValueError, match="'noun' for 'her'"):
        counterfactual(["her"], ["noun"], swaps=SWAPS)
    assert counterfactual(["saw", "him"], swaps=SWAPS) == ["saw", "her"], "him has one partner only"


def test_guessing_without_tags_is_no_involution():
    """The negative control of the tags: a plausible swap without them does not come back."""
    guess = swap_map(PAIRS, tagged=TAGGED, guess=True)
    text = ["she", "sold", "her", "book"]
    once = counterfactual(text, swaps=guess)
    assert once == ["he", "sold", "him", "book"]
    his = ["he", "sold", "his", "book"]
    assert counterfactual(counterfactual(his, swaps=guess), swaps=guess) != his


def test_after_augmentation_both_words_of_a_pair_are_as_frequent():
    texts, tags = zip(*TEXTS, strict=True)
    counts = Counter(token.lower() for text in augment(texts, tags, swaps=SWAPS).texts for token in text if token != "sHe")
    before = Counter(token.lower() for text in texts for token in text if token != "sHe")
    for a, b in PAIRS:
        assert counts[a] == counts[b] == before[a] + before[b]
    assert counts["mary"] == counts["john"]
    assert counts["her"] + counts["hers"] == counts["him"] + counts["his"]
    assert counts["her"] == sum(before[w] for w in ("her", "him")) + sum(
        token.lower() == "his" and tag == "possessive" for text, own in TEXTS for token, tag in zip(text, own, strict=True)
    )


def test_augmented_texts_say_where_they_come_from_and_unchanged_ones_are_not_doubled():
    texts = [["she", "left"], ["a", "rose"], ["He", "left"]]
    out = augment(texts, swaps=SWAPS)
    assert out.texts == [*texts, ["he", "left"], ["She", "left"]]
    np.testing.assert_array_equal(out.sources, [0, 1, 2, 0, 2])
    labels = np.array([1, 0, 1])
    np.testing.assert_array_equal(labels[out.sources], [1, 0, 1, 1, 1])


def test_what_stands_beside_a_word_no_longer_tells_its_group():
    """In the augmented corpus the other words of a text are as frequent with one word of a pair as with the other."""
    rng = np.random.default_rng(0)
    texts = [[("she", "he")[int(rng.random() < share)], "saw", f"<job{k}>"] for k, share in enumerate((0.1, 0.5, 0.9)) for _ in range(30)]
    pairs = Counter((text[0], text[2]) for text in augment(texts, swaps=SWAPS).texts)
    assert all(pairs["she", f"<job{k}>"] == pairs["he", f"<job{k}>"] == 30 for k in range(3))
    raw = Counter((text[0], text[2]) for text in texts)
    assert raw["she", "<job0>"] > 2 * raw["he", "<job0>"]


def test_substitution_takes_one_of_the_two_about_half_of_the_time():
    texts, tags = zip(*TEXTS, strict=True)
    out = substitute(texts * 25, tags * 25, swaps=SWAPS, rng=np.random.default_rng(0))
    swapped = [counterfactual(text, tag, swaps=SWAPS) for text, tag in zip(texts, tags, strict=True)] * 25
    taken = [own == other for own, other in zip(out, swapped, strict=True)]
    assert all(own in (list(text), other) for own, text, other in zip(out, texts * 25, swapped, strict=True))
    assert abs(np.mean(taken) - 0.5) < 4 * 0.5 / np.sqrt(1000)  # four deviations of a fair coin


def test_substitution_takes_what_the_generator_draws_first():
    texts = [["she"]] * 6
    chance = np.random.default_rng(5).random(6)
    assert substitute(texts, swaps=SWAPS, rng=np.random.default_rng(5)) == [["he"] if u < 0.5 else ["she"] for u in chance]


def test_names_are_read_as_they_are_written():
    swaps = swap_map(PAIRS, names=[("Rose", "Mark")])
    assert counterfactual(["Rose", "saw", "a", "rose"], swaps=swaps) == ["Mark", "saw", "a", "rose"]
    assert counterfactual(["a", "mark"], swaps=swaps) == ["a", "mark"]


def test_a_text_with_a_name_that_has_no_partner_stays_whole():
    swaps = swap_map(PAIRS, names=NAMES, unpaired=["Ann"])
    assert counterfactual(["Ann", "said", "she", "left"], swaps=swaps) == ["Ann", "said", "she", "left"]
    assert counterfactual(["Mary", "said", "she", "left"], swaps=swaps) == ["John", "said", "he", "left"]


def test_proper_names_that_are_kept_are_not_swapped_and_all_around_them_is():
    swaps = swap_map([*PAIRS, ("queen", "king")], keep=[["King", "Street"]])
    assert counterfactual(["The", "King", "saw", "King", "Street"], swaps=swaps) == ["The", "Queen", "saw", "King", "Street"]
    with pytest.raises(ValueError, match="keep"):
        counterfactual(["Queen", "Street"], swaps=swaps)  # would become a name that is kept, and could not come back


def test_a_pair_that_clashes_with_another_is_refused_by_the_word():
    with pytest.raises(ValueError, match="'she' with the targets 'he' and 'man'"):
        swap_map([("she", "he"), ("she", "man")])
    with pytest.raises(ValueError, match="'he'"):
        swap_map([("she", "he"), ("woman", "he")])
    with pytest.raises(ValueError, match="'her', which has the target 'him'"):
        swap_map([("her", "him")], tagged=TAGGED)
    with pytest.raises(ValueError, match="'John'"):
        swap_map(PAIRS, names=[("Mary", "John"), ("Ann", "John")])
    with pytest.raises(ValueError, match="'her' as 'object'"):
        swap_map(PAIRS, tagged=[("her", "him", "object"), ("her", "his", "object")])


def test_the_lists_are_the_published_pairs():
    published = ["woman/man", "girl/boy", "she/he", "mother/father", "daughter/son", "gal/guy", "female/male", "her/his", "herself/himself", "Mary/John"]
    own = {"/".join(pair[:2]) for pair in (*PAIRS, *TAGGED, *NAMES)}
    assert set(published) <= own
    assert own - set(published) == {"her/him", "hers/his"}
