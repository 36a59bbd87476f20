"""Scalable softmax (SSMax): a softmax whose base is the number of keys, so that focus does not fade as the context grows.

The largest of n weights of a softmax with bounded scores falls like 1/n. With n^(scale score) in the place of e^score, a
lead of 1/scale over the other keys is enough at any length. Time and memory are the softmax's. Source: Nakanishi 2025,
arXiv:2501.19399. n is the number of keys that a query may see: its position counted from 1 under a causal mask.

    sharpness = scale log n + offset                                                       (1)
    weights = softmax over the allowed keys of sharpness scores                            (2)
    dlogits = weights (dweights - sum over keys of dweights weights)                       (3)
    dscores = sharpness dlogits                                                            (4)
    pull = sum over keys of dlogits scores                                                 (5)
    dscale = sum of pull log n over the queries of a head                                  (6)
    doffset = sum of pull over the queries of a head                                       (7)

n comes from the mask and has no gradient. A forbidden key has weight 0, hence dscores 0.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import by_head, check_scores, count_keys, dot_over_keys, forbid, sum_over_keys, sum_to
from minitransformers.attention.weighted_attention import core_example, some_mask, weighted_attention
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, finite


class ScalableSoftmax(NamedTuple):
    """One scale a head, which may be negative, and an offset a head or None for 0; without either, a scale of 1."""

    scale: Annotated[Float[Array, "heads"], finite]
    offset: Annotated[Float[Array, "heads"], finite] | None = None


@checked
def init_scalable_softmax(
    rng: np.random.Generator, *, num_heads: Annotated[int, at_least(1)], max_positions: Annotated[int, at_least(2)] = 1024,
    dtype: type = np.float32,
) -> ScalableSoftmax:  # fmt: skip
    """Scales with which the mean sharpness over 1 to ``max_positions`` keys is 1, that of an ordinary softmax. No offset."""
    mean_log = np.log(np.arange(1, max_positions + 1)).mean()  # log 1 is 0: there must be more keys than one
    return ScalableSoftmax(np.full(num_heads, 1 / mean_log, dtype))


init_scalable_softmax_attention = init_scalable_softmax


@concept(
    title="Scalable softmax (SSMax)",
    source="Nakanishi 2025, arXiv:2501.19399",
    example=lambda rng: example(ScalableSoftmax(*rng.normal(size=(2, 3))), rng.normal(size=(2, 3, 4, 5)), mask=some_mask()),
    roles=("weighting",),
    rejects=[bad("params.scale", params=ScalableSoftmax(np.ones(2))), bad(mask=np.ones((7, 2, 3, 4, 5), bool))],
)
def scalable_softmax(
    params: ScalableSoftmax | None,
    scores: Float[Array, "*batch queries keys"],
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """Weights of the keys that sum to 1 and stay sharp at any number of them.

    scores are finite: the mask forbids, for -inf times log 1 would be NaN. mask is True where a query may attend; a query
    that may attend to nothing has weights 0.
    Returns weights (*batch, queries, keys), and backward: dweights -> ScalableSoftmax of gradients or None, dscores.
    Raises ValueError when mask, scale or offset do not fit the scores.
    """
    check_scores("mask", mask, scores.shape)
    log_n = np.log(count_keys(mask, scores.shape[-1])).astype(scores.dtype)  # (..., queries, 1)
    sharpness = log_n
    if params is not None:
        sharpness = by_head("params.scale", params.scale, scores) * log_n
        if params.offset is not None:
            sharpness = sharpness + by_head("params.offset", params.offset, scores)  # (1)
    logits = forbid(sharpness * scores, mask)
    # Where every key is forbidden the maximum is -inf; any finite number in its place makes all exponentials 0.
    logits -= np.maximum(logits.max(-1, keepdims=True), np.finfo(scores.dtype).min)
    weights = np.exp(logits, out=logits)
    weights /= np.maximum(sum_over_keys(weights), 1)         # a total below 1 means that no key is allowed  (2)

    def backward(dweights):
        dlogits = dweights - dot_over_keys(dweights, weights)[..., None]
        dlogits *= weights                                   # (3)
        dscores = sharpness * dlogits                        # (4)
        if params is None:
            return None, dscores
        pull = dot_over_keys(dlogits, scores)[..., None]     # (*batch, queries, 1)  (5)
        per_head = by_head("params.scale", params.scale, scores).shape
        dscale = sum_to(pull * log_n, per_head).reshape(-1)  # (6)
        doffset = None if params.offset is None else sum_to(pull, per_head).reshape(-1)  # (7)
        return ScalableSoftmax(dscale, doffset), dscores

    return weights, backward


@concept(
    title="Attention with the scalable softmax",
    source="Nakanishi 2025, arXiv:2501.19399",
    example=lambda rng: core_example(rng, ScalableSoftmax(*rng.normal(size=(2, 3)))),
    roles=("core",),
    form_of="scalable_softmax",
)
def scalable_softmax_attention(
    params: ScalableSoftmax | None, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None, scale: Annotated[float, finite] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """Attention that stays sharp at any number of keys. A core.

    Arguments and results are those of weighted_attention.
    """
    return weighted_attention(params, query, key, value, bias, weighting=scalable_softmax, mask=mask, scale=scale)
