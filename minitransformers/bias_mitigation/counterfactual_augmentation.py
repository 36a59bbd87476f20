"""Counterfactual augmentation: each text a second time, with the words for one group swapped for those of the other.

What is said of one group in the training text is then said as often of the other, so that no model can learn the difference from
the swapped words. A swap is a table of pairs, read in both directions. Some words have two partners: "her" is "him" in "saw her" and
"his" in "her book". A tag beside the token says which; the templates that make the text know it. Binary, as the published method is.
One look into a table a token.

Source: Lu, Mardziel, Wu, Amancharla and Datta 2018, arXiv:1807.11714 (augmentation); Hall Maudslay, Gonen, Cotterell and Teufel 2019,
arXiv:1909.00871 (substitution, and names as pairs). The pairs are those of Bolukbasi et al. 2016, arXiv:1607.06520, but for her/his,
whose other partners are in the tests of Caliskan, Bryson and Narayanan 2017, doi:10.1126/science.aal4230. Differs: tags are given
(Hall Maudslay et al. have a tagger), and what a swap leaves as it was is not doubled. s is the swap, D the texts.

    s(w) = the partner of w under its tag, in the case of w; w itself where it has none   (1)
    s(x) = s(x_1) .. s(x_n); x itself where it holds a name without a partner   (2)
    augmented = D and each s(x) that is not x                (3)
    substituted_i = s(x_i) where u_i < 1/2, else x_i, u_i uniform on [0, 1)   (4)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.bias_mitigation.word_map import WordMap, kept, targets, word_map
from minitransformers.foundation import bad, example, invalid, procedure

PAIRS = (
    ("woman", "man"), ("girl", "boy"), ("she", "he"), ("mother", "father"), ("daughter", "son"), ("gal", "guy"), ("female", "male"),
    ("herself", "himself"),
)  # fmt: skip
TAGGED = (("her", "him", "object"), ("her", "his", "possessive"), ("hers", "his", "absolute"))
NAMES = (("Mary", "John"),)


class AugmentedTexts(NamedTuple):
    """The texts, and for each the number of the text that it comes from: its label, and whatever else is known of it, is that one's."""

    texts: list[list[str]]
    sources: Int[Array, "augmented"]


@procedure(
    title="Swap map",
    source="Hall Maudslay, Gonen, Cotterell and Teufel 2019, arXiv:1909.00871",
    example=lambda rng: example(PAIRS, tagged=TAGGED, names=NAMES),
    rejects=[
        bad(pairs=[]), bad(pairs=[("she", "he"), ("she", "man")]), bad(pairs=[("she", "he"), ("it", "she")]), bad(pairs=[("she", "she")]),
        bad(pairs=[("She", "he")]), bad(pairs=[("", "he")]), bad(pairs=[("she", "he", "it")]), bad("tagged", pairs=[("her", "him")]),
        bad(tagged=[("her", "him", "")]), bad(tagged=[("her", "him", "object"), ("her", "his", "object")]),
        bad(names=[("Mary", "John"), ("Ann", "John")]), bad(unpaired=["Mary"]), bad(keep=[[]]),
    ],
)  # fmt: skip
def swap_map(
    pairs: Sequence[Sequence[str]], *, tagged: Sequence[Sequence[str]] = (), names: Sequence[Sequence[str]] = (),
    keep: Sequence[Sequence[str]] = (), unpaired: Sequence[str] = (), guess: bool = False,
) -> WordMap:  # fmt: skip
    """The table that counterfactual reads: pairs of words in lower case, (word, partner, tag) where a tag decides, pairs of names.

    Names are read as they are written, and so is keep: proper names, each a list of tokens, in which nothing is swapped. unpaired are
    names without a partner: a text that holds one stays as it is, for its pronouns would no longer fit. guess takes, for a word with
    several partners and no tag, the first listed; without it such a word is an error.
    Raises ValueError where there is no pair, a word has two partners (under one tag), is its own, or stands in two lists.
    """
    for argument, size, rows in (("pairs", 2, pairs), ("tagged", 3, tagged), ("names", 2, names)):
        for row in rows:
            if len(row) != size or row[0] == row[1]:
                raise invalid(argument, got=row, wants="two different words" + (" and a tag" if size == 3 else ""))
    if not pairs:
        raise invalid("pairs", got="none", wants="at least one pair")
    return word_map(
        [way for a, b in pairs for way in ((a, b), (b, a))], [way for a, b, tag in tagged for way in ((a, b, tag), (b, a, tag))],
        [way for a, b in names for way in ((a, b), (b, a))], keep=keep, unpaired=unpaired, guess=guess, argument="pairs",
    )  # fmt: skip


_SWAPS = swap_map(PAIRS, tagged=TAGGED, names=NAMES)
_TEXTS = [["She", "saw", "his", "book"], ["a", "rose"], ["John", "met", "HER"]]
_TAGS = [["", "", "possessive", ""], ["", ""], ["", "", "object"]]


@procedure(
    title="Counterfactual of a text",
    source="Lu, Mardziel, Wu, Amancharla and Datta 2018, arXiv:1807.11714",
    example=lambda rng: example(_TEXTS[0], _TAGS[0], swaps=_SWAPS),
    rejects=[
        bad(tokens="she saw"), bad(tags=[""]), bad(tags=None), bad(tags=["", "", "object", ""]), bad(swaps=dict(PAIRS)),
        bad("keep", tokens=["King", "he"], tags=None, swaps=swap_map(PAIRS, keep=[["King", "she"]])),
    ],
)  # fmt: skip
def counterfactual(tokens: Sequence[str], tags: Sequence[str] | None = None, *, swaps: WordMap) -> list[str]:
    """The same text about the other group: every token that has a partner is swapped for it, lower, Title or UPPER as it was.

    tags stand beside the tokens, empty where there is none. As many tokens come out. Doing it twice, with the same tags, gives the text.
    Raises ValueError, naming the word, where only a tag could tell the partner; and where a swap makes a name out of keep.
    """
    found = targets(tokens, tags, swaps)
    if swaps.unpaired.intersection(tokens):
        return list(tokens)                                  # (2)
    swapped = [token if target is None else target for token, target in zip(tokens, found, strict=True)]  # (1)
    if kept(swapped, swaps) != kept(tokens, swaps):
        raise invalid("keep", got=f"a name that the swap itself makes: {' '.join(swapped)!r}", wants="names that no swap ends in")
    return swapped


_BAD_TEXTS = [bad(texts=[]), bad(texts=["she saw"]), bad(tags=[None]), bad("tags", tags=None)]


@procedure(
    title="Counterfactual data augmentation",
    source="Lu, Mardziel, Wu, Amancharla and Datta 2018, arXiv:1807.11714",
    example=lambda rng: example(_TEXTS, _TAGS, swaps=_SWAPS),
    rejects=_BAD_TEXTS,
)
def augment(texts: Sequence[Sequence[str]], tags: Sequence[Sequence[str]] | None = None, *, swaps: WordMap) -> AugmentedTexts:
    """All texts, and behind them the counterfactual of each that has one. Raises ValueError as counterfactual does, and without texts."""
    swapped = _all(texts, tags, swaps)
    changed = [i for i, text in enumerate(texts) if swapped[i] != list(text)]
    return AugmentedTexts([*map(list, texts), *(swapped[i] for i in changed)], np.array([*range(len(texts)), *changed]))  # (3)


@procedure(
    title="Counterfactual data substitution",
    source="Hall Maudslay, Gonen, Cotterell and Teufel 2019, arXiv:1909.00871",
    example=lambda rng: example(_TEXTS, _TAGS, swaps=_SWAPS, rng=np.random.default_rng(3)),
    rejects=_BAD_TEXTS,
)
def substitute(
    texts: Sequence[Sequence[str]], tags: Sequence[Sequence[str]] | None = None, *, swaps: WordMap, rng: np.random.Generator
) -> list[list[str]]:
    """As many texts, each with probability one half its counterfactual. Raises ValueError as counterfactual does, and without texts."""
    swapped, chance = _all(texts, tags, swaps), rng.random(len(texts))
    return [swapped[i] if chance[i] < 0.5 else list(text) for i, text in enumerate(texts)]  # (4)


def _all(texts: Sequence[Sequence[str]], tags: Sequence[Sequence[str]] | None, swaps: WordMap) -> list[list[str]]:
    if not texts:
        raise invalid("texts", got="none", wants="at least one text")
    if tags is not None and len(tags) != len(texts):
        raise invalid("tags", got=f"those of {len(tags)} texts", wants=f"those of all {len(texts)}")
    return [counterfactual(text, None if tags is None else tags[i], swaps=swaps) for i, text in enumerate(texts)]
