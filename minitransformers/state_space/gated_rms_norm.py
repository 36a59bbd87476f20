"""Gated RMSNorm: a gate first, then RMSNorm in groups. The last step of a Mamba-2 block before its output map.

The gate z decides which features pass; the norm then holds what passed at one size, group by group, so that heads which
work on different machines need not speak to each other. Source: Dao and Gu 2024, arXiv:2405.21060, section 7.1 (extra
normalisation) and 8.1 (groups). Differs from the authors' code: the gate stands before the norm always, as in Mamba-2.

    gate = silu(z)                                           (1)
    gated = x gate                                           (2)
    rms = sqrt(mean over the group of gated^2 + eps)         (3)
    unit = gated / rms                                       (4)
    out = gain unit                                          (5)
    dunit = gain dout                                        (6)
    shared = mean over the group of dunit unit               (7)
    dgated = (dunit - unit shared) / rms                     (8)
    dgain = sum over positions of dout unit                  (9)
    dx = dgated gate                                         (10)
    dz = dgated x silu'(z)                                   (11)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.silu import silu
from minitransformers.foundation import bad, concept, example, invalid


class GatedRmsNorm(NamedTuple):
    """One gain a feature."""

    gain: Float[Array, "d_inner"]


def init_gated_rms_norm(rng: np.random.Generator, d_model: int, *, dtype: type = np.float32) -> GatedRmsNorm:
    """Gains of one."""
    return GatedRmsNorm(gain=np.ones(d_model, dtype))


@concept(
    title="Gated RMSNorm",
    source="Dao and Gu 2024, arXiv:2405.21060, section 7.1",
    example=lambda rng: example(GatedRmsNorm(rng.normal(size=6)), rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 5, 6)), groups=2),
    rejects=[
        bad(groups=4),
        bad(groups=0),
        bad(eps=0.0),
        bad(eps=float("nan")),
        bad(eps=float("inf")),
        bad(z=np.ones((2, 5, 3))),
        bad("params.gain", params=GatedRmsNorm(np.ones((1, 6)))),
        bad(x=np.ones((2, 5, 8))),
    ],
)
def gated_rms_norm(
    params: GatedRmsNorm, x: Float[Array, "*batch d_inner"], z: Float[Array, "*batch d_inner"], *, groups: int = 1, eps: float = 1e-5
):  # fmt: skip
    """Multiply x by silu(z), divide each group of features by its root mean square, scale by the gain.

    groups are equal runs of neighbouring features; eps has the units of (x silu(z))^2. The sum of a group's squares must
    stay within the dtype: where x silu(z) exceeds about 1e19 in float32 it is infinite, and the group comes out as 0.
    Returns out, shaped like x, and backward: dout -> GatedRmsNorm(dgain), dx, dz.
    Raises ValueError when groups do not divide d_inner, eps is 0 or infinite in x's dtype or negative, or the axes do not fit.
    """
    if not isinstance(groups, (int, np.integer)) or groups < 1 or x.shape[-1] % groups:
        raise invalid("groups", got=groups, wants=f"a whole number that divides the {x.shape[-1]} features")
    limits = np.finfo(x.dtype)
    if not float(limits.smallest_subnormal) <= eps <= float(limits.max):
        raise invalid("eps", got=eps, wants=f"a number above 0 that {x.dtype} can hold")
    size = x.shape[-1] // groups
    grouped = (*x.shape[:-1], groups, size)

    gate, gate_backward = silu(z)                            # (1)
    gated = (x * gate).reshape(grouped)                      # (2)
    rms = np.sqrt(np.vecdot(gated, gated) / size + eps)[..., None]  # (..., groups, 1)  (3)
    unit = gated / rms                                       # (4)
    out = params.gain * unit.reshape(x.shape)                # (5)

    def backward(dout):
        dunit = (params.gain * dout).reshape(grouped)        # (6)
        shared = (np.vecdot(dunit, unit) / size)[..., None]  # (7)
        dgated = ((dunit - unit * shared) / rms).reshape(x.shape)  # (8)
        dgain = (dout * unit.reshape(x.shape)).reshape(-1, x.shape[-1]).sum(0)  # (9)
        dx = dgated * gate                                   # (10)
        dz = gate_backward(dgated * x)                       # (11)
        return GatedRmsNorm(dgain), dx, dz

    return out, backward
