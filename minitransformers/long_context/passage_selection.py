"""Choosing passages: of scored passages the best, as many as a reader has room for, in the order in which they stand in the text.

A reader has a budget of tokens, and a score for each passage says how much it promises. The best are taken first, and what no longer
fits is passed over. Then the order is restored: a reader that was trained on texts expects what came first to come first. A passage
may bring its neighbours, since an answer often needs the sentence before. The choice is made of whole numbers and has no gradient.

Source: Ding et al. 2020, CogLTX: applying BERT to long texts, NeurIPS 33, which hands a reader a few blocks of a long text so; survey
arXiv:2302.14502, section 3. Differs from CogLTX, whose judge looks at the chosen blocks once more together. Costs one sorting.

    ranked = numbers of the passages by score, the best first, of equals the first   (1)
    the best k = ranked_1 .. ranked_k                        (2)
    wanted = in the order of ranked each passage, then those next to it, nearest first, up to d away   (3)
    taken = of wanted, one after the other, what is new and fits: sum of (length + separator) <= budget + separator   (4)
    passages = taken, ascending                              (5)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, finite, invalid, procedure


class Found(NamedTuple):
    """Numbers of documents, the best first, and their scores."""

    documents: Int[Array, "*batch k"]
    scores: Float[Array, "*batch k"]


@procedure(
    title="The k best documents",
    source="Karpukhin et al. 2020, arXiv:2004.04906, section 3.1",
    example=lambda rng: example(rng.normal(size=(2, 7)), k=3),
    rejects=[bad(k=8), bad(scores=np.array([[1.0, np.nan]])), bad(scores=np.zeros((2, 0)))],
)
def top_documents(scores: Annotated[Float[Array, "*batch documents"], finite], *, k: Annotated[int, at_least(1)]) -> Found:
    """The ``k`` documents of the largest scores, the best first; of equals those with the smaller numbers.

    Raises ValueError where there are fewer than k documents, or a score is not finite.
    """
    if k > scores.shape[-1]:
        raise invalid("k", got=k, wants=f"at most {scores.shape[-1]}, as many as there are documents")
    ranked = np.argsort(-scores, axis=-1, kind="stable")     # (1)
    best = ranked[..., :k]                                   # (2)
    return Found(best, np.take_along_axis(scores, best, axis=-1))


@procedure(
    title="Passages for a reader",
    source="Ding et al. 2020, CogLTX: applying BERT to long texts, NeurIPS 33",
    example=lambda rng: example(rng.normal(size=7), lengths=np.array([3, 1, 2, 2, 5, 1, 4]), budget=9, neighbours=1, separator=1),
    rejects=[bad("budget", budget=3, lengths=np.full(7, 4)), bad(scores=np.full(7, np.inf)), bad(lengths=np.array([3, 1, 2, 2, 5, 0, 4])), bad(lengths=np.ones(6, int))],
)
def select_passages(
    scores: Annotated[Float[Array, "passages"], finite], *, lengths: Annotated[Int[Array, "passages"], at_least(1)],
    budget: Annotated[int, at_least(1)], neighbours: Annotated[int, at_least(0)] = 0, separator: Annotated[int, at_least(0)] = 0,
) -> Int[Array, "chosen"]:  # fmt: skip
    """Numbers of the passages that a reader of ``budget`` tokens is given, in the order of the text.

    lengths are tokens of each passage, separator those that stand between two. neighbours is how far to each side of a passage others
    are taken along; they come before the next best passage, and of two equally near the earlier comes first.
    Raises ValueError where no passage fits into the budget.
    """
    if lengths.min() > budget:
        raise invalid("budget", got=budget, wants=f"at least {lengths.min()}, the length of the shortest passage")
    offsets = sorted(range(-neighbours, neighbours + 1), key=abs)
    room, taken = budget + separator, np.zeros(len(scores), bool)
    for passage in np.argsort(-scores, kind="stable"):
        for place in passage + offsets:                      # (3)
            if 0 <= place < len(scores) and not taken[place] and lengths[place] + separator <= room:
                taken[place] = True
                room -= lengths[place] + separator           # (4)
    return np.flatnonzero(taken)                             # (5)
