"""Layer normalisation: give the features of every position mean 0 and variance 1, then a learned gain and bias.

Each position is normalised alone: nothing is shared between tokens or examples, so the length of a sequence and the
size of a batch do not matter. The variance divides by d_model, not d_model - 1.

Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450, eq. 3.
Differs from the paper: eps is added under the root, as every implementation does. Nothing below is approximate
because of it: the gradients are those of the function with eps.

    mean = mean_i x_i                                        (1)
    centred = x - mean                                       (2)
    std = sqrt(mean_i centred_i^2 + eps)                     (3)
    unit = centred / std                                     (4)
    out = gain * unit + bias                                 (5)
    dunit = gain * dout                                      (6)
    shared = mean_i dunit_i unit_i                           (7)
    dx = (dunit - mean_i dunit_i - unit * shared) / std      (8)
    dgain = sum over positions of dout * unit                (9)
    dbias = sum over positions of dout                       (10)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid


class LayerNorm(NamedTuple):
    """A gain and a bias for each feature."""

    gain: Float[Array, "d_model"]
    bias: Float[Array, "d_model"]


@checked
def init_layer_norm(rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, dtype: type = np.float32) -> LayerNorm:
    """Gains of one and biases of zero: at first the norm only normalises."""
    return LayerNorm(gain=np.ones(d_model, dtype), bias=np.zeros(d_model, dtype))


@concept(
    title="Layer normalisation",
    source="Ba, Kiros and Hinton 2016, arXiv:1607.06450, eq. 3",
    example=lambda rng: example(LayerNorm(rng.normal(size=7), rng.normal(size=7)), rng.normal(size=(2, 3, 7))),
    roles=("norm",),
    rejects=[bad("x", x=np.ones((2, 3, 1)), params=LayerNorm(np.ones(1), np.ones(1)))],
)
def layer_norm(
    params: LayerNorm, x: Float[Array, "... d_model"], *, eps: Annotated[float, at_least(0)] = 1e-5
) -> tuple[Array, Backward]:
    """Centre the last axis and divide it by its standard deviation; then scale by the gain and add the bias.

    eps is added to the variance, so it has the units of x squared (1e-5 in GPT-2, 1e-12 in BERT). Where it is above 0 in
    the dtype of x, a position whose features are all equal becomes the bias; otherwise that becomes NaN.
    Returns out, shaped like x, and backward: dout -> LayerNorm(dgain, dbias), dx.
    Raises ValueError when gain and bias do not fit x, eps is negative, or d_model is 1.
    """
    d_model = x.shape[-1]
    if d_model == 1:
        raise invalid("x", got=f"shape {x.shape}", wants="two features or more: one alone equals its mean, and nothing is left")
    ones = np.ones(d_model, x.dtype)                         # a product with ones is a sum, three times faster than sum(-1)
    mean = (x @ ones / d_model)[..., None]                   # (..., 1)  (1)
    centred = x - mean
    centred -= (centred @ ones / d_model)[..., None]         # what rounding left of a mean that is large beside std  (2)
    # The mean of the squares of centred, never mean(x^2) - mean^2: that difference cancels when the mean is large.
    std = np.sqrt(np.vecdot(centred, centred) / d_model + eps)[..., None]  # (..., 1)  (3)
    unit = np.divide(centred, std, out=centred)              # in place: centred has served  (4)
    out = params.gain * unit
    out += params.bias                                       # (5)

    def backward(dout):
        dunit = params.gain * dout                           # (6)
        shared = (np.vecdot(dunit, unit) / d_model)[..., None]  # std sees every x_i  (7)
        mean_dunit = (dunit @ ones / d_model)[..., None]     # mean sees every x_i too
        dx = np.subtract(dunit, mean_dunit, out=dunit)       # in place: dunit has served
        dx -= unit * shared
        dx /= std                                            # (8)
        rows = np.ones(x.size // d_model, x.dtype)
        dgain = rows @ (dout * unit).reshape(-1, d_model)    # (d_model,)  (9)
        dbias = rows @ dout.reshape(-1, d_model)             # (d_model,)  (10)
        return LayerNorm(dgain, dbias), dx

    return out, backward
