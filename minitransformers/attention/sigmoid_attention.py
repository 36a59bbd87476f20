"""Sigmoid attention: every key is weighted by itself, and no key takes weight from another.

Without a sum over the keys a row needs no second pass and no exchange between parts of a sequence; time and memory are the
softmax's. Source: Ramapuram et al. 2024, arXiv:2409.04431, section 2. Differs from the paper: n counts the keys that a
query may see, where the paper has one n for the whole sequence, and an offset a head can be learned.

    logits = scores + offset; offset = -log n where none is given    (1)
    weights = 1 / (1 + exp(-logits)), 0 where the mask forbids       (2)
    dscores = dweights weights (1 - weights)                         (3)
    doffset = sum of dscores over the keys and queries of a head     (4)

A forbidden key has weight 0, hence dscores 0.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import by_head, check_scores, count_keys, forbid, sum_to
from minitransformers.attention.weighted_attention import core_example, some_mask, weighted_attention
from minitransformers.basics.sigmoid import sigmoid
from minitransformers.foundation import Backward, bad, concept, example, finite


class SigmoidAttention(NamedTuple):
    """What is added to all scores, one number a head; without it, -log of the number of keys that a query may see."""

    offset: Annotated[Float[Array, "heads"], finite]


@concept(
    title="Sigmoid attention, its weights",
    source="Ramapuram et al. 2024, arXiv:2409.04431, section 2",
    example=lambda rng: example(SigmoidAttention(rng.normal(size=3)), rng.normal(size=(2, 3, 4, 5)), mask=some_mask()),
    roles=("weighting",),
    rejects=[bad("params.offset", params=SigmoidAttention(np.ones(2))), bad(mask=np.ones((7, 2, 3, 4, 5), bool))],
    form_of="sigmoid_attention",
)
def sigmoid_weights(
    params: SigmoidAttention | None,
    scores: Float[Array, "*batch queries keys"],
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """A weight between 0 and 1 for every key, whatever the other keys are.

    params.offset is added to all scores of a head; where params is None, -log of the number of keys that the query may see.
    mask is True where a query may attend.
    Returns weights (*batch, queries, keys), and backward: dweights -> SigmoidAttention(doffset) or None, dscores.
    Raises ValueError when mask or offset do not fit the scores.
    """
    check_scores("mask", mask, scores.shape)
    if params is None:                                       # the count of the mask has no gradient
        offset = -np.log(count_keys(mask, scores.shape[-1])).astype(scores.dtype)
    else:
        offset = by_head("params.offset", params.offset, scores)
    logits = forbid(scores + offset, mask)                   # (1)
    weights, sigmoid_backward = sigmoid(logits)              # of -inf it is exactly 0, and so is its slope  (2)

    def backward(dweights):
        dscores = sigmoid_backward(dweights)                 # (3)
        doffset = None if params is None else SigmoidAttention(sum_to(dscores, offset.shape).reshape(-1))  # (4)
        return doffset, dscores

    return weights, backward


@concept(
    title="Sigmoid attention",
    source="Ramapuram et al. 2024, arXiv:2409.04431, section 2",
    example=lambda rng: core_example(rng, SigmoidAttention(rng.normal(size=3))),
    roles=("core",),
)
def sigmoid_attention(
    params: SigmoidAttention | None, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None, scale: Annotated[float, finite] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """Attention in which every key is weighted by itself. A core.

    Arguments and results are those of weighted_attention.
    """
    return weighted_attention(params, query, key, value, bias, weighting=sigmoid_weights, mask=mask, scale=scale)
