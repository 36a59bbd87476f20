"""Soft cross-entropy: what a model's scores waste on a whole distribution, as a teacher, an average of labels or a mixture gives one.

cross_entropy knows which class came, and never makes its target as an array. Here the target is an array as large as the
logits, and is differentiable itself: a teacher that is trained along gets its gradient.

Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2 (soft targets); as in PyTorch, the mean is over positions.

    log_p_i = logits_i - max_j logits_j - log sum_j exp(logits_j - max)   (1)
    row_loss = - sum_i targets_i log_p_i                     (2)
    out = sum over positions of weight row_loss              (3)
    mass = sum_i targets_i                                   (4)
    dlogits = dout weight (mass exp(log_p) - targets)        (5)
    dtargets = - dout weight log_p                           (6)

weight = 1/positions, or 1 for a sum. Without reduction out is row_loss itself, and dout has a number for each position.
A class that gets no target costs nothing, even where its score is -inf.
"""

from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid


@concept(
    title="Soft cross-entropy",
    source="Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2",
    example=lambda rng: example(rng.normal(size=(2, 3, 5)), rng.uniform(size=(2, 3, 5))),
    rejects=[bad(logits=np.full((2, 3, 5), -np.inf))],
)
def soft_cross_entropy(
    logits: Float[Array, "*batch num_classes"],
    targets: Annotated[Float[Array, "*batch num_classes"], at_least(0)],
    *,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> tuple[Any, Backward]:
    """Cross-entropy of softmax(logits) against a distribution over the classes, in nats.

    targets, at least 0, holds a probability for each class. Its rows need not sum to 1: times class weights, or times 0 where a
    position is to count for nothing, they are as good.
    Returns out, a scalar of the logits' dtype: the mean over all positions, or their sum; with "none" a number for each position.
    And backward: dout -> dlogits, dtargets.
    Raises ValueError for a target below 0 and for a position whose largest logit is infinite.
    """
    if np.isinf(logits.max(-1)).any():
        raise invalid("logits", got="a position whose largest logit is infinite", wants="a finite largest logit everywhere")
    log_p, _ = log_softmax(logits)                           # (*batch, num_classes)  (1)
    row_loss = -_product(targets, log_p).sum(-1)             # (2)
    weight = 1 / row_loss.size if reduction == "mean" else 1
    out = row_loss if reduction == "none" else weight * row_loss.sum()  # (3)

    def backward(dout):
        scale = dout[..., None] if reduction == "none" else weight * dout
        mass = targets.sum(-1, keepdims=True)                # (4)
        dlogits = scale * (mass * np.exp(log_p) - targets)   # belief minus target  (5)
        return dlogits, -_product(scale, log_p)              # (6)

    return out, backward


def _product(a: Array, log_p: Array) -> Array:
    """a log_p, and 0 where a is: what is not asked for costs nothing, though it be impossible."""
    return a * np.where(a == 0, 0, log_p)
