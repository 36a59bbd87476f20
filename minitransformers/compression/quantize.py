"""Uniform quantisation: a number becomes a small whole number of steps, and steps are shared.

b bits can name 2^b numbers. Spread evenly they need one real number, the step, and who shares a step is the only choice: all of a
tensor, a column of a weight (the weights of one output), a group of rows within a column, or a row of activations (one token). The
fewer share one, the smaller the step and the more there are to store. Symmetric codes stand on both sides of zero; affine ones
begin anywhere, and keep the code of zero besides. Zero is restored exactly by both.

Source: Jacob et al. 2018, arXiv:1712.05877, sections 2.1 and 3.1, for the affine form; Nagel et al. 2021, arXiv:2106.08295, section
2.2, for both. Differs from Nagel et al.: symmetric codes are narrow, from -Q to Q, where b bits would reach -Q - 1; so a weight and
its negative have negative codes (Jacob et al. have weights so). round takes a half to the even side.

    Q = 2^(b-1) - 1                                          (1)
    step = clip(values) / Q                                  (2)
    code = round((value within -clip and clip) / step)       (3)
    restored = step code                                     (4)

clip is the largest magnitude of those that share a step, or less (``calibration``). Affine:

    low = min(values, 0), high = max(values, 0)              (5)
    step = (high - low) / (2^b - 1)                          (6)
    zero = round(-low / step)                                (7)
    code = round(value / step) + zero, within 0 and 2^b - 1  (8)
    restored = step (code - zero)                            (9)
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import Range, bad, between, checked, example, finite, invalid, positive, procedure

BITS: Range = between(2, 16)


class Symmetric(NamedTuple):
    """Codes from -Q to Q (int8, or int16 above 8 bits), and the steps, whose axes are those of codes or 1."""

    codes: Int[Array, "*shape"]
    step: Annotated[Float[Array, "*steps"], positive]


class Affine(NamedTuple):
    """Codes from 0 to 2^b - 1 (uint8, or uint16 above 8 bits), the steps, and the codes of zero, one for each step."""

    codes: Int[Array, "*shape"]
    step: Annotated[Float[Array, "*steps"], positive]
    zero: Int[Array, "*steps"]


@checked
def in_groups(weight: Float[Array, "d_in d_out"], *, size: int) -> Float[Array, "groups size d_out"]:
    """The weight with its inputs in groups that follow each other: quantised, each group of a column has a step of its own.

    What is restored goes back by ``reshape(weight.shape)``. Raises ValueError where size does not divide the inputs.
    """
    if size < 1 or len(weight) % size:
        raise invalid("size", got=size, wants=f"a number that divides the {len(weight)} inputs")
    return weight.reshape(-1, size, weight.shape[1])


def largest_magnitude(values: Array, *, axis: int | None, bits: int) -> Array:
    """Of those that share a step, with their axis kept; a clip that cuts off nothing."""
    return np.max(np.abs(values), axis=axis, keepdims=True)


@procedure(
    title="Symmetric quantisation",
    source="Nagel et al. 2021, arXiv:2106.08295, section 2.2",
    example=lambda rng: example(rng.normal(size=(5, 3)), bits=4),
    rejects=[bad(bits=1), bad(bits=17), bad(axis=2)],
)
def quantize_symmetric(
    values: Annotated[Float[Array, "*shape"], finite], *, bits: Annotated[int, BITS], axis: int | None = -2, clip: Callable = largest_magnitude
) -> Symmetric:
    """Codes and steps of values: those along axis share a step, or all of them where it is None.

    -2 is a step for each column of a weight (d_in, d_out) or for each column of a group; -1 a step for each token of activations.
    ``clip(values, axis=axis, bits=bits)`` is the magnitude that gets the largest code, with the axis kept. Where it is 0, or too small
    to be divided, the step is 1 and all codes are 0. The steps have the dtype of values.
    Raises ValueError for an axis that values do not have, and where clip returns no such magnitudes.
    """
    bound = shared_bound(values, axis=axis, bits=bits, clip=clip)
    most = 2 ** (bits - 1) - 1                               # (1)
    step = bound / values.dtype.type(most)
    step = np.where(step >= np.finfo(step.dtype).tiny, step, 1)  # what is smaller has lost digits  (2)
    codes = np.rint(np.clip(values, -bound, bound) / step)   # (3)
    return Symmetric(codes.astype(np.int8 if bits <= 8 else np.int16), step)


@procedure(
    title="Symmetric quantisation: restore",
    source="Nagel et al. 2021, arXiv:2106.08295, section 2.2",
    example=lambda rng: example(quantize_symmetric(rng.normal(size=(5, 3)), bits=4)),
    rejects=[bad("stored.step", stored=Symmetric(np.zeros((5, 3), np.int8), np.ones((2, 3))))],
)
def dequantize_symmetric(stored: Symmetric) -> Float[Array, "*shape"]:
    """Each code times its step, with the dtype of the steps.

    Raises ValueError where the steps have other axes than the codes, neither as long nor of length 1.
    """
    codes, step = stored
    check_sharing(codes, step, "stored")
    return step * codes.astype(step.dtype)                   # (4)


@procedure(
    title="Affine quantisation",
    source="Jacob et al. 2018, arXiv:1712.05877, section 2.1",
    example=lambda rng: example(rng.normal(size=(5, 3)), bits=4),
    rejects=[bad(bits=1), bad(bits=17), bad(axis=2)],
)
def quantize_affine(values: Annotated[Float[Array, "*shape"], finite], *, bits: Annotated[int, BITS], axis: int | None = -2) -> Affine:
    """Codes, steps and the codes of zero, from the smallest to the largest of those that share a step; axis as in quantize_symmetric.

    Raises ValueError for an axis that values do not have.
    """
    check_axis(values, axis)
    most = 2**bits - 1
    low = np.minimum(values.min(axis=axis, keepdims=True), 0)
    high = np.maximum(values.max(axis=axis, keepdims=True), 0)  # (5)
    step = (high - low) / values.dtype.type(most)
    step = np.where(step >= np.finfo(step.dtype).tiny, step, 1)  # (6)
    zero = np.rint(-low / step)                              # (7)
    codes = np.clip(np.rint(values / step) + zero, 0, most)  # (8)
    return Affine(codes.astype(np.uint8 if bits <= 8 else np.uint16), step, zero.astype(np.int32))


@procedure(
    title="Affine quantisation: restore",
    source="Jacob et al. 2018, arXiv:1712.05877, section 2.1",
    example=lambda rng: example(quantize_affine(rng.normal(size=(5, 3)), bits=4)),
    rejects=[bad("stored.step", stored=Affine(np.zeros((5, 3), np.uint8), np.ones((2, 3)), np.zeros((2, 3), int)))],
)
def dequantize_affine(stored: Affine) -> Float[Array, "*shape"]:
    """Each code's distance from that of zero, times its step, with the dtype of the steps.

    Raises ValueError as dequantize_symmetric does.
    """
    codes, step, zero = stored
    check_sharing(codes, step, "stored")
    return step * (codes.astype(np.int32) - zero).astype(step.dtype)  # uint8 would wrap  (9)


def shared_bound(values: Array, *, axis: int | None, bits: int, clip: Callable) -> Array:
    """What clip says, one magnitude for those that share a step; ValueError where values have no such axis, or clip says anything else."""
    check_axis(values, axis)
    bound = np.asarray(clip(values, axis=axis, bits=bits))
    shape = tuple(1 if axis is None or i == axis % values.ndim else length for i, length in enumerate(values.shape))
    if bound.shape != shape or bound.dtype != values.dtype or not (np.isfinite(bound) & (bound >= 0)).all():
        raise invalid("clip", got=f"{bound}", wants=f"{values.dtype} of shape {shape}, finite and not negative")
    return bound


def check_axis(values: Array, axis: int | None) -> None:
    """ValueError where values do not have the axis."""
    if axis is not None and not -values.ndim <= axis < values.ndim:
        raise invalid("axis", got=axis, wants=f"None, or an axis of values, which have {values.ndim}")


def check_sharing(codes: Array, step: Array, name: str) -> None:
    """ValueError where steps have other axes than the codes, neither as long nor of length 1."""
    if step.ndim != codes.ndim or any(own not in (1, length) for own, length in zip(step.shape, codes.shape, strict=True)):
        raise invalid(f"{name}.step".lstrip("."), got=f"shape {step.shape}", wants=f"the {codes.ndim} axes of codes {codes.shape}, each as long or of length 1")
