"""Scaled dot-product attention with its scores transposed in memory: what every attention of the package computes with.

The equations are those of scaled_dot_product_attention, and so are the numbers on the lines. What differs:

- Names in _t lie in memory as (..., keys, queries). The softmax then runs down columns, a whole row of queries at a time:
  several times faster than along many short rows, and a transposed first operand costs a product nothing.
- A piece of at most 16 queries, as decoding has, is computed as (..., queries, keys) in memory: its columns would be short.
- The scale is applied to the queries, which are fewer numbers than the scores, and the scores become the weights in place.
- shared is dout . out, a product for each feature of the value in the place of one for each key: the same sum in another order. Where a query sees a
  single key the two sides of (8) should cancel exactly and here they cancel to rounding only (about 1e-7 of dout in float32).
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_over_keys, sum_to
from minitransformers.attention.scaled_dot_product_attention import _example, check_bias
from minitransformers.foundation import Backward, bad, concept, finite

_FEW = 16  # queries


@concept(
    title="Scaled dot-product attention, keys first",
    source="Vaswani et al. 2017, arXiv:1706.03762, eq. 1",
    example=lambda rng: _example(rng),
    rejects=[bad(bias=np.full((1, 3, 4, 6), np.inf)), bad(bias=np.full((1, 3, 4, 6), np.nan))],
    form_of="scaled_dot_product_attention",
)
def scaled_dot_product_attention_fast(
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    scale: Annotated[float, finite] | None = None,
) -> tuple[Array, Backward]:
    """Arguments, results and errors are those of scaled_dot_product_attention."""
    scores_t, scores_backward = dot_products(query, key, scale)
    out, mix_backward = softmax_mix(scores_t, value, bias, mask)

    def backward(dout):
        dscores_t, dvalue, dbias = mix_backward(dout)
        return *scores_backward(dscores_t), dvalue, dbias

    return out, backward


def dot_products(query: Array, key: Array, scale: float | None):
    """Scores as (..., keys, queries), the caller's own to write to; backward: dscores_t -> dquery, dkey."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if query.shape[-2] > _FEW:
        scores_t = key @ np.multiply(query.swapaxes(-1, -2), scale, order="C")  # (1)
    else:                                                    # rows of few queries are short, and those of keys are not
        scores_t = (np.multiply(query, scale, order="C") @ key.swapaxes(-1, -2)).swapaxes(-1, -2)  # (1)

    def backward(dscores_t):
        dquery = sum_to(dscores_t.swapaxes(-1, -2) @ key, query.shape)
        dquery *= scale                                      # (10)
        dkey = sum_to(dscores_t @ query, key.shape)
        dkey *= scale                                        # (11)
        return dquery, dkey

    return scores_t, backward


def softmax_mix(scores_t: Array, value: Array, bias: Array | None, mask: Array | None):
    """The values mixed by the softmax of scores, which are written over; backward: dout -> dscores_t, dvalue, dbias."""
    check_bias(bias)
    if bias is not None:
        scores_t = add(scores_t, bias.swapaxes(-1, -2))
    if mask is not None:
        allowed_t = np.ascontiguousarray(mask.swapaxes(-1, -2))
        scores_t = add(scores_t, np.where(allowed_t, scores_t.dtype.type(0), scores_t.dtype.type(-np.inf)))  # (2)
    scores_t -= np.maximum(scores_t.max(-2, keepdims=True), np.finfo(scores_t.dtype).min)
    weights_t = np.exp(scores_t, out=scores_t)
    weights_t *= np.reciprocal(np.maximum(sum_over_keys(weights_t.swapaxes(-1, -2)), 1)).swapaxes(-1, -2)  # (3)
    out = weights_t.swapaxes(-1, -2) @ value                 # (4)

    def backward(dout):
        dvalue = sum_to(weights_t @ dout, value.shape)       # (5)
        dweights_t = value @ np.ascontiguousarray(dout.swapaxes(-1, -2))  # (6)
        dweights_t -= np.vecdot(dout, out)[..., None, :]     # (7)
        dlogits_t = np.multiply(weights_t, dweights_t, out=dweights_t)  # (8)
        dbias = None if bias is None else sum_to(dlogits_t.swapaxes(-1, -2), bias.shape)  # (9)
        return dlogits_t, dvalue, dbias

    return out, backward


def add(scores_t: Array, term: Array) -> Array:
    """The sum, in place, as the scores are ours, unless the term has leading axes that they lack."""
    fits = np.broadcast_shapes(scores_t.shape, term.shape) == scores_t.shape
    return np.add(scores_t, term, out=scores_t if fits else None)
