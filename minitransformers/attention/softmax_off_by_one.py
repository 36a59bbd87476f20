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

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_scores, dot_over_keys, forbid, sum_over_keys, sum_to
from minitransformers.foundation import bad, concept, example, invalid


@concept(
    title="Softmax off by one",
    source="Miller 2023, Attention Is Off By One; learned sinks: OpenAI 2025, arXiv:2508.10925, section 2",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(1, 3, 1)),
        mask=np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], bool)[None, None],
    ),
    roles=("weighting",),
    rejects=[
        bad(mask=np.ones((4, 5), int)), bad(mask=np.ones((7, 2, 3, 4, 5), bool)), bad(sink=np.ones((1, 2, 1))),
        bad(sink=np.ones((2, 2, 3, 4))), bad(sink=np.full((1, 3, 1), np.inf)), bad(scores=np.ones((2, 3, 4, 0))),
    ],
)  # fmt: skip
def softmax_off_by_one(
    scores: Float[Array, "*batch queries keys"],
    sink: Float[Array, "*#batch #queries"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
):
    """Weights of the keys that sum to less than 1: the rest goes to a place without a value.

    sink is the logit of that place, 0 where None; one a head is (heads, 1). mask is True where a query may attend.
    Returns weights (*batch, queries, keys), and backward: dweights -> dscores, dsink (None where there is no sink).
    Raises ValueError when mask or sink do not broadcast to the scores or the sink is not finite.
    """
    check_scores("mask", mask, scores.shape)
    check_scores("sink", sink, scores.shape[:-1])
    if sink is not None and not np.isfinite(sink).all():
        raise invalid("sink", got="NaN or an infinity", wants="finite numbers")
    logits = forbid(scores, mask)
    spare = np.zeros(1, scores.dtype) if sink is None else sink[..., None]
    largest = np.maximum(logits.max(-1, keepdims=True), spare)  # of keys and sink: no exponential overflows, not all are 0
    logits -= largest
    powers, spare_power = np.exp(logits, out=logits), np.exp(spare - largest)
    total = sum_over_keys(powers) + spare_power
    rest = (spare_power / total).astype(scores.dtype)        # (*batch, queries, 1)  (1)
    weights = np.divide(powers, total, out=powers)           # (2)

    def backward(dweights):
        shared = dot_over_keys(dweights, weights)[..., None]  # (3)
        dscores = dweights - shared
        dscores *= weights                                   # (4)
        dsink = None if sink is None else -sum_to((rest * shared)[..., 0], sink.shape)  # (5)
        return dscores, dsink

    return weights, backward
