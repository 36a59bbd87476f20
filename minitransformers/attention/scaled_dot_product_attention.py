"""Scaled dot-product attention: each query reads a weighted mean of the values, weighted by how well it fits their keys.

Time O(queries keys (d_head + d_value)) and memory O(queries keys) a head, for the weights.
Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1. Differs from the paper: leading axes broadcast, a bias may be
added to the scores, and a query that may attend to nothing reads zero (the paper leaves it undefined).

    scores = scale q k^T                                     (1)
    logits = scores + bias, and -inf where the mask forbids  (2)
    weights = exp(logits - max) / sum over keys of the same  (3)
    out = weights v                                          (4)
    dv = weights^T dout                                      (5)
    dweights = dout v^T                                      (6)
    shared = sum over keys of dweights weights = dout . out  (7)
    dlogits = weights (dweights - shared)                    (8)
    dbias = dlogits                                          (9)
    dq = scale dlogits k                                     (10)
    dk = scale dlogits^T q                                   (11)

The gradient of an input that was broadcast is the sum over the copies. A forbidden key has weight 0, hence dlogits 0:
the backward needs no mask.
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import bad, concept, example, invalid


@concept(
    title="Scaled dot-product attention",
    source="Vaswani et al. 2017, arXiv:1706.03762, eq. 1",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 1, 6, 5)), rng.normal(size=(2, 1, 6, 7)), rng.normal(size=(1, 3, 4, 6)),
        mask=np.array([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 0]], bool)[None, None],
    ),
    rejects=[
        bad(k=np.ones((2, 1, 6, 4))), bad(k=np.ones((2, 2, 6, 5))), bad(v=np.ones((2, 1, 5, 7))), bad(bias=np.ones((1, 3, 4, 5))),
        bad(bias=np.full((1, 3, 4, 6), np.inf)), bad(bias=np.full((1, 3, 4, 6), np.nan)),
        bad(mask=np.ones((4, 6), int)), bad(mask=np.ones((4, 5), bool)), bad(scale=np.inf), bad(scale=np.nan),
    ],
)  # fmt: skip
def scaled_dot_product_attention(
    q: Float[Array, "*#batch queries d_head"],
    k: Float[Array, "*#batch keys d_head"],
    v: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    scale: float | None = None,
):
    """Mix the values, for each query, by the softmax over the keys of scale q.k + bias.

    mask is True where a query may attend to a key; a bias of -inf forbids as well. A query that may attend to nothing
    reads zero and sends no gradient. scale is dimensionless, 1/sqrt(d_head) where None.
    Returns out (*batch, queries, d_value), and backward: dout -> dq, dk, dv, dbias (None where there is no bias).
    Raises ValueError when axes do not broadcast, the mask is not boolean, the bias holds NaN or +inf, or scale is not finite.
    """
    if scale is None:
        scale = q.shape[-1] ** -0.5
    weights = attention_weights(q, k, bias, mask=mask, scale=scale)
    out = weights @ v                                        # (4)

    def backward(dout):
        weights_t = weights.swapaxes(-1, -2)                 # (..., keys, queries), contiguous
        dv = weights_t @ dout                                # (5)
        dlogits_t = v @ np.ascontiguousarray(dout.swapaxes(-1, -2))  # (6)
        shared = np.vecdot(dout, out)[..., None, :]          # a number a query, d_value products instead of keys  (7)
        dlogits_t -= shared
        dlogits_t *= weights_t                               # (8)
        dlogits = dlogits_t.swapaxes(-1, -2)
        dbias = None if bias is None else _sum_to(dlogits, bias.shape)  # (9)
        dq = _sum_to(dlogits @ k, q.shape)
        dq *= scale                                          # (10)
        dk = _sum_to(dlogits_t @ q, k.shape)
        dk *= scale                                          # (11)
        return dq, dk, _sum_to(dv, v.shape), dbias

    return out, backward


def attention_weights(q, k, bias=None, *, mask=None, scale=None):
    """The weights (*batch, queries, keys) alone: rows sum to 1, or to 0 where a query may attend to nothing."""
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if not math.isfinite(scale):
        raise invalid("scale", got=scale, wants="a finite number")
    # Scores lie in memory as (..., keys, queries): the softmax then runs down columns, whole rows at a time, which is
    # several times faster than along short rows. The caller sees the transposed view.
    scores = k @ np.multiply(q.swapaxes(-1, -2), scale, order="C")  # (..., keys, queries)  (1)
    if bias is not None:
        if not bias.max() < np.inf:                          # a NaN is not smaller either
            raise invalid("bias", got="NaN or +inf", wants="finite numbers, or -inf to forbid a key")
        scores = scores + bias.swapaxes(-1, -2)
    if mask is not None:
        may_attend = np.ascontiguousarray(mask.swapaxes(-1, -2))
        scores = scores + np.where(may_attend, q.dtype.type(0), q.dtype.type(-np.inf))  # (2)
    # Where every key is forbidden the maximum is -inf; any finite number in its place makes all exponentials 0.
    scores -= np.maximum(scores.max(-2, keepdims=True), np.finfo(q.dtype).min)
    np.exp(scores, out=scores)
    # The largest term of a row is exp(0) = 1, so a total below 1 means that there is none: 0 / 1 = 0.
    scores *= np.reciprocal(np.maximum(scores.sum(-2, keepdims=True), 1))  # (3)
    return scores.swapaxes(-1, -2)                           # (..., queries, keys)


def _sum_to(gradient, shape):
    """Sum the gradient over the axes along which an array of this shape was broadcast."""
    if gradient.shape == shape:
        return gradient
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    return gradient.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
