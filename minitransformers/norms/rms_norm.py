"""RMSNorm: rescale each feature vector by its root mean square.

LayerNorm without the mean: nothing is subtracted, no bias is added, and more than half the reductions are gone.

Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4. Used in place of LayerNorm by T5, Llama, Mistral and Gemma.
Differs from the paper: eps is added under the root, as implementations do; an offset is added to the gain (0 in the
paper and in Llama, 1 in Gemma, whose gains are learned as distances from one).

    rms = sqrt(mean_i x_i^2 + eps)                           (1)
    unit = x / rms                                           (2)
    out = (gain + offset) * unit                             (3)
    dunit = (gain + offset) * dout                           (4)
    shared = mean_i dunit_i unit_i                           (5)
    dx = (dunit - unit * shared) / rms                       (6)
    dgain = sum over positions of dout * unit                (7)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, checked, concept, example


class RmsNorm(NamedTuple):
    """One gain a feature."""

    gain: Float[Array, "d_model"]


@checked
def init_rms_norm(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, offset: float = 0.0, dtype: type = np.float32
) -> RmsNorm:
    """Gains of 1 - offset: at first the norm only normalises."""
    return RmsNorm(gain=np.full(d_model, 1 - offset, dtype))


@concept(
    title="RMSNorm",
    source="Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4",
    example=lambda rng: example(RmsNorm(rng.normal(size=7)), rng.normal(size=(2, 3, 7)), offset=1.0),
    roles=("norm",),
)
def rms_norm(
    params: RmsNorm, x: Float[Array, "... d_model"], *, eps: Annotated[float, at_least(0)] = 1e-6, offset: float = 0.0
) -> tuple[Array, Backward]:
    """Divide the last axis by its root mean square, then scale by gain + offset.

    eps is added to the mean square, so it has the units of x squared (1e-6 in T5 and Gemma, 1e-5 in Llama 2 and 3). Where
    it is above 0 in the dtype of x, a position of zeros stays zero; otherwise that becomes NaN.
    offset says what gain is measured from: 0 as in Llama, 1 as in Gemma.
    Returns out, shaped like x, and backward: dout -> RmsNorm(dgain), dx.
    Raises ValueError when the gain does not fit x, eps is negative or offset is not finite.
    """
    rms = np.sqrt(np.vecdot(x, x) / x.shape[-1] + eps)[..., None]  # (..., 1)  (1)
    unit = x / rms                                           # (2)
    out = (params.gain + offset) * unit                      # (3)

    def backward(dout):
        d_model = x.shape[-1]
        dunit = (params.gain + offset) * dout                # (4)
        shared = (np.vecdot(dunit, unit) / d_model)[..., None]  # rms sees every x_i  (5)
        dx = (dunit - unit * shared) / rms                   # (6)
        rows = np.ones(x.size // d_model, x.dtype)           # a product with ones is a sum over positions
        dgain = rows @ (dout * unit).reshape(-1, d_model)    # (d_model,)  (7)
        return RmsNorm(dgain), dx

    return out, backward
