"""Mean squared error: the average squared distance between a prediction and its target.

Least squares; the negative log-likelihood of a Gaussian with fixed variance, up to a constant. The target gets a
gradient too, the prediction's with the other sign, for where it is computed as well (a teacher's hidden states).

Source: Goodfellow, Bengio and Courville 2016, Deep Learning, eq. 5.4.

    difference = prediction - target                         (1)
    out = (1/n) sum over all n elements of difference^2      (2)
    dprediction = (2/n) dout difference                      (3)
    dtarget = -dprediction                                   (4)
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, example


@concept(
    title="Mean squared error",
    source="Goodfellow, Bengio and Courville 2016, Deep Learning, eq. 5.4",
    example=lambda rng: example(rng.normal(size=(2, 3)), rng.normal(size=(2, 3))),
)
def mean_squared_error(prediction: Float[Array, "*shape"], target: Float[Array, "*shape"]) -> tuple[np.floating, Backward]:
    """Average the squared difference over all elements.

    Returns out, a scalar in squared units of the arguments, and backward: dout -> dprediction, dtarget.
    Raises ValueError when the shapes differ (nothing is broadcast) or hold no element.
    """
    difference = prediction - target                         # (1)
    flat = difference.reshape(-1)
    out = np.vecdot(flat, flat) / flat.size                  # one pass, no array of squares  (2)

    def backward(dout):
        dprediction = difference * (dout * (2 / flat.size))  # (3)
        dtarget = -dprediction                               # (4)
        return dprediction, dtarget

    return out, backward
