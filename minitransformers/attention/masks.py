"""Masks: boolean arrays that say which query may attend to which key. True = may attend.

They compose with ``&`` (both must allow) and broadcast against scores (*batch, heads, queries, keys):

    causal_mask(5, 5) & padding_mask(lengths, 5)

Queries are the last positions of the sequence that the keys span: query i stands at position i + keys - queries, so a
cache of earlier keys needs no offset. (PyTorch's ``is_causal=True`` aligns the other way, to the first key, and its
``key_padding_mask`` is True where a key is hidden.)

Masks made of numbers alone are cached and therefore read-only; those made of arrays are fresh.
"""

import functools
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, invalid, procedure

Size = Annotated[int, at_least(1)]


@procedure(title="Causal mask", source="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3", example=lambda rng: example(3, 5))
def causal_mask(queries: Size, keys: Size | None = None) -> Bool[Array, "queries keys"]:
    """Each query sees its own position and the earlier ones. keys defaults to queries."""
    return _mask("causal", queries, keys or queries)


@procedure(
    title="Sliding-window mask",
    source="Jiang et al. 2023, arXiv:2310.06825, section 2",
    example=lambda rng: example(3, 5, window=2),
)
def sliding_window_mask(queries: Size, keys: Size | None = None, *, window: Size) -> Bool[Array, "queries keys"]:
    """Each query sees the last ``window`` positions, its own included: min(position + 1, window) keys.

    Hugging Face's convention. (Some code reads "the last W" as W + 1 keys.)
    """
    return _mask("window", queries, keys or queries, window)


@procedure(title="Band mask", source="Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1", example=lambda rng: example(3, 5, reach=1))
def band_mask(queries: Size, keys: Size | None = None, *, reach: Annotated[int, at_least(0)]) -> Bool[Array, "queries keys"]:
    """Each query sees the positions at most ``reach`` away, on both sides."""
    return _mask("band", queries, keys or queries, reach)


@procedure(title="Prefix mask", source="Raffel et al. 2020, arXiv:1910.10683, section 3.2.1", example=lambda rng: example(3, 5, prefix=2))
def prefix_mask(queries: Size, keys: Size | None = None, *, prefix: Annotated[int, at_least(0)]) -> Bool[Array, "queries keys"]:
    """Causal, but the first ``prefix`` keys are seen by all: a prompt is read in both directions."""
    return _mask("prefix", queries, keys or queries, prefix)


@procedure(
    title="Padding mask",
    source="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3",
    example=lambda rng: example(np.array([[2, 0], [4, 1]]), 4),
    rejects=[bad("lengths", lengths=np.array([5]))],
)
def padding_mask(lengths: Annotated[Int[Array, "*batch"], at_least(0)], keys: Size) -> Bool[Array, "*batch one one keys"]:
    """The first ``lengths`` keys of each sequence are real, the others padding that nobody may see.

    Raises ValueError where a length exceeds the keys.
    """
    if lengths.max() > keys:
        raise invalid("lengths", got=f"{lengths.min()} to {lengths.max()}", wants=f"numbers from 0 to keys = {keys}")
    return np.arange(keys) < lengths[..., None, None, None]


@procedure(
    title="Segment mask",
    source="Raffel et al. 2020, arXiv:1910.10683, section 3.5.2 (packed examples)",
    example=lambda rng: example(np.array([[0, 0, 1], [2, 1, 1]])),
)
def segment_mask(segments: Int[Array, "*batch positions"]) -> Bool[Array, "*batch one positions positions"]:
    """Several documents packed into one row: each position sees only those with its own segment number."""
    return segments[..., None, :, None] == segments[..., None, None, :]


@functools.lru_cache(maxsize=64)
def _mask(kind, queries, keys, number=0):
    query = np.arange(keys - queries, keys)[:, None]         # its position in the sequence
    key = np.arange(keys)
    causal = key <= query
    mask = {
        "causal": lambda: causal,
        "window": lambda: causal & (query - number < key),
        "band": lambda: abs(query - key) <= number,
        "prefix": lambda: causal | (key < number),
    }[kind]()
    mask.setflags(write=False)                               # every caller gets this very array
    return mask
