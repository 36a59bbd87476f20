"""BigBird by gathering: each block of queries meets the blocks of keys on its row of the table, and no others are computed.

A row of the table names m blocks. Their keys and values are copied side by side, and all rows together are one batch of small
dense attentions: time O(positions m block d_head), memory O(positions m block) a head, against positions^2 for the plain form.
The equations are those of big_bird, and so are the numbers on the lines. What differs:

    near_k[i] = the keys of the blocks on row i side by side, near_v alike; (2) is attention of q[i] to them
    dk[j] = sum over the places where key j was copied to, dv alike, of what (3) gives

Rows that read everything, where the table has such, are dense attention beside it. A gather's adjoint is a scatter-add.
A few queries at the end, as decoding has, gather for the rows of their own blocks only.
Source: Zaheer et al. 2020, arXiv:2007.14062, appendix D.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.heads import sum_to
from minitransformers.foundation import Backward, at_least, bad, concept
from minitransformers.sparse_attention.big_bird import drawn_table, example_call
from minitransformers.sparse_attention.block_table import causal_block_table
from minitransformers.sparse_attention.scatter import scatter_add_rows


@concept(
    title="BigBird, by gathering blocks",
    source="Zaheer et al. 2020, arXiv:2007.14062, appendix D",
    example=lambda rng: example_call(rng),
    roles=("core",),
    rejects=[bad("query", query=np.ones((2, 2, 24, 3)), bias=None)],
    form_of="big_bird",
)
def big_bird_blocks(
    params: None,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    block: Annotated[int, at_least(1)] = 64,
    num_random: Annotated[int, at_least(0)] = 3,
    seed: Annotated[int, at_least(0)] = 0,
    table: Callable = causal_block_table,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """What big_bird gives, without the work that the table spares; arguments, results and errors are its own."""
    drawn = drawn_table(query, key, block, num_random, seed, table)
    arrays = [a for a in (query, key, value, bias, mask) if a is not None]
    rank = max(3, *(a.ndim for a in arrays))                 # heads stand third from the end, if only one
    q, k, v, b, allowed = (_lift(a, rank) for a in (query, key, value, bias, mask))
    queries, keys = query.shape[-2], key.shape[-2]
    block = min(block, keys)                                 # the only block of a shorter text is the text: nothing fills it up
    rows = _Rows(queries, keys, block)

    picks = drawn.picks[:, rows.first :]
    near = (picks[..., None] * block + np.arange(block)).reshape(*picks.shape[:2], -1)  # (heads, blocks, keys that are near)
    there, near = np.repeat(picks >= 0, block, axis=-1) & (near < keys), np.clip(near, 0, keys - 1)
    seen = there[:, :, None] & ((near[:, :, None] <= rows.place) | ~drawn.causal)  # (1)
    pairs = rows.query, near[:, :, None]
    seen = seen if mask is None else seen & _pick_pairs(allowed, *pairs)
    near_bias = None if bias is None else _pick_pairs(b, *pairs)
    near_key, near_value = _pick(k, near), _pick(v, near)    # (..., heads, blocks, near, d)
    out_blocks, core_backward = softmax_attention(params, rows.cut(q), near_key, near_value, near_bias, mask=seen)  # (2)
    out = rows.join(out_blocks)

    full = np.flatnonzero(drawn.dense[(keys - queries + np.arange(queries)) // block])  # the queries that read everything
    if len(full):                                            # their rows of the table are empty: so far they have read nothing
        at_bias, at_mask = (full if a is not None and a.shape[-2] > 1 else slice(None) for a in (b, allowed))
        full_bias, full_mask = (a if a is None else a[..., at, :] for a, at in ((b, at_bias), (allowed, at_mask)))
        out[..., full, :], full_backward = softmax_attention(params, q[..., full, :], k, v, full_bias, mask=full_mask)

    def backward(dout):
        dout = dout.reshape(out.shape)
        _, dquery_blocks, dnear_key, dnear_value, dnear_bias = core_backward(rows.cut(dout))  # (3)
        dquery = rows.join(dquery_blocks)
        dkey, dvalue = _put_back(dnear_key, near, k.shape), _put_back(dnear_value, near, v.shape)  # (3)
        dbias: Any = None if bias is None else _put_back_pairs(dnear_bias, b.shape, *pairs)
        if len(full):
            _, dquery_full, dkey_full, dvalue_full, dbias_full = full_backward(dout[..., full, :])
            dquery[..., full, :] += dquery_full
            dkey, dvalue = dkey + dkey_full, dvalue + dvalue_full
            if bias is not None:
                dbias[..., at_bias, :] += dbias_full
        whole = [gradient.reshape(a.shape) for gradient, a in zip((dquery, dkey, dvalue), (query, key, value), strict=True)]
        return None, *whole, None if bias is None else dbias.reshape(bias.shape)

    return out if rank == max(a.ndim for a in arrays) else out[0], backward


class _Rows:
    """The queries, the last of the keys' positions, cut into the blocks where they stand; those of one block as they are."""

    def __init__(self, queries: int, keys: int, block: int) -> None:
        start, self.queries = keys - queries, queries
        self.first, last = start // block, (keys - 1) // block
        self.size = block if last > self.first else queries
        self.ahead = start - self.first * block if last > self.first else 0
        self.behind = (last - self.first + 1) * self.size - self.ahead - queries
        at = np.arange(-self.ahead, queries + self.behind).reshape(-1, self.size, 1)
        self.place = start + at                              # (blocks, size, 1) of the text
        self.query = np.clip(at, 0, queries - 1)             # and of the queries; filled up with what counts for nothing

    def cut(self, x: Array) -> Array:
        """(..., queries, d) to (..., blocks, size, d), zeros before the first and behind the last."""
        if self.ahead or self.behind:
            ahead, behind = (np.zeros((*x.shape[:-2], n, x.shape[-1]), x.dtype) for n in (self.ahead, self.behind))
            x = np.concatenate([ahead, x, behind], axis=-2)
        return x.reshape(*x.shape[:-2], -1, self.size, x.shape[-1])

    def join(self, blocks: Array) -> Array:
        """The way back, and its adjoint; the caller's own to write to."""
        whole = blocks.reshape(*blocks.shape[:-3], -1, blocks.shape[-1])
        return whole[..., self.ahead : self.ahead + self.queries, :]


def _lift(a: Any, rank: int) -> Any:
    """With leading axes of 1 up to that rank; None for None."""
    return a if a is None else a.reshape((1,) * (rank - a.ndim) + a.shape)


def _pick(x: Array, place: Array) -> Array:
    """x[..., h, place[h], :] for every head h, (..., heads, blocks, near, d)."""
    *batch, heads, positions, d = x.shape
    head = np.arange(heads).reshape(-1, 1, 1)
    if place.size < positions:                               # a step of decoding copies what it reads, not the whole cache
        return x[..., head, place, :]
    text = heads * np.arange(math.prod(batch)).reshape(*batch, 1, 1, 1)
    return x.reshape(-1, d).take(positions * (text + head) + place, axis=0)


def _put_back(dnear: Array, place: Array, shape: tuple[int, ...]) -> Array:
    """The adjoint: a key that was picked several times gets the sum."""
    *before, _, _, d = dnear.shape
    summed = scatter_add_rows(place.reshape(len(place), -1), dnear.reshape(*before, -1, d), shape[-2])
    return sum_to(summed, shape)


def _cells(shape: tuple[int, ...], query: Array, place: Array) -> tuple[Array, Array, Array]:
    """Where the pairs of queries and near keys stand in a mask or a bias of that shape, which may have an axis of 1."""
    return np.arange(shape[-3]).reshape(-1, 1, 1, 1), query * (shape[-2] > 1), place * (shape[-1] > 1)


def _pick_pairs(scores: Array, query: Array, place: Array) -> Array:
    """A mask or bias of all pairs for the pairs that are near: (..., heads, blocks, size, near)."""
    return scores[(..., *_cells(scores.shape, query, place))]


def _put_back_pairs(dnear: Array, shape: tuple[int, ...], query: Array, place: Array) -> Array:
    """The adjoint."""
    *batch, heads, rows, columns = shape
    head, query, place = np.broadcast_arrays(*_cells(shape, query, place))
    cells = ((head * rows + query) * columns + place).reshape(-1)
    summed = scatter_add_rows(cells, dnear.reshape(*batch, -1, 1), heads * rows * columns)
    return summed.reshape(shape)
