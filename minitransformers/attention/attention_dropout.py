"""Attention dropout: while training, some of the weights are silenced, so that no query can rely on one key alone.

What is dropped is the weight after the softmax, not the score: the others are scaled up by 1/(1 - rate) and do not share what
is gone, so that a row sums to 1 in expectation only. Costs a random number for each weight, and keeps the scaled mask.
Source: the code of Vaswani et al. 2017, arXiv:1706.03762 (tensor2tensor), whose section 5.4 names the other places of dropout; the
mask's scale is that of dropout. logits are scores, and -inf where the mask forbids.

    weights = exp(logits - max) / sum over keys of the same  (1)
    kept = weights drop                                      (2)
    dweights = dkept drop                                    (3)
    shared = sum over keys of dweights weights               (4)
    dscores = weights (dweights - shared)                    (5)

drop is 1/(1 - rate) with probability 1 - rate, else 0.
"""

from functools import partial
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_scores, dot_over_keys, forbid, sum_over_keys
from minitransformers.attention.weighted_attention import core_example, some_mask, weighted_attention
from minitransformers.basics.dropout import dropout
from minitransformers.foundation import Backward, bad, concept, example, finite, from_to_below, invalid

Rate = Annotated[float, from_to_below(0, 1)]


@concept(
    title="Attention dropout",
    source="Vaswani et al. 2017, arXiv:1706.03762, as in its code (tensor2tensor)",
    example=lambda rng: example(None, rng.normal(size=(2, 3, 4, 5)), mask=some_mask(), rate=0.3, rng=np.random.default_rng(1)),
    rejects=[bad(mask=np.ones((7, 2, 3, 4, 5), bool))],
)
def attention_dropout(
    params: None,
    scores: Float[Array, "*batch queries keys"],
    *,
    rate: Rate,
    rng: np.random.Generator | None,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """The softmax's weights of the keys, of which each is dropped with probability ``rate``. A weighting.

    rng draws what is dropped; None (the model is in use, not in training) drops nothing. mask is True where a query may attend.
    params is None, as nothing is learned.
    Returns kept (*batch, queries, keys), and backward: dkept -> None, dscores.
    Raises ValueError when the mask does not fit the scores.
    """
    if params is not None:                                   # inside an attention no annotation is checked
        raise invalid("params", got=type(params).__name__, wants="None: dropout learns nothing")
    check_scores("mask", mask, scores.shape)
    logits = forbid(scores, mask)
    logits -= np.maximum(logits.max(-1, keepdims=True), np.finfo(logits.dtype).min)  # all -inf: all exponentials are 0
    powers = np.exp(logits, out=logits)
    weights = np.divide(powers, np.maximum(sum_over_keys(powers), 1), out=powers)  # (1)
    kept, drop_backward = dropout(weights, rate=rate, rng=rng)  # (2)

    def backward(dkept):
        dweights = drop_backward(dkept)                      # (3)
        shared = dot_over_keys(dweights, weights)[..., None]  # (4)
        return None, weights * (dweights - shared)           # (5)

    return kept, backward


@concept(
    title="Attention with dropout",
    source="Vaswani et al. 2017, arXiv:1706.03762, as in its code (tensor2tensor)",
    example=lambda rng: core_example(rng, None, rate=0.3, rng=np.random.default_rng(1)),
    form_of="attention_dropout",
)
def attention_with_dropout(
    params: None, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    rate: Rate, rng: np.random.Generator | None, mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    scale: Annotated[float, finite] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """Softmax attention that drops weights. A core: ``core=causal(partial(attention_with_dropout, rate=0.1, rng=rng))``.

    rate and rng are those of attention_dropout; the other arguments and results are those of weighted_attention.
    """
    weighting = partial(attention_dropout, rate=rate, rng=rng)
    return weighted_attention(params, query, key, value, bias, weighting=weighting, mask=mask, scale=scale)
