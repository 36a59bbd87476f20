"""Chunking: a long text in pieces of one size that overlap, so that no token is lost and none stands at an edge only.

Each chunk is read as a text of its own. A token near a chunk's edge has little to one side of it, so neighbours share some tokens:
what is an edge in one chunk is further inside in another. The last chunk seldom ends where the text does. It is either moved back
until it does, and overlaps more, or filled up with padding. Costs: size / (size - overlap) tokens are read for each of the text.

Source: Devlin et al. 2019, arXiv:1810.04805, whose code for SQuAD reads documents so and asks for each token the chunk with maximal
context. Differs from it: its code adds a hundredth of a chunk's length to (7), which decides where the last chunk is shorter.

    stride = size - overlap, count = 1 + ceil(max(length - size, 0) / stride)   (1)
    start_c = c stride                                       (2)
    last start = max(length - size, 0), where it is moved back   (3)
    chunk_c,i = ids at start_c + i                           (4)
    mask_c,i = start_c + i < length                          (5)
    coverage_t = number of chunks with start_c <= t < start_c + size   (6)
    context_c,i = min(i, end_c - 1 - i), end_c = min(size, length - start_c)   (7)
    chosen_c,i = this is the first chunk in which its token's context is largest   (8)
"""

from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, invalid, procedure


class Chunks(NamedTuple):
    """The chunks, where each begins in the text, and which of their places are tokens of it (the others are padding)."""

    ids: Int[Array, "*batch chunks size"]
    starts: Int[Array, "chunks"]
    mask: Bool[Array, "chunks size"]


@procedure(
    title="Overlapping chunks",
    source="Devlin et al. 2019, arXiv:1810.04805, the code for SQuAD",
    example=lambda rng: example(rng.integers(9, size=(2, 11)), size=4, overlap=1),
    rejects=[bad(overlap=4), bad(overlap=5), bad("overlap", size=1)],
)
def overlapping_chunks(
    ids: Int[Array, "*batch positions"], *, size: Annotated[int, at_least(1)], overlap: Annotated[int, at_least(0)] = 0,
    last: Literal["shift", "pad"] = "shift", pad: int = 0,
) -> Chunks:  # fmt: skip
    """A text in chunks of ``size`` tokens, each sharing ``overlap`` with the next.

    last says what becomes of the last chunk where it would reach over the end: "shift" moves it back, so it shares more, and "pad"
    fills it with the id pad. A text shorter than one chunk is padded in any case. Texts of a batch are equally long.
    Raises ValueError where overlap is not below size: the chunks would not move on.
    """
    if overlap >= size:
        raise invalid("overlap", got=overlap, wants=f"a whole number below the size, {size}")
    length, stride = ids.shape[-1], size - overlap
    count = 1 + -(-max(length - size, 0) // stride)          # (1)
    starts = np.arange(count) * stride                       # (2)
    if last == "shift":
        starts[-1] = max(length - size, 0)                   # (3)
    missing = starts[-1] + size - length
    filled = np.concatenate([ids, np.full((*ids.shape[:-1], missing), pad, ids.dtype)], axis=-1)
    chunks = np.lib.stride_tricks.sliding_window_view(filled, size, axis=-1)[..., starts, :]  # (4)
    mask = _places(starts, size) < length                    # (5)
    return Chunks(chunks, starts, mask)


@procedure(
    title="Coverage of chunks",
    source="Devlin et al. 2019, arXiv:1810.04805, the code for SQuAD",
    example=lambda rng: example(np.array([0, 3, 6, 7]), size=4, length=11),
    rejects=[bad(starts=np.array([0, 3, 6, -1])), bad(starts=np.array([0, 3, 6, 11]))],
)
def chunk_coverage(
    starts: Int[Array, "chunks"], *, size: Annotated[int, at_least(1)], length: Annotated[int, at_least(1)]
) -> Int[Array, "length"]:
    """In how many chunks each token of the text stands. Raises ValueError where a chunk does not begin inside the text."""
    check_starts(starts, length)
    places = _places(starts, size)
    return np.bincount(places[places < length], minlength=length)  # (6)


@procedure(
    title="Maximal context",
    source="Devlin et al. 2019, arXiv:1810.04805, the code for SQuAD",
    example=lambda rng: example(np.array([0, 3, 6, 7]), size=4, length=11),
    rejects=[bad(starts=np.array([0, 3, 6, -1])), bad(starts=np.array([0, 3, 6, 11]))],
)
def max_context(
    starts: Int[Array, "chunks"], *, size: Annotated[int, at_least(1)], length: Annotated[int, at_least(1)]
) -> Bool[Array, "chunks size"]:
    """Which chunk is asked for which token: True in one place for each token that is covered, and nowhere for padding.

    It is the chunk in which the side with fewer neighbours has most of them, the first of those that are equal.
    Raises ValueError where a chunk does not begin inside the text.
    """
    check_starts(starts, length)
    places, offsets = _places(starts, size), np.arange(size)
    ends = np.minimum(size, length - starts)[:, None]        # padding is no context
    context = np.minimum(offsets, ends - 1 - offsets)        # below 0 in padding  (7)
    row, column = np.nonzero(context >= 0)
    token = places[row, column]
    order = np.lexsort((-context[row, column], token))       # stable: of equals the first chunk comes first
    first = order[np.unique(token[order], return_index=True)[1]]
    chosen = np.zeros(places.shape, bool)
    chosen[row[first], column[first]] = True                 # (8)
    return chosen


def check_starts(starts: Array, length: int) -> None:
    """Raise ValueError where a chunk does not begin inside the text."""
    if starts.min() < 0 or starts.max() >= length:
        raise invalid("starts", got=f"numbers from {starts.min()} to {starts.max()}", wants=f"numbers from 0 to below {length}")


def _places(starts: Array, size: int) -> Array:
    return starts[:, None] + np.arange(size)
