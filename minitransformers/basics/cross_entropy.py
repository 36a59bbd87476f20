"""Cross-entropy: how many nats a model's scores waste on the class that came, averaged over positions.

Softmax, logarithm and choice in one: the class's log-probability needs only its own score and one sum, and the
gradient is what the model believes minus what it should. One array of the size of the logits is kept; it is filled in
place, for with a vocabulary of 50,000 it is the largest array of the model.

Source: label smoothing is Szegedy et al. 2015, arXiv:1512.00567, section 7. As in PyTorch, the smoothed target spreads
label_smoothing over all classes, the right one included; the code of Vaswani et al. 2017 spreads it over the others.

    shifted_i = logits_i - max_j logits_j                    (1)
    total = sum_j exp(shifted_j)                             (2)
    target_i = w_i ((1 - s) [i is the class] + s/num_classes),   mass = sum_i target_i   (3)
    row_loss = mass log(total) - sum_i target_i shifted_i    (4)
    out = sum over positions of weight row_loss              (5)
    dlogits = dout weight (mass exp(shifted)/total - target) (6)

with s = label_smoothing and w = class_weight (1, and then mass = 1), over the positions that are not ignored; weight =
1/(sum of their classes' w), or 1 for a sum. Without reduction out is row_loss itself, and dout has a number for each position.
"""

from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, between, concept, example, invalid


@concept(
    title="Cross-entropy",
    source="Szegedy et al. 2015, arXiv:1512.00567, section 7",
    example=lambda rng: example(rng.normal(size=(2, 3, 5)), targets=np.array([[0, 4, -100], [2, 2, 1]]), label_smoothing=0.1),
    rejects=[
        bad(targets=np.array([[0, 5, 1], [2, 2, 1]])),
        bad(targets=np.array([[0, -1, 1], [2, 2, 1]])),
        bad(targets=np.full((2, 3), -100)),
        bad(class_weight=np.zeros(5)),
    ],
)
def cross_entropy(
    logits: Float[Array, "*batch num_classes"],
    *,
    targets: Int[Array, "*batch"],
    ignore_index: int = -100,
    label_smoothing: Annotated[float, between(0, 1)] = 0.0,
    class_weight: Annotated[Float[Array, "num_classes"], at_least(0)] | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> tuple[Any, Backward]:
    """Negative log-probability of the target classes under softmax(logits), in nats.

    targets holds class ids from 0 to num_classes - 1; positions that hold ignore_index count for nothing.
    label_smoothing, from 0 to 1, moves that part of the target evenly onto all classes.
    class_weight, at least 0, says how much each class counts; the mean is then one by the weights of the targets, as in PyTorch.
    Returns out, a scalar of the logits' dtype: the mean over the positions kept, or their sum; with "none" a number for each
    position, 0 where it is ignored. And backward: dout -> dlogits.
    Raises ValueError when a target is out of range, when a position that is kept has an infinite largest logit, and when all
    are ignored or weigh nothing, of which there is a sum, 0, and no mean.
    """
    num_classes, dtype = logits.shape[-1], logits.dtype
    rows, classes = logits.reshape(-1, num_classes), targets.reshape(-1)
    kept = classes != ignore_index
    whole = kept.all()
    if not whole:                                            # what is ignored is left out: it may be infinite or NaN
        rows, classes = rows[kept], classes[kept]
    if not ((classes >= 0) & (classes < num_classes)).all():
        worst = classes.min() if classes.min() < 0 else classes.max()
        raise invalid("targets", got=f"the id {worst}", wants=f"ids from 0 to {num_classes - 1}, or {ignore_index} to ignore")
    count = len(classes)
    if count == 0 and reduction == "mean":
        raise invalid("targets", got=f"{ignore_index} everywhere", wants="at least one position that is not ignored")
    positions, on, off = np.arange(count), 1 - label_smoothing, label_smoothing / num_classes
    share: Any = 1 if class_weight is None else class_weight[classes]
    each: Any = 1 if class_weight is None else class_weight
    mass = 1 if class_weight is None else on * share + off * each.sum()  # (3)
    counted = count if class_weight is None else float(share.sum())
    if counted == 0 and reduction == "mean":
        raise invalid("class_weight", got="0 for all classes that are asked for", wants="a class with a weight above 0")
    weight = np.full(count, 1 / counted if reduction == "mean" else 1, dtype)

    largest = rows.max(axis=-1, keepdims=True)
    if np.isinf(largest).any():
        raise invalid("logits", got="a position whose largest logit is infinite", wants="a finite largest logit wherever a target is")
    exps = rows - largest                                    # (positions, num_classes)  (1)
    reward = on * share * exps[positions, classes]
    if off:
        reward += off * (exps.sum(axis=-1) if class_weight is None else exps @ each)
    np.exp(exps, out=exps)                                   # in place: the array is ours and nothing else needs it
    total = exps @ np.ones(num_classes, dtype)               # sums rows three times faster than sum(-1)  (2)
    row_loss = mass * np.log(total) - reward                 # (4)
    if reduction == "none":
        out = np.zeros(targets.size, dtype)
        out[kept] = row_loss
        out = out.reshape(targets.shape)
    else:
        out = weight @ row_loss                              # (5)

    def backward(dout):
        scale = weight * (dout.reshape(-1)[kept] if reduction == "none" else dout)
        dlogits = exps * (scale * mass / total)[:, None]
        if off:
            dlogits -= (scale * off)[:, None] * each
        dlogits[positions, classes] -= scale * on * share    # one class a row: no id repeats  (6)
        if not whole:
            dkept, dlogits = dlogits, np.zeros((len(kept), num_classes), dtype)
            dlogits[kept] = dkept
        return dlogits.reshape(logits.shape)

    return out, backward
