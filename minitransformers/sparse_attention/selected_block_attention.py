"""Attention to selected blocks: every query reads a few blocks of keys that were chosen for it, and nothing ahead of itself.

The keys are cut into blocks, and for each query there is a list of blocks. Who chose them is another matter: a gate (see moba),
or attention to summaries of the blocks (see native_sparse_attention). A choice is made of whole numbers and has no gradient.
This is the plain form, softmax attention over all scores under a mask; selected_block_attention_fast computes the chosen pairs
alone. Source: Lu et al. 2025, arXiv:2502.13189, section 2.2 (MoBA); Yuan et al. 2025, arXiv:2502.11089, section 3.3.

    seen_ij = the block of key j is selected for query i, and j is not ahead of i   (1)
    out = softmax attention of q, k, v over the seen pairs   (2)
    dq, dk, dv, dbias = its backward(dout)                   (3)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.attention.scaled_dot_product_attention_fast import scaled_dot_product_attention_fast
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid


@concept(
    title="Attention to selected blocks",
    source="Lu et al. 2025, arXiv:2502.13189, section 2.2; Yuan et al. 2025, arXiv:2502.11089, section 3.3",
    example=lambda rng: example_call(rng),
    rejects=[
        bad("query", query=np.ones((2, 2, 9, 3)), bias=None, selected=np.zeros((2, 1, 9, 1), int)),
        bad(selected=np.full((2, 1, 5, 1), 4)),
        bad(selected=np.full((2, 1, 5, 1), -2)),
        bad(selected=np.full((2, 1, 5, 2), 1)),
    ],
)
def selected_block_attention(
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    selected: Int[Array, "*#batch queries picks"],
    block: Annotated[int, at_least(1)],
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Mix the values, for each query, by the softmax over the keys of its selected blocks that are not ahead of it.

    selected holds numbers of blocks, in any order, -1 for none; block is in positions, and the last block may be short. Queries
    are the last of the positions that the keys span. A query that sees nothing reads zero. bias and mask as in
    scaled_dot_product_attention.
    Returns out (*batch, queries, d_value), and backward: dout -> dquery, dkey, dvalue, dbias (None without a bias).
    Raises ValueError when axes do not fit, there are more queries than keys, or a query's blocks are not blocks or not different.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    check_selected(selected, queries, keys, block)
    place = np.arange(keys)
    seen = (selected[..., None] == place // block).any(-2) & (place <= place[keys - queries :, None])  # (..., queries, keys)  (1)
    out, attention_backward = scaled_dot_product_attention_fast(query, key, value, bias, mask=seen if mask is None else seen & mask)  # (2)

    def backward(dout):
        return attention_backward(dout)                      # the choice is a constant  (3)

    return out, backward


def best_blocks(scores: Float[Array, "... queries blocks"], count: int) -> Int[Array, "... queries count"]:
    """The numbers of the ``count`` blocks with the largest scores, the earliest of equal ones; -1 where the rest is -inf."""
    left, found = scores.copy(), np.empty((*scores.shape[:-1], count), int)
    for i in range(count):
        best = left.argmax(-1)[..., None]
        found[..., i] = np.where(np.take_along_axis(left, best, axis=-1) > -np.inf, best, -1)[..., 0]
        np.put_along_axis(left, best, -np.inf, axis=-1)
    return found


def check_selected(selected: Array, queries: int, keys: int, block: int) -> None:
    """Raise ValueError where queries are not the last of the keys' positions, or what is selected are not different blocks."""
    blocks = -(-keys // block)
    if queries > keys:
        raise invalid("query", got=f"{queries} queries", wants=f"at most as many as keys, {keys}: they are the last of their positions")
    if selected.min() < -1 or selected.max() >= blocks:
        raise invalid("selected", got=f"{selected.min()} to {selected.max()}", wants=f"0 to {blocks - 1}, or -1 for none")
    ordered = np.sort(selected, axis=-1)
    if np.any((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)):
        raise invalid("selected", got="a block twice", wants="different blocks for a query")


def example_call(rng: np.random.Generator):
    """The small call of both forms: four blocks, the last one short, of which each query reads two or fewer; two heads share them."""
    selected = np.argsort(rng.random((2, 1, 5, 4)), axis=-1)[..., :2]
    selected[:, :, 3, 1] = -1
    shapes = (2, 2, 5, 3), (2, 1, 8, 3), (2, 1, 8, 4), (1, 2, 5, 8)
    return example(*(rng.normal(size=shape) for shape in shapes), selected=selected, block=2, mask=rng.random((2, 1, 1, 8)) < 0.8)
