"""Dynamic Tanh (DyT): no norm at all, only a squashing of each feature that a norm turns out to resemble.

Plotted against its input, what a trained layer norm does to a feature looks like a tanh: straight in the middle, bent at
the ends. DyT keeps that curve and drops the statistics. No feature sees another; nothing is summed in the forward pass.

Source: Zhu, Chen, He, LeCun and Liu 2025, arXiv:2503.10622, section 4. alpha is one number for the whole layer.

    squashed = tanh(alpha x)                                 (1)
    out = gain * squashed + bias                             (2)
    dscaled = gain * dout * (1 - squashed^2)                 (3)
    dx = alpha * dscaled                                     (4)
    dalpha = sum over positions and features of dscaled * x  (5)
    dgain = sum over positions of dout * squashed            (6)
    dbias = sum over positions of dout                       (7)

scaled is alpha x, which has no name of its own in the code.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, checked, concept, example, invalid, positive


class DynamicTanh(NamedTuple):
    """One slope for the whole layer; a gain and a bias for each feature."""

    alpha: Float[Array, ""]
    gain: Float[Array, "d_model"]
    bias: Float[Array, "d_model"]


@checked
def init_dynamic_tanh(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, alpha: Annotated[float, positive] = 0.5,
    dtype: type = np.float32,
) -> DynamicTanh:  # fmt: skip
    """Gains of one, biases of zero and the slope given, in units of 1/x.

    Raises ValueError unless alpha is above 0 and finite in this dtype.
    """
    with np.errstate(over="ignore"):
        slope: Array = np.array(alpha, dtype)
    if not 0 < slope < np.inf:
        raise invalid("alpha", got=f"{alpha}, which is {slope} in {slope.dtype}", wants="a finite number above 0")
    return DynamicTanh(alpha=slope, gain=np.ones(d_model, dtype), bias=np.zeros(d_model, dtype))


@concept(
    title="Dynamic Tanh (DyT)",
    source="Zhu, Chen, He, LeCun and Liu 2025, arXiv:2503.10622, section 4",
    example=lambda rng: example(DynamicTanh(np.array(0.7), rng.normal(size=7), rng.normal(size=7)), rng.normal(size=(2, 3, 7))),
    roles=("norm",),
)
def dynamic_tanh(params: DynamicTanh, x: Float[Array, "... d_model"]) -> tuple[Array, Backward]:
    """Squash each feature by tanh(alpha x); then scale by the gain and add the bias.

    alpha has the units of 1/x. Features beyond a few times 1/alpha come out as gain + bias or bias - gain and send no
    gradient.
    Returns out, shaped like x, and backward: dout -> DynamicTanh(dalpha, dgain, dbias), dx.
    Raises ValueError when alpha is not a scalar, or gain and bias do not fit x.
    """
    squashed = np.tanh(params.alpha * x)                     # (1)
    out = params.gain * squashed + params.bias               # (2)

    def backward(dout):
        d_model = x.shape[-1]
        dscaled = params.gain * dout * (1 - squashed * squashed)  # (3)
        dx = params.alpha * dscaled                          # (4)
        dalpha = np.sum(dscaled * x)                         # the one place where features meet  (5)
        rows = np.ones(x.size // d_model, x.dtype)           # a product with ones is a sum over positions
        dgain = rows @ (dout * squashed).reshape(-1, d_model)  # (d_model,)  (6)
        dbias = rows @ dout.reshape(-1, d_model)             # (d_model,)  (7)
        return DynamicTanh(dalpha, dgain, dbias), dx

    return out, backward
