"""ReLU: keep what is positive, drop the rest.

Source: Nair and Hinton 2010, ICML; the activation of the first Transformer (Vaswani et al. 2017, arXiv:1706.03762, eq. 2).

    out = max(x, 0)                                          (1)
    dx = dout where x > 0, else 0                            (2)

At x = 0 there is no derivative; as everywhere in the field, 0 is used.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, example


@concept(
    title="Rectified linear unit (ReLU)",
    source="Nair and Hinton 2010, ICML; Vaswani et al. 2017, arXiv:1706.03762, eq. 2",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
    roles=("activation",),
)
def relu(x: Float[Array, "..."]) -> tuple[Array, Backward]:
    """The positive part of x, element by element.

    Returns out, shaped like x, and backward: dout -> dx.
    Raises ValueError when x is not a floating array.
    """
    out = np.maximum(x, 0)                                   # (1)

    def backward(dout):
        return dout * (out > 0)                              # out is positive just where x is, and x need not be kept  (2)

    return out, backward
