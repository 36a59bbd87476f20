"""Attention with any weighting: what stands in the softmax's place is a function of the scores, put into a slot.

Scores in, weights out: whatever does that (sparsemax, a sigmoid, a polynomial, ...) makes an attention, and its backward
takes the place of the softmax's. Time and memory are those of scaled_dot_product_attention, and so are the conventions.
Source: the frame of Vaswani et al. 2017, arXiv:1706.03762, eq. 1, with its softmax left open. N is the weighting, N* its
backward.

    scores = scale q k^T, scale = 1 / sqrt(d_head)           (1)
    logits = scores + bias                                   (2)
    weights = N(logits), under the mask                      (3)
    out = weights v                                          (4)
    dv = weights^T dout                                      (5)
    dweights = dout v^T                                      (6)
    dparams, dlogits = N*(dweights)                          (7)
    dbias = dlogits                                          (8)
    dq = scale dlogits k, dk = scale dlogits^T q             (9)
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_to
from minitransformers.attention.scaled_dot_product_attention import check_bias
from minitransformers.attention.scaled_dot_product_attention_fast import add, dot_products
from minitransformers.foundation import Backward, bad, concept, example, finite, invalid


@concept(
    title="Attention with any weighting",
    source="Vaswani et al. 2017, arXiv:1706.03762, eq. 1, its softmax left open",
    example=lambda rng: core_example(rng, np.array(rng.normal()), weighting=_proportional),
    rejects=[bad(bias=np.full((1, 3, 4, 5), np.nan)), bad(weighting=lambda params, scores, mask: (scores[..., :1], None))],
)
def weighted_attention(
    params: Any,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    weighting: Callable,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    scale: Annotated[float, finite] | None = None,
) -> tuple[Array, Backward]:
    """Mix the values, for each query, by the weights that ``weighting(params, scores, mask=mask)`` makes.

    params is what the weighting learns, None for nothing. The weighting sees finite scores, (*batch, queries, keys), and a
    mask that broadcasts to them, True where a query may attend; a bias of -inf forbids as well. scale as in
    scaled_dot_product_attention.
    Returns out (*batch, queries, d_value), and backward: dout -> dparams, dquery, dkey, dvalue, dbias (None without a bias).
    Raises ValueError when axes do not broadcast, the bias holds NaN or +inf, or the weighting has no weight for a score.
    """
    check_bias(bias)
    scores_t, scores_backward = dot_products(query, key, scale)  # (..., keys, queries)  (1)
    if bias is not None:
        scores_t = add(scores_t, bias.swapaxes(-1, -2))      # (2)
    logits, mask = _finite(scores_t.swapaxes(-1, -2), mask)
    weights, weights_backward = weighting(params, logits, mask=mask)  # (3)
    if weights.shape != logits.shape:
        raise invalid("weighting", got=f"weights of shape {weights.shape}", wants=f"one for each score, {logits.shape}")
    out = weights @ value                                    # (4)

    def backward(dout):
        dvalue = sum_to(weights.swapaxes(-1, -2) @ dout, value.shape)  # (5)
        dweights = (value @ np.ascontiguousarray(dout.swapaxes(-1, -2))).swapaxes(-1, -2)  # (6)
        dparams, dlogits = weights_backward(sum_to(dweights, weights.shape))  # (7)
        dbias = None if bias is None else sum_to(dlogits, bias.shape)  # (8)
        dquery, dkey = scores_backward(dlogits.swapaxes(-1, -2))  # (9)
        return dparams, dquery, dkey, dvalue, dbias

    return out, backward


def _finite(logits: Array, mask: Array | None) -> tuple[Array, Array | None]:
    """The logits with 0 in the place of -inf, and a mask that forbids these too; the logits get all leading axes of the mask."""
    if not logits.min() > -np.inf:                           # one number, to spare most calls an array of booleans
        forbidden = logits == -np.inf                        # a NaN is not: it shall stay one
        mask = ~forbidden if mask is None else mask & ~forbidden
        logits = np.where(forbidden, 0, logits)
    if mask is not None:                                     # it may have more leading axes than the scores
        logits = np.broadcast_to(logits, np.broadcast_shapes(logits.shape, mask.shape))
    return logits, mask


def _proportional(factor: Array, scores: Array, *, mask: Array):
    """A weighting that learns one number: the score itself times the factor, 0 where the mask forbids."""
    weights = factor * scores * mask
    return weights, lambda dweights: (np.sum(dweights * scores * mask), factor * mask * dweights)


def some_mask() -> Array:
    """Queries that may see all keys, none, some, and one."""
    return np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], bool)[None, None]


def core_example(rng: np.random.Generator, params: Any, /, **config: Any):
    """A small call of a core: three heads, keys and values shared by them, a bias, a query that may see nothing."""
    shapes = (2, 3, 4, 5), (2, 1, 5, 5), (2, 1, 5, 7), (1, 3, 4, 5)
    return example(params, *(rng.normal(size=shape) for shape in shapes), mask=some_mask(), **config)
