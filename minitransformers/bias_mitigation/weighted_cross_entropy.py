"""Weighted cross-entropy: each example counts as much as its weight says.

A weight of 2 does what a second copy of the example would, to the loss and to its gradient. So the gradient of an example is its
own, times its weight, over the sum of all weights; only how examples share the gradient changes. A class weight is the case in which
all examples of a class weigh the same (cross_entropy has it). Costs one multiplication an example besides.

Source: Kamiran and Calders 2012, doi:10.1007/s10115-011-0463-8, which trains on weighted examples. l_i is the
cross-entropy of example i.

    share_i = weight_i / sum of the weights of examples that are not ignored   (1)
    out = sum over i of share_i l_i                          (2)
    dl_i = dout share_i                                      (3)
    dlogits_i = dl_i (softmax(logits_i) - target_i)          (4)
"""

from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid


@concept(
    title="Weighted cross-entropy",
    source="Kamiran and Calders 2012, doi:10.1007/s10115-011-0463-8",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 5)), targets=np.array([[0, 4, -100], [2, 2, 1]]), weights=rng.uniform(0.2, 3.0, size=(2, 3))
    ),
    rejects=[
        bad(targets=np.array([[0, 5, 1], [2, 2, 1]])), bad(targets=np.array([[0, -1, 1], [2, 2, 1]])), bad(weights=np.zeros((2, 3))),
        bad(weights=np.ones((2, 4))), bad("weights", targets=np.full((2, 3), -100)),
    ],
)  # fmt: skip
def weighted_cross_entropy(
    logits: Float[Array, "*batch num_classes"], *, targets: Int[Array, "*batch"], weights: Annotated[Float[Array, "*batch"], at_least(0)],
    ignore_index: int = -100,
) -> tuple[Any, Backward]:  # fmt: skip
    """The mean cross-entropy of examples that count by their weights, in nats; multiplying all weights by a number changes nothing.

    targets are class ids as cross_entropy takes them; weights, at least 0, are data and get no gradient.
    Returns out, a scalar of the logits' dtype, and backward: dout -> dlogits.
    Raises ValueError where a target is no class, and where no example that is not ignored weighs anything.
    """
    counted = np.where(targets == ignore_index, 0, weights)
    total = counted.sum()
    if total == 0:
        raise invalid("weights", got="0 for all examples that are not ignored", wants="a weight above 0")
    share = counted / total                                  # (1)
    each, each_backward = cross_entropy(logits, targets=targets, ignore_index=ignore_index, reduction="none")
    out = (share * each).sum()                               # (2)

    def backward(dout):
        deach = dout * share                                 # (3)
        return each_backward(deach)                          # (4)

    return out, backward
