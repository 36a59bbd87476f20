"""Scalable softmax (SSMax): a softmax whose base is the number of keys, so that focus does not fade as the context grows.

The largest of n weights of a softmax with bounded scores falls like 1/n. With n^(scale score) in the place of e^score, a
lead of 1/scale over the other keys is enough at any length. Time and memory are the softmax's. Source: Nakanishi 2025,
arXiv:2501.19399. n is the number of keys that a query may see: its position counted from 1 under a causal mask.

    sharpness = scale log n + offset                                                       (1)
    weights = softmax over the allowed keys of sharpness scores                            (2)
    dlogits = weights (dweights - sum over keys of dweights weights)                       (3)
    dscores = sharpness dlogits                                                            (4)
    pull = sum over keys of dlogits scores                                                 (5)
    dscale = sum of pull log n over the rows that have it                                  (6)
    doffset = sum of pull over the rows that have it                                       (7)

n comes from the mask and has no gradient. A forbidden key has weight 0, hence dscores 0.
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_scores, count_keys, dot_over_keys, forbid, sum_over_keys, sum_to
from minitransformers.foundation import bad, concept, example, invalid, whole_number


def init_scalable_softmax(
    rng: np.random.Generator, *, num_heads: int, context: int, dtype: type = np.float32
) -> tuple[Float[Array, "heads 1"]]:
    """One scale a head with which the mean sharpness over 1 to ``context`` keys is 1, that of an ordinary softmax.

    Raises ValueError for no head and for fewer than 2 keys.
    """
    whole_number("num_heads", num_heads, least=1)
    whole_number("context", context, least=2)                # log 1 is 0
    return (np.full((num_heads, 1), 1 / np.log(np.arange(1, context + 1)).mean(), dtype),)


@concept(
    title="Scalable softmax (SSMax)",
    source="Nakanishi 2025, arXiv:2501.19399",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(1, 3, 1)), rng.normal(size=(1, 1, 4)),
        mask=np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], bool)[None, None],
    ),
    roles=("weighting",),
    rejects=[
        bad(mask=np.ones((4, 5), int)), bad(mask=np.ones((7, 2, 3, 4, 5), bool)), bad(scores=np.ones((2, 3, 4, 0))),
        bad(scale=np.ones((1, 2, 1))), bad(scale=np.ones((2, 2, 3, 4))), bad(offset=np.ones((1, 1, 5))), bad(offset=np.ones((2, 2, 3, 4))),
        bad(scale=np.full((1, 3, 1), np.nan)), bad(offset=np.full((1, 1, 4), np.inf)),
    ],
)  # fmt: skip
def scalable_softmax(
    scores: Float[Array, "*batch queries keys"],
    scale: Float[Array, "*#batch #queries"] | None = None,
    offset: Float[Array, "*#batch #queries"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
):
    """Weights of the keys that sum to 1 and stay sharp at any number of them.

    scores are finite: the mask forbids, for -inf times log 1 would be NaN.
    scale (1 where None) and offset (0 where None) broadcast to (*batch, queries): one a head is (heads, 1). Either may be
    negative. mask is True where a query may attend; a query that may attend to nothing has weights 0.
    Returns weights (*batch, queries, keys), and backward: dweights -> dscores, dscale, doffset (None where not given).
    Raises ValueError when mask, scale or offset do not broadcast to the scores, or scale or offset are not finite.
    """
    for argument, array, shape in (("mask", mask, scores.shape), ("scale", scale, scores.shape[:-1]), ("offset", offset, scores.shape[:-1])):
        check_scores(argument, array, shape)
    for argument, array in (("scale", scale), ("offset", offset)):
        if array is not None and not np.isfinite(array).all():
            raise invalid(argument, got="NaN or infinity", wants="finite numbers; negative ones turn the order round")
    log_n = np.log(count_keys(mask, scores.shape[-1])[..., 0]).astype(scores.dtype)  # (..., queries)
    sharpness = log_n if scale is None else scale * log_n
    if offset is not None:
        sharpness = sharpness + offset                       # (1)
    logits = forbid(sharpness[..., None] * scores, mask)
    # Where every key is forbidden the maximum is -inf; any finite number in its place makes all exponentials 0.
    logits -= np.maximum(logits.max(-1, keepdims=True), np.finfo(scores.dtype).min)
    weights = np.exp(logits, out=logits)
    weights /= np.maximum(sum_over_keys(weights), 1)  # a total below 1 means that no key is allowed  (2)

    def backward(dweights):
        dlogits = dweights - dot_over_keys(dweights, weights)[..., None]
        dlogits *= weights                                   # (3)
        dscores = sharpness[..., None] * dlogits             # (4)
        pull = dot_over_keys(dlogits, scores)                # (*batch, queries)  (5)
        dscale = None if scale is None else sum_to(pull * log_n, scale.shape)  # (6)
        doffset = None if offset is None else sum_to(pull, offset.shape)  # (7)
        return dscores, dscale, doffset

    return weights, backward
