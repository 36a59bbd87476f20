"""Gated RMSNorm: a gate first, then RMSNorm in groups. The last step of a Mamba-2 block before its output map.

The gate z decides which features pass; the norm then holds what passed at one size, group by group, so that heads which
work on different machines need not exchange anything. Source: Dao and Gu 2024, arXiv:2405.21060, section 7.1 (extra
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

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.silu import silu
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive


class GatedRmsNorm(NamedTuple):
    """One gain a feature."""

    gain: Float[Array, "d_inner"]


@checked
def init_gated_rms_norm(
    rng: np.random.Generator, d_inner: Annotated[int, at_least(1)], *, dtype: type = np.float32
) -> GatedRmsNorm:  # fmt: skip
    """Gains of one."""
    return GatedRmsNorm(gain=np.ones(d_inner, dtype))


@concept(
    title="Gated RMSNorm",
    source="Dao and Gu 2024, arXiv:2405.21060, section 7.1",
    example=lambda rng: example(GatedRmsNorm(rng.normal(size=6)), rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 5, 6)), groups=2),
    rejects=[bad(groups=4)],
)
def gated_rms_norm(
    params: GatedRmsNorm,
    x: Float[Array, "*batch d_inner"],
    z: Float[Array, "*batch d_inner"],
    *,
    groups: Annotated[int, at_least(1)] = 1,
    eps: Annotated[float, positive] = 1e-5,
) -> tuple[Array, Backward]:
    """Multiply x by silu(z), divide each group of features by its root mean square, scale by the gain.

    groups are equal runs of neighbouring features; eps has the units of (x silu(z))^2. The sum of a group's squares must
    stay within the dtype: where x silu(z) exceeds about 1e19 in float32 it is infinite, and the group comes out as 0.
    Returns out, shaped like x, and backward: dout -> GatedRmsNorm(dgain), dx, dz.
    Raises ValueError when groups do not divide d_inner, eps is not above 0 in x's dtype, or the axes do not fit.
    """
    if x.shape[-1] % groups:
        raise invalid("groups", got=groups, wants=f"a number that divides the {x.shape[-1]} features")
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
