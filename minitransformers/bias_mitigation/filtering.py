"""Filtering: leave out of the training data what a score calls harmful, and say whose texts were left out.

A filter is a score and a threshold. No score reads only what it should: texts that speak of a group, or are written by it, may score
higher for that alone, and then the filter removes the group. So the share of dropped texts is counted for each group, always. One
comparison a text.

Source: filtering stands among what is done before training in the taxonomy of Gallegos et al. 2023, arXiv:2309.00770. The score of
the example is a count of listed words; any number a text will do. tau is the threshold, a_i the group of text i.

    score_i = sum over the tokens of text i of their weights / number of tokens   (1)
    kept_i = |score_i| < tau                                 (2)
    rows_a = number of texts i with a_i = a                  (3)
    dropped_a = number of texts i with a_i = a that are not kept / rows_a   (4)
    spread = max over a of dropped_a - min over a of dropped_a   (5)
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, finite, invalid, positive, procedure

_GROUPS = np.array([[0, 1, 2, 1, 0, 2, 2], [2, 0, 0, 1, 1, 1, 2]])


class FilteredTexts(NamedTuple):
    """Which texts stay; how many texts each group had, what share of them was dropped, and how far apart these shares are."""

    kept: Bool[Array, "*texts"]
    rows: Int[Array, "groups"]
    dropped: Float[Array, "groups"]
    spread: float


@procedure(
    title="Filter",
    source="the taxonomy of Gallegos et al. 2023, arXiv:2309.00770",
    example=lambda rng: example(rng.normal(size=(2, 7)), groups=_GROUPS, threshold=0.8),
    rejects=[
        bad(groups=0 * _GROUPS), bad(groups=2 * _GROUPS), bad("groups", scores=np.ones((2, 6))),
    ],
)  # fmt: skip
def filter_texts(
    scores: Annotated[Float[Array, "*texts"], finite], *, groups: Annotated[Int[Array, "*texts"], at_least(0)], threshold: Annotated[float, positive],
    empty: Literal["raise", "nan"] = "raise",
) -> FilteredTexts:  # fmt: skip
    """Which texts have a score of a size below threshold, and what share of each group's texts has not.

    groups are numbers from 0, of at least two groups. empty says what a number up to the largest that no text bears does: "raise" an
    error, or get the share NaN, which the spread leaves out.
    Raises ValueError for a negative group, one group only, and a group without texts.
    """
    if groups.max() < 1:
        raise invalid("groups", got="one group", wants="at least 2")
    kept = np.abs(scores) < threshold                        # (2)
    rows = np.bincount(groups.ravel())                               # (3)
    if empty == "raise" and not rows.all():
        raise invalid("groups", got=f"no text of group {int(np.argmin(rows))}", wants="at least one of each, or empty='nan'")
    gone = np.bincount(groups.ravel(), weights=~kept.ravel())
    dropped = np.where(rows > 0, gone / np.maximum(rows, 1), np.nan)  # (4)
    return FilteredTexts(kept, rows, dropped, float(np.nanmax(dropped) - np.nanmin(dropped)))  # (5)


@procedure(
    title="Score by listed words",
    source="common practice; the taxonomy of Gallegos et al. 2023, arXiv:2309.00770",
    example=lambda rng: example([["a", "<word1>", "b"], ["b"], ["<word2>", "<word1>"]], lexicon={"<word1>": 1.0, "<word2>": 0.5}),
    rejects=[bad(texts=[]), bad(texts=["abc"]), bad(texts=[["a"], []]), bad(lexicon={}), bad(lexicon={"<word1>": float("nan")})],
)
def lexicon_scores(texts: Sequence[Sequence[str]], *, lexicon: dict) -> Float[Array, "texts"]:
    """The mean weight of a text's tokens, 0 for those that are not in the lexicon (token to weight). Case tells.

    Raises ValueError where there is no text, no token in one, no word in the lexicon, or a weight that is not finite.
    """
    if not lexicon:
        raise invalid("lexicon", got="no words", wants="at least one")
    for word, weight in lexicon.items():
        if not np.isfinite(weight):
            raise invalid("lexicon", got=f"{weight} for {word!r}", wants="finite weights")
    for i, text in enumerate(texts):
        if not text:
            raise invalid("texts", got=f"no token in text {i}", wants="at least one")
    if not texts:
        raise invalid("texts", got="none", wants="at least one text")
    return np.array([sum(lexicon.get(token, 0.0) for token in text) / len(text) for text in texts])  # (1)
