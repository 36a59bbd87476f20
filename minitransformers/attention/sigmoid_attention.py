"""Sigmoid attention: every key is weighed by itself, and no key takes weight from another.

Without a sum over the keys a row needs no second pass and no exchange between parts of a sequence; time and memory are the
softmax's. Source: Ramapuram et al. 2024, arXiv:2409.04431, section 2. Differs from the paper: n counts the keys that a
query may see, where the paper has one n for the whole sequence, and one offset a row (or a head) can be learned.

    logits = scores + offset; offset = -log n where none is given    (1)
    weights = 1 / (1 + exp(-logits)), 0 where the mask forbids       (2)
    dscores = dweights weights (1 - weights)                         (3)
    doffset = sum of dscores over the keys and rows that have it     (4)

A forbidden key has weight 0, hence dscores 0.
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_scores, count_keys, forbid, sum_to
from minitransformers.basics.sigmoid import sigmoid
from minitransformers.foundation import bad, concept, example, invalid


@concept(
    title="Sigmoid attention",
    source="Ramapuram et al. 2024, arXiv:2409.04431, section 2",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(1, 3, 1)),
        mask=np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], bool)[None, None],
    ),
    roles=("weighting",),
    rejects=[
        bad(mask=np.ones((4, 5), int)), bad(mask=np.ones((7, 2, 3, 4, 5), bool)), bad(offset=np.ones((1, 2, 1))),
        bad(offset=np.ones((2, 2, 3, 4))), bad(offset=np.full((1, 3, 1), np.inf)), bad(scores=np.ones((2, 3, 4, 0))),
    ],
)  # fmt: skip
def sigmoid_attention(
    scores: Float[Array, "*batch queries keys"],
    offset: Float[Array, "*#batch #queries"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
):
    """A weight between 0 and 1 for every key, whatever the other keys are.

    offset is added to all scores of a query and broadcasts to (*batch, queries): one a head is (heads, 1). Where None it
    is -log of the number of keys that the query may see. mask is True where a query may attend.
    Returns weights (*batch, queries, keys), and backward: dweights -> dscores, doffset (None where there is no offset).
    Raises ValueError when mask or offset do not broadcast to the scores or the offset is not finite.
    """
    check_scores("mask", mask, scores.shape)
    check_scores("offset", offset, scores.shape[:-1])
    if offset is not None and not np.isfinite(offset).all():
        raise invalid("offset", got="NaN or an infinity", wants="finite numbers")
    # The count of the mask has no gradient.
    added = -np.log(count_keys(mask, scores.shape[-1])).astype(scores.dtype) if offset is None else offset[..., None]
    logits = forbid(scores + added, mask)                    # (1)
    weights, sigmoid_backward = sigmoid(logits)              # of -inf it is exactly 0, and so is its slope  (2)

    def backward(dweights):
        dscores = sigmoid_backward(dweights)                 # (3)
        doffset = None if offset is None else sum_to(dscores.sum(-1), offset.shape)  # (4)
        return dscores, doffset

    return weights, backward
