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

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import bad, concept, example, invalid


class RmsNorm(NamedTuple):
    """One gain a feature."""

    gain: Float[Array, "d_model"]


def init_rms_norm(rng: np.random.Generator, d_model: int, *, offset: float = 0.0, dtype: type = np.float32) -> RmsNorm:
    """Gains of 1 - offset: at first the norm only normalises."""
    return RmsNorm(gain=np.full(d_model, 1 - offset, dtype))


@concept(
    title="RMSNorm",
    source="Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4",
    example=lambda rng: example(RmsNorm(rng.normal(size=7)), rng.normal(size=(2, 3, 7))),
    roles=("norm",),
    rejects=[
        bad(eps=-1e-6),
        bad(eps=float("nan")),
        bad(offset=float("nan")),
        bad(offset=float("inf")),
        bad("params.gain", params=RmsNorm(np.ones((1, 7)))),
        bad(x=np.ones((2, 3, 5))),
    ],
)
def rms_norm(params: RmsNorm, x: Float[Array, "... d_model"], *, eps: float = 1e-6, offset: float = 0.0):
    """Divide the last axis by its root mean square, then scale by gain + offset.

    eps is added to the mean square, so it has the units of x squared (1e-6 in T5 and Gemma, 1e-5 in Llama 2 and 3). Where
    it is above 0 in the dtype of x, a position of zeros stays zero; otherwise that becomes NaN.
    offset says what gain is measured from: 0 as in Llama, 1 as in Gemma.
    Returns out, shaped like x, and backward: dout -> RmsNorm(dgain), dx.
    Raises ValueError when params.gain is not (d_model,), eps is negative or offset is not finite.
    """
    if not eps >= 0:
        raise invalid("eps", got=eps, wants="a number that is not negative")
    if not math.isfinite(offset):
        raise invalid("offset", got=offset, wants="a finite number")
    d_model = x.shape[-1]
    scale = params.gain + float(offset)
    rms = np.sqrt(np.vecdot(x, x) / d_model + float(eps))[..., None]  # (..., 1)  (1)
    unit = x / rms                                           # (2)
    out = scale * unit                                       # (3)

    def backward(dout):
        dunit = scale * dout                                 # (4)
        shared = (np.vecdot(dunit, unit) / d_model)[..., None]  # rms sees every x_i  (5)
        dx = dunit - unit * shared
        dx /= rms                                            # (6)
        rows = np.ones(x.size // d_model, x.dtype)           # a product with ones is a sum over positions
        dgain = rows @ (dout * unit).reshape(-1, d_model)    # (d_model,)  (7)
        return RmsNorm(dgain), dx

    return out, backward
