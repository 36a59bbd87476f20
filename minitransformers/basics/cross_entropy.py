"""Cross-entropy: how many nats a model's scores waste on the class that came, averaged over positions.

Softmax, logarithm and choice in one: the class's log-probability needs only its own score and one sum, and the
gradient is what the model believes minus what it should. One array of the size of the logits is kept; it is filled in
place, for with a vocabulary of 50,000 it is the largest array of the model.

Source: label smoothing is Szegedy et al. 2015, arXiv:1512.00567, section 7. As in PyTorch, the smoothed target spreads
label_smoothing over all classes, the right one included; the code of Vaswani et al. 2017 spreads it over the others.

    shifted_i = logits_i - max_j logits_j                    (1)
    total = sum_j exp(shifted_j)                             (2)
    target_i = (1 - s) [i is the class] + s/num_classes      (3)
    row_loss = log(total) - sum_i target_i shifted_i         (4)
    out = sum over positions of weight row_loss              (5)
    dlogits = dout weight (exp(shifted)/total - target)      (6)

with s = label_smoothing, weight = 0 where the position is ignored, else 1/(number of positions kept), or 1 for a sum.
"""

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import bad, between, concept, example, invalid


@concept(
    title="Cross-entropy",
    source="Szegedy et al. 2015, arXiv:1512.00567, section 7",
    example=lambda rng: example(rng.normal(size=(2, 3, 5)), targets=np.array([[0, 4, -100], [2, 2, 1]]), label_smoothing=0.1),
    rejects=[
        bad(targets=np.array([[0, 5, 1], [2, 2, 1]])),
        bad(targets=np.array([[0, -1, 1], [2, 2, 1]])),
        bad(targets=np.full((2, 3), -100)),
    ],
)
def cross_entropy(
    logits: Float[Array, "*batch num_classes"],
    *,
    targets: Int[Array, "*batch"],
    ignore_index: int = -100,
    label_smoothing: Annotated[float, between(0, 1)] = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
):
    """Negative log-probability of the target classes under softmax(logits), in nats.

    targets holds class ids from 0 to num_classes - 1; positions that hold ignore_index count for nothing.
    label_smoothing, from 0 to 1, moves that part of the target evenly onto all classes.
    Returns out, a scalar of the logits' dtype: the mean over the positions kept, or their sum; and backward: dout -> dlogits.
    Raises ValueError when a target is out of range, when a position that is kept has an infinite largest logit, and when all
    are ignored, of which there is a sum, 0, and no mean.
    """
    num_classes, dtype = logits.shape[-1], logits.dtype
    rows, classes = logits.reshape(-1, num_classes), targets.reshape(-1)
    kept = classes != ignore_index
    classes = np.where(kept, classes, 0)
    if classes.min() < 0 or classes.max() >= num_classes:
        worst = classes.min() if classes.min() < 0 else classes.max()
        raise invalid("targets", got=f"the id {worst}", wants=f"ids from 0 to {num_classes - 1}, or {ignore_index} to ignore")
    count = np.count_nonzero(kept)
    if count == 0 and reduction == "mean":
        raise invalid("targets", got=f"{ignore_index} everywhere", wants="at least one position that is not ignored")
    weight = kept * dtype.type(1 / count if reduction == "mean" else 1)
    positions, on, off = np.arange(len(rows)), 1 - label_smoothing, label_smoothing / num_classes  # (3)

    largest = rows.max(axis=-1, keepdims=True)
    if np.isinf(largest[kept]).any():
        raise invalid("logits", got="a position whose largest logit is infinite", wants="a finite largest logit wherever a target is")
    exps = rows - largest                                    # (positions, num_classes)  (1)
    reward = on * exps[positions, classes]
    if off:
        reward += off * exps.sum(axis=-1)
    np.exp(exps, out=exps)                                   # in place: the array is ours and nothing else needs it
    total = exps @ np.ones(num_classes, dtype)               # sums rows three times faster than sum(-1)  (2)
    exps[~kept], total[~kept] = 0, 1                         # what is ignored may be infinite or NaN
    row_loss = np.where(kept, np.log(total) - reward, 0)     # (4)
    out = weight @ row_loss                                  # (5)

    def backward(dout):
        scale = dout * weight
        dlogits = exps * (scale / total)[:, None]
        if off:
            dlogits -= (scale * off)[:, None]
        dlogits[positions, classes] -= scale * on            # one class a row: no id repeats  (6)
        return dlogits.reshape(logits.shape)

    return out, backward
