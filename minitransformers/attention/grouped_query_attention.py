"""Grouped-query attention: groups of query heads share one head of keys and values, so that the cache is smaller.

Decoding reads the whole cache for every token; with num_kv_heads instead of num_heads in it, it is num_heads /
num_kv_heads times smaller. num_kv_heads = num_heads is multi-head attention, num_kv_heads = 1 is multi-query attention.
Sources: Ainslie et al. 2023, arXiv:2305.13245, section 2.2; Shazeer 2019, arXiv:1911.02150 (one shared head).
With r = num_heads / num_kv_heads, query head h = g r + i reads key head g: neighbours share, as in Llama. The queries get a
group axis, (..., g, i, length, d); keys and values have size 1 there, are broadcast and never copied.

    query, key, value = split(x W_q + b_q), split(x W_k + b_k), split(x W_v + b_v)   (1)
    query, key = rotate(normalize(query, key)), each where there is one              (2)
    heads_gi = attention(query_gi, key_g, value_g)                                   (3)
    out = merge(heads) W_o + b_o                                                     (4)
    dheads = split(dout W_o^T), dW_o = merge(heads)^T dout, db_o = sum of dout        (5)
    dquery_gi, dkey_g = sum_i dkey_gi, dvalue_g = sum_i dvalue_gi at dheads           (6)
    dquery, dkey = rotated back, then back through the normaliser                     (7)
    dW_j = x^T merge(dj), db_j = sum of merge(dj), for j = query, key, value          (8)
    dx = merge(dquery) W_q^T + merge(dkey) W_k^T + merge(dvalue) W_v^T               (9)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.cache import KeyValueCache, cached_attention
from minitransformers.attention.heads import (
    as_normalizer,
    as_weighting,
    check_core,
    check_heads,
    check_scores,
    init_normalizer,
    init_weighting,
    merge_heads,
    named_core,
    split_heads,
)
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.multi_head_attention import MultiHeadAttention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention, weigh
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import bad, concept, example, invalid, trusted


class GroupedQueryAttention(NamedTuple):
    """Projections to all query heads, to the fewer key and value heads, and back; learned, normalizer as in MultiHeadAttention."""

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_keys"]
    value: Annotated[Linear, "d_model d_values"]
    output: Annotated[Linear, "d_out d_model"]
    learned: tuple | None = None
    normalizer: Any = None


def init_grouped_query_attention(
    rng: np.random.Generator, d_model: int, *, num_heads: int, num_kv_heads: int, std: float | None = None,
    residual_std: float | None = None, bias: bool = False, weighting: str | None = None, max_positions: int = 1024,
    normalize: str | None = None, dtype: type = np.float32,
) -> GroupedQueryAttention:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt(d_model)), the output's of ``residual_std`` (default std).

    weighting is the name of one that learns; it starts for contexts of up to max_positions. normalize names a normaliser.
    """
    check_heads("num_heads", num_heads, d_model)
    check_heads("num_kv_heads", num_kv_heads, num_heads)
    d_kv = d_model // num_heads * num_kv_heads
    widths = ((d_model, std), (d_kv, std), (d_kv, std), (d_model, std if residual_std is None else residual_std))
    query, key, value, output = (init_linear(rng, d_model, d, std=s, bias=bias, dtype=dtype) for d, s in widths)
    learned = init_weighting(rng, weighting, num_heads=num_heads, context=max_positions, dtype=dtype)
    normalizer = init_normalizer(rng, normalize, d_model // num_heads, dtype=dtype)
    return GroupedQueryAttention(query, key, value, output, learned, normalizer)


def pool_heads(params: MultiHeadAttention, *, num_heads: int, num_kv_heads: int) -> GroupedQueryAttention:
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

    return GroupedQueryAttention(params.query, pooled(params.key), pooled(params.value), params.output, params.learned, params.normalizer)


@trusted
def grouped_query_attention_step(
    params: GroupedQueryAttention, x: Float[Array, "... new d_model"], state: KeyValueCache | None, *, num_heads: int, num_kv_heads: int,
    bias: Float[Array, "... new seen"] | None = None, causal: bool = True, scale: float | None = None, rotate: Callable | None = None,
    window: int | None = None, weighting: str | Callable | None = None, normalize: str | Callable | None = None, attend: str | None = None,
):  # fmt: skip
    """The causal outputs of a few new positions, given those before; ``state`` is None at the start.

    bias, broadcastable to (..., heads, new, seen), is added to the scores of the new positions against all seen so far.
    window, for sliding_window_attention, keeps only that many positions.
    Returns out, shaped like x, and the state (the same cache, which has grown). Forward only.
    """
    return cached_attention(
        params, x, state, num_heads=num_heads, num_kv_heads=num_kv_heads, bias=bias, causal=causal, scale=scale, rotate=rotate,
        window=window, weighting=weighting, normalize=normalize, attend=attend,
    )  # fmt: skip


def _group(scores: Array | None, num_kv_heads: int) -> Array | None:
    """(..., heads, queries, keys) to (..., num_kv_heads, heads / num_kv_heads, queries, keys), a view."""
    if scores is None or scores.ndim < 3:
        return scores
    *batch, heads, queries, keys = scores.shape
    return scores.reshape(*batch, 1 if heads == 1 else num_kv_heads, -1, queries, keys)


def _ungroup(scores):
    """The way back, a view as well."""
    if scores is None or scores.ndim < 4:
        return scores
    *batch, groups, size, queries, keys = scores.shape
    return scores.reshape(*batch, groups * size, queries, keys)


def _by_group(weighting: Callable | None) -> Callable | None:
    """The weighting, for scores with a group axis. It sees all heads on one axis, as what it learns is laid out for them."""
    if weighting is None:
        return None

    def grouped(scores, *learned, mask):
        weights, weights_backward = weigh(weighting, _ungroup(scores), *learned, mask=_ungroup(mask))

        def backward(dweights):
            dscores, *dlearned = weights_backward(_ungroup(dweights))
            return dscores.reshape(scores.shape), *dlearned

        return weights.reshape(scores.shape), backward

    return grouped


def _example_params(rng: np.random.Generator) -> GroupedQueryAttention:
    return GroupedQueryAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in ((5, 8), (5, 4), (5, 2), (4, 5))))


@concept(
    title="Grouped-query attention",
    source="Ainslie et al. 2023, arXiv:2305.13245, section 2.2",
    example=lambda rng: example(
        _example_params(rng), rng.normal(size=(2, 3, 5)), rng.normal(size=(1, 4, 3, 3)),
        num_heads=4, num_kv_heads=2, mask=rng.random((2, 1, 3, 3)) < 0.8,
    ),
    roles=("mixer",),
    rejects=[
        bad(num_kv_heads=3),
        bad(num_heads=5),
        bad("num_kv_heads", num_heads=2, num_kv_heads=4),
        bad(x=np.ones((2, 3, 6))),
        bad("params.key", params=_example_params(np.random.default_rng(0))._replace(key=Linear(np.ones((5, 6)), None))),
        bad(mask=np.ones((4, 3, 3))),
        bad("mask", mask=np.ones((2, 3, 3), bool), bias=None),
        bad("bias", bias=np.ones((3, 1, 3, 3)), mask=None),
        bad(attend=lambda q, k, v: scaled_dot_product_attention(q, k, v)),
    ],
    step=grouped_query_attention_step,
)  # fmt: skip
def grouped_query_attention(
    params: GroupedQueryAttention,
    x: Float[Array, "... positions d_model"],
    bias: Float[Array, "*#scores #positions #positions"] | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    causal: bool = True,
    mask: Bool[Array, "*#scores #positions #positions"] | None = None,
    scale: float | None = None,
    rotate: Callable | None = None,
    weighting: str | Callable | None = None,
    normalize: str | Callable | None = None,
    attend: str | Callable | None = None,
):
    """Every position gathers from the positions that it may see, in num_heads ways from num_kv_heads sources.

    bias, mask, causal, scale, rotate, weighting, normalize and attend are those of multi_head_attention; bias and mask
    broadcast to (..., heads, queries, keys). attend gets queries (..., num_kv_heads, group, length, d_head), keys and values with 1
    in the place of the group, and must broadcast.
    Returns out, shaped like x, and backward: dout -> GroupedQueryAttention, dx, dbias (None without a bias).
    Raises ValueError when num_kv_heads does not divide num_heads, when either does not divide its projections, when mask
    or bias do not fit the scores, when attend comes with mask, bias, scale or weighting, or normalize without
    what it learns.
    """
    *batch, length, _ = x.shape
    check_heads("num_heads", num_heads, params.query.weight.shape[1])
    check_heads("num_kv_heads", num_kv_heads, num_heads)
    check_heads("num_kv_heads", num_kv_heads, params.value.weight.shape[1])
    d_head = params.query.weight.shape[1] // num_heads
    if params.key.weight.shape[1] != num_kv_heads * d_head:
        raise invalid("params.key.weight", got=f"shape {params.key.weight.shape}", wants=f"{num_kv_heads} heads of {d_head}, as the queries")
    for argument, array in (("bias", bias), ("mask", mask)):
        check_scores(argument, array, (*batch, num_heads, length, length))
    check_core(attend, params.learned, weighting, mask=mask, bias=bias, scale=scale)
    normalizer = as_normalizer(normalize, params.normalizer, d_head)

    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, x)
    value, value_backward = linear(params.value, x)
    query = split_heads(query, num_heads).reshape(*batch, num_kv_heads, -1, length, d_head)  # neighbours share
    key, value = (split_heads(part, num_kv_heads)[..., None, :, :] for part in (key, value))  # (1)
    if normalizer is not None:
        (query, key), normalizer_backward = normalizer(query, key)  # before the rotation  (2)
    if rotate is not None:
        (query, query_unrotate), (key, key_unrotate) = rotate(query), rotate(key)  # (2)
    if isinstance(attend, str):
        attend = named_core(attend, causal_mask(length) if causal else None)
    if attend is None:
        mask, grouped_bias = _group(mask, num_kv_heads), _group(bias, num_kv_heads)
        if causal:
            mask = causal_mask(length) if mask is None else mask & causal_mask(length)
        heads, attend_backward = scaled_dot_product_attention(
            query, key, value, grouped_bias, *(params.learned or ()), mask=mask, scale=scale, weighting=_by_group(as_weighting(weighting))
        )  # (3)
    else:
        heads, attend_backward = attend(query, key, value)   # (3)
    heads = heads.reshape(*batch, num_heads, length, -1)
    out, output_backward = linear(params.output, merge_heads(heads))  # (4)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dheads = split_heads(dmerged, num_heads).reshape(*batch, num_kv_heads, -1, length, heads.shape[-1])  # (5)
        dquery, dkey, dvalue, *rest = attend_backward(dheads)  # the broadcast axis is summed: (..., 1, length, d)  (6)
        if rotate is not None:
            dquery, dkey = query_unrotate(dquery), key_unrotate(dkey)  # (7)
        dnormalizer = None
        if normalizer is not None:
            dnormalizer, dquery, dkey = normalizer_backward((dquery, dkey))  # (7)
        dparams_query, dx_query = query_backward(merge_heads(dquery.reshape(*batch, num_heads, length, d_head)))
        dparams_key, dx_key = key_backward(merge_heads(dkey[..., 0, :, :]))
        dparams_value, dx_value = value_backward(merge_heads(dvalue[..., 0, :, :]))
        dlearned = None if params.learned is None else tuple(rest[1:])
        dparams = GroupedQueryAttention(dparams_query, dparams_key, dparams_value, doutput, dlearned, dnormalizer)  # (8)
        dx = dx_query + dx_key + dx_value                    # (9)
        return dparams, dx, rest[0].reshape(bias.shape) if bias is not None else None

    return out, backward
