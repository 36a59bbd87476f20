"""Softplus: a smooth ReLU, always positive. Used where a number must be positive, such as a time step.

Source: Dugas, Bengio, Bélisle, Nadeau and Garcia 2000, NIPS, "Incorporating second-order functional knowledge for
better option pricing". Its derivative is the sigmoid.

    out = log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))   (1)
    slope = sigmoid(x)                                       (2)
    dx = dout * slope                                        (3)

The right-hand form of (1) cannot overflow, and log1p keeps the digits of exp(x) where x is very negative.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.sigmoid import sigmoid
from minitransformers.foundation import Backward, concept, example


@concept(
    title="Softplus",
    source="Dugas, Bengio, Bélisle, Nadeau and Garcia 2000, NIPS",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
    roles=("activation",),
)
def softplus(x: Float[Array, "..."]) -> tuple[Array, Backward]:
    """log(1 + exp(x)), element by element: nearly x where x is large, nearly exp(x) where it is very negative.

    Returns out, shaped like x, and backward: dout -> dx.
    Raises ValueError when x is not a floating array.
    """
    out = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))    # (1)

    def backward(dout):
        slope, _ = sigmoid(x)                                # (2)
        return dout * slope                                  # (3)

    return out, backward
