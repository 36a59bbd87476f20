"""BigBird: a position reads the blocks around its own, the global ones and a few random ones; so cost grows with the length alone.

Which block reads which stands in a table that is drawn once from a seed (see block_table): no gradient goes there. This is the
plain form, softmax attention over all scores under a mask made of the table. big_bird_blocks computes the chosen pairs alone.
Source: Zaheer et al. 2020, arXiv:2007.14062, section 2 and appendix D, the internal form (its global tokens are the first and
the last block). Differs from the paper: as a core of this package it looks back unless ``table`` is block_table, the paper's;
a length that fills no whole number of blocks is allowed.

    seen_ij = the block of key j is on the table's row for the block of query i   (1)
    out = softmax attention of q, k, v over the seen pairs   (2)
    dq, dk, dv, dbias = its backward(dout)                   (3)
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid
from minitransformers.sparse_attention.block_table import BlockTable, block_mask, block_table, causal_block_table


@concept(
    title="BigBird",
    source="Zaheer et al. 2020, arXiv:2007.14062, section 2 and appendix D",
    example=lambda rng: example_call(rng),
    roles=("core",),
    rejects=[bad("query", query=np.ones((2, 2, 24, 3)), bias=None)],
)
def big_bird(
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
    """Softmax attention over the blocks of a table. A core.

    block is in positions. table(blocks, heads=..., num_random=..., seed=...) draws num_random blocks for every block and head:
    causal_block_table, or block_table to look both ways. Heads are the last axis before the positions: of grouped queries those
    of a group, and all groups share the draws. Queries are the last of the positions that the keys span. bias and mask as in
    scaled_dot_product_attention.
    Returns out (*batch, queries, d_value), and backward: dout -> None, dquery, dkey, dvalue, dbias (None without a bias).
    Raises ValueError when axes do not fit or there are more queries than keys.
    """
    drawn = drawn_table(query, key, block, num_random, seed, table)
    seen = block_mask(drawn, block=block, queries=query.shape[-2], keys=key.shape[-2])  # (heads, queries, keys)  (1)
    if max(query.ndim, key.ndim) == 2:                       # there is no axis of heads
        seen = seen[0]
    out, core_backward = softmax_attention(params, query, key, value, bias, mask=seen if mask is None else seen & mask)  # (2)

    def backward(dout):
        return core_backward(dout)                           # the table is a constant  (3)

    return out, backward


def drawn_table(query: Array, key: Array, block: int, num_random: int, seed: int, table: Callable) -> BlockTable:
    """The table for as many blocks as the keys fill. Raises ValueError where queries are not the last of the keys' positions."""
    if query.shape[-2] > key.shape[-2]:
        wants = f"at most as many as keys, {key.shape[-2]}: they are the last of their positions"
        raise invalid("query", got=f"{query.shape[-2]} queries", wants=wants)
    heads = np.broadcast_shapes(query.shape[:-2], key.shape[:-2])[-1:] or (1,)
    return table(-(-key.shape[-2] // block), heads=heads[0], num_random=num_random, seed=seed)


def example_call(rng: np.random.Generator):
    """The small call of both forms: the last queries of seven blocks, the last one not full; most rows read five, one reads all."""
    shapes = (2, 2, 9, 3), (2, 1, 13, 3), (2, 1, 13, 5), (1, 2, 9, 13)
    mask = rng.random((2, 1, 1, 13)) < 0.8
    return example(None, *(rng.normal(size=shape) for shape in shapes), block=2, num_random=0, seed=3, table=block_table, mask=mask)
