"""Chunking at the joints of a text: a cut between two sections costs nothing, one through a sentence costs most.

Chunks of one length cut wherever the count runs out. Here the text comes as sentences, each with the level of the boundary behind it:
1 where only a sentence ends, 2 a paragraph, 3 a section. Greedy packing fills a chunk with whole paragraphs until the next does not
fit, and takes a paragraph apart only if it does not fit into an empty chunk. Dynamic programming finds the cuts of least cost: what a
cut severs, and how much of a chunk stays empty. A sentence longer than a chunk is cut into full ones and a rest, as level 0.

Source: the recurrence is that of Knuth and Plass 1981, Breaking paragraphs into lines, Software: Practice and Experience 11(11), with
chunks in the place of lines; greedy packing is common practice, and survey arXiv:2302.14502 sorts such preprocessing. Costs as many
steps a unit as units fit into a chunk. n units, t_i tokens before unit i, w = size, kappa the cost of a level.

    cost of a chunk i..j = kappa(level_j) + balance ((w - (t_j - t_i)) / w)^2, with kappa = 0 at the end of the text   (1)
    best_0 = 0, best_j = min over i < j with t_j - t_i <= w of best_i + cost of i..j   (2)
    cuts = n, then the i that (2) chose for it, and on to 0; of equals the longest chunk   (3)
    greedy: a chunk ends where the next whole does not fit; wholes are paragraphs of at most w tokens, else their units   (4)
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.foundation import Range, at_least, bad, between, example, invalid, procedure

PARAGRAPH = 2
LEVELS: Range = between(0, 3)
SEVERS = (10.0, 3.0, 1.0, 0.0)


def _example(rng: np.random.Generator, *first, size=7):
    return example(*first, np.array([4, 3, 9, 1, 5, 2, 4]), np.array([1, 2, 1, 1, 3, 1, 3]), size=size)


_REJECTS = [bad(lengths=np.array([4, 3, 0, 1, 5, 2, 4])), bad(levels=np.array([1, 2, 4, 1, 3, 1, 3])), bad("levels", lengths=np.array([4, 3]))]


@procedure(title="Chunks of whole paragraphs", source="common practice; survey arXiv:2302.14502", example=_example, rejects=_REJECTS)
def greedy_chunks(
    lengths: Annotated[Int[Array, "sentences"], at_least(1)], levels: Annotated[Int[Array, "sentences"], LEVELS], *, size: Annotated[int, at_least(1)]
) -> list[int]:
    """Where chunks of at most ``size`` tokens begin and end, filled one after the other with paragraphs as whole as can be.

    lengths are tokens of each sentence, levels what ends behind it: 1 the sentence alone, 2 a paragraph, 3 a section; 0 is for pieces
    of a sentence. Returns the cuts, in tokens, from 0 to the length of the text: chunk c is text[cuts[c]:cuts[c + 1]].
    Raises ValueError for a sentence of no tokens and for levels outside 0 to 3.
    """
    ends, level = _units(lengths, levels, size)
    paragraphs = np.flatnonzero(level >= PARAGRAPH)
    cuts, start, filled = [0], 0, 0                          # tokens; filled is where the open chunk ends by now
    for first, last in zip([0, *(paragraphs + 1)], [*paragraphs, len(ends) - 1], strict=True):
        if first > last:
            continue                                         # the text ends with a paragraph
        wholes = ends[[last]] if ends[last] - filled <= size else ends[first : last + 1]
        for end in wholes:
            if end - start > size:                           # (4)
                start = filled
                cuts.append(start)
            filled = int(end)
    return [*cuts, filled]


@procedure(
    title="Chunks of least cost",
    source="Knuth and Plass 1981, Breaking paragraphs into lines, Software: Practice and Experience 11(11)",
    example=_example,
    rejects=[*_REJECTS, bad(severs=(1.0, 2.0)), bad(severs=(10.0, 3.0, 1.0, -1.0))],
)
def optimal_chunks(
    lengths: Annotated[Int[Array, "sentences"], at_least(1)], levels: Annotated[Int[Array, "sentences"], LEVELS], *,
    size: Annotated[int, at_least(1)], balance: Annotated[float, at_least(0)] = 1.0, severs: Sequence[float] = SEVERS,
) -> list[int]:  # fmt: skip
    """Where chunks of at most ``size`` tokens begin and end, so that the sum of chunking_cost is the least there is.

    lengths, levels and the result are those of greedy_chunks. severs is what a cut costs at levels 0 to 3, at least 0; balance is what
    an empty chunk would cost. Cuts lie between sentences, or between the pieces of one that is too long.
    Raises ValueError as greedy_chunks does, and where severs are not four numbers of at least 0.
    """
    ends, level = _units(lengths, levels, size)
    kappa = _kappa(level, severs)
    before = np.concatenate([[0], ends])                     # tokens before each unit
    best, came_from = np.zeros(len(before)), np.zeros(len(before), int)
    for j in range(1, len(before)):
        first = int(np.searchsorted(before, before[j] - size))  # the first unit from which the chunk still fits
        empty = (size - (before[j] - before[first:j])) / size
        cost = kappa[j - 1] + balance * empty**2             # (1)
        total = best[first:j] + cost
        best[j], came_from[j] = total.min(), first + total.argmin()  # (2)
    cuts = [len(ends)]
    while cuts[-1]:
        cuts.append(int(came_from[cuts[-1]]))                # (3)
    return before[cuts[::-1]].tolist()


@procedure(
    title="Cost of chunks",
    source="Knuth and Plass 1981, Breaking paragraphs into lines, Software: Practice and Experience 11(11)",
    example=lambda rng: _example(rng, [0, 4, 16, 24, 28], size=12),
    rejects=[
        *_REJECTS, bad(cuts=[0, 28]), bad(cuts=[0, 4, 16, 16, 24, 28]), bad(cuts=[0, 5, 16, 24, 28]), bad(cuts=[4, 16, 24, 28]),
        bad(cuts=[0, 4, 16, 24]), bad(cuts=[]), bad(cuts=[0]), bad(severs=(1.0,)),
    ],
)  # fmt: skip
def chunking_cost(
    cuts: Sequence[int], lengths: Annotated[Int[Array, "sentences"], at_least(1)], levels: Annotated[Int[Array, "sentences"], LEVELS], *,
    size: Annotated[int, at_least(1)], balance: Annotated[float, at_least(0)] = 1.0, severs: Sequence[float] = SEVERS,
) -> float:  # fmt: skip
    """What the cuts of a text cost: all that they sever, and the emptiness of its chunks.

    Arguments are those of optimal_chunks. Raises ValueError as it does, and where cuts do not ascend from 0 to the length of the text,
    leave a chunk above ``size``, or lie where optimal_chunks would not cut.
    """
    ends, level = _units(lengths, levels, size)
    filled = np.diff(cuts) if len(cuts) > 1 else np.zeros(1, int)
    if filled.min() < 1 or filled.max() > size or cuts[0] != 0 or cuts[-1] != ends[-1]:
        raise invalid("cuts", got=list(cuts), wants=f"cuts that ascend from 0 to {ends[-1]} in steps of 1 to {size}")
    if not np.isin(cuts[1:], ends).all():
        raise invalid("cuts", got=list(cuts), wants="cuts between sentences, or full chunks of one that is too long")
    severed = _kappa(level, severs)[np.searchsorted(ends, cuts[1:])]
    return float(severed.sum() + balance * (((size - filled) / size) ** 2).sum())


def _units(lengths: Array, levels: Array, size: int) -> tuple[Array, Array]:
    """Where what is not taken apart ends, in tokens, and the level there: sentences, and full chunks of those above a chunk's size."""
    pieces = -(-lengths // size)
    unit = np.full(pieces.sum(), size)
    last = pieces.cumsum() - 1
    unit[last] = lengths - (pieces - 1) * size
    level = np.zeros(len(unit), int)
    level[last] = levels
    return unit.cumsum(), level


def _kappa(level: Array, severs: Sequence[float]) -> Array:
    """What a cut behind each unit costs: nothing at the end of the text."""
    if len(severs) != 4 or min(severs) < 0:
        raise invalid("severs", got=severs, wants="four numbers of at least 0, for the levels 0 to 3")
    kappa = np.array(severs, float)[level]
    kappa[-1] = 0
    return kappa
