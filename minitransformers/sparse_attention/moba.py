"""MoBA (mixture of block attention): each query reads its own block and the few earlier ones whose mean key suits it best.

A router in the manner of a mixture of experts, with blocks of keys for experts, and with nothing to learn: a block is as good as
the product of the query with the mean of its keys. How many keys a query reads does not grow with the text. The choice itself
looks at all blocks, positions^2 / block products, and is the only part whose cost grows with the square.
Source: Lu et al. 2025, arXiv:2502.13189, section 2.2. Choosing has no gradient; keys and queries learn through the attention
alone. Differs from the authors' code: of blocks with equal gates the earliest is taken.

    gate_iB = q_i . mean of the keys of block B, for blocks before that of i   (1)
    selected_i = the block of i, and the top - 1 blocks of the largest gates   (2)
    out = attention of q, k, v to the selected blocks, nothing ahead   (3)
    dq, dk, dv, dbias = its backward(dout)                   (4)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid, procedure
from minitransformers.sparse_attention.selected_block_attention import best_blocks
from minitransformers.sparse_attention.selected_block_attention_fast import selected_block_attention_fast


@procedure(
    title="MoBA's choice of blocks",
    source="Lu et al. 2025, arXiv:2502.13189, section 2.2",
    example=lambda rng: example(rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(2, 1, 9, 4)), block=2, top=3),
    rejects=[bad("query", query=np.ones((2, 3, 10, 4)))],
)
def moba_selection(
    query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"], *, block: Annotated[int, at_least(1)],
    top: Annotated[int, at_least(1)],
) -> Int[Array, "*batch queries picks"]:  # fmt: skip
    """The own block first, then the blocks before it with the largest gates, -1 where there are not so many.

    There are ``top`` of them, or as many as the text has blocks where that is less. Queries are the last of the positions that
    the keys span; a position sees the gates of whole blocks that end before its own begins.
    Raises ValueError when axes do not fit or there are more queries than keys.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    if queries > keys:
        raise invalid("query", got=f"{queries} queries", wants=f"at most as many as keys, {keys}: they are the last of their positions")
    own = np.arange(keys - queries, keys)[:, None] // block
    past = own.max()                                         # blocks that lie before somebody's own: these are whole
    means = key[..., : past * block, :].reshape(*key.shape[:-2], past, block, key.shape[-1]).mean(-2)
    gates = query @ means.swapaxes(-1, -2)                   # (..., queries, past)  (1)
    gates = np.where(np.arange(past) < own, gates, -np.inf)
    others = best_blocks(gates, min(top - 1, past))
    return np.concatenate([np.broadcast_to(own, (*others.shape[:-1], 1)), others], axis=-1)  # (2)


@concept(
    title="MoBA (mixture of block attention)",
    source="Lu et al. 2025, arXiv:2502.13189, section 2.2",
    example=lambda rng: _example(rng),
    roles=("core",),
    rejects=[bad("query", query=np.ones((2, 2, 12, 3)), bias=None)],
)
def moba(
    params: None,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    block: Annotated[int, at_least(1)] = 64,
    top: Annotated[int, at_least(1)] = 3,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Causal softmax attention over ``top`` blocks for each query, its own one of them. A core.

    block is in positions. The choice looks at queries and keys alone; bias and mask, as in scaled_dot_product_attention, act on
    what is chosen: keys that are hidden still count in the means of their blocks, so texts are padded on the right. Queries are
    the last of the positions that the keys span.
    Returns out (*batch, queries, d_value), and backward: dout -> None, dquery, dkey, dvalue, dbias (None without a bias).
    Raises ValueError when axes do not fit or there are more queries than keys.
    """
    if params is not None:                                   # inside an attention no annotation is checked
        raise invalid("params", got=type(params).__name__, wants="None: a gate of mean keys learns nothing")
    selected = moba_selection(query, key, block=block, top=top)
    out, attention_backward = selected_block_attention_fast(query, key, value, bias, selected=selected, block=block, mask=mask)  # (3)

    def backward(dout):
        return None, *attention_backward(dout)               # the choice is a constant  (4)

    return out, backward


def _example(rng: np.random.Generator):
    """Six blocks, the last one short. The blocks' keys lie far apart along the first feature: no small step changes a choice."""
    level = 3 * rng.permutation(6).repeat(2)[:11]
    query, key = rng.normal(size=(2, 2, 8, 3)) / 3, rng.normal(size=(2, 1, 11, 3)) / 3
    query[..., 0] += rng.choice([-1, 1], size=(2, 2, 8))
    key[..., 0] += level
    arrays = rng.normal(size=(2, 1, 11, 4)), rng.normal(size=(1, 2, 8, 11))
    return example(None, query, key, *arrays, block=2, top=3, mask=rng.random((2, 1, 1, 11)) < 0.8)
