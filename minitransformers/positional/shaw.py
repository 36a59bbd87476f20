"""Shaw's relative positions: a learned vector for every offset, added to the key that is compared and to the value that is read.

A bias on the scores says that a distance matters. A vector on the key says it to some queries and not to others, and a
vector on the value tells the reader how far away it has read. Offsets beyond a reach K share the outermost vectors.

Source: Shaw, Uszkoreit and Vaswani 2018, arXiv:1803.02155, eqs. 3 and 4; the tables serve all heads. [x]_row takes from
each query's row of x the element that row_ij names; K = (rows of the table - 1) / 2.

    row_ij = clip(j - (i + num_keys - num_queries), -K, K) + K           (1)
    scores = (q k^T + [q key_table^T]_row) / sqrt(d_head) + bias         (2)
    weights = softmax over the keys of scores, where the mask allows     (3)
    spent_ir = sum over j with row_ij = r of weights_ij                  (4)
    out = weights v + spent value_table                                  (5)
    dv = weights^T dout, dvalue_table = spent^T dout                     (6)
    dweights = dout v^T + [dout value_table^T]_row                       (7)
    dlogits = weights (dweights - sum over keys of dweights weights), and dbias = dlogits   (8)
    dscores = dlogits / sqrt(d_head)                                     (9)
    dspread_ir = sum over j with row_ij = r of dscores_ij                (10)
    dq = dscores k + dspread key_table                                   (11)
    dk = dscores^T q, dkey_table = dspread^T q                           (12)

The vectors k_j + key_table of row_ij, one for each pair, are never made: a query has 2K + 1 products with the table, and
each pair picks one of them. Gradients of the tables are summed over all leading axes.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_scores, forbid, sum_to
from minitransformers.attention.scaled_dot_product_attention import check_bias
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid
from minitransformers.positional.offsets import offsets


class Shaw(NamedTuple):
    """A vector for each offset of a key from the query, 2K + 1 of them, the middle one for a key at the query's own position."""

    key_table: Float[Array, "offsets d_head"]
    value_table: Float[Array, "offsets d_value"]


@checked
def init_shaw(
    rng: np.random.Generator, *, d_head: Annotated[int, at_least(1)], reach: Annotated[int, at_least(0)], std: Annotated[float, at_least(0)] = 0.02,
    dtype: type = np.float32,
) -> Shaw:  # fmt: skip
    """Normal vectors of deviation ``std`` for offsets up to ``reach`` positions to each side; beyond, the outermost serve."""
    return Shaw(*((std * rng.standard_normal((2 * reach + 1, d_head))).astype(dtype) for _ in range(2)))


@concept(
    title="Shaw's relative positions",
    source="Shaw, Uszkoreit and Vaswani 2018, arXiv:1803.02155, eqs. 3 and 4",
    example=lambda rng: _example(rng),
    roles=("core",),
    rejects=[
        bad("params.key_table", params=Shaw(np.ones((4, 5)), np.ones((4, 7)))),
        bad("query", query=np.ones((2, 3, 7, 5)), bias=None, mask=None),
        bad(mask=np.ones((5, 1, 1, 4, 6), bool)),
        bad(bias=np.full((1, 3, 4, 6), np.nan)),
    ],
)
def shaw(
    params: Shaw,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Attention whose keys and values know their offset from the query, up to (offsets - 1) / 2 positions to each side. A core.

    The rows of a table before the middle one are for earlier keys. The queries are the last of the positions that the keys
    span. mask is True where a query may attend to a key; a query that may attend to nothing reads zero and sends no gradient.
    Returns out (*batch, queries, d_value), and backward: dout -> Shaw of gradients, dquery, dkey, dvalue, dbias (None without).
    Raises ValueError when the tables have an even number of rows, there are more queries than keys, or mask or bias do not fit.
    """
    (num_queries, d_head), num_keys, rows = query.shape[-2:], key.shape[-2], len(params.key_table)
    if rows % 2 == 0:
        raise invalid("params.key_table", got=f"{rows} rows", wants="an odd number, 2K + 1")
    if num_queries > num_keys:
        raise invalid("query", got=f"{num_queries} queries", wants=f"at most as many as keys, {num_keys}: they are the last of their positions")
    batch = np.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    for argument, array in (("mask", mask), ("bias", bias)):
        check_scores(argument, array, (*batch, num_queries, num_keys))
    check_bias(bias)
    reach, scale = rows // 2, d_head**-0.5
    row = np.clip(offsets(num_queries, num_keys), -reach, reach) + reach  # (queries, keys)  (1)

    scores = query @ key.swapaxes(-1, -2) + _spread(query @ params.key_table.T, row)
    scores *= scale
    logits = forbid(scores if bias is None else scores + bias, mask)  # (2)
    # Where all is forbidden the maximum is -inf; any finite number in its place makes all exponentials 0. Elsewhere the
    # largest is exp(0) = 1, so that a sum below 1 means that there is none: 0 / 1 = 0.
    weights = np.exp(logits - np.maximum(logits.max(-1, keepdims=True), np.finfo(logits.dtype).min))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1)  # (3)
    spent = _collected(weights, row, rows)                   # (*batch, queries, rows)  (4)
    out = weights @ value + spent @ params.value_table       # (5)

    def backward(dout):
        dvalue = sum_to(weights.swapaxes(-1, -2) @ dout, value.shape)
        dvalue_table = _flat(np.broadcast_to(spent, (*dout.shape[:-1], rows))).T @ _flat(dout)  # (6)
        dweights = dout @ value.swapaxes(-1, -2) + _spread(dout @ params.value_table.T, row)  # (7)
        shared = np.vecdot(dweights, weights)[..., None]
        dlogits = weights * (dweights - shared)
        dbias = None if bias is None else sum_to(dlogits, bias.shape)  # (8)
        dscores = scale * dlogits                            # (9)
        dspread = _collected(dscores, row, rows)             # (10)
        dquery = dscores @ key + dspread @ params.key_table  # (11)
        dkey = sum_to(dscores.swapaxes(-1, -2) @ query, key.shape)
        dkey_table = _flat(dspread).T @ _flat(np.broadcast_to(query, (*dspread.shape[:-1], d_head)))  # (12)
        return Shaw(dkey_table, dvalue_table), sum_to(dquery, query.shape), dkey, dvalue, dbias

    return out, backward


def _spread(x, row):
    """From a number for each offset to a number for each key: x (..., queries, offsets) at row (queries, keys)."""
    return np.take_along_axis(x, np.broadcast_to(row, (*x.shape[:-1], row.shape[1])), axis=-1)


def _collected(x, row, rows):
    """The other way: for each query the sum over the keys with the same row."""
    place = np.arange(x[..., 0].size).reshape(*x.shape[:-1], 1) * rows + row
    return np.bincount(place.ravel(), weights=x.ravel(), minlength=x[..., 0].size * rows).reshape(*x.shape[:-1], rows).astype(x.dtype)


def _flat(x):
    """All leading axes in one."""
    return x.reshape(-1, x.shape[-1])


def _example(rng: np.random.Generator):
    mask = np.array([[1, 1, 1, 1, 1, 1], [0] * 6, [1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 0]], bool)[None, None]
    shapes = (2, 3, 4, 5), (2, 1, 6, 5), (2, 1, 6, 7), (1, 3, 4, 6)
    return example(Shaw(rng.normal(size=(5, 5)), rng.normal(size=(5, 7))), *(rng.normal(size=s) for s in shapes), mask=mask)
