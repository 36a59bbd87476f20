"""Sigmoid: squash every number into (0, 1), as a gate or a probability.

Source: Rumelhart, Hinton and Williams 1986, Nature 323:533, eq. 2.

    out = 1 / (1 + exp(-x))                                  (1)
    dx = dout * out * (1 - out)                              (2)

For very negative x, exp(-x) becomes infinite and its reciprocal 0; the true value is below the smallest normal number,
so only the warning must go.
This form keeps the relative precision of small outputs, which 0.5 + 0.5 tanh(x / 2) loses.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, example


@concept(
    title="Logistic sigmoid",
    source="Rumelhart, Hinton and Williams 1986, Nature 323:533, eq. 2",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
    roles=("activation",),
)
def sigmoid(x: Float[Array, "..."]) -> tuple[Array, Backward]:
    """A number between 0 and 1 for every element of x; 0 is mapped to one half.

    Returns out, shaped like x, and backward: dout -> dx.
    Raises ValueError when x is not a floating array.
    """
    with np.errstate(over="ignore"):
        out = 1 / (1 + np.exp(-x))                           # (1)

    def backward(dout):
        return dout * (out * (1 - out))                      # (2)

    return out, backward
