"""Attention entropy: a penalty for queries that read few keys.

A model that overfits a few words puts nearly all of its attention on them. The entropy of a query's weights is large where it reads
many keys evenly. Minus the entropy, times a factor, goes to the loss of the task, one term for each layer. No list of words is
needed, and none is looked at: what the penalty changes is how attention spreads, for every word alike.

Source: Attanasio et al. 2022 (EAR), arXiv:2203.09192, section 3; means over positions and texts as in the authors' code. Differs from the
paper: scores come in, so that what is masked is known; queries may be kept from later keys. The authors' code takes a softmax of the
averaged weights once more before the entropy, which the paper's formula does not: it is double_softmax_entropy_loss here. H heads, B
texts, n_b queries of text b that count.

    weights_h = softmax over the allowed keys of scores_h    (1)
    A = (1/H) sum over heads of weights_h                    (2)
    row = sum over keys of A log A, 0 log 0 = 0              (3)
    out = sum over queries that count of row / (B n_b)       (4)
    dA = dout log A / (B n_b), without a 1 that (6) takes out again   (5)
    dscores_h = weights_h (dA - sum over keys of dA weights_h) / H   (6)

With a second softmax, in the places of (3) and (5):

    P = softmax over the allowed keys of A                   (7)
    row = sum over keys of P log P                           (8)
    dA = dout P (log P - row) / (B n_b)                      (9)
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_scores
from minitransformers.foundation import Backward, bad, concept, example, invalid

_REJECTS = [
    bad(mask=np.zeros((2, 4, 5), bool)), bad(mask=np.ones((3, 4, 5), bool)), bad(mask=np.ones((7, 2, 4, 5), bool)), bad(scores=np.full((2, 3, 4, 5), np.nan)),
    bad(scores=np.full((2, 3, 4, 5), -np.inf)),
]  # fmt: skip


@concept(
    title="Attention entropy loss",
    source="Attanasio et al. 2022 (EAR), arXiv:2203.09192, section 3",
    example=lambda rng: _example(rng),
    rejects=_REJECTS,
)
def attention_entropy_loss(
    scores: Float[Array, "*batch heads queries keys"], *, mask: Bool[Array, "*#batch #queries #keys"] | None = None
) -> tuple[np.floating, Backward]:
    """Minus the entropy, in nats, of the mean of the heads' weights: from minus log keys to 0.

    scores are those before the softmax. mask is True where a query may attend to a key, the same for all heads, and may have no
    axis of heads; a query that may attend to nothing (padding) does not count. Scores where it is False may be anything.
    Returns out, a scalar, the mean over a text's queries and then over texts; and backward: dout -> dscores.
    Raises ValueError where no query counts, the mask does not fit, or a score that may be attended to is not finite.
    """
    return _entropy_loss(scores, mask, _negative_entropy)


@concept(
    title="Attention entropy loss with a second softmax",
    source="Attanasio et al. 2022 (EAR), arXiv:2203.09192, the authors' code",
    example=lambda rng: _example(rng),
    rejects=_REJECTS,
    form_of="attention_entropy_loss",
)
def double_softmax_entropy_loss(
    scores: Float[Array, "*batch heads queries keys"], *, mask: Bool[Array, "*#batch #queries #keys"] | None = None
) -> tuple[np.floating, Backward]:
    """The same of the softmax of the mean weights, as the published code computes it: nearly constant, and its gradient small.

    Arguments, results and errors are those of attention_entropy_loss.
    """
    return _entropy_loss(scores, mask, _negative_entropy_of_softmax)


def _entropy_loss(scores: Array, mask: Array | None, negative_entropy: Callable) -> tuple[np.floating, Backward]:
    *batch, heads, queries, keys = scores.shape
    check_scores("mask", mask, (*batch, queries, keys))      # without the heads
    allowed = np.broadcast_to(True if mask is None else mask, (*batch, queries, keys))
    counts = allowed.any(axis=-1)                            # (*batch, queries)
    if not counts.any():
        raise invalid("mask", got="False everywhere", wants="at least one query that may attend to a key")
    seen = allowed[..., None, :, :]
    if not (np.isfinite(scores) | ~seen).all():
        raise invalid("scores", got="NaN or infinity where a query may attend", wants="finite numbers there")
    weights = _softmax(np.where(seen, scores, -np.inf))      # (*batch, heads, queries, keys)  (1)
    mean = weights.mean(axis=-3)                             # (*batch, queries, keys)  (2)
    row, row_backward = negative_entropy(mean, allowed)
    texts = counts.any(axis=-1).sum()
    share = (counts / (texts * np.maximum(counts.sum(axis=-1, keepdims=True), 1))).astype(scores.dtype)
    out = np.sum(share * row)                                # (4)

    def backward(dout):
        dmean = row_backward((dout * share)[..., None])[..., None, :, :]
        shared = np.sum(dmean * weights, axis=-1, keepdims=True)
        return weights * (dmean - shared) / scores.dtype.type(heads)  # (6)

    return out, backward


def _negative_entropy(mean: Array, allowed: Array):
    log_mean = np.log(np.where(mean > 0, mean, 1))           # a weight of 0 costs nothing, and moves nothing
    row = np.sum(mean * log_mean, axis=-1)                   # (3)
    return row, lambda drow: drow * log_mean                 # the 1 of the derivative is the same for all keys  (5)


def _negative_entropy_of_softmax(mean: Array, allowed: Array):
    again = _softmax(np.where(allowed, mean, -np.inf))       # (7)
    log_again = np.log(np.where(again > 0, again, 1))
    row = np.sum(again * log_again, axis=-1)                 # (8)
    return row, lambda drow: drow * again * (log_again - row[..., None])  # (9)


def _softmax(logits: Array) -> Array:
    """Over the last axis; zeros where all is -inf."""
    largest = logits.max(axis=-1, keepdims=True)
    powers = np.exp(logits - np.where(np.isfinite(largest), largest, 0))
    return powers / np.maximum(powers.sum(axis=-1, keepdims=True), 1)


def _example(rng: np.random.Generator):
    """Two texts; a query of the first may attend to nothing."""
    mask = np.array([[[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], [[1, 1, 1, 1, 0]] * 4], bool)
    return example(rng.normal(size=(2, 3, 4, 5)), mask=mask)
