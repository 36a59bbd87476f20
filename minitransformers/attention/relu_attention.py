"""ReLU attention: the weight of a key is the positive part of its score, divided by the number of keys.

No exponential and no sum over the keys; time and memory are otherwise the softmax's. Source: Wortsman et al. 2023,
arXiv:2309.08586, section 3 (of the family L^-alpha relu, alpha = 1). Differs from the paper: n counts the keys that a
query may see, where the paper divides by the one length of the sequence.

    weights = max(scores, 0) / n, 0 where the mask forbids   (1)
    dscores = dweights / n where weights > 0, else 0         (2)

At a score of exactly 0, where there is no slope, the gradient is 0. A query all of whose scores are negative reads zero
and teaches its scores nothing.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_scores, count_keys
from minitransformers.attention.weighted_attention import core_example, some_mask, weighted_attention
from minitransformers.foundation import Backward, bad, concept, example, finite, slot


@concept(
    title="ReLU attention, its weights",
    source="Wortsman et al. 2023, arXiv:2309.08586, section 3",
    example=lambda rng: example(rng.normal(size=(2, 3, 4, 5)), mask=some_mask()),
    roles=("weighting",),
    rejects=[bad(mask=np.ones((7, 2, 3, 4, 5), bool))],
    form_of="relu_attention",
)
def relu_weights(
    scores: Float[Array, "*batch queries keys"],
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Weights of the keys that are zero or positive and need not sum to 1. mask is True where a query may attend.

    Returns weights (*batch, queries, keys), and backward: dweights -> dscores.
    Raises ValueError when the mask does not broadcast to the scores.
    """
    check_scores("mask", mask, scores.shape)
    allowed = True if mask is None else mask
    share = (allowed / count_keys(mask, scores.shape[-1])).astype(scores.dtype)  # 1 / n, 0 where forbidden
    weights = np.maximum(scores, 0)
    weights *= share                                         # (1)

    def backward(dweights):
        dscores = dweights * share
        dscores *= weights > 0                               # (2)
        return dscores

    return weights, backward


@concept(
    title="ReLU attention",
    source="Wortsman et al. 2023, arXiv:2309.08586, section 3",
    example=lambda rng: core_example(rng, None),
    roles=("core",),
)
def relu_attention(
    params: None, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None, scale: Annotated[float, finite] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """Attention that reads the keys whose scores are positive. A core.

    Arguments and results are those of weighted_attention.
    """
    return weighted_attention(params, query, key, value, bias, weighting=slot(relu_weights), mask=mask, scale=scale)
