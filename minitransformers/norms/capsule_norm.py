"""CapsuleNorm: keep the direction of a vector and squash its length to below one.

Provenance. The name appears in lists of Transformer norms, which cite Tembine, Khan and Bamia 2024, Mathematics
12(22):3506. No published formula for a Transformer norm of this name could be confirmed. What stands here is the
squashing of capsule networks, the best-supported reading: Sabour, Frosst and Hinton 2017, arXiv:1710.09829, eq. 1. Not
from that paper: its use as a norm of the residual stream, and the gain, without which all outputs are shorter than one.

The features of a position are cut into num_capsules equal groups, and each group is squashed alone.

    length = |x|                                             (1)
    unit = x / length, and x itself where length is 0        (2)
    squashed = length^2 / (1 + length^2) unit                (3)
    out = gain squashed                                      (4)
    dsquashed = gain dout                                    (5)
    along = unit . dsquashed                                 (6)
    across_slope = length / (1 + length^2)                   (7)
    along_slope = 2 length / (1 + length^2)^2                (8)
    dx = across_slope (dsquashed - along unit) + along_slope along unit   (9)
    dgain = sum over positions of squashed . dout            (10)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid


class CapsuleNorm(NamedTuple):
    """The length that no capsule reaches; None stands for one, which is the squashing of the paper."""

    gain: Float[Array, ""] | None


@checked
def init_capsule_norm(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_capsules: Annotated[int, at_least(1)] = 1,
    gain: bool = True, dtype: type = np.float32,
) -> CapsuleNorm:  # fmt: skip
    """A gain of sqrt(d_model / num_capsules), so that long inputs leave at the size of RMSNorm's; or none.

    Raises ValueError where num_capsules does not divide d_model.
    """
    if d_model % num_capsules:
        raise invalid("num_capsules", got=num_capsules, wants=f"a number that divides d_model = {d_model}")
    return CapsuleNorm(gain=np.array((d_model / num_capsules) ** 0.5, dtype) if gain else None)


@concept(
    title="CapsuleNorm (the squashing of capsule networks)",
    source="Sabour, Frosst and Hinton 2017, arXiv:1710.09829, eq. 1; no formula is published under this name for Transformers",
    example=lambda rng: example(CapsuleNorm(np.array(1.7)), rng.normal(size=(2, 3, 6)), num_capsules=2),
    roles=("norm",),
    rejects=[bad(num_capsules=4)],
)
def capsule_norm(
    params: CapsuleNorm, x: Float[Array, "... d_model"], *, num_capsules: Annotated[int, at_least(1)] = 1
) -> tuple[Array, Backward]:
    """Give every capsule the length gain n^2 / (1 + n^2) where it had n; its direction stays.

    A capsule of zeros stays zero and sends no gradient: both slopes vanish there. One whose squares add
    up to more than its dtype holds becomes NaN: in float32 that is a length of 1.8e19.
    Returns out, shaped like x, and backward: dout -> CapsuleNorm(dgain), dx.
    Raises ValueError when gain is not a scalar or num_capsules does not divide d_model.
    """
    d_model = x.shape[-1]
    if d_model % num_capsules:
        raise invalid("num_capsules", got=num_capsules, wants=f"a number that divides d_model = {d_model}")
    capsules = x.reshape(*x.shape[:-1], num_capsules, d_model // num_capsules)
    square = np.vecdot(capsules, capsules)[..., None]        # (..., num_capsules, 1)
    length = np.sqrt(square)                                 # (1)
    unit = capsules / np.where(length > 0, length, 1)        # (2)
    squashed = square / (1 + square) * unit                  # (3)
    gain = x.dtype.type(1) if params.gain is None else params.gain
    out = (gain * squashed).reshape(x.shape)                 # (4)

    def backward(dout):
        dcapsules = dout.reshape(capsules.shape)
        dsquashed = gain * dcapsules                         # (5)
        along = np.vecdot(unit, dsquashed)[..., None]        # (..., num_capsules, 1)  (6)
        across_slope = length / (1 + square)                 # (7)
        along_slope = 2 * across_slope / (1 + square)        # not over (1 + square)^2, which overflows sooner  (8)
        dx = across_slope * (dsquashed - along * unit) + along_slope * along * unit  # (9)
        dgain = None if params.gain is None else np.vecdot(squashed, dcapsules).sum()  # (10)
        return CapsuleNorm(dgain), dx.reshape(x.shape)

    return out, backward
