"""Masks: boolean arrays that say which query may attend to which key. True = may attend.

They compose with ``&`` (both must allow) and broadcast against scores (*batch, heads, queries, keys):

    causal_mask(5, 5) & padding_mask(lengths, 5)

Queries are the last positions of the sequence that the keys span: query i stands at position i + keys - queries, so a
cache of earlier keys needs no offset. (PyTorch's ``is_causal=True`` aligns the other way, to the first key, and its
``key_padding_mask`` is True where a key is hidden.)

Masks made of numbers alone are cached and therefore read-only; those made of arrays are fresh.
"""

import functools

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from minitransformers.foundation import invalid, whole_number


def causal_mask(queries: int, keys: int | None = None) -> Bool[Array, "queries keys"]:
    """Each query sees its own position and the earlier ones. keys defaults to queries."""
    return _mask("causal", *_sizes(queries, keys))


def sliding_window_mask(queries: int, keys: int | None = None, *, window: int) -> Bool[Array, "queries keys"]:
    """Each query sees the last ``window`` positions, its own included: min(position + 1, window) keys.

    Hugging Face's convention. (Some code reads "the last W" as W + 1 keys.)
    """
    return _mask("window", *_sizes(queries, keys), whole_number("window", window, least=1))


def band_mask(queries: int, keys: int | None = None, *, reach: int) -> Bool[Array, "queries keys"]:
    """Each query sees the positions at most ``reach`` away, on both sides."""
    return _mask("band", *_sizes(queries, keys), whole_number("reach", reach, least=0))


def prefix_mask(queries: int, keys: int | None = None, *, prefix: int) -> Bool[Array, "queries keys"]:
    """Causal, but the first ``prefix`` keys are seen by all: a prompt is read in both directions."""
    return _mask("prefix", *_sizes(queries, keys), whole_number("prefix", prefix, least=0))


def padding_mask(lengths: Int[Array, "*batch"], keys: int) -> Bool[Array, "*batch 1 1 keys"]:
    """The first ``lengths`` keys of each sequence are real, the others padding that nobody may see."""
    lengths, keys = _integers("lengths", lengths), whole_number("keys", keys, least=1)
    if lengths.min() < 0 or lengths.max() > keys:
        raise invalid("lengths", got=f"{lengths.min()} to {lengths.max()}", wants=f"numbers from 0 to keys = {keys}")
    return np.arange(keys) < lengths[..., None, None, None]


def segment_mask(segments: Int[Array, "*batch positions"]) -> Bool[Array, "*batch 1 positions positions"]:
    """Several documents packed into one row: each position sees only those with its own segment number."""
    segments = _integers("segments", segments)
    if segments.ndim == 0:
        raise invalid("segments", got="a single number", wants="one number a position")
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


def _sizes(queries, keys):
    queries = whole_number("queries", queries, least=1)
    return queries, queries if keys is None else whole_number("keys", keys, least=1)


def _integers(name, values):
    values = np.asarray(values)
    if values.dtype.kind not in "iu" or not values.size:
        raise invalid(name, got=f"{values.dtype} of shape {values.shape}", wants="whole numbers")
    return values
