"""Distillation: a model learns from another's whole distribution over the classes, not only from the class that came.

Sources: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2; at T = 1 and without hard labels, Gemma 2, arXiv:2408.00118,
section 3 (knowledge distillation). Differs from both in a constant: the soft part is the Kullback-Leibler divergence, their
cross-entropy less the entropy of the teacher, so that it is 0 where student and teacher agree; gradients are the same. The
teacher is data.
z are the student's logits, v the teacher's, T the temperature, h the share of the hard labels.

    log_p = log softmax(v / T)                               (1)
    log_q = log softmax(z / T)                               (2)
    soft = T^2 sum_i p_i (log_p_i - log_q_i)                 (3)
    hard = - log softmax(z)[target]                          (4)
    out = sum over positions of weight ((1 - h) soft + h hard)   (5)
    dz_soft = T (q - p)                                      (6)
    dz_hard = softmax(z) - [i is the target]                 (7)
    dlogits = dout weight ((1 - h) dz_soft + h dz_hard)      (8)

over the positions that are not ignored; weight = 1 / how many they are, or 1 for a sum. A class that the teacher rules out
(p = 0) costs nothing in (3).
"""

from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import Backward, bad, between, concept, example, invalid, positive


@concept(
    title="Distillation loss",
    source="Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2",
    example=lambda rng: _example(rng),
    rejects=[
        bad(targets=np.array([[0, 5, 1], [2, 2, 1]])), bad(targets=np.array([[0, -1, 1], [2, 2, 1]])), bad(targets=np.full((2, 3), -100)),
        bad(targets=None), bad(teacher=np.full((2, 3, 5), np.nan)), bad(teacher=np.full((2, 3, 5), -np.inf)), bad(logits=np.full((2, 3, 5), -np.inf)),
    ],
)  # fmt: skip
def distillation_loss(
    logits: Float[Array, "*batch num_classes"], *, teacher: Float[Array, "*batch num_classes"], targets: Int[Array, "*batch"] | None = None,
    temperature: Annotated[float, positive] = 1.0, hard: Annotated[float, between(0, 1)] = 0.0, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Any, Backward]:  # fmt: skip
    """How far a student's distribution is from its teacher's, in nats, and the cross-entropy of the labels, mixed.

    teacher holds the teacher's logits; they get no gradient. temperature flattens both distributions; hard, from 0 to 1, is the
    share of the labels. targets are class ids, of which those that are ignore_index count for nothing, neither for the labels nor
    for the teacher; they may be left out where hard is 0, and then all positions count. Gemma 2's form is the default; Hinton's
    is temperature=2.0, hard=0.1 or other numbers of that size.
    Returns out, a scalar of the logits' dtype: the mean over the positions kept, or their sum; and backward: dout -> dlogits.
    Raises ValueError where a target is no class, all are ignored (of which there is a sum, 0, and no mean) or there are none and
    hard is above 0, and where the largest logit of a position that is kept is not finite.
    """
    num_classes, dtype = logits.shape[-1], logits.dtype
    rows, theirs = logits.reshape(-1, num_classes), teacher.reshape(-1, num_classes)
    if targets is None and hard > 0:
        raise invalid("targets", got=None, wants=f"a class for each position, as hard is {hard}")
    classes = np.zeros(len(rows), int) if targets is None else targets.reshape(-1)
    kept = np.full(len(rows), True) if targets is None else classes != ignore_index
    z, v, classes = rows[kept], theirs[kept], classes[kept]
    if len(z) == 0 and reduction == "mean":
        raise invalid("targets", got=f"{ignore_index} everywhere", wants="at least one position that is not ignored")
    if not ((classes >= 0) & (classes < num_classes)).all():
        worst = classes.min() if classes.min() < 0 else classes.max()
        raise invalid("targets", got=f"the id {worst}", wants=f"ids from 0 to {num_classes - 1}, or {ignore_index} to ignore")
    for name, scores in (("teacher", v), ("logits", z)):
        if not np.isfinite(scores.max(axis=-1)).all():
            raise invalid(name, got="a position whose largest logit is not finite", wants="a finite largest logit wherever a position counts")
    positions = np.arange(len(z))
    weight = dtype.type(1 / len(z) if reduction == "mean" else 1)

    log_p, _ = log_softmax(v / temperature)                  # (positions, num_classes)  (1)
    log_q, _ = log_softmax(z / temperature)                  # (2)
    p, allowed = np.exp(log_p), log_p > -np.inf
    apart = np.where(allowed, log_p, 0) - np.where(allowed, log_q, 0)
    soft = temperature**2 * (p * apart).sum(axis=-1)         # (3)
    log_belief, _ = log_softmax(z)
    hard_loss = -log_belief[positions, classes] if hard else np.zeros_like(soft)  # (4)
    out = weight * ((1 - hard) * soft + hard * hard_loss).sum()  # (5)

    def backward(dout):
        dz_soft = temperature * (np.exp(log_q) - p)          # (6)
        dz_hard = np.exp(log_belief)
        dz_hard[positions, classes] -= 1                     # belief minus truth  (7)
        dlogits = np.zeros_like(rows)
        dlogits[kept] = dout * weight * ((1 - hard) * dz_soft + hard * dz_hard)  # (8)
        return dlogits.reshape(logits.shape)

    return out, backward


def _example(rng: np.random.Generator):
    targets = np.array([[0, 4, -100], [2, 2, 1]])
    return example(rng.normal(size=(2, 3, 5)), teacher=rng.normal(size=(2, 3, 5)), targets=targets, temperature=2.0, hard=0.3)
