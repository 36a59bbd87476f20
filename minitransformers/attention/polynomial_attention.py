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

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_scores, count_keys
from minitransformers.foundation import bad, concept, example, invalid


@concept(
    title="Polynomial attention",
    source="Saratchandran et al. 2024, arXiv:2410.18613",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 4, 5)), rng.normal(size=4),
        mask=np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], bool)[None, None],
    ),
    roles=("weighting",),
    rejects=[
        bad(mask=np.ones((4, 5), int)), bad(mask=np.ones((7, 2, 3, 4, 5), bool)), bad(scores=np.ones((2, 3, 4, 0))),
        bad(coefficients=np.ones(0)), bad(coefficients=np.ones((2, 2))), bad(decay=-0.5), bad(decay=np.nan), bad(decay=np.inf),
    ],
)  # fmt: skip
def polynomial_attention(
    scores: Float[Array, "*batch queries keys"],
    coefficients: Float[Array, "powers"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    decay: float = 0.5,
):
    """Weights of the keys, of either sign: c_0 + c_1 score + c_2 score^2 + ..., over the number of keys to the decay.

    coefficients are c_0, c_1, ... and (0, 0, 0, 1), a cube, where None. mask is True where a query may attend.
    Returns weights (*batch, queries, keys), and backward: dweights -> dscores, dcoefficients (None where not given).
    Raises ValueError when the mask does not broadcast to the scores or decay is negative or not finite.
    """
    check_scores("mask", mask, scores.shape)
    if coefficients is not None and (coefficients.ndim != 1 or not len(coefficients)):  # as attention hands it on
        raise invalid("coefficients", got=f"shape {coefficients.shape}", wants="one number for each power, at least one")
    if not 0 <= decay < np.inf:
        raise invalid("decay", got=decay, wants="a finite number that is not negative")
    cs = np.array([0, 0, 0, 1], scores.dtype) if coefficients is None else coefficients
    share = count_keys(mask, scores.shape[-1]) ** -float(decay)
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
        powers = itertools.accumulate(cs[1:], lambda power, _: power * scores, initial=dvalue)
        dcoefficients = None if coefficients is None else np.array([power.sum() for power in powers])  # (4)
        return dscores, dcoefficients

    return weights, backward


def _polynomial(cs, x):
    """c_0 + c_1 x + c_2 x^2 + ..., from the highest power down (Horner); a term that is 0 costs no addition."""
    value = np.zeros_like(x)
    for c in cs[::-1]:
        value *= x
        if c != 0:
            value += c
    return value
