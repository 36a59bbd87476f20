"""ScaleNorm: give every position one length, and learn that length.

RMSNorm with a single gain for all features: what comes out lies on a sphere of radius g. One number a layer is learned.

Source: Nguyen and Salazar 2019, arXiv:1910.05895, section 2.2. eps is a floor under the length, as in the authors' code,
and is not added to it: above the floor the output is exactly g long, and below it the map is linear.

    size = max(|x|, eps)                                     (1)
    unit = x / size                                          (2)
    out = g unit                                             (3)
    dunit = g dout                                           (4)
    shared = unit . dunit where |x| > eps, otherwise 0       (5)
    dx = (dunit - unit shared) / size                        (6)
    dg = sum over positions of unit . dout                   (7)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, checked, concept, example, positive


class ScaleNorm(NamedTuple):
    """The length of every position after the norm, for all features together."""

    g: Float[Array, ""]


@checked
def init_scale_norm(rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, dtype: type = np.float32) -> ScaleNorm:
    """sqrt(d_model), the length of a vector of features of size one: where RMSNorm starts, too."""
    return ScaleNorm(g=np.array(d_model**0.5, dtype))


@concept(
    title="ScaleNorm",
    source="Nguyen and Salazar 2019, arXiv:1910.05895, section 2.2",
    example=lambda rng: _example(rng),
    roles=("norm",),
)
def scale_norm(
    params: ScaleNorm, x: Float[Array, "... d_model"], *, eps: Annotated[float, positive] = 1e-5
) -> tuple[Array, Backward]:
    """Divide the last axis by its length, then multiply it by g.

    eps is the least length that x is divided by, in the units of x. A position of zeros stays zero, and its gradient is
    g dout / eps, which is large.
    Returns out, shaped like x, and backward: dout -> ScaleNorm(dg), dx.
    Raises ValueError when g is not a scalar or eps is not above 0 in the dtype of x.
    """
    length = np.sqrt(np.vecdot(x, x))[..., None]             # (..., 1)
    size = np.maximum(length, eps)                           # (1)
    unit = x / size                                          # (2)
    out = params.g * unit                                    # (3)

    def backward(dout):
        dunit = params.g * dout                              # (4)
        # Under the floor size is a constant and x reaches out by one way only.
        shared = np.vecdot(dunit, unit)[..., None] * (length > eps)  # (5)
        dx = (dunit - unit * shared) / size                  # (6)
        dg = np.vecdot(dout, unit).sum()                     # (7)
        return ScaleNorm(dg), dx

    return out, backward


def _example(rng):
    x = rng.normal(size=(2, 3, 7))
    x[0, 1] *= 1e-2                                          # 0.03 long: under the floor
    return example(ScaleNorm(np.array(1.7)), x, eps=0.2)
