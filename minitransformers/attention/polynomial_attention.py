"""Polynomial attention: weights are a polynomial of the scores, scaled by the number of keys; they may be negative.

The claim of the paper is that a softmax works not because it gives probabilities but because it bounds the Frobenius norm
of the matrix of weights, and that a polynomial divided by a root of the length is bounded alike. No exponential and no sum
over the keys; memory is the softmax's. Source: Saratchandran et al. 2024, arXiv:2410.18613. Differs from the paper: n
counts the keys that a query may see, and the coefficients can be learned.

    share = n^-decay; decay = 1/2                                             (1)
    weights = share sum over m of c_m scores^m, 0 where the mask forbids      (2)
    dscores = share dweights sum over m of m c_m scores^(m - 1)               (3)
    dc_m = sum of share dweights scores^m                                     (4)

A forbidden key is cut out after the polynomial, since c_0, its value at 0, need not be 0.
"""

import itertools
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_scores, count_keys
from minitransformers.attention.weighted_attention import core_example, some_mask, weighted_attention
from minitransformers.foundation import Backward, at_least, bad, concept, example, finite


class PolynomialAttention(NamedTuple):
    """c_0, c_1, ...: a coefficient for each power of the score; without them (0, 0, 0, 1), a cube."""

    coefficients: Float[Array, "powers"]


@concept(
    title="Polynomial attention, its weights",
    source="Saratchandran et al. 2024, arXiv:2410.18613",
    example=lambda rng: example(PolynomialAttention(rng.normal(size=4)), rng.normal(size=(2, 3, 4, 5)), mask=some_mask()),
    roles=("weighting",),
    rejects=[bad(mask=np.ones((7, 2, 3, 4, 5), bool))],
    form_of="polynomial_attention",
)
def polynomial_weights(
    params: PolynomialAttention | None,
    scores: Float[Array, "*batch queries keys"],
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    decay: Annotated[float, at_least(0)] = 0.5,
) -> tuple[Array, Backward]:
    """Weights of the keys, of either sign: c_0 + c_1 score + c_2 score^2 + ..., over the number of keys to the decay.

    mask is True where a query may attend; decay is dimensionless.
    Returns weights (*batch, queries, keys), and backward: dweights -> PolynomialAttention(dcoefficients) or None, dscores.
    Raises ValueError when the mask does not broadcast to the scores.
    """
    check_scores("mask", mask, scores.shape)
    cs = np.array([0, 0, 0, 1], scores.dtype) if params is None else params.coefficients
    share = count_keys(mask, scores.shape[-1]) ** -decay
    if mask is not None:
        share = mask * share                                 # 0 where forbidden
        scores = np.where(mask, scores, 0)                   # a forbidden score may be anything: its powers must not overflow
    share = share.astype(scores.dtype)                       # (1)
    weights = _polynomial(cs, scores)
    weights *= share                                         # (2)

    def backward(dweights):
        dvalue = share * dweights
        dscores = _polynomial(cs[1:] * np.arange(1, len(cs), dtype=cs.dtype), scores)
        dscores *= dvalue                                    # (3)
        if params is None:
            return None, dscores
        powers = itertools.accumulate(cs[1:], lambda power, _: power * scores, initial=dvalue)
        dcoefficients = np.array([power.sum() for power in powers])  # (4)
        return PolynomialAttention(dcoefficients), dscores

    return weights, backward


@concept(
    title="Polynomial attention",
    source="Saratchandran et al. 2024, arXiv:2410.18613",
    example=lambda rng: core_example(rng, PolynomialAttention(rng.normal(size=4))),
    roles=("core",),
)
def polynomial_attention(
    params: PolynomialAttention | None, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None, scale: Annotated[float, finite] | None = None,
    decay: Annotated[float, at_least(0)] = 0.5,
) -> tuple[Array, Backward]:  # fmt: skip
    """Attention whose weights are a polynomial of the scores, of either sign. A core.

    Arguments and results are those of weighted_attention. decay as in polynomial_weights.
    """
    return weighted_attention(params, query, key, value, bias, weighting=partial(polynomial_weights, decay=decay), mask=mask, scale=scale)


def _polynomial(cs, x):
    """c_0 + c_1 x + c_2 x^2 + ..., from the highest power down (Horner); a term that is 0 costs no addition."""
    value = np.zeros_like(x)
    for c in cs[::-1]:
        value *= x
        if c != 0:
            value += c
    return value
