"""Native sparse attention: a coarse look at the whole text, a sharp one at what it points to, and a window; gates add up the three.

Blocks are read in full where the coarse look gives them weight, and that look learns by what it reads: so all is trained from the
start, and choosing needs nothing to learn of its own. Source: Yuan et al. 2025, arXiv:2502.11089, section 3. As there, each
branch has keys and values of its own, so that what is easily learned in the window does not shape the others; queries are shared,
and so is a choice of blocks by the heads that share keys. Differs from the paper in what compressed_attention says, and the gates
are a linear map and a sigmoid. c is one of the three branches; split and merge cut features into heads and undo it; query head h
belongs to group g and reads key head g, as in grouped_query_attention. P is the prepare, a star the backward of what it stands on.

    query, keys_c, values_c = split(x W_q), split(x W_k), split(x W_v)   (1)
    query, keys_c = P(query, keys_c)                         (2)
    heads_1 = compressed attention of query, keys_1, values_1   (3)
    selected = the blocks that (3) reads most, one choice for a group   (4)
    heads_2 = attention of query, keys_2, values_2 to the selected blocks   (5)
    heads_3 = attention of query, keys_3, values_3 within the window   (6)
    gate_c = sigmoid(split(x W_g + b_g)), a number for each branch, head and position   (7)
    mixed = sum over c of gate_c heads_c                     (8)
    out = merge(mixed) W_o                                   (9)
    dmixed = split(dout W_o^T)                               (10)
    dheads_c = gate_c dmixed                                 (11)
    dgate_c = heads_c . dmixed, then sigmoid*                (12)
    dquery, dkeys_c, dvalues_c = the backward of (3), (5), (6) at dheads_c, a sum over c for the query   (13)
    dquery, dkeys_c = P*(dquery, dkeys_c)                    (14)
    dx = merge(dquery) W_q^T + merge(dkeys) W_k^T + merge(dvalues) W_v^T + dgate W_g^T   (15)

(4) chooses and has no gradient. Each map gives its weights their gradients on the way, as in ``linear``.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.attention.cache import KeyValueCache, key_value_cache
from minitransformers.attention.heads import check_heads, merge_heads, split_heads
from minitransformers.attention.prepare import unprepared
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.sigmoid import sigmoid
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, trusted
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.sparse_attention.compressed_attention import (
    CompressedCache,
    block_means,
    compressed_attention,
    compressed_attention_step,
    most_read_blocks,
    rank_blocks,
    weights_of_blocks,
)
from minitransformers.sparse_attention.selected_block_attention_fast import selected_block_attention_fast

_BRANCHES = 3  # compressed, selected, window


class NativeSparseAttention(NamedTuple):
    """Projections to all query heads, to keys and values of all branches' heads side by side, to the gates of all branches, and back."""

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_keys"]
    value: Annotated[Linear, "d_model d_values"]
    gate: Annotated[Linear, "d_model gates"]
    output: Annotated[Linear, "d_out d_model"]
    prepare: Any = None


class NativeSparseCache(NamedTuple):
    """What each branch keeps: means of blocks and an open block; all keys and values; those of the window."""

    compressed: CompressedCache
    selected: KeyValueCache
    window: KeyValueCache

    @property
    def length(self) -> int:
        """How many positions were seen in all."""
        return self.selected.length

    @property
    def bytes(self) -> int:
        """The size of what a later position may look at."""
        return sum(a.nbytes for a in self.compressed) + self.selected.bytes + self.window.bytes


@checked
def init_native_sparse_attention(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    num_kv_heads: Annotated[int, at_least(1)] | None = None, std: Annotated[float, at_least(0)] | None = None,
    residual_std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> NativeSparseAttention:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt(d_model)), the output's of ``residual_std`` (default std); gates have biases, of 0.

    num_kv_heads, in each branch, is num_heads unless given. What prepare learns is put in by ``_replace(prepare=...)``.
    """
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    check_heads("num_heads", num_heads, d_model)
    check_heads("num_kv_heads", kv_heads, num_heads)
    d_kv = _BRANCHES * kv_heads * (d_model // num_heads)

    def fresh(d_out: int, own_std: float | None = std, *, bias: bool = False) -> Linear:
        return init_linear(rng, d_model, d_out, std=own_std, bias=bias, dtype=dtype)

    last = std if residual_std is None else residual_std
    return NativeSparseAttention(fresh(d_model), fresh(d_kv), fresh(d_kv), fresh(_BRANCHES * num_heads, bias=True), fresh(d_model, last))


@trusted
def native_sparse_attention_step(
    params: NativeSparseAttention, x: Float[Array, "... new d_model"], state: NativeSparseCache | None, *, num_heads: int, block: int = 64,
    top: int = 16, window: int = 512, prepare: Callable = unprepared,
) -> tuple[Array, NativeSparseCache]:  # fmt: skip
    """The outputs of a few new positions, given those before; ``state`` is None at the start.

    All keys and values of the selected branch are kept, as any block may be chosen again; of the others, means and the window.
    Returns out, shaped like x, and the state after them. Forward only.
    """
    kv_heads = _kv_heads(params, num_heads)
    group = num_heads // kv_heads
    first = 0 if state is None else state.length
    place = np.arange(first, first + x.shape[-2])
    query = _split(linear(params.query, x)[0], kv_heads, group)
    keys, values = (_split(linear(part, x)[0], _BRANCHES, kv_heads, 1) for part in (params.key, params.value))  # (1)
    query, keys = prepare(params.prepare, query, keys, positions=place)[0]  # (2)
    keys, values = np.moveaxis(keys, -5, 0), np.moveaxis(values, -5, 0)
    past: Any = (None,) * _BRANCHES if state is None else state
    heads1, compressed = compressed_attention_step(query, keys[0], values[0], past[0], block=block)  # (3)
    importance = weights_of_blocks(query, compressed.mean_key[..., 0, :, :], place, block)
    selected = rank_blocks(importance, place, block, top)[..., None, :, :]  # (4)
    full, near = key_value_cache(past[1], keys[1], values[1]), key_value_cache(past[2], keys[2], values[2], window=window)
    heads2, _ = selected_block_attention_fast(query, full.keys, full.values, selected=selected, block=block)  # (5)
    heads3, _ = banded_attention_blocks(None, query, near.keys, near.values, window=window)  # (6)
    gate1, gate2, gate3 = np.moveaxis(_split(sigmoid(linear(params.gate, x)[0])[0], _BRANCHES, kv_heads, group), -5, 0)  # (7)
    mixed = gate1 * heads1 + gate2 * heads2 + gate3 * heads3  # (8)
    return linear(params.output, _merge(mixed, 2))[0], NativeSparseCache(compressed, full, near)  # (9)


@concept(
    title="Native sparse attention",
    source="Yuan et al. 2025, arXiv:2502.11089, section 3",
    example=lambda rng: _example(rng),
    roles=("mixer",),
    rejects=[bad(num_heads=3), bad(num_heads=2), bad(num_heads=8)],
    step=native_sparse_attention_step,
)
def native_sparse_attention(
    params: NativeSparseAttention,
    x: Float[Array, "... positions d_model"],
    *,
    num_heads: Annotated[int, at_least(1)],
    block: Annotated[int, at_least(1)] = 64,
    top: Annotated[int, at_least(1)] = 16,
    window: Annotated[int, at_least(1)] = 512,
    prepare: Callable = unprepared,
) -> tuple[Array, Backward]:
    """Every position reads means of blocks of the text before it, the ``top`` blocks that they point to, and the last ``window`` positions.

    block is in positions; the own block, the one before and the first of the text are always among the ``top``, which is all blocks
    where there are not so many. There are as many heads of keys as params.key holds, in each branch, each as wide as a query head.
    prepare is that of grouped_query_attention; keys have one more axis of branches before their heads.
    Returns out, shaped like x, and backward: dout -> NativeSparseAttention, dx.
    Raises ValueError when heads and features do not divide.
    """
    kv_heads = _kv_heads(params, num_heads)
    group = num_heads // kv_heads
    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, x)
    value, value_backward = linear(params.value, x)
    query = _split(query, kv_heads, group)                   # (..., kv_heads, group, positions, d_head)
    keys, values = (_split(a, _BRANCHES, kv_heads, 1) for a in (key, value))  # (..., branches, kv_heads, 1, positions, d)  (1)
    (query, keys), prepare_backward = prepare(params.prepare, query, keys)  # (2)
    (key1, key2, key3), (value1, value2, value3) = np.moveaxis(keys, -5, 0), np.moveaxis(values, -5, 0)
    heads1, backward1 = compressed_attention(query, key1, value1, block=block)  # (3)
    selected = most_read_blocks(query, key1[..., 0, :, :], block=block, top=top)[..., None, :, :]  # (4)
    heads2, backward2 = selected_block_attention_fast(query, key2, value2, selected=selected, block=block)  # (5)
    heads3, backward3 = banded_attention_blocks(None, query, key3, value3, window=window)  # (6)
    linear_gate, gate_backward = linear(params.gate, x)
    gate, sigmoid_backward = sigmoid(linear_gate)            # (..., positions, branches * num_heads)
    gate1, gate2, gate3 = np.moveaxis(_split(gate, _BRANCHES, kv_heads, group), -5, 0)  # (..., kv_heads, group, positions, 1)  (7)
    mixed = gate1 * heads1 + gate2 * heads2 + gate3 * heads3  # (8)
    out, output_backward = linear(params.output, _merge(mixed, 2))  # (9)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dmixed = _split(dmerged, kv_heads, group)            # (10)
        dheads1, dheads2, dheads3 = gate1 * dmixed, gate2 * dmixed, gate3 * dmixed  # (11)
        dgates = np.stack([np.vecdot(heads, dmixed)[..., None] for heads in (heads1, heads2, heads3)], axis=-5)
        dparams_gate, dx_gate = gate_backward(sigmoid_backward(_merge(dgates, 3)))  # (12)
        dquery1, dkey1, dvalue1 = backward1(dheads1)
        dquery2, dkey2, dvalue2, _ = backward2(dheads2)
        _, dquery3, dkey3, dvalue3, _ = backward3(dheads3)
        dkeys, dvalues = (np.stack(three, axis=-5) for three in ((dkey1, dkey2, dkey3), (dvalue1, dvalue2, dvalue3)))
        dquery = dquery1 + dquery2 + dquery3                 # the three read with one query  (13)
        dprepare, dquery, dkeys = prepare_backward((dquery, dkeys))  # (14)
        dparams_query, dx_query = query_backward(_merge(dquery, 2))
        dparams_key, dx_key = key_backward(_merge(dkeys, 3))
        dparams_value, dx_value = value_backward(_merge(dvalues, 3))
        dx = dx_query + dx_key + dx_value + dx_gate          # (15)
        return NativeSparseAttention(dparams_query, dparams_key, dparams_value, dparams_gate, doutput, dprepare), dx

    return out, backward


def _split(a: Array, *axes: int) -> Array:
    """(..., positions, features) to (..., *axes, positions, d): the features cut along several axes at once."""
    a = split_heads(a, math.prod(axes))
    return a.reshape(*a.shape[:-3], *axes, *a.shape[-2:])


def _merge(a: Array, axes: int) -> Array:
    """The way back, from so many axes."""
    return merge_heads(a.reshape(*a.shape[: -2 - axes], -1, *a.shape[-2:]))


def _kv_heads(params: NativeSparseAttention, num_heads: int) -> int:
    """How many heads of keys each branch has. Raises ValueError where heads and features do not divide."""
    d_heads, d_keys, d_values, gates = (part.weight.shape[1] for part in params[:4])
    check_heads("num_heads", num_heads, d_heads)
    if gates != _BRANCHES * num_heads:
        raise invalid("num_heads", got=num_heads, wants=f"{gates} / {_BRANCHES}: params.gate holds a number for each branch and head")
    d_head = d_heads // num_heads
    kv_heads = max(1, d_keys // (_BRANCHES * d_head))
    if d_keys != kv_heads * _BRANCHES * d_head or num_heads % kv_heads:
        wants = f"in each of {_BRANCHES} branches heads of {d_head}, whose number divides {num_heads}"
        raise invalid("params.key.weight", got=f"{d_keys} features", wants=wants)
    if d_values % (kv_heads * _BRANCHES):
        raise invalid("params.value.weight", got=f"{d_values} features", wants=f"{kv_heads} heads in each of {_BRANCHES} branches, as keys have")
    d_out = num_heads * d_values // (kv_heads * _BRANCHES)
    if params.output.weight.shape[0] != d_out:
        raise invalid("params.output.weight", got=f"shape {params.output.weight.shape}", wants=f"{d_out} rows, {num_heads} heads of values")
    return kv_heads


def _example(rng: np.random.Generator):
    """Five blocks, of which the last two queries choose one besides the three that are always read; drawn again while a choice is close."""
    while True:
        shapes = (4, 8), (4, 12), (4, 18), (4, 12), (12, 4)
        params = NativeSparseAttention(*(Linear(rng.normal(size=s), rng.normal(size=s[1])) for s in shapes))
        params = params._replace(prepare=QkNorm(*rng.normal(size=(2, 2))))
        x = rng.normal(size=(2, 10, 4))
        query, keys = _split(linear(params.query, x)[0], 2, 2), _split(linear(params.key, x)[0], _BRANCHES, 2, 1)
        (query, keys), _ = qk_norm(params.prepare, query, keys, eps=1e-2)
        importance = weights_of_blocks(query, block_means(keys[:, 0, :, 0], 2), np.arange(10), 2)
        if np.abs(importance[..., 8:, 1] - importance[..., 8:, 2]).min() > 0.05:
            return example(params, x, num_heads=4, block=2, top=4, window=3, prepare=partial(qk_norm, eps=1e-2))
