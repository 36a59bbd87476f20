"""Grouped-query attention: groups of query heads share one head of keys and values, so that the cache is smaller.

Decoding reads the whole cache for every token; with num_kv_heads instead of num_heads in it, it is num_heads /
num_kv_heads times smaller. num_kv_heads = num_heads is multi-head attention, num_kv_heads = 1 is multi-query attention.
Sources: Ainslie et al. 2023, arXiv:2305.13245, section 2.2; Shazeer 2019, arXiv:1911.02150 (one shared head).
With r = num_heads / num_kv_heads, query head h = g r + i reads key head g: neighbours share, as in Llama. The queries get a
group axis, (..., g, i, positions, d); keys and values have size 1 there, are broadcast and never copied. P is the prepare, A
the core, as in multi_head_attention, a star the backward of what it stands on.

    query, key, value = split(x W_q + b_q), split(x W_k + b_k), split(x W_v + b_v)   (1)
    query, key = P(query, key)                                                       (2)
    heads_gi = A(query_gi, key_g, value_g)                                           (3)
    out = merge(heads) W_o + b_o                                                     (4)
    dheads = split(dout W_o^T), dW_o = merge(heads)^T dout, db_o = sum of dout        (5)
    dquery_gi, dkey_g = sum_i dkey_gi, dvalue_g = sum_i dvalue_gi, from A*(dheads)    (6)
    dquery, dkey = P*(dquery, dkey)                                                  (7)
    dW_j = x^T merge(dj), db_j = sum of merge(dj), for j = query, key, value          (8)
    dx = merge(dquery) W_q^T + merge(dkey) W_k^T + merge(dvalue) W_v^T               (9)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.cache import KeyValueCache, key_value_cache, positions_before
from minitransformers.attention.core import causal_attention
from minitransformers.attention.heads import check_heads, check_per_head, check_scores, merge_heads, split_heads
from minitransformers.attention.multi_head_attention import MultiHeadAttention
from minitransformers.attention.prepare import unprepared
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, trusted


class GroupedQueryAttention(NamedTuple):
    """Projections to all query heads, to the fewer key and value heads, and back; what the slots learn, None for nothing."""

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_keys"]
    value: Annotated[Linear, "d_model d_values"]
    output: Annotated[Linear, "d_out d_model"]
    prepare: Any = None
    core: Any = None


@checked
def init_grouped_query_attention(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    num_kv_heads: Annotated[int, at_least(1)], std: Annotated[float, at_least(0)] | None = None,
    residual_std: Annotated[float, at_least(0)] | None = None, bias: bool = False, dtype: type = np.float32,
) -> GroupedQueryAttention:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt(d_model)), the output's of ``residual_std`` (default std).

    What a slot learns is put in by ``_replace(core=...)``.
    """
    check_heads("num_heads", num_heads, d_model)
    check_heads("num_kv_heads", num_kv_heads, num_heads)
    d_kv = d_model // num_heads * num_kv_heads
    widths = ((d_model, std), (d_kv, std), (d_kv, std), (d_model, std if residual_std is None else residual_std))
    return GroupedQueryAttention(*(init_linear(rng, d_model, d, std=s, bias=bias, dtype=dtype) for d, s in widths))


@checked
def pool_heads(
    params: MultiHeadAttention, *, num_heads: Annotated[int, at_least(1)], num_kv_heads: Annotated[int, at_least(1)]
) -> GroupedQueryAttention:
    """Grouped-query attention from a trained multi-head attention: each key head is the mean of its group's.

    The start from which a checkpoint is trained on (Ainslie et al. 2023, section 2.1). Raises ValueError when
    num_kv_heads does not divide num_heads.
    """
    check_heads("num_kv_heads", num_kv_heads, num_heads)

    def pooled(part: Linear) -> Linear:
        def mean(a: Array) -> Array:                         # the last axis is (group, head of the group, feature)
            grouped = a.reshape(*a.shape[:-1], num_kv_heads, num_heads // num_kv_heads, -1)
            return grouped.mean(-2).reshape(*a.shape[:-1], -1)

        return Linear(mean(part.weight), None if part.bias is None else mean(part.bias))

    return GroupedQueryAttention(params.query, pooled(params.key), pooled(params.value), *params[3:])


@trusted
def grouped_query_attention_step(
    params: GroupedQueryAttention, x: Float[Array, "... new d_model"], state: KeyValueCache | None, *, num_heads: int, num_kv_heads: int,
    bias: Float[Array, "... new seen"] | None = None, mask: Bool[Array, "... new seen"] | None = None,
    prepare: Callable = unprepared, core: Callable = causal_attention, window: int | None = None,
) -> tuple[Array, KeyValueCache]:  # fmt: skip
    """The outputs of a few new positions, given those before; ``state`` is None at the start.

    bias and mask, broadcastable to (..., heads, new, seen), are about the new positions and all seen so far. window, for a
    core that looks no further back, lets the cache forget what lies before it.
    Returns out, shaped like x, and the state after them. Forward only.
    """
    query = _group(split_heads(linear(params.query, x)[0], num_heads), num_kv_heads)
    key, value = (split_heads(linear(part, x)[0], num_kv_heads)[..., None, :, :] for part in (params.key, params.value))
    seen = positions_before(state)
    query, key = prepare(params.prepare, query, key, positions=np.arange(seen, seen + x.shape[-2]))[0]
    state = key_value_cache(state, key, value, window=window)
    bias, mask = (_group(scores if scores is None else scores[..., -state.keys.shape[-2] :], num_kv_heads) for scores in (bias, mask))
    heads, _ = core(params.core, query, state.keys, state.values, bias, mask=mask)
    return linear(params.output, merge_heads(_ungroup(heads)))[0], state


@concept(
    title="Grouped-query attention",
    source="Ainslie et al. 2023, arXiv:2305.13245, section 2.2",
    example=lambda rng: _example(rng),
    roles=("mixer",),
    rejects=[
        bad(num_kv_heads=3),
        bad(num_heads=5),
        bad("num_kv_heads", num_heads=2, num_kv_heads=4),
        bad("mask", mask=np.ones((2, 3, 3, 3), bool), bias=None),
        bad("bias", bias=np.ones((3, 1, 3, 3)), mask=None),
    ],
    step=grouped_query_attention_step,
)
def grouped_query_attention(
    params: GroupedQueryAttention,
    x: Float[Array, "... positions d_model"],
    bias: Float[Array, "*#scores #positions #positions"] | None = None,
    *,
    num_heads: Annotated[int, at_least(1)],
    num_kv_heads: Annotated[int, at_least(1)],
    mask: Bool[Array, "*#scores #positions #positions"] | None = None,
    prepare: Callable = unprepared,
    core: Callable = causal_attention,
) -> tuple[Array, Backward]:
    """Every position gathers from the positions that it may see, in num_heads ways from num_kv_heads sources.

    bias, mask, prepare and core are those of multi_head_attention; bias and mask broadcast to (..., heads, queries, keys).
    prepare and core get queries (..., num_kv_heads, group, positions, d_head), keys and values with 1 in the place of the group.
    Returns out, shaped like x, and backward: dout -> GroupedQueryAttention, dx, dbias (None without a bias).
    Raises ValueError when num_kv_heads does not divide num_heads, when either does not divide its projections, or when mask
    or bias do not fit the scores.
    """
    _check(params, num_heads, num_kv_heads)
    for argument, array in (("bias", bias), ("mask", mask)):
        check_scores(argument, array, (*x.shape[:-2], num_heads, x.shape[-2], x.shape[-2]))

    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, x)
    value, value_backward = linear(params.value, x)
    query = _group(split_heads(query, num_heads), num_kv_heads)  # (..., num_kv_heads, group, positions, d_head): neighbours share
    key, value = (split_heads(part, num_kv_heads)[..., None, :, :] for part in (key, value))  # (1)
    (query, key), prepare_backward = prepare(params.prepare, query, key, positions=None)  # (2)
    grouped_bias, grouped_mask = (_group(scores, num_kv_heads) for scores in (bias, mask))
    heads, core_backward = core(params.core, query, key, value, grouped_bias, mask=grouped_mask)  # (3)
    out, output_backward = linear(params.output, merge_heads(_ungroup(heads)))  # (4)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dheads = _group(split_heads(dmerged, num_heads), num_kv_heads)  # (5)
        dcore, dquery, dkey, dvalue, dbias = core_backward(dheads)  # the broadcast axis is summed: (..., 1, positions, d)  (6)
        dprepare, dquery, dkey = prepare_backward((dquery, dkey))  # (7)
        dparams_query, dx_query = query_backward(merge_heads(_ungroup(dquery)))
        dparams_key, dx_key = key_backward(merge_heads(dkey[..., 0, :, :]))
        dparams_value, dx_value = value_backward(merge_heads(dvalue[..., 0, :, :]))
        dparams = GroupedQueryAttention(dparams_query, dparams_key, dparams_value, doutput, dprepare, dcore)  # (8)
        dx = dx_query + dx_key + dx_value                    # (9)
        return dparams, dx, None if bias is None else dbias.reshape(bias.shape)

    return out, backward


def kv_heads_of(params: GroupedQueryAttention, num_heads: int) -> int:
    """How many heads params.key holds, each as wide as a query's; at least 1, so that what does not divide is named."""
    return max(1, params.key.weight.shape[1] * num_heads // params.query.weight.shape[1])


def _group(a: Any, num_kv_heads: int) -> Any:
    """(..., heads, rows, columns) to (..., num_kv_heads, heads / num_kv_heads, rows, columns), a view; one head for all stays one, None None."""
    if a is None or a.ndim < 3:
        return a
    return a.reshape(*a.shape[:-3], 1 if a.shape[-3] == 1 else num_kv_heads, -1, *a.shape[-2:])


def _ungroup(a: Array) -> Array:
    """The way back."""
    return a.reshape(*a.shape[:-4], -1, *a.shape[-2:])


def _check(params: GroupedQueryAttention, num_heads: int, num_kv_heads: int) -> None:
    check_heads("num_heads", num_heads, params.query.weight.shape[1])
    check_heads("num_kv_heads", num_kv_heads, num_heads)
    check_heads("num_kv_heads", num_kv_heads, params.value.weight.shape[1])
    check_per_head("params.core", params.core, num_heads)
    d_head = params.query.weight.shape[1] // num_heads
    if params.key.weight.shape[1] != num_kv_heads * d_head:
        raise invalid("params.key.weight", got=f"shape {params.key.weight.shape}", wants=f"{num_kv_heads} heads of {d_head}, as the queries")


def _example(rng: np.random.Generator):
    shapes = (5, 8), (5, 4), (5, 2), (4, 5)
    params = GroupedQueryAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes))
    arrays = (rng.normal(size=(2, 3, 5)), rng.normal(size=(1, 4, 3, 3)))
    return example(params, *arrays, num_heads=4, num_kv_heads=2, mask=rng.random((2, 1, 3, 3)) < 0.8)
