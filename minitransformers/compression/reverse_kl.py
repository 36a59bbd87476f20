"""Reverse divergence: a student is charged for what it finds possible and its teacher does not, not the other way round.

The divergence of the student's distribution from the teacher's, with the two exchanged against distillation_loss. A student
that is too small for all that the teacher knows then drops a part of it, and keeps to what the teacher is sure of.

Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, section 2.1. Differs from the paper: theirs is the divergence of whole texts,
estimated from texts that the student writes; this is its term for one position, the text before it given, summed over all classes.
The teacher is data. Costs three exponentials a class. z are the student's logits, v the teacher's.

    log_q = log softmax(z)                                   (1)
    log_p = log softmax(v)                                   (2)
    apart_i = log_q_i - log_p_i                              (3)
    row = sum_i q_i apart_i                                  (4)
    out = sum over positions of weight row                   (5)
    dz_i = q_i (apart_i - row)                               (6)
    dlogits = dout weight dz                                 (7)

over the positions that are not ignored; weight = 1 / how many they are, or 1 for a sum. A class that the student rules out
(q = 0) costs nothing in (4). One that the teacher alone rules out would cost infinitely much, and is refused.
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.compression.counted import check_largest, counted_by_targets
from minitransformers.foundation import Backward, bad, concept, example, invalid


@concept(
    title="Reverse divergence",
    source="Gu et al. 2023 (MiniLLM), arXiv:2306.08543, section 2.1",
    example=lambda rng: _example(rng),
    rejects=[
        bad(targets=np.array([[0, 5, 1], [2, 2, 1]])), bad(targets=np.array([[0, -1, 1], [2, 2, 1]])), bad(targets=np.full((2, 3), -100)),
        bad(teacher=np.full((2, 3, 5), np.nan)), bad(teacher=np.full((2, 3, 5), -np.inf)), bad(logits=np.full((2, 3, 5), -np.inf)),
        bad(teacher=np.where(np.arange(5) == 2, -np.inf, np.zeros((2, 3, 5)))),
    ],
)  # fmt: skip
def reverse_kl(
    logits: Float[Array, "*batch num_classes"], *, teacher: Float[Array, "*batch num_classes"],
    targets: Int[Array, "*batch"] | None = None, ignore_index: int = -100, reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Any, Backward]:  # fmt: skip
    """How far a student's distribution is from its teacher's, in nats, weighted by the student's own.

    teacher holds the teacher's logits; they get no gradient. targets are class ids as distillation_loss takes them, and say one
    thing only: positions where they are ignore_index count for nothing. Without them all count.
    Returns out, a scalar of the logits' dtype: the mean over the positions that count, or their sum; and backward: dout -> dlogits.
    Raises ValueError where a target is no class or all are ignored (of which there is a sum, 0, and no mean); and, at a position
    that counts, where the largest logit is not finite, or the teacher rules out (-inf) a class that the student does not.
    """
    counts = counted_by_targets(logits, targets, ignore_index, reduction)
    z, v = logits[counts], teacher[counts]                   # (positions, num_classes)
    check_largest("teacher", v)
    check_largest("logits", z)
    weight = logits.dtype.type(1 / len(z) if reduction == "mean" else 1)

    log_q, _ = log_softmax(z)                                # (1)
    log_p, _ = log_softmax(v)                                # (2)
    q, possible = np.exp(log_q), log_q > -np.inf
    if (possible & (log_p == -np.inf)).any():
        raise invalid("teacher", got="-inf for a class that the student finds possible", wants="a finite logit, or -inf in logits as well")
    apart = np.where(possible, log_q, 0) - np.where(possible, log_p, 0)  # (3)
    row = (q * apart).sum(axis=-1)                           # (4)
    out = weight * row.sum()                                 # (5)

    def backward(dout):
        dz = q * (apart - row[:, None])                      # every probability sees every logit  (6)
        dlogits = np.zeros_like(logits)
        dlogits[counts] = dout * weight * dz                 # (7)
        return dlogits

    return out, backward


def _example(rng: np.random.Generator):
    targets = np.array([[0, 4, -100], [2, 2, 1]])
    return example(rng.normal(size=(2, 3, 5)), teacher=rng.normal(size=(2, 3, 5)), targets=targets)
