"""RMSNorm: rescale each feature vector by its root mean square.

Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4. Used by Llama in place of LayerNorm.
Differs from the paper: eps is added under the root, as implementations do.

    rms = sqrt(mean_i x_i^2 + eps)                           (1)
    unit = x / rms                                           (2)
    out = gain * unit                                        (3)
    dunit = gain * dout                                      (4)
    shared = mean_i dunit_i unit_i                           (5)
    dx = (dunit - unit * shared) / rms                       (6)
    dgain = sum over positions of dout * unit                (7)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import bad, concept, example, invalid


class RmsNorm(NamedTuple):
    """One gain a feature."""

    gain: Float[Array, "d_model"]


def init_rms_norm(rng: np.random.Generator, d_model: int, *, dtype: type = np.float32) -> RmsNorm:
    """Gains of one: at first the norm only normalises."""
    return RmsNorm(gain=np.ones(d_model, dtype))


@concept(
    title="RMSNorm",
    source="Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4",
    example=lambda rng: example(RmsNorm(rng.normal(size=7)), rng.normal(size=(2, 3, 7))),
    roles=("norm",),
    rejects=[bad(eps=-1e-6), bad("params.gain", params=RmsNorm(np.ones((1, 7)))), bad(x=np.ones((2, 3, 5)))],
)
def rms_norm(params: RmsNorm, x: Float[Array, "... d_model"], *, eps: float = 1e-6):
    """Divide the last axis by its root mean square, then scale by the gain.

    eps is added to the mean square, so it has the units of x squared.
    Returns out, shaped like x, and backward: dout -> RmsNorm(dgain), dx.
    Raises ValueError when params.gain is not (d_model,) or eps is negative.
    """
    if not eps >= 0:
        raise invalid("eps", got=eps, wants="a number that is not negative")
    d_model = x.shape[-1]
    mean_square = np.vecdot(x, x)[..., None] * (1 / d_model)  # one pass, no array of squares
    rms = np.sqrt(mean_square + eps)                         # (..., 1)  (1)
    unit = x / rms                                           # (2)
    out = params.gain * unit                                 # (3)

    def backward(dout):
        dunit = params.gain * dout                           # (4)
        shared = np.vecdot(dunit, unit)[..., None] * (1 / d_model)  # rms sees every x_i  (5)
        dx = (dunit - unit * shared) / rms                   # (6)
        dgain = np.sum(dout * unit, axis=tuple(range(dout.ndim - 1)))  # (d_model,)  (7)
        return RmsNorm(dgain), dx

    return out, backward
