"""Attention to selected blocks, sorted by block: all queries that selected a block meet its keys in dense products.

A pair is a query and a block that was selected for it. Pairs are sorted by block and cut into pieces, each of one block and of
at most ``block`` queries, the last of a block filled up. All pieces together are one batch of dense products. A query's pairs
lie in several pieces, so its softmax goes over all of them: each takes the largest score of any, and sums of exponentials and of
values add up before the division. Heads that share keys share pieces. Time O(pairs block d_head), memory O(pairs (block + d_head)),
where there are queries times selected blocks of pairs. The equations are those of selected_block_attention, and so are the
numbers on the lines. With top the largest score of a query in all its pieces:

    exps = exp(scores - top), mix and total = sums over a query's pieces of exps v and of exps, out = mix / total
    dscores = exps (dmix v - dmix out), with dmix = dout / total; dq, dk, dv add up over pieces

Source: Lu et al. 2025, arXiv:2502.13189, section 2.3 and algorithm 1 (sorting queries by block and combining). Differs from
theirs: the parts are not divided by their own totals first, so there is nothing to combine backward.
"""

import math
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_over_keys, sum_to
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.scaled_dot_product_attention import check_bias
from minitransformers.attention.scaled_dot_product_attention_fast import dot_products
from minitransformers.foundation import Backward, at_least, bad, concept
from minitransformers.sparse_attention.scatter import scatter_add_rows
from minitransformers.sparse_attention.selected_block_attention import check_selected, example_call


@concept(
    title="Attention to selected blocks, sorted by block",
    source="Lu et al. 2025, arXiv:2502.13189, section 2.3 and algorithm 1",
    example=lambda rng: example_call(rng),
    rejects=[
        bad("query", query=np.ones((2, 2, 9, 3)), bias=None, selected=np.zeros((2, 1, 9, 1), int)),
        bad(selected=np.full((2, 1, 5, 1), 4)),
        bad(selected=np.full((2, 1, 5, 1), -2)),
        bad(selected=np.full((2, 1, 5, 2), 1)),
        bad(bias=np.full((1, 2, 5, 8), np.nan)),
    ],
    form_of="selected_block_attention",
)
def selected_block_attention_fast(
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    selected: Int[Array, "*#batch queries picks"],
    block: Annotated[int, at_least(1)],
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """What selected_block_attention gives, without the work that the choice spares; arguments, results and errors are its own."""
    queries, keys = query.shape[-2], key.shape[-2]
    check_selected(selected, queries, keys, block)
    check_bias(bias)
    block = min(block, keys)                                 # a short text is one block, and is not filled up to a whole one
    if mask is not None and mask is causal_mask(queries, keys):
        mask = None                                          # what ``causal`` puts around every core: nothing ahead is seen anyway
    leads = [a.shape[:-2] for a in (query, key, value, selected, bias, mask) if a is not None]
    lead, owners = np.broadcast_shapes(*leads), np.broadcast_shapes(key.shape[:-2], value.shape[:-2])
    k, v = (np.broadcast_to(a, (*owners, *a.shape[-2:])) for a in (key, value))  # one text of keys and values for each owner
    q = np.broadcast_to(query, (*lead, *query.shape[-2:])).reshape(-1, query.shape[-1])

    flat = np.broadcast_to(selected, (*lead, *selected.shape[-2:])).reshape(-1, *selected.shape[-2:])
    pieces = _sorted_by_block(flat, _texts(owners, lead), block, keys)
    owner = [index[:, None] for index in np.unravel_index(pieces.owner, owners)] if owners else []
    near_key, near_value = (a[(*owner, np.minimum(pieces.column, keys - 1))] for a in (k, v))  # (pieces, block, d)
    near_query = q[pieces.row]                               # (pieces, size, d)
    scores_t, scores_backward = dot_products(near_query, near_key, None)  # (pieces, block, size)
    if bias is not None:
        bias_cells = _cells(bias.shape, lead, pieces, queries, keys)
        scores_t += bias.reshape(-1).take(bias_cells)
    hidden = pieces.column[:, -1] > pieces.place.min(-1)     # the pieces in which a query does not see all keys
    scores_t[hidden] += _forbid(pieces.column[hidden, :, None] <= pieces.place[hidden, None, :], scores_t.dtype)  # (1)
    if mask is not None:
        scores_t += _forbid(mask.reshape(-1).take(_cells(mask.shape, lead, pieces, queries, keys)), scores_t.dtype)

    top = pieces.of_queries(scores_t.max(-2), -np.inf).max(-1)
    top = np.maximum(top, np.finfo(q.dtype).min)             # finite where nothing is seen
    scores_t -= top[pieces.row][:, None, :]
    exps_t = np.exp(scores_t, out=scores_t)
    sums = sum_over_keys(exps_t.swapaxes(-1, -2))            # (pieces, size, 1)
    # The largest term of a query is exp(0) = 1, so a total below 1 means that there is none: 0 / 1 = 0.
    total = np.maximum(pieces.of_queries(sums, 0).sum(-1), 1)[:, None]
    mix = pieces.sum_of_queries(exps_t.swapaxes(-1, -2) @ near_value, len(q))
    out = mix / total                                        # (2)

    def backward(dout):
        dmix = dout.reshape(out.shape) / total
        near_dmix = dmix[pieces.row]
        dexps_t = near_value @ np.ascontiguousarray(near_dmix.swapaxes(-1, -2))
        dexps_t -= np.vecdot(dmix, out)[pieces.row][:, None, :]  # every exponential sees the total
        dscores_t = np.multiply(exps_t, dexps_t, out=dexps_t)
        dnear_query, dnear_key = scores_backward(dscores_t)
        dquery = pieces.sum_of_queries(dnear_query, len(q)).reshape(*lead, queries, -1)  # (3)
        dkey, dvalue = (pieces.sum_of_keys(dnear, keys, owners) for dnear in (dnear_key, exps_t @ near_dmix))  # (3)
        dbias = None
        if bias is not None:
            dbias = scatter_add_rows(bias_cells.reshape(-1), dscores_t.reshape(-1, 1), bias.size).reshape(bias.shape)  # (3)
        return sum_to(dquery, query.shape), sum_to(dkey, key.shape), sum_to(dvalue, value.shape), dbias

    return out.reshape(*lead, queries, -1), backward


class _Pieces(NamedTuple):
    """Pairs sorted by block: for every piece its owner (which text of keys), its queries and its key positions.

    A piece is filled up by the first of all queries at the place -1, where it sees nothing.
    """

    owner: Int[Array, "pieces"]
    row: Int[Array, "pieces size"]                           # queries of all texts, counted through
    place: Int[Array, "pieces size"]                         # where they stand in their text
    column: Int[Array, "pieces block"]                       # key positions, those behind the end included
    slot: Int[Array, "queries picks"]                        # where a query's pairs lie among all rows, the number of rows for none

    def of_queries(self, rows: Array, nothing: float) -> Array:
        """A number for each place in a piece, as one for each of a query's pairs: (queries, picks)."""
        return np.append(rows, rows.dtype.type(nothing)).take(self.slot)

    def sum_of_queries(self, rows: Array, queries: int) -> Array:
        """(pieces, size, d) added up for each query; what filled up a piece is zero."""
        return scatter_add_rows(self.row.reshape(-1), rows.reshape(-1, rows.shape[-1]), queries)

    def sum_of_keys(self, rows: Array, keys: int, owners: tuple[int, ...]) -> Array:
        """(pieces, block, d) added up for each key of each owner; what lies behind the end is zero."""
        at = self.owner[:, None] * keys + np.minimum(self.column, keys - 1)
        return scatter_add_rows(at.reshape(-1), rows.reshape(-1, rows.shape[-1]), math.prod(owners) * keys).reshape(*owners, keys, -1)


def _sorted_by_block(selected: Array, owner: Array, block: int, keys: int) -> _Pieces:
    """The pieces of all pairs; selected is (texts, queries, picks), owner says for each text whose keys it reads."""
    _, queries, picks = selected.shape
    blocks, place = -(-keys // block), np.arange(keys - queries, keys)
    wanted = np.flatnonzero((selected >= 0) & (selected * block <= place[:, None]))  # a block that lies ahead is not seen
    where = (owner[:, None, None] * blocks + selected).reshape(-1)[wanted]
    count = np.bincount(where)                               # of pairs for each block
    order = np.argsort(where.astype(np.min_scalar_type(len(count))), kind="stable")  # short numbers are sorted by counting
    wanted, where = wanted[order], where[order]
    size = max(1, min(block, count.max(initial=0)))
    number = -(-count // size)                               # of pieces for each block
    first = np.cumsum(number) - number
    rank = np.arange(len(where)) - (np.cumsum(count) - count)[where]
    slot_of_pair = first[where] * size + rank
    row, place_of_row = np.zeros(number.sum() * size, int), np.full(number.sum() * size, -1)
    row[slot_of_pair] = wanted // picks
    place_of_row[slot_of_pair] = place[wanted // picks % queries]
    slot = np.full(selected.size, len(row))
    slot[wanted] = slot_of_pair
    of_piece = np.repeat(np.arange(len(count)), number)
    column = of_piece[:, None] % blocks * block + np.arange(block)
    return _Pieces(of_piece // blocks, row.reshape(-1, size), place_of_row.reshape(-1, size), column, slot.reshape(-1, picks))


def _texts(shape: tuple[int, ...], lead: tuple[int, ...]) -> Array:
    """For each text of the leading axes the number of the one that it reads among those of a shape that broadcasts to them."""
    return np.broadcast_to(np.arange(math.prod(shape)).reshape(shape), lead).reshape(-1)


def _cells(shape: tuple[int, ...], lead: tuple[int, ...], pieces: _Pieces, queries: int, keys: int) -> Array:
    """Where the pieces' pairs stand in a mask or bias of that shape, whose axes may be 1, counted through: (pieces, block, size)."""
    line = _texts(shape[:-2], lead)[pieces.row // queries] * shape[-2] + pieces.row % queries * (shape[-2] > 1)
    column = np.minimum(pieces.column, keys - 1) * (shape[-1] > 1)
    return line[:, None, :] * shape[-1] + column[:, :, None]


def _forbid(seen: Array, dtype: np.dtype) -> Array:
    return np.where(seen, dtype.type(0), dtype.type(-np.inf))
