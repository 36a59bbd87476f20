"""Top-k loss: a student learns from the few largest probabilities of a teacher that stands behind an interface.

What the interface does not say is still known in sum: all other classes together have what is missing to 1. They make one more
class, a bucket. How the student shares its own mass inside the bucket costs nothing.

Source: the cross-entropy of Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2, at temperature 1, on classes of which all but k are
merged; a student that sees a teacher's outputs alone is the setting of the survey Tang et al. 2024, arXiv:2402.05964. Costs one softmax.
K are the k classes that are listed, p their probabilities.

    tail = 1 - sum_(i in K) p_i                              (1)
    log_q = log softmax(logits)                              (2)
    log_rest = log sum_(j not in K) q_j                      (3)
    row = - sum_(i in K) p_i log_q_i - tail log_rest         (4)
    out = sum over positions of weight row                   (5)
    t_i = p_i in K, t_j = tail q_j / rest elsewhere          (6)
    dlogits = dout weight (q - t)                            (7)

over the positions that are not ignored; weight = 1 / how many they are, or 1 for a sum. The other way forgets the tail and tells the
student that everything else is impossible:

    t_i = p_i / sum_(i in K) p_i in K, t_j = 0 elsewhere     (8)
    row = - sum_(i in K) t_i log_q_i                         (9)
"""

from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.compression.counted import check_ids, check_largest, counted_by_targets
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid

_SLACK = 1e-6  # by how much probabilities that were rounded on their way may exceed 1


@concept(
    title="Top-k loss",
    source="Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2, with the classes beyond the k merged",
    example=lambda rng: _example(rng),
    rejects=[
        bad(probabilities=np.full((2, 3, 2), 0.51)), bad(ids=np.full((2, 3, 2), 4)), bad(ids=np.array([0, 5]) + np.zeros((2, 3, 1), int)),
        bad(ids=np.array([-1, 2]) + np.zeros((2, 3, 1), int)), bad(targets=np.full((2, 3), -100)), bad(targets=np.full((2, 3), 5)),
        bad(logits=np.full((2, 3, 5), -np.inf)),
        bad("logits", logits=np.where(np.arange(5) < 2, np.zeros((2, 3, 5)), -np.inf), ids=np.arange(2) + np.zeros((2, 3, 1), int)),
        bad("probabilities", ids=np.arange(5) + np.zeros((2, 3, 1), int), probabilities=np.full((2, 3, 5), 0.1)),
    ],
)  # fmt: skip
def top_k_loss(
    logits: Float[Array, "*batch num_classes"], *, ids: Int[Array, "*batch k"], probabilities: Annotated[Float[Array, "*batch k"], at_least(0)],
    targets: Int[Array, "*batch"] | None = None, ignore_index: int = -100, reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Any, Backward]:  # fmt: skip
    """Cross-entropy, in nats, of a teacher's k listed probabilities, all other classes taken as one.

    ids are the listed classes of each position, in any order, and probabilities what the teacher gives them; they get no gradient.
    targets are class ids, and say one thing only: positions where they are ignore_index do not count. Without them all count.
    Returns out, a scalar of the logits' dtype: the mean over the positions that count, or their sum; and backward: dout -> dlogits.
    Raises ValueError where a probability is below 0; and, at a position that counts, where they sum to more than 1 + 1e-6, or to less
    than 1 - 1e-6 though every class is listed; an id is no class or stands twice; the largest logit is not finite; or every logit of
    a bucket is -inf that the teacher gives something. Also where a target is no class, or all are ignored (of which there is no mean).
    """
    z, classes, p, counts, weight = _counted(logits, ids, probabilities, targets, ignore_index, reduction)
    total = p.sum(axis=-1, keepdims=True, dtype=np.float64)
    every = classes.shape[-1] == z.shape[-1]
    if every and (total < 1 - _SLACK).any():
        raise invalid("probabilities", got=f"a sum of {total.min():.6g} over every class", wants="a sum of 1: there is no other class")
    scale = total if every else np.maximum(total, 1)         # what rounding left over goes to nobody
    p, tail = (p / scale).astype(z.dtype), (1 - total / scale).astype(z.dtype)  # (positions, k), (positions, 1)  (1)

    log_q, _ = log_softmax(z)                                # (2)
    others = log_q.copy()
    np.put_along_axis(others, classes, -np.inf, axis=-1)
    largest = np.maximum(others.max(axis=-1, keepdims=True), np.finfo(z.dtype).min)
    if ((tail > 0) & (largest == np.finfo(z.dtype).min)).any():
        raise invalid("logits", got="-inf for every class beyond the ids", wants="a finite logit among them, as the teacher gives them something")
    exps = np.exp(others - largest)
    rest = np.maximum(exps.sum(axis=-1, keepdims=True), 1)   # the largest term is 1, so below 1 there is none
    log_rest = largest + np.log(rest)                        # (3)
    row = -_product(p, np.take_along_axis(log_q, classes, axis=-1)).sum(axis=-1) - (tail * log_rest)[:, 0]  # (4)
    out = weight * row.sum()                                 # (5)

    def backward(dout):
        t = tail * (exps / rest)                             # the bucket, shared as the student shares it
        np.put_along_axis(t, classes, p, axis=-1)            # (6)
        dlogits = np.zeros_like(logits)
        dlogits[counts] = dout * weight * (np.exp(log_q) - t)  # (7)
        return dlogits

    return out, backward


@concept(
    title="Top-k loss, renormalised",
    source="Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2, on k classes alone",
    example=lambda rng: _example(rng),
    rejects=[
        bad(probabilities=np.full((2, 3, 2), 0.51)), bad(probabilities=np.zeros((2, 3, 2))), bad(ids=np.full((2, 3, 2), 4)),
        bad(targets=np.full((2, 3), -100)), bad(logits=np.full((2, 3, 5), -np.inf)),
    ],
    form_of="top_k_loss",
)  # fmt: skip
def renormalised_top_k_loss(
    logits: Float[Array, "*batch num_classes"], *, ids: Int[Array, "*batch k"], probabilities: Annotated[Float[Array, "*batch k"], at_least(0)],
    targets: Int[Array, "*batch"] | None = None, ignore_index: int = -100, reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Any, Backward]:  # fmt: skip
    """Cross-entropy, in nats, of a teacher's k listed probabilities, divided by their sum: nothing is left for other classes.

    Arguments, results and errors are those of top_k_loss, but for the bucket: there is none. Raises ValueError as well where the
    probabilities of a position that counts are all 0.
    """
    z, classes, p, counts, weight = _counted(logits, ids, probabilities, targets, ignore_index, reduction)
    total = p.sum(axis=-1, keepdims=True)
    if not total.all():
        raise invalid("probabilities", got="0 for all of a position", wants="a sum above 0 wherever a position counts")
    listed = p / total                                       # (8)
    log_q, _ = log_softmax(z)
    out = -weight * _product(listed, np.take_along_axis(log_q, classes, axis=-1)).sum()  # all rows at once  (9) (5)

    def backward(dout):
        t = np.zeros_like(log_q)
        np.put_along_axis(t, classes, listed, axis=-1)
        dlogits = np.zeros_like(logits)
        dlogits[counts] = dout * weight * (np.exp(log_q) - t)  # (7)
        return dlogits

    return out, backward


def _counted(logits: Array, ids: Array, probabilities: Array, targets: Array | None, ignore_index: int, reduction: str) -> tuple:
    """Logits, ids and probabilities of the positions that count, checked; which positions those are, and the weight of one."""
    counts = counted_by_targets(logits, targets, ignore_index, reduction)
    z, classes, p = logits[counts], ids[counts], probabilities[counts]
    check_largest("logits", z)
    check_ids("ids", classes, z.shape[-1])
    if (np.diff(np.sort(classes, axis=-1), axis=-1) == 0).any():
        raise invalid("ids", got="a class twice at a position", wants="k different classes")
    if (p.sum(axis=-1, dtype=np.float64) > 1 + _SLACK).any():
        raise invalid("probabilities", got=f"a sum of {p.sum(axis=-1).max():.6g}", wants="a sum of at most 1")
    return z, classes, p, counts, logits.dtype.type(1 / len(z) if reduction == "mean" else 1)


def _product(a: Array, log_q: Array) -> Array:           # what the teacher rules out costs nothing, though it be impossible
    return a * np.where(a == 0, 0, log_q)


def _example(rng: np.random.Generator):
    ids = np.argsort(rng.normal(size=(2, 3, 5)), axis=-1)[..., :2]
    targets = np.array([[0, 4, -100], [2, 2, 1]])
    return example(rng.normal(size=(2, 3, 5)), ids=ids, probabilities=rng.uniform(0.1, 0.45, size=(2, 3, 2)), targets=targets)
