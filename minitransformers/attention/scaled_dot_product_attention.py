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
the backward needs no mask. A soft cap, where one is asked for, acts between (1) and (2); another weighting takes the
place of (3), and its backward that of (7) and (8).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_over_keys, sum_to
from minitransformers.attention.soft_cap import soft_cap as softly_capped
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
        bad(mask=np.ones((4, 6), int)), bad(mask=np.ones((4, 5), bool)), bad(scale=np.inf), bad(scale=np.nan), bad("cap", soft_cap=-1.0),
        bad(weighting="softmax"), bad(weighting=lambda scores, *, mask: (scores[..., :1], None)),
    ],
)  # fmt: skip
def scaled_dot_product_attention(
    q: Float[Array, "*#batch queries d_head"],
    k: Float[Array, "*#batch keys d_head"],
    v: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *learned: Array | None,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    weighting: Callable | None = None,
):
    """Mix the values, for each query, by the softmax over the keys of scale q.k + bias.

    mask is True where a query may attend to a key; a bias of -inf forbids as well. A query that may attend to nothing
    reads zero and sends no gradient. A score that overflows makes its query NaN, even where its key is forbidden.
    scale is dimensionless, 1/sqrt(d_head) where None. soft_cap bounds the scores before bias and mask (see soft_cap),
    which therefore keep their full effect. weighting(scores, *learned, mask=mask) -> weights, backward takes the place
    of the softmax (sparsemax, sigmoid_attention, ...); see weigh.
    Returns out (*batch, queries, d_value), and backward: dout -> dq, dk, dv, dbias (None where there is no bias)
    and a gradient for each array in learned.
    Raises ValueError when axes do not broadcast, the mask is not boolean, the bias holds NaN or +inf, scale is not
    finite, soft_cap is not positive, or learned is of another dtype or comes without a weighting to take it.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if not abs(scale) <= float(np.finfo(q.dtype).max):       # a NaN is not, either
        raise invalid("scale", got=scale, wants=f"a finite number that {q.dtype} holds")
    if weighting is None and learned:
        raise invalid("learned", got=f"{len(learned)} arrays", wants="a weighting that takes them")
    if any(array is not None and getattr(array, "dtype", None) != q.dtype for array in learned):
        raise invalid("learned", got="something else", wants=f"arrays of {q.dtype}, as q is, or None")
    if bias is not None and not bias.max() < np.inf:         # a NaN is not smaller either
        raise invalid("bias", got="NaN or +inf", wants="finite numbers, or -inf to forbid a key")
    # Names in _t lie in memory as (..., keys, queries). The softmax then runs down columns, a whole row of queries at
    # a time: several times faster than along many short rows, and a transposed first operand costs a product nothing.
    scores_t = k @ np.multiply(q.swapaxes(-1, -2), scale, order="C")  # (1)
    if soft_cap is not None:
        scores_t, uncap = softly_capped(scores_t, cap=soft_cap)
    if bias is not None:
        scores_t = _add(scores_t, bias.swapaxes(-1, -2))     # (2)
    mask_t = None if mask is None else np.ascontiguousarray(mask.swapaxes(-1, -2))
    if weighting is None:
        weights_t = _softmax_over_keys(_forbid(scores_t, mask_t))  # (3)
    else:
        mask = None if mask_t is None else mask_t.swapaxes(-1, -2)
        weights, weights_backward = weigh(weighting, scores_t.swapaxes(-1, -2), *learned, mask=mask)
        weights_t = weights.swapaxes(-1, -2)                 # (3)
    out = weights_t.swapaxes(-1, -2) @ v                     # (..., queries, d_value)  (4)

    def backward(dout):
        dv = weights_t @ dout                                # (5)
        dweights_t = v @ np.ascontiguousarray(dout.swapaxes(-1, -2))  # (6)
        dlearned = ()
        if weighting is None:
            shared = np.vecdot(dout, out)[..., None, :]      # d_value products a query instead of keys  (7)
            dweights_t -= shared
            dlogits_t = np.multiply(weights_t, dweights_t, out=dweights_t)  # (8)
        else:
            dlogits, *dlearned = weights_backward(sum_to(dweights_t.swapaxes(-1, -2), weights.shape))
            dlogits_t = dlogits.swapaxes(-1, -2)
        dbias = None if bias is None else sum_to(dlogits_t.swapaxes(-1, -2), bias.shape)  # (9)
        dscores_t = dlogits_t if soft_cap is None else uncap(dlogits_t)
        dq = sum_to(dscores_t.swapaxes(-1, -2) @ k, q.shape)
        dq *= scale                                          # (10)
        dk = sum_to(dscores_t @ q, k.shape)
        dk *= scale                                          # (11)
        return dq, dk, sum_to(dv, v.shape), dbias, *dlearned

    return out, backward


def attention_weights(q, k, bias=None, **config):
    """The weights (*batch, queries, keys) alone, for a closer look: they are what attention makes of the identity."""
    return scaled_dot_product_attention(q, k, np.eye(k.shape[-2], dtype=k.dtype), bias, **config)[0]


def weigh(weighting: Callable, scores: Array, *learned: Array | None, mask: Array | None = None):
    """The weights that a weighting makes of scores; backward: dweights -> dscores, *dlearned.

    The mask forbids, and so does a score of -inf. The weighting itself sees finite scores, and a mask that broadcasts to
    them or None. Raises ValueError unless it gives a weight for every score.
    """
    if not callable(weighting):
        raise invalid("weighting", got=repr(weighting), wants="a function of scores and mask that returns weights and backward")
    if not scores.min() > -np.inf:                           # one number, to spare most calls an array of booleans
        forbidden = scores == -np.inf                        # a NaN is not: it shall stay one
        mask = ~forbidden if mask is None else mask & ~forbidden
        scores = np.where(forbidden, 0, scores)
    if mask is not None:                                     # it may have more leading axes than the scores
        scores = np.broadcast_to(scores, np.broadcast_shapes(scores.shape, mask.shape))
    weights, backward = weighting(scores, *learned, mask=mask)
    if weights.shape != scores.shape:
        raise invalid("weighting", got=f"weights of shape {weights.shape}", wants=f"one for each score, {scores.shape}")

    def gradients(dweights):
        found = backward(dweights)
        return found[: 1 + len(learned)] if isinstance(found, tuple) else (found,)

    return weights, gradients


def _forbid(scores_t, mask_t):
    if mask_t is None:
        return scores_t
    return _add(scores_t, np.where(mask_t, scores_t.dtype.type(0), scores_t.dtype.type(-np.inf)))  # (2)


def _add(scores_t, term):
    """In place, as the scores are ours, unless the term has leading axes that they lack."""
    fits = np.broadcast_shapes(scores_t.shape, term.shape) == scores_t.shape
    return np.add(scores_t, term, out=scores_t if fits else None)


def _softmax_over_keys(logits_t):
    """In place, too: the scores of a long sequence are the largest array of a model."""
    # Where every key is forbidden the maximum is -inf; any finite number in its place makes all exponentials 0.
    logits_t -= np.maximum(logits_t.max(-2, keepdims=True), np.finfo(logits_t.dtype).min)
    weights_t = np.exp(logits_t, out=logits_t)
    # The largest term of a row is exp(0) = 1, so a total below 1 means that there is none: 0 / 1 = 0.
    weights_t *= np.reciprocal(np.maximum(sum_over_keys(weights_t.swapaxes(-1, -2)), 1)).swapaxes(-1, -2)  # (3)
    return weights_t
