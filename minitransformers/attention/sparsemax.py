"""Sparsemax: weights that sum to 1 and of which most are exactly 0, the point of the simplex nearest to the scores.

A sort makes a row of n keys cost O(n log n); memory is the softmax's. Source: Martins and Astudillo 2016, arXiv:1602.02068,
algorithm 1 and proposition 1. Differs from the paper: keys can be forbidden, and a query that may attend to nothing reads
zero. With the allowed scores of a row in order, u_1 >= u_2 >= ...:

    support = the largest r with 1 + r u_r > u_1 + ... + u_r           (1)
    threshold = (u_1 + ... + u_support - 1) / support                  (2)
    weights = max(scores - threshold, 0), 0 where the mask forbids     (3)
    shared = sum of dweights over the support / support                (4)
    dscores = dweights - shared on the support, else 0                 (5)

Where a score meets the threshold exactly there is no derivative; such a key counts as outside the support. As adding a
number to a row changes nothing, the largest score is taken off first, which keeps the sums of (1) exact.
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_scores
from minitransformers.foundation import bad, concept, example


@concept(
    title="Sparsemax",
    source="Martins and Astudillo 2016, arXiv:1602.02068, algorithm 1",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 4, 5)),
        mask=np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], bool)[None, None],
    ),
    roles=("weighting",),
    rejects=[bad(mask=np.ones((4, 5), int)), bad(mask=np.ones((7, 2, 3, 4, 5), bool)), bad(scores=np.ones((2, 3, 4, 0)))],
)  # fmt: skip
def sparsemax(
    scores: Float[Array, "*batch queries keys"],
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
):
    """Weights of the keys, zero or positive, that sum to 1. mask is True where a query may attend.

    Returns weights (*batch, queries, keys), and backward: dweights -> dscores.
    Raises ValueError when the mask does not broadcast to the scores.
    """
    check_scores("mask", mask, scores.shape)
    allowed = np.ones(scores.shape, bool) if mask is None else np.broadcast_to(mask, scores.shape)
    below = scores - np.where(allowed, scores, -np.inf).max(-1, keepdims=True)  # the largest is 0
    # A score 1 below the largest is outside the support already. Cut further down: the sums cannot overflow.
    below = np.where(allowed, np.maximum(below, -2), -2)
    ordered = -np.sort(-below, axis=-1)                      # u
    totals = np.cumsum(ordered, axis=-1)
    ranks = np.arange(1, scores.shape[-1] + 1, dtype=scores.dtype)
    support = (1 + ranks * ordered > totals).sum(-1, keepdims=True)  # (*batch, queries, 1)  (1)
    threshold = (np.take_along_axis(totals, support - 1, axis=-1) - 1) / support.astype(scores.dtype)  # (2)
    weights = np.where(allowed, np.maximum(below - threshold, 0), 0)  # (3)

    def backward(dweights):
        inside = weights > 0
        size = np.maximum(inside.sum(-1, keepdims=True), 1).astype(weights.dtype)
        shared = np.where(inside, dweights, 0).sum(-1, keepdims=True) / size  # (4)
        return np.where(inside, dweights - shared, 0)        # (5)

    return weights, backward
