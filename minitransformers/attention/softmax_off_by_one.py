"""Softmax off by one: a query may attend to nothing, because a place that holds nothing competes with the keys.

A softmax must spend its whole weight somewhere. One more term in the denominator, with a logit that is 0 or learned (a
"sink"), takes what no key deserves. Time and memory are the softmax's. Sources: Miller 2023, Attention Is Off By One
(sink 0); Xiao et al. 2023, arXiv:2309.17453, section 3.3 (compares it with a learned sink token); OpenAI 2025, gpt-oss,
arXiv:2508.10925, section 2 (one learned logit a head).

    rest = exp(sink) / (exp(sink) + sum over keys of exp(scores))     (1)
    weights = exp(scores) / (exp(sink) + sum over keys of the same)   (2)
    shared = sum over keys of dweights weights                        (3)
    dscores = weights (dweights - shared)                             (4)
    dsink = - sum of rest shared over the rows that have it           (5)

A forbidden key has weight 0, hence dscores 0. A query that may attend to nothing has weights 0 without a special case.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import by_head, check_scores, dot_over_keys, forbid, sum_over_keys, sum_to
from minitransformers.attention.weighted_attention import core_example, some_mask, weighted_attention
from minitransformers.foundation import Backward, bad, concept, example, finite


class SoftmaxOffByOne(NamedTuple):
    """The logit of the place that holds nothing, one a head (gpt-oss); without it the logit is 0."""

    sink: Annotated[Float[Array, "heads"], finite]


@concept(
    title="Softmax off by one",
    source="Miller 2023, Attention Is Off By One; learned sinks: OpenAI 2025, arXiv:2508.10925, section 2",
    example=lambda rng: example(SoftmaxOffByOne(rng.normal(size=3)), rng.normal(size=(2, 3, 4, 5)), mask=some_mask()),
    roles=("weighting",),
    rejects=[bad("params.sink", params=SoftmaxOffByOne(np.ones(2))), bad(mask=np.ones((7, 2, 3, 4, 5), bool))],
)
def softmax_off_by_one(
    params: SoftmaxOffByOne | None,
    scores: Float[Array, "*batch queries keys"],
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Weights of the keys that sum to less than 1: the rest goes to a place without a value.

    params.sink is the logit of that place, 0 where params is None. mask is True where a query may attend.
    Returns weights (*batch, queries, keys), and backward: dweights -> SoftmaxOffByOne(dsink) or None, dscores.
    Raises ValueError when mask or sink do not fit the scores.
    """
    check_scores("mask", mask, scores.shape)
    logits = forbid(scores, mask)
    sink = np.zeros((1, 1), scores.dtype) if params is None else by_head("params.sink", params.sink, scores)
    largest = np.maximum(logits.max(-1, keepdims=True), sink)  # of keys and sink: no exponential overflows, not all are 0
    logits -= largest
    powers, spare = np.exp(logits, out=logits), np.exp(sink - largest)
    total = sum_over_keys(powers) + spare
    rest = spare / total                                     # (*batch, queries, 1)  (1)
    weights = np.divide(powers, total, out=powers)           # (2)

    def backward(dweights):
        shared = dot_over_keys(dweights, weights)[..., None]  # (3)
        dscores = dweights - shared
        dscores *= weights                                   # (4)
        dsink = None if params is None else SoftmaxOffByOne(-sum_to(rest * shared, sink.shape).reshape(-1))  # (5)
        return dsink, dscores

    return weights, backward


@concept(
    title="Attention with the softmax off by one",
    source="Miller 2023, Attention Is Off By One; OpenAI 2025, arXiv:2508.10925, section 2",
    example=lambda rng: core_example(rng, SoftmaxOffByOne(rng.normal(size=3))),
    roles=("core",),
    form_of="softmax_off_by_one",
)
def softmax_off_by_one_attention(
    params: SoftmaxOffByOne | None, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None, scale: Annotated[float, finite] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """Attention in which a query may read nothing. A core.

    Arguments and results are those of weighted_attention.
    """
    return weighted_attention(params, query, key, value, bias, weighting=softmax_off_by_one, mask=mask, scale=scale)
