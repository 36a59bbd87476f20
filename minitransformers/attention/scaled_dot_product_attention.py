"""Scaled dot-product attention: each query reads a weighted mean of the values, weighted by how well it fits their keys.

Time O(queries keys (d_head + d_value)) and memory O(queries keys) a head, for the weights.
Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1. Differs from the paper: leading axes broadcast, a bias may be
added to the scores, and a query that may attend to nothing reads zero (the paper leaves it undefined).

    scores = scale q k^T, scale = 1 / sqrt(d_head)           (1)
    logits = scores + bias, and -inf where the mask forbids  (2)
    weights = exp(logits - max) / sum over keys of the same  (3)
    out = weights v                                          (4)
    dv = weights^T dout                                      (5)
    dweights = dout v^T                                      (6)
    shared = sum over keys of dweights weights               (7)
    dlogits = weights (dweights - shared)                    (8)
    dbias = dlogits                                          (9)
    dq = scale dlogits k                                     (10)
    dk = scale dlogits^T q                                   (11)

The gradient of an input that was broadcast is the sum over the copies. A forbidden key has weight 0, hence dlogits 0:
the backward needs no mask. The same with scores that lie transposed in memory, several times faster:
scaled_dot_product_attention_fast.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import forbid, sum_to
from minitransformers.foundation import Backward, bad, concept, example, finite, invalid


@concept(
    title="Scaled dot-product attention",
    source="Vaswani et al. 2017, arXiv:1706.03762, eq. 1",
    example=lambda rng: _example(rng),
    rejects=[bad(bias=np.full((1, 3, 4, 6), np.inf)), bad(bias=np.full((1, 3, 4, 6), np.nan))],
)
def scaled_dot_product_attention(
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    scale: Annotated[float, finite] | None = None,
) -> tuple[Array, Backward]:
    """Mix the values, for each query, by the softmax over the keys of scale q.k + bias.

    mask is True where a query may attend to a key; a bias of -inf forbids as well. A query that may attend to nothing
    reads zero and sends no gradient. A score that overflows makes its query NaN, even where its key is forbidden.
    scale is dimensionless, 1/sqrt(d_head) where None.
    Returns out (*batch, queries, d_value), and backward: dout -> dquery, dkey, dvalue, dbias (None without a bias).
    Raises ValueError when axes do not broadcast or the bias holds NaN or +inf.
    """
    check_bias(bias)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * (query @ key.swapaxes(-1, -2))          # (..., queries, keys)  (1)
    logits = forbid(scores if bias is None else scores + bias, mask)  # (2)
    # Where every key is forbidden the maximum is -inf; any finite number in its place makes all exponentials 0.
    exps = np.exp(logits - np.maximum(logits.max(-1, keepdims=True), np.finfo(query.dtype).min))
    # The largest term of a row is exp(0) = 1, so a total below 1 means that there is none: 0 / 1 = 0.
    weights = exps / np.maximum(exps.sum(-1, keepdims=True), 1)  # (3)
    out = weights @ value                                    # (..., queries, d_value)  (4)

    def backward(dout):
        dvalue = weights.swapaxes(-1, -2) @ dout             # (5)
        dweights = dout @ value.swapaxes(-1, -2)             # (6)
        shared = np.sum(dweights * weights, axis=-1, keepdims=True)  # every weight sees every score  (7)
        dlogits = weights * (dweights - shared)              # (8)
        dbias = None if bias is None else sum_to(dlogits, bias.shape)  # (9)
        dquery = scale * (dlogits @ key)                     # (10)
        dkey = scale * (dlogits.swapaxes(-1, -2) @ query)    # (11)
        return sum_to(dquery, query.shape), sum_to(dkey, key.shape), sum_to(dvalue, value.shape), dbias

    return out, backward


def check_bias(bias: Array | None) -> None:
    """Raise ValueError where a bias is anything but finite, or -inf to forbid a key."""
    if bias is not None and not bias.max() < np.inf:         # a NaN is not smaller, either
        raise invalid("bias", got="NaN or +inf", wants="finite numbers, or -inf to forbid a key")


def attention_weights(query, key, bias=None, **config):
    """The weights (*batch, queries, keys) alone, for a closer look: they are what attention makes of the identity."""
    return scaled_dot_product_attention(query, key, np.eye(key.shape[-2], dtype=key.dtype), bias, **config)[0]


def _example(rng: np.random.Generator):
    mask = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 0]], bool)[None, None]
    shapes = (2, 3, 4, 5), (2, 1, 6, 5), (2, 1, 6, 7), (1, 3, 4, 6)
    return example(*(rng.normal(size=shape) for shape in shapes), mask=mask)
