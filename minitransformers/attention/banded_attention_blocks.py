"""Banded attention in blocks: what the band forbids is never computed, so that time and memory grow with positions times window.

A block of ``window`` queries needs the keys of two blocks only, its own and the one before. Time O(positions window d_head),
memory O(positions window) a head, against positions^2 for the plain form. The equations are those of banded_attention, and
so are the numbers on the lines. What differs: block b of q, k, v holds the positions from b window on; zeros fill up the last
one, and stand before the first.

    near_k[b] = k[b - 1] beside k[b], near_v alike; (2) is core(q[b], near_k[b], near_v[b]) under the band
    dk[b] = right half of dnear_k[b] + left half of dnear_k[b + 1], dv alike, of what (3) gives

With ``ahead`` above 0, k[b + 1] stands beside them as a third part. What the core learns is shared by all blocks.
Source: Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1 and appendix A (overlapping chunks).
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.banded_attention import check_band, example_call
from minitransformers.attention.core import softmax_attention
from minitransformers.foundation import Backward, at_least, bad, concept


@concept(
    title="Banded attention in blocks",
    source="Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1 and appendix A",
    example=lambda rng: example_call(rng),
    roles=("core",),
    rejects=[bad(ahead=4), bad("query", query=np.ones((2, 2, 9, 3)), bias=None)],
    form_of="banded_attention",
)
def banded_attention_blocks(
    params: Any,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    window: Annotated[int, at_least(1)],
    ahead: Annotated[int, at_least(0)] = 0,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    core: Callable = softmax_attention,
) -> tuple[Array, Backward]:
    """What banded_attention gives, without the work that the band forbids; arguments, results and errors are its own."""
    check_band(query, key, window, ahead)
    queries, keys = query.shape[-2], key.shape[-2]
    if queries < keys:
        return _last_queries(params, query, key, value, bias, mask, window, ahead, core)
    window = min(window, keys)
    offsets = (-1, 0) if ahead == 0 else (-1, 0, 1)          # the blocks that a block of queries can reach
    rank = max(a.ndim for a in (query, key, value, bias, mask) if a is not None)

    def near(blocks):
        return np.concatenate([_shift(blocks, offset) for offset in offsets], axis=-2)

    def from_near(dnear):
        parts = np.split(dnear, len(offsets), axis=-2)
        return sum(_shift(part, -offset) for part, offset in zip(parts, offsets, strict=True))

    query_blocks, key_blocks, value_blocks = (_to_blocks(a, window, rank) for a in (query, key, value))
    place = np.arange(len(query_blocks) * window).reshape(-1, window, 1)
    near_place = place[:, :1] + np.arange(offsets[0] * window, (offsets[-1] + 1) * window)  # (blocks, 1, near)
    band = (place - window < near_place) & (near_place <= place + ahead) & (near_place >= 0) & (near_place < keys)  # (1)
    band = band.reshape(len(band), *(1,) * (query_blocks.ndim - 3), *band.shape[1:])
    if mask is not None:
        band = band & _near_scores(mask, place, near_place, query_blocks.ndim, keys)
    near_bias = None if bias is None else _near_scores(bias, place, near_place, query_blocks.ndim, keys)
    near_key, near_value = near(key_blocks), near(value_blocks)  # (blocks, ..., near, d)
    out_blocks, core_backward = core(params, query_blocks, near_key, near_value, near_bias, mask=band)  # (2)
    out = _from_blocks(out_blocks, queries)

    def backward(dout):
        dparams, dquery_blocks, dnear_key, dnear_value, dnear_bias = core_backward(_to_blocks(dout, window, rank))  # (3)
        dkey, dvalue = from_near(dnear_key), from_near(dnear_value)  # a key was near to two blocks: add  (3)
        dbias = None if bias is None else _from_near_scores(dnear_bias, bias.shape, place, near_place, keys)
        pairs = ((query, dquery_blocks), (key, dkey), (value, dvalue))
        return dparams, *(_from_blocks(blocks, a.shape[-2]).reshape(a.shape) for a, blocks in pairs), dbias

    return out, backward


def _to_blocks(x, window, rank):
    """(..., positions, d) to (blocks, ..., window, d): in front, so that the core sees its heads where they always stand.

    Leading axes of 1 come before those that there are, up to the rank: blocks must stand before the leading axes of all.
    """
    x = x.reshape((1,) * (rank - x.ndim) + x.shape)
    missing = -x.shape[-2] % window
    if missing:
        x = np.concatenate([x, np.zeros((*x.shape[:-2], missing, x.shape[-1]), x.dtype)], axis=-2)
    return np.moveaxis(x.reshape(*x.shape[:-2], -1, window, x.shape[-1]), -3, 0)


def _from_blocks(blocks, positions):
    blocks = np.moveaxis(blocks, 0, -3)
    return blocks.reshape(*blocks.shape[:-3], -1, blocks.shape[-1])[..., :positions, :]


def _shift(blocks, offset):
    """Block b of the result is block b + offset, or zeros where there is none. Its adjoint is the opposite shift."""
    if offset == 0:
        return blocks
    nothing = np.zeros_like(blocks[:1])
    return np.concatenate([nothing, blocks[:-1]] if offset < 0 else [blocks[1:], nothing])


def _near_scores(scores, place, near_place, rank, positions):
    """A mask or bias of all pairs, (..., #queries, #keys), for the pairs that are near: (blocks, ..., window, near)."""
    rows = np.zeros_like(place) if scores.shape[-2] == 1 else np.minimum(place, positions - 1)
    columns = np.zeros_like(near_place) if scores.shape[-1] == 1 else np.clip(near_place, 0, positions - 1)
    picked = np.moveaxis(scores[..., rows, columns], -3, 0)
    return picked.reshape(len(picked), *(1,) * (rank - picked.ndim), *picked.shape[1:])


def _from_near_scores(dnear, shape, place, near_place, positions):
    """The adjoint: each pair that was near adds its gradient to where it came from; the band was zero outside the text."""
    dnear = np.moveaxis(dnear.reshape(len(dnear), *shape[:-2], *dnear.shape[-2:]), 0, -3)
    rows = np.broadcast_to(np.zeros_like(place) if shape[-2] == 1 else np.minimum(place, positions - 1), dnear.shape[-3:])
    columns = np.broadcast_to(np.zeros_like(near_place) if shape[-1] == 1 else np.clip(near_place, 0, positions - 1), dnear.shape[-3:])
    cells = (rows * shape[-1] + columns).ravel()             # the last cell is near to itself, so there is a sum for every one
    sums = [np.bincount(cells, weights=part.ravel()) for part in dnear.reshape(-1, *dnear.shape[-3:])]
    return np.array(sums).reshape(shape).astype(dnear.dtype)


def _last_queries(params, query, key, value, bias, mask, window, ahead, core):
    """A few queries at the end: the keys that their windows reach are few, and all of them are taken, under the mask."""
    queries, keys = query.shape[-2], key.shape[-2]
    first = max(0, keys - queries - window + 1)
    place, key_place = np.arange(keys - queries, keys)[:, None], np.arange(first, keys)
    band = (place - window < key_place) & (key_place <= place + ahead)
    cut = [a if a is None or a.shape[-1] == 1 else a[..., first:] for a in (mask, bias)]
    band = band if cut[0] is None else band & cut[0]
    out, core_backward = core(params, query, key[..., first:, :], value[..., first:, :], cut[1], mask=None if band.all() else band)

    def backward(dout):
        dparams, dquery, dkey, dvalue, dbias = core_backward(dout)

        def whole(gradient, like, axis):                     # zeros for what no query reaches
            if like is None or gradient.shape == like.shape:
                return gradient
            padded = np.zeros_like(like)
            np.moveaxis(padded, axis, 0)[first:] = np.moveaxis(gradient, axis, 0)
            return padded

        return dparams, dquery, whole(dkey, key, -2), whole(dvalue, value, -2), whole(dbias, bias, -1)

    return out, backward
