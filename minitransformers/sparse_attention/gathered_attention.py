"""Gathered attention: one softmax over chosen pairs of queries and keys, and one backward for every pattern of them.

A pattern is a few pieces, a piece is blocks of pairs: the queries ``rows[b]`` with the keys ``columns[b]``, of which ``seen`` says
who sees whom. Windows, strides, summaries and random blocks are all of this kind. Forward, queries and keys are gathered into
their blocks, and dense products of the blocks are all that is computed; backward, what was gathered is put back, and the keys
that several blocks read add up their gradients (scatter_add_rows). Which pairs there are is fixed: a choice has no gradient.
Costs time O(pairs in blocks times width) and memory O(pairs in blocks). Source: Zaheer et al. 2020, arXiv:2007.14062, appendix D
(blocks that are gathered, for BigBird); Beltagy, Peters and Cohan 2020, arXiv:2004.05150, appendix A. Differs from both: the
softmax goes over all pieces of any number at once, as a query's keys may lie in blocks of different shapes.

    q_b, k_b, v_b = q at rows[b], k and v at columns[b], for every block b of every piece   (1)
    scores_b = scale q_b k_b^T + bias at these pairs, scale = 1 / sqrt(d_head)   (2)
    scores_b = -inf where a pair is not seen                 (3)
    exps_b = exp(scores_b - top), top_i = the largest score of query i in all pieces   (4)
    mix_i = the sum over i's blocks of its row of exps_b v_b (5)
    total_i = the sum of all its exps                        (6)
    out = mix / total                                        (7)
    dmix = dout / total, dtotal = - dmix . out               (8)
    dv: at columns[b], the sum of exps_b^T dmix_b            (9)
    dscores_b = exps_b (dmix_b v_b^T + dtotal)               (10)
    dq: at rows[b], scale dscores_b k_b, a sum over pieces   (11)
    dk: at columns[b], the sum of scale dscores_b^T q_b      (12)
    dbias: at the pairs, the sum of dscores_b                (13)

The maximum cancels in (7) and has no gradient. A pair that is in two pieces counts twice, forward and backward. Names in _t lie
in memory as (..., blocks, columns, rows), for the reason given in scaled_dot_product_attention_fast.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_over_keys, sum_to
from minitransformers.attention.scaled_dot_product_attention import check_bias
from minitransformers.attention.scaled_dot_product_attention_fast import add, dot_products
from minitransformers.foundation import Backward, bad, concept, example, invalid
from minitransformers.sparse_attention.scatter import scatter_add_rows


class Piece(NamedTuple):
    """Blocks of pairs: the queries rows[b] with the keys columns[b], where seen[b] allows; -1 fills up a block that is not full.

    A query stands in at most one block of a piece; a key may stand in many. An axis of seen that is 1 is the same for all.
    """

    rows: Int[Array, "blocks rows"]
    columns: Int[Array, "blocks columns"]
    seen: Bool[Array, "#blocks #rows #columns"]


@concept(
    title="Gathered attention",
    source="Zaheer et al. 2020, arXiv:2007.14062, appendix D; Beltagy, Peters and Cohan 2020, arXiv:2004.05150, appendix A",
    example=lambda rng: _example(rng),
    rejects=[
        bad("pieces", pieces=()),
        bad("rows", pieces=(Piece(np.array([[0, 4]]), np.array([[0]]), np.ones((1, 1, 1), bool)),)),
        bad("rows", pieces=(Piece(np.array([[0], [0]]), np.array([[0], [1]]), np.ones((1, 1, 1), bool)),)),
        bad("columns", pieces=(Piece(np.array([[0, 1]]), np.array([[0, 6]]), np.ones((1, 1, 1), bool)),)),
        bad("columns", pieces=(Piece(np.array([[0, 1]]), np.array([[0, -2]]), np.ones((1, 1, 1), bool)),)),
        bad(bias=np.full((1, 2, 4, 6), np.inf)), bad(bias=np.full((1, 2, 4, 6), np.nan)),
    ],
)  # fmt: skip
def gathered_attention(
    params: None,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    pieces: Sequence[Piece],
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Mix the values, for each query, by the softmax over the keys that the pieces give it. A core whose pattern is a setting.

    pieces are the same for every text and head; mask, True where a query may attend to a key, narrows them. A query that
    sees no key, or stands in no piece, reads zero and sends no gradient. params is None, as nothing is learned.
    Returns out (*batch, queries, d_value), and backward: dout -> None, dquery, dkey, dvalue, dbias (None without a bias).
    Raises ValueError when axes do not fit, a piece names a query or key that there is not, or a query twice.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    check_pieces(params, pieces, queries, keys)
    check_bias(bias)
    parts, tops = [], []
    for piece in pieces:
        rows, columns = np.maximum(piece.rows, 0), np.maximum(piece.columns, 0)
        near_query, near_key, near_value = query[..., rows, :], key[..., columns, :], value[..., columns, :]  # (1)
        scores_t, scores_backward = dot_products(near_query, near_key, None)  # (..., blocks, columns, rows)
        near_bias_t = None if bias is None else bias[_pairs(bias.shape, rows, columns)]
        scores_t = scores_t if near_bias_t is None else add(scores_t, near_bias_t)  # (2)
        seen_t = piece.seen.swapaxes(-1, -2) & (piece.columns >= 0)[:, :, None] & (piece.rows >= 0)[:, None, :]
        seen_t = seen_t if mask is None else seen_t & mask[_pairs(mask.shape, rows, columns)]
        if not seen_t.all():
            scores_t = add(scores_t, np.where(seen_t, scores_t.dtype.type(0), scores_t.dtype.type(-np.inf)))  # (3)
        tops.append(_in_place(scores_t.max(-2)[..., None], piece.rows, queries, nothing=-np.inf))
        parts.append((piece, rows, columns, near_value, scores_t, scores_backward, near_bias_t))

    top = np.maximum(np.max(np.broadcast_arrays(*tops), axis=0), np.finfo(query.dtype).min)  # finite where nothing is seen
    mix: Array | float = 0.0
    total: Array | float = 0.0
    for piece, rows, _, near_value, scores_t, *_ in parts:
        scores_t -= top[..., rows, 0][..., None, :]
        exps_t = np.exp(scores_t, out=scores_t)              # scores are not needed any more  (4)
        mix = mix + _in_place(exps_t.swapaxes(-1, -2) @ near_value, piece.rows, queries)  # (5)
        total = total + _in_place(sum_over_keys(exps_t.swapaxes(-1, -2)), piece.rows, queries)  # (6)
    total = np.maximum(total, 1)                             # the largest term is exp(0) = 1: below that there is none
    out = mix / total                                        # (..., queries, d_value)  (7)

    def backward(dout):
        dmix = dout / total
        dtotal = -np.vecdot(dmix, out)[..., None]            # (8)
        dquery, dkey, dvalue = (np.zeros_like(a) for a in (query, key, value))
        dbias = None if bias is None else np.zeros_like(bias)
        for piece, rows, columns, near_value, exps_t, scores_backward, near_bias_t in parts:
            near_dmix = dmix[..., rows, :]
            dnear_value = sum_to(exps_t @ near_dmix, near_value.shape)
            dvalue += scatter_add_rows(columns.reshape(-1), _flat(dnear_value), keys)  # (9)
            dexps_t = near_value @ np.ascontiguousarray(near_dmix.swapaxes(-1, -2))
            dexps_t += dtotal[..., rows, 0][..., None, :]
            dscores_t = np.multiply(exps_t, dexps_t, out=dexps_t)  # (10)
            dnear_query, dnear_key = scores_backward(dscores_t)
            dquery += _in_place(dnear_query, piece.rows, queries)  # (11)
            dkey += scatter_add_rows(columns.reshape(-1), _flat(dnear_key), keys)  # (12)
            if bias is not None and near_bias_t is not None:
                _, row, column = _pairs(bias.shape, rows, columns)
                dnear_bias_t = sum_to(dscores_t, near_bias_t.shape)
                dbias += _to_pairs(dnear_bias_t, row * bias.shape[-1] + column, bias.shape)  # (13)
        return None, dquery, dkey, dvalue, dbias

    return out, backward


def check_pieces(params: None, pieces: Sequence[Piece], queries: int, keys: int) -> None:
    """Raise ValueError where pieces name what there is not, or a query twice; inside an attention no annotation is checked."""
    if params is not None:
        raise invalid("params", got=type(params).__name__, wants="None: a pattern learns nothing")
    if not pieces:
        raise invalid("pieces", got="none", wants="at least one")
    for i, piece in enumerate(pieces):
        for name, index, size in (("rows", piece.rows, queries), ("columns", piece.columns, keys)):
            if index.min() < -1 or index.max() >= size:
                raise invalid(f"pieces.{i}.{name}", got=f"{index.min()} to {index.max()}", wants=f"0 to {size - 1}, or -1 to fill up")
        if np.bincount(piece.rows[piece.rows >= 0]).max(initial=0) > 1:
            raise invalid(f"pieces.{i}.rows", got="a query in two places", wants="each query at most once in a piece")


def last_queries(sees: Bool[Array, "queries keys"]) -> Piece:
    """The piece of a few queries at the end, from what they see: the keys that none of them sees are left out."""
    columns = np.flatnonzero(sees.any(0)) if sees.any() else np.zeros(1, int)
    return Piece(np.arange(len(sees))[None], columns[None], sees[None, :, columns])


def _in_place(blocks: Array, rows: Array, queries: int, *, nothing: float = 0.0) -> Array:
    """(..., blocks, rows, features) to (..., queries, features): each row where its query stands. No two are the same query."""
    order, flat = rows.reshape(-1), _flat(blocks)
    out = np.full((*flat.shape[:-2], queries, flat.shape[-1]), nothing, flat.dtype)
    out[..., order[order >= 0], :] = flat[..., order >= 0, :]
    return out


def _flat(blocks: Array) -> Array:
    """(..., blocks, rows, features) to (..., blocks * rows, features)."""
    return blocks.reshape(*blocks.shape[:-3], -1, blocks.shape[-1])


def _pairs(shape: tuple[int, ...], rows: Array, columns: Array) -> tuple:
    """The index of all blocks' pairs, as (..., blocks, columns, rows), into a mask or bias of that shape; an axis of 1 stays one."""
    return ..., _along(shape[-2], rows[:, None, :]), _along(shape[-1], columns[:, :, None])


def _along(size: int, index: Array) -> Array:
    return np.zeros((1, 1, 1), int) if size == 1 else index


def _to_pairs(dnear_t: Array, cells: Array, shape: tuple[int, ...]) -> Array:
    """The sum at each place of a bias of that shape of what its copies received; cells are the places, counted row by row."""
    return scatter_add_rows(cells.reshape(-1), dnear_t.reshape(-1, cells.size).T, shape[-2] * shape[-1]).T.reshape(shape)


def _example(rng: np.random.Generator):
    """A ragged band, in two blocks of which one is not full, and two columns that all see but the first query."""
    band = Piece(np.array([[3, 1], [0, -1]]), np.array([[1, 2, 3], [2, 1, -1]]), rng.random((2, 2, 3)) < 0.8)
    every = Piece(np.array([[1, 2, 3]]), np.array([[5, 0]]), np.ones((1, 1, 1), bool))
    shapes = (2, 2, 4, 3), (2, 1, 6, 3), (2, 1, 6, 5), (1, 2, 4, 6)
    return example(None, *(rng.normal(size=shape) for shape in shapes), pieces=(band, every), mask=rng.random((2, 1, 4, 6)) < 0.8)
