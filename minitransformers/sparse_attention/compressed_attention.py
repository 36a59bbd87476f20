"""Compressed attention: queries read the means of whole blocks, in the place of their keys and values; and which blocks they read most.

A block of positions becomes one key and one value. What is read is coarse and reaches over the whole text, for positions^2 / block
scores. The weights say more than what is read: they tell which blocks are worth reading in full. Source: Yuan et al. 2025,
arXiv:2502.11089, sections 3.3.1 and 3.3.2. Differs from the paper: a block is compressed to its mean, where theirs learn a small
network with positions inside the block; blocks do not overlap, and are the blocks that are read in full, so that weights need no
conversion (their case of equal sizes and stride). A query whose text has no whole block yet reads zero.

    mean_k_B, mean_v_B = the means of k_j and of v_j over the positions j of block B   (1)
    ended_iB = block B ends at the position of query i, or before   (2)
    out = softmax attention of q to mean_k and mean_v where ended   (3)
    dq, dmean_k, dmean_v = the backward of (3)               (4)
    dk_j, dv_j = dmean_k_B / block, dmean_v_B / block, for B the block of j   (5)

    importance_iB = the weights that (3) gives block B, a sum over the heads that share keys   (6)
    selected_i = the block of i, the one before, the first, and those of largest importance, ``top`` in all   (7)

(6) and (7) choose, and have no gradient.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.attention.scaled_dot_product_attention_fast import scaled_dot_product_attention_fast
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid, procedure
from minitransformers.sparse_attention.selected_block_attention import best_blocks


class CompressedCache(NamedTuple):
    """The means of all blocks, and the keys and values of the block that is still open, whose mean so far nobody reads."""

    mean_key: Float[Array, "*batch blocks d_head"]
    mean_value: Float[Array, "*batch blocks d_value"]
    open_key: Float[Array, "*batch open d_head"]
    open_value: Float[Array, "*batch open d_value"]


@concept(
    title="Compressed attention",
    source="Yuan et al. 2025, arXiv:2502.11089, section 3.3.1",
    example=lambda rng: example(*(rng.normal(size=shape) for shape in ((2, 2, 6, 3), (2, 1, 9, 3), (2, 1, 9, 4))), block=2),
    rejects=[bad("query", query=np.ones((2, 2, 10, 3)))],
)
def compressed_attention(
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    *,
    block: Annotated[int, at_least(1)],
) -> tuple[Array, Backward]:
    """Mix the mean values, for each query, by the softmax over the mean keys of the blocks that have ended.

    block is in positions; queries are the last of the positions that the keys span.
    Returns out (*batch, queries, d_value), and backward: dout -> dquery, dkey, dvalue.
    Raises ValueError when axes do not fit or there are more queries than keys.
    """
    place = _places(query, key)
    mean_key, mean_value = block_means(key, block), block_means(value, block)  # (..., blocks, d)  (1)
    ended = ended_blocks(place, block)                       # (2)
    out, attention_backward = scaled_dot_product_attention_fast(query, mean_key, mean_value, mask=ended)  # (3)

    def backward(dout):
        dquery, dmean_key, dmean_value, _ = attention_backward(dout)  # (4)
        # Zero in the block that has not ended: nobody has read its mean.
        dkey, dvalue = (np.repeat(dmean / block, block, axis=-2)[..., : key.shape[-2], :] for dmean in (dmean_key, dmean_value))  # (5)
        return dquery, dkey, dvalue

    return out, backward


def compressed_attention_step(query: Array, key: Array, value: Array, state: CompressedCache | None, *, block: int) -> tuple[Array, CompressedCache]:
    """The outputs of a few new positions, given those before; ``state`` is None at the start. Forward only."""
    if state is None:
        state = CompressedCache(key[..., :0, :], value[..., :0, :], key[..., :0, :], value[..., :0, :])
    key, value = np.concatenate([state.open_key, key], axis=-2), np.concatenate([state.open_value, value], axis=-2)
    closed = state.mean_key.shape[-2] - (state.open_key.shape[-2] > 0)
    mean_key, mean_value = (
        np.concatenate([means[..., :closed, :], block_means(a, block)], axis=-2) for means, a in zip(state[:2], (key, value), strict=True)
    )
    length, whole = closed * block + key.shape[-2], key.shape[-2] // block * block
    ended = ended_blocks(np.arange(length - query.shape[-2], length), block)
    out, _ = scaled_dot_product_attention_fast(query, mean_key, mean_value, mask=ended)
    return out, CompressedCache(mean_key, mean_value, key[..., whole:, :], value[..., whole:, :])


@procedure(
    title="The blocks that are read most",
    source="Yuan et al. 2025, arXiv:2502.11089, section 3.3.2",
    example=lambda rng: example(rng.normal(size=(2, 3, 9, 4)), rng.normal(size=(2, 12, 4)), block=2, top=5),
    rejects=[bad("query", query=np.ones((2, 3, 13, 4)))],
)
def most_read_blocks(
    query: Float[Array, "*batch heads queries d_head"], key: Float[Array, "*batch keys d_head"], *, block: Annotated[int, at_least(1)],
    top: Annotated[int, at_least(1)],
) -> Int[Array, "*batch queries picks"]:  # fmt: skip
    """The blocks that compressed attention of all heads together weighs most, one choice for the heads: they share keys.

    The own block comes first, then the one before, the first of the text, and the others by their weights; -1 where there are not
    so many. There are ``top`` of them, or as many as the text has blocks where that is less. Queries are the last of the
    positions that the keys span.
    Raises ValueError when axes do not fit or there are more queries than keys.
    """
    place = _places(query, key)
    return rank_blocks(weights_of_blocks(query, block_means(key, block), place, block), place, block, top)


def weights_of_blocks(query: Array, mean_key: Array, place: Array, block: int) -> Float[Array, "... queries blocks"]:
    """What most_read_blocks ranks, from the means of all blocks and the positions of the queries; a sum of the heads."""
    scores = query @ mean_key[..., None, :, :].swapaxes(-1, -2) * query.shape[-1] ** -0.5  # (..., heads, queries, blocks)
    scores = np.where(ended_blocks(place, block), scores, scores.dtype.type(-np.inf))
    exps = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), np.finfo(scores.dtype).min))
    return (exps / np.maximum(exps.sum(-1, keepdims=True), 1)).sum(-3)  # (6)


def rank_blocks(importance: Array, place: Array, block: int, top: int) -> Int[Array, "... queries picks"]:
    """The blocks that are always read, and those of largest importance, -1 where there are not so many."""
    number, own = np.arange(importance.shape[-1]), place[:, None] // block
    for always in (0, own - 1, own):                         # each above all others so far
        importance = np.where(number == always, importance.max() + 1, importance)
    importance = np.where(number <= own, importance, importance.dtype.type(-np.inf))
    return best_blocks(importance, min(top, len(number)))    # (7)


def block_means(x: Float[Array, "... positions d"], block: int) -> Float[Array, "... blocks d"]:
    """The mean of each block; zeros fill up the last one."""
    missing = -x.shape[-2] % block
    if missing:
        x = np.concatenate([x, np.zeros((*x.shape[:-2], missing, x.shape[-1]), x.dtype)], axis=-2)
    return x.reshape(*x.shape[:-2], -1, block, x.shape[-1]).mean(-2)


def ended_blocks(place: Int[Array, "queries"], block: int) -> Bool[Array, "queries blocks"]:
    """Which blocks of the text up to the last query have ended where each query stands."""
    return np.arange(1, place[-1] // block + 2) * block <= place[:, None] + 1


def _places(query: Array, key: Array) -> Array:
    queries, keys = query.shape[-2], key.shape[-2]
    if queries > keys:
        raise invalid("query", got=f"{queries} queries", wants=f"at most as many as keys, {keys}: they are the last of their positions")
    return np.arange(keys - queries, keys)
