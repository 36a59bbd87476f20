"""Learned step size (LSQ): the step of a quantiser is trained like any weight.

Where to clip is a trade between values that are cut off and values that are rounded coarsely, and the loss knows best. So the
step gets a gradient. Almost everywhere the true slope of ``step round(v)`` by the step is the code itself, and it does not know
how far a value is from the middle between two codes. The straight-through slope does: it is the rounding error. Where values are
cut off it is the bound, in steps.

Source: Esser et al. 2020 (LSQ), arXiv:1902.08153, eqs. 1 to 3 and 5, section 2.2. Differs from it: a step may serve less than a
layer, and N counts all values that share one, where the paper counts a layer's weights or features. v = values / step, P and M
the largest and the smallest code.

    inside = M < v < P                                       (1)
    code = round(v within M and P)                           (2)
    out = step code                                          (3)
    scale = 1 / sqrt(N P)                                    (4)
    dvalues = dout inside                                    (5)
    slope = code - v inside, code elsewhere                  (6)
    dstep = scale sum over its values of dout slope          (7)
    step at the start = 2 mean |values| / sqrt(P)            (8)

A step has a gradient as large as all its values together, and their own size; (4) makes its updates as large, relative to it, as
theirs are.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.compression.quantize import BITS, Symmetric, check_axis, check_sharing
from minitransformers.foundation import Backward, bad, checked, concept, example, finite, positive
from minitransformers.foundation.trees import decays


class Stepped(NamedTuple):
    """The weight behind the quantised one, and its steps, whose axes are the weight's or 1. What is trained, with ``change_by``."""

    weight: Annotated[Float[Array, "d_in d_out"], decays]
    step: Annotated[Float[Array, "*steps"], positive]


@checked
def init_step(
    values: Annotated[Float[Array, "*shape"], finite], *, bits: Annotated[int, BITS], axis: int | None = None, signed: bool = True
) -> Float[Array, "*steps"]:
    """Where a step begins; those along axis share one, or all values where it is None. 1 where they are all zero.

    Raises ValueError for an axis that values do not have.
    """
    check_axis(values, axis)
    mean = np.abs(values).mean(axis=axis, keepdims=True)
    return np.where(mean > 0, 2 * mean / np.sqrt(_codes(bits, signed)[1]), 1).astype(values.dtype)  # (8)


@concept(
    title="Learned step size (LSQ)",
    source="Esser et al. 2020, arXiv:1902.08153, eqs. 1 to 3",
    example=lambda rng: example(rng.normal(size=(5, 3)), rng.uniform(0.2, 0.5, size=(1, 3)), bits=3),
    rejects=[bad(bits=1), bad(step=np.zeros((1, 3))), bad(step=np.ones((2, 3)))],
    gradient_of=lambda values, step, **settings: _straight(values, step, **settings),
)
def learned_step(
    values: Annotated[Float[Array, "*shape"], finite], step: Annotated[Float[Array, "*steps"], positive], *, bits: Annotated[int, BITS], signed: bool = True
) -> tuple[Array, Backward]:
    """The values rounded to whole numbers of steps, from -2^(b-1) to 2^(b-1) - 1 of them, or from 0 to 2^b - 1 where not signed.

    step has the axes of values, each as long or of length 1. It has to stay above 0: an update may have to be cut short.
    Returns out, shaped like values, and backward: dout -> dvalues, dstep.
    Raises ValueError where step does not fit values.
    """
    _check(values, step)
    least, most = _codes(bits, signed)
    v = values / step
    inside = (least < v) & (v < most)                        # (1)
    code = np.rint(np.clip(v, least, most))                  # (2)
    out = step * code                                        # (3)
    scale = 1 / np.sqrt(values.size / step.size * most)      # (4)

    def backward(dout):
        dvalues = dout * inside                              # (5)
        slope = np.where(inside, code - v, code)             # (6)
        shared = tuple(i for i, length in enumerate(step.shape) if length == 1)
        dstep = values.dtype.type(scale) * np.sum(dout * slope, axis=shared, keepdims=True)  # (7)
        return dvalues, dstep

    return out, backward


@checked
def quantize_learned(
    values: Annotated[Float[Array, "*shape"], finite], step: Annotated[Float[Array, "*steps"], positive], *, bits: Annotated[int, BITS], signed: bool = True
) -> Symmetric:
    """The codes and steps of what learned_step computes with, as dequantize_symmetric restores them.

    The codes reach to -2^(b-1), one further than those of quantize_symmetric; not signed they are uint8, or uint16 above 8 bits.
    Raises ValueError as learned_step does.
    """
    _check(values, step)
    codes = np.rint(np.clip(values / step, *_codes(bits, signed)))
    dtype = (np.int8 if bits <= 8 else np.int16) if signed else (np.uint8 if bits <= 8 else np.uint16)
    return Symmetric(codes.astype(dtype), step)


def _codes(bits: int, signed: bool) -> tuple[int, int]:
    """The smallest and the largest code."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _check(values: Array, step: Array) -> None:
    check_sharing(values, step, "")


def _straight(values: Array, step: Array, **settings: Any) -> Callable:
    """The function whose gradient this is: what rounding adds stays as it is at values and step, and a step moves by scale of its way."""
    least, most = _codes(settings["bits"], settings.get("signed", True))
    clipped = np.clip(values / step, least, most)
    added, scale = np.rint(clipped) - clipped, 1 / np.sqrt(values.size / step.size * most)

    def surrogate(new_values, new_step):
        moved = step + scale * (new_step - step)
        return moved * (np.clip(new_values / moved, least, most) + added)

    return surrogate
