"""Sparsemax: weights that sum to 1 and of which most are exactly 0, the point of the simplex nearest to the scores.

A few rounds over a row of n keys, O(n) each, find it exactly; memory is the softmax's. Sources: Martins and Astudillo 2016,
arXiv:1602.02068, section 2; Michelot 1986, J. Optim. Theory Appl. 50:195 (the rounds). Differs from the papers: rounds in
the place of the sort of the former, which begin with (2), a closer bound than the latter's; keys can be forbidden, and a
query that may attend to nothing reads zero. Over the allowed keys of a row:

    below = max(scores - largest, -1)                              (1)
    bound = (sum of below excess - 1) / sum of excess, where excess = below + 1    (2)
    inside = 1 where below > bound, else 0                         (3)
    size = sum of inside                                           (4)
    threshold = (sum of below inside - 1) / size                   (5)
    bound = threshold, and again from (3) until size stays         (6)
    weights = max(below - threshold, 0)                            (7)
    shared = sum of dweights inside / size                         (8)
    dscores = (dweights - shared) inside                           (9)

Where a score meets the threshold exactly there is no derivative; such a key counts as outside the support.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_scores, dot_over_keys, forbid, sum_over_keys
from minitransformers.attention.weighted_attention import core_example, some_mask, weighted_attention
from minitransformers.foundation import Backward, bad, concept, example, finite, slot


@concept(
    title="Sparsemax",
    source="Martins and Astudillo 2016, arXiv:1602.02068, section 2",
    example=lambda rng: example(rng.normal(size=(2, 3, 4, 5)), mask=some_mask()),
    roles=("weighting",),
    rejects=[bad(mask=np.ones((7, 2, 3, 4, 5), bool))],
)
def sparsemax(
    scores: Float[Array, "*batch queries keys"],
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Weights of the keys, zero or positive, that sum to 1. mask is True where a query may attend.

    Returns weights (*batch, queries, keys), and backward: dweights -> dscores.
    Raises ValueError when the mask does not broadcast to the scores.
    """
    check_scores("mask", mask, scores.shape)
    logits = forbid(scores, mask)
    # Where every key is forbidden the maximum is -inf; with any finite number in its place all keys lie at -1, outside.
    largest = np.maximum(logits.max(-1, keepdims=True), np.finfo(scores.dtype).min)
    logits -= largest
    below = np.clip(logits, -1, 0, out=logits)               # lower keys are outside anyway; no sum can overflow  (1)
    excess = below + 1
    total = np.maximum(sum_over_keys(excess), 1)             # the largest alone has 1, where there is a key
    bound = np.maximum((dot_over_keys(below, excess)[..., None] - 1) / total, -1)  # (..., queries, 1)  (2)
    inside, size, threshold = _settle(below, bound)
    below -= threshold
    weights = np.clip(below, 0, 1, out=below)                # (7)

    def backward(dweights):
        shared = dot_over_keys(dweights, inside)[..., None] / size  # (8)
        dscores = dweights - shared
        dscores *= inside                                    # (9)
        return dscores

    return weights, backward


def _settle(below: Array, bound: Array) -> tuple[Array, Array, Array]:
    """From a lower bound of each row's threshold, (..., 1), to what is inside, its size, and the threshold itself."""
    size, threshold = np.zeros_like(bound), bound            # no size is known yet
    while True:
        inside = (below > bound).astype(below.dtype)         # (3)
        before, size = size, np.maximum(sum_over_keys(inside), 1)  # (4)
        moved = (size != before)[..., 0]
        if 4 * np.count_nonzero(moved) <= moved.size:        # most rows are done: the others go on by themselves
            if moved.any():
                inside[moved], size[moved], threshold[moved] = _settle(below[moved], bound[moved])
            return inside, size, threshold
        threshold = (dot_over_keys(below, inside)[..., None] - 1) / size  # (5)
        bound = np.maximum(threshold, bound)                 # if rounding lowered it, a key could come back, for ever  (6)


@concept(
    title="Attention with sparsemax",
    source="Martins and Astudillo 2016, arXiv:1602.02068, section 2",
    example=lambda rng: core_example(rng, None),
    roles=("core",),
    form_of="sparsemax",
)
def sparsemax_attention(
    params: None, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None, scale: Annotated[float, finite] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """Attention that reads few keys, and the others not at all. A core.

    Arguments and results are those of weighted_attention.
    """
    return weighted_attention(params, query, key, value, bias, weighting=slot(sparsemax), mask=mask, scale=scale)
