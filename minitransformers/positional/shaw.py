"""Shaw's relative positions: a learned vector for every offset, added to the key that is compared and to the value that is read.

A bias on the scores says that a distance matters. A vector on the key says it to some queries and not to others, and a
vector on the value tells the reader how far away it has read. Offsets beyond a reach K share the outermost vectors.

Source: Shaw, Uszkoreit and Vaswani 2018, arXiv:1803.02155, eqs. 3 and 4; the tables serve all heads. [x]_row takes from
each query's row of x the element that row_ij names; K = (rows of the table - 1) / 2.

    row_ij = clip(j - (i + num_keys - num_queries), -K, K) + K           (1)
    scores = (q k^T + [q key_table^T]_row) / sqrt(d_head)                (2)
    weights = softmax over the keys of scores, where the mask allows     (3)
    spent_ir = sum over j with row_ij = r of weights_ij                  (4)
    out = weights v + spent value_table                                  (5)
    dv = weights^T dout, dvalue_table = spent^T dout                     (6)
    dweights = dout v^T + [dout value_table^T]_row                       (7)
    dscores = weights (dweights - sum over keys of dweights weights) / sqrt(d_head)  (8)
    dspread_ir = sum over j with row_ij = r of dscores_ij                (9)
    dq = dscores k + dspread key_table                                   (10)
    dk = dscores^T q, dkey_table = dspread^T q                           (11)

The vectors k_j + key_table of row_ij, one for each pair, are never made: a query has 2K + 1 products with the table, and
each pair picks one of them. Gradients of the tables are summed over all leading axes.
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_scores
from minitransformers.foundation import bad, concept, example, invalid


@concept(
    title="Shaw's relative positions",
    source="Shaw, Uszkoreit and Vaswani 2018, arXiv:1803.02155, eqs. 3 and 4",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 6, 5)), rng.normal(size=(2, 3, 6, 7)), rng.normal(size=(5, 5)),
        rng.normal(size=(5, 7)), mask=np.array([[1, 1, 1, 1, 1, 1], [0] * 6, [1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 0]], bool)[None, None],
    ),
    rejects=[
        bad(k=np.ones((2, 3, 6, 4))),
        bad(v=np.ones((2, 3, 5, 7))),
        bad(key_table=np.ones((5, 4))),
        bad(value_table=np.ones((3, 7))),
        bad("key_table", key_table=np.ones((4, 5)), value_table=np.ones((4, 7))),
        bad("q", q=np.ones((2, 3, 7, 5)), mask=None),
        bad(mask=np.ones((4, 5), bool)),
        bad(mask=np.ones((4, 6))),
        bad(mask=np.ones((5, 1, 1, 4, 6), bool)),
    ],
)  # fmt: skip
def shaw(
    q: Float[Array, "*batch queries d_head"],
    k: Float[Array, "*batch keys d_head"],
    v: Float[Array, "*batch keys d_value"],
    key_table: Float[Array, "offsets d_head"],
    value_table: Float[Array, "offsets d_value"],
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
):
    """Attention whose keys and values know their offset from the query, up to (offsets - 1) / 2 positions to each side.

    The middle row of a table is for a key at the query's own position, the rows before it for earlier keys. The queries
    are the last of the positions that the keys span. mask is True where a query may attend to a key; a query that may
    attend to nothing reads zero and sends no gradient.
    Returns out (*batch, queries, d_value), and backward: dout -> dq, dk, dv, dkey_table, dvalue_table.
    Raises ValueError when the tables have an even number of rows, there are more queries than keys, or the mask has more
    axes or larger ones than the scores.
    """
    (num_queries, d_head), num_keys, offsets = q.shape[-2:], k.shape[-2], len(key_table)
    if offsets % 2 == 0:
        raise invalid("key_table", got=f"{offsets} rows", wants="an odd number, 2K + 1")
    if num_queries > num_keys:
        raise invalid("q", got=f"{num_queries} queries", wants=f"at most as many as keys, {num_keys}: they are the last of their positions")
    check_scores("mask", mask, (*q.shape[:-1], num_keys))
    reach, scale = offsets // 2, d_head**-0.5
    query, key = np.arange(num_keys - num_queries, num_keys), np.arange(num_keys)
    row = np.clip(key - query[:, None], -reach, reach) + reach  # (num_queries, num_keys)  (1)

    scores = q @ k.swapaxes(-1, -2) + _spread(q @ key_table.T, row)
    scores *= scale                                          # (2)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    # Where all is forbidden the maximum is -inf; any finite number in its place makes all exponentials 0. Elsewhere the
    # largest is exp(0) = 1, so that a sum below 1 means that there is none: 0 / 1 = 0.
    weights = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), np.finfo(scores.dtype).min))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1)  # (3)
    spent = _collected(weights, row, offsets)                # (*batch, num_queries, offsets)  (4)
    out = weights @ v + spent @ value_table                  # (5)

    def backward(dout):
        dv = weights.swapaxes(-1, -2) @ dout
        dvalue_table = _flat(spent).T @ _flat(dout)          # (6)
        dweights = dout @ v.swapaxes(-1, -2) + _spread(dout @ value_table.T, row)  # (7)
        shared = np.vecdot(dweights, weights)[..., None]
        dscores = scale * weights * (dweights - shared)      # (8)
        dspread = _collected(dscores, row, offsets)          # (9)
        dq = dscores @ k + dspread @ key_table               # (10)
        dk = dscores.swapaxes(-1, -2) @ q
        dkey_table = _flat(dspread).T @ _flat(q)             # (11)
        return dq, dk, dv, dkey_table, dvalue_table

    return out, backward


def _spread(x, row):
    """From a number for each offset to a number for each key: x (..., queries, offsets) at row (queries, keys)."""
    return np.take_along_axis(x, np.broadcast_to(row, (*x.shape[:-1], row.shape[1])), axis=-1)


def _collected(x, row, offsets):
    """The other way: for each query the sum over the keys with the same offset."""
    place = np.arange(x[..., 0].size).reshape(*x.shape[:-1], 1) * offsets + row
    return np.bincount(place.ravel(), weights=x.ravel(), minlength=x[..., 0].size * offsets).reshape(*x.shape[:-1], offsets).astype(x.dtype)


def _flat(x):
    """All leading axes in one."""
    return x.reshape(-1, x.shape[-1])
