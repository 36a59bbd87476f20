"""Logit pairing: a model pays for every difference between a sentence and its counterfactual.

A counterfactual is the same sentence with one term for a group exchanged for another. Beside the task's loss stands the mean
distance of the two logits, so a term that the task does not need is unlearned. It asks nothing of the labels, so sentences without
labels serve as well. Costs a second pass of the model, over the counterfactuals.

Source: Garg et al. 2018, arXiv:1809.10610 (CLP), where one counterfactual a sentence is drawn anew each time. The absolute
value has no slope at 0; 0 stands there. z are the logits of the sentences, z' those of their counterfactuals, n how many they are.

    apart = z - z'                                           (1)
    out = strength/n sum of |apart|                          (2)
    dlogits = dout strength/n sign(apart)                    (3)
    dpaired = -dlogits                                       (4)
"""

from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, concept, example


@concept(
    title="Counterfactual logit pairing",
    source="Garg et al. 2018, arXiv:1809.10610",
    example=lambda rng: example(rng.normal(size=(3, 5)), rng.normal(size=(3, 5)), strength=0.7),
)
def logit_pairing_loss(
    logits: Float[Array, "*shape"], paired: Float[Array, "*shape"], *, strength: Annotated[float, at_least(0)] = 1.0
) -> tuple[Any, Backward]:
    """How far logits are from those of the counterfactuals, as a mean of absolute differences times strength.

    Both get a gradient: they come from one model. Sentences without a counterfactual are left out beforehand.
    Returns out, a scalar of the logits' dtype, and backward: dout -> dlogits, dpaired.
    """
    apart = logits - paired                                  # (1)
    scale = logits.dtype.type(strength / apart.size)
    out = scale * np.abs(apart).sum()                        # (2)

    def backward(dout):
        dlogits = dout * scale * np.sign(apart)              # (3)
        return dlogits, -dlogits                             # (4)

    return out, backward
