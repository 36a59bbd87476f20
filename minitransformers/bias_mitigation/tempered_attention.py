"""Tempered attention: the scores of a trained attention are scaled, and its weights become flatter or sharper.

One number a head, or one for all. At 1 the attention is what it was, at 0 every key that a query may see has the same weight, and as
the number grows a query reads its best key alone. It is set after training, on held-out text: how much a model leans on single words
is one of the things that bias measures react to, for better or worse. It can be learned as well. Time and memory are the softmax's.

Source: Zayed et al. 2023 (EAT), arXiv:2305.13088, section 3. Differs from the paper: a number for each head, where one wants them; the
softmax of the scores, a bias on them included. beta is the number, an inverse temperature.

    weights = softmax over the allowed keys of beta scores   (1)
    dlogits = weights (dweights - sum over keys of dweights weights)   (2)
    dscores = beta dlogits                                   (3)
    dbeta = sum of dlogits scores over the queries and keys of a head   (4)

The mask comes after the scaling: 0 times -inf would be NaN. A forbidden key has weight 0, hence dscores 0.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import by_head, check_scores, dot_over_keys, forbid, sum_over_keys, sum_to
from minitransformers.attention.weighted_attention import core_example, some_mask, weighted_attention
from minitransformers.foundation import Backward, at_least, bad, concept, example, finite


class InverseTemperature(NamedTuple):
    """One number a head, or one for all heads: 0 for equal weights, 1 for those of the softmax, more for sharper ones."""

    beta: Annotated[Float[Array, "heads"], at_least(0)]


@concept(
    title="Tempered softmax",
    source="Zayed et al. 2023 (EAT), arXiv:2305.13088, section 3",
    example=lambda rng: example(InverseTemperature(rng.uniform(0.2, 2, size=3)), rng.normal(size=(2, 3, 4, 5)), mask=some_mask()),
    rejects=[bad("params.beta", params=InverseTemperature(np.ones(2))), bad(mask=np.ones((7, 2, 3, 4, 5), bool))],
    form_of="tempered_attention",
)
def tempered_softmax(
    params: InverseTemperature, scores: Float[Array, "*batch queries keys"], *, mask: Bool[Array, "*#batch #queries #keys"] | None = None
) -> tuple[Array, Backward]:
    """Weights of the keys, of scores times beta: what weighted_attention takes as its weighting.

    scores are finite: the mask forbids. mask is True where a query may attend; a query that may attend to nothing has weights 0.
    Returns weights (*batch, queries, keys), and backward: dweights -> InverseTemperature(dbeta), dscores.
    Raises ValueError when mask or beta do not fit the scores.
    """
    check_scores("mask", mask, scores.shape)
    beta = by_head("params.beta", params.beta, scores)
    logits = forbid(beta * scores, mask)
    # Where every key is forbidden the maximum is -inf; any finite number in its place makes all exponentials 0.
    logits -= np.maximum(logits.max(-1, keepdims=True), np.finfo(scores.dtype).min)
    powers = np.exp(logits, out=logits)
    weights = powers / np.maximum(sum_over_keys(powers), 1)  # a total below 1 means that no key is allowed  (1)

    def backward(dweights):
        dlogits = weights * (dweights - dot_over_keys(dweights, weights)[..., None])  # (2)
        dscores = beta * dlogits                             # (3)
        dbeta = sum_to(dot_over_keys(dlogits, scores)[..., None], beta.shape).reshape(-1)  # (4)
        return InverseTemperature(dbeta), dscores

    return weights, backward


@concept(
    title="Tempered attention",
    source="Zayed et al. 2023 (EAT), arXiv:2305.13088, section 3",
    example=lambda rng: core_example(rng, InverseTemperature(rng.uniform(0.2, 2, size=3))),
)
def tempered_attention(
    params: InverseTemperature, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None, scale: Annotated[float, finite] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """Attention whose scores, a bias on them included, are multiplied by beta. A core.

    params.beta is dimensionless and at least 0. Other arguments and results are those of weighted_attention.
    """
    return weighted_attention(params, query, key, value, bias, weighting=tempered_softmax, mask=mask, scale=scale)
