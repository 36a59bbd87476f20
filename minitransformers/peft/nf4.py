"""NF4: weights in four bits, at levels that lie as close together as normal numbers do.

Weights are nearly normal. Sixteen levels that are quantiles of the normal distribution are used about equally often, where evenly
spaced ones would leave the outer codes idle. Each block of 64 weights, along the rows, is divided by its largest magnitude, and
each weight takes the code of the nearest level. The levels are not symmetric: seven below zero, zero itself, eight above.

Source: Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, section 3; the offset, the order of the two codes in a byte and the 256
levels of the second round are those of the authors' library bitsandbytes. Differs from it: a block must divide the weight, and
the weight lies as (d_in, d_out), so a block runs along the outputs. Phi is the normal distribution function.

    p = from offset towards 1/2 in m even steps, without 1/2; offset = 0.9677083, m = 8 above zero and 7 below   (1)
    levels = {Phi^-1(p) above, 0, -Phi^-1(p) below} / Phi^-1(offset)          (2)
    scale = the largest |w| of a block                       (3)
    code = number of the level nearest to w / scale          (4)
    byte = 16 code of an even column + code of the next      (5)
    restored w = scale levels[code]                          (6)

Double quantisation stores the scales, four bytes each, in one: as differences from their mean, in groups of 256.

    centred = scale - mean of all scales                     (7)
    top = the largest |centred| of a group                   (8)
    code = number of the level nearest to centred / top, of 256 with seven decades to each side   (9)
    restored scale = top levels[code] + mean                 (10)
"""

import functools
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, finite, invalid, procedure

OFFSET = 0.9677083


class Nf4Weight(NamedTuple):
    """Two codes a byte (uint8), in the order of the weight, and the scale of each block."""

    codes: Int[Array, "... half"]
    scales: Annotated[Float[Array, "blocks"], at_least(0)]


class DoubleNf4Weight(NamedTuple):
    """As Nf4Weight, its scales in a byte each (uint8), with the top of each group of them and the mean of all."""

    codes: Int[Array, "... half"]
    scale_codes: Int[Array, "blocks"]
    tops: Annotated[Float[Array, "groups"], at_least(0)]
    mean: Annotated[Float[Array, ""], at_least(0)]


@functools.cache
def nf4_levels() -> Float[Array, "16"]:
    """The levels, from -1 to 1, read-only: to the last bit of float32 those of the published table, of which 0 is the eighth."""
    levels = np.sort(np.concatenate([-_quantiles(7), [0.0], _quantiles(8)])).astype(np.float32)
    levels /= levels[-1]                                     # (2)
    levels.setflags(write=False)
    return levels


def _quantiles(steps: int) -> Array:
    """Normal quantiles, the outermost first."""
    from statistics import NormalDist

    chances = _even_steps(OFFSET, 0.5, steps)[:-1]           # (1)
    return np.array([NormalDist().inv_cdf(float(chance)) for chance in chances])


def _even_steps(first: float, last: float, steps: int) -> Array:
    """From first to last, counted from both ends, with start and step in float32: the authors' tables hang on it to the last bit."""
    place, first = np.arange(steps + 1), float(np.float32(first))
    step = float(np.float32((last - first) / steps))
    return np.where(2 * place < steps, first + step * place, last - step * (steps - place)).astype(np.float32)


@functools.cache
def _pairs(dtype: np.dtype) -> Array:
    """For each byte the two levels that it stands for, as one complex number: looked up at once."""
    levels, byte = nf4_levels().astype(dtype), np.arange(256)
    return np.stack([levels[byte >> 4], levels[byte & 15]], axis=-1).view(np.result_type(dtype, np.complex64))[:, 0]


@functools.cache
def _dynamic_levels() -> Array:
    """256 levels from -1 to 1: on each side 1, 2, 4 .. 64 in the decades up from 1e-6, the middles of even steps; and 0, and 1."""
    edges = [_even_steps(0.1, 1, 2**decade) for decade in range(7)]
    side = np.concatenate([10.0 ** (decade - 6) * ((edge[1:] + edge[:-1]) / 2) for decade, edge in enumerate(edges)])
    return np.sort(np.concatenate([-side, np.array([0, 1], np.float32), side]))


def _nearest(levels: Array, values: Array) -> Array:
    """For each value the number of the level nearest to it; of two equally near the lower."""
    levels = levels.astype(values.dtype)
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values).astype(np.uint8)


@procedure(
    title="NF4: quantise",
    source="Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, section 3",
    example=lambda rng: example(rng.normal(size=(3, 8)), block=6),
    rejects=[bad(block=5), bad(block=16), bad(weight=np.ones((6, 3)))],
)
def quantize_nf4(weight: Annotated[Float[Array, "... d_out"], finite], *, block: Annotated[int, at_least(2)] = 64) -> Nf4Weight:
    """Codes of four bits, and a scale for each block of so many weights that follow each other.

    The scales have the dtype of weight: with float32 and blocks of 64 a weight takes 4.5 bits. A block of zeros stays zeros.
    Raises ValueError where the last axis is odd, or block is odd or does not divide the weight.
    """
    if weight.shape[-1] % 2:
        raise invalid("weight", got=f"shape {weight.shape}", wants="a last axis of even size: two codes make a byte")
    if block % 2 or weight.size % block:
        raise invalid("block", got=block, wants=f"an even number that divides the {weight.size} weights")
    blocks = weight.reshape(-1, block)
    scales = np.abs(blocks).max(axis=1)                      # (3)
    codes = _nearest(nf4_levels(), blocks / np.where(scales > 0, scales, 1)[:, None])  # (4)
    codes = codes[:, 0::2] << 4 | codes[:, 1::2]             # (5)
    return Nf4Weight(codes.reshape(*weight.shape[:-1], -1), scales)


@procedure(
    title="NF4: restore",
    source="Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, eq. 6",
    example=lambda rng: example(quantize_nf4(rng.normal(size=(3, 8)), block=6)),
    rejects=[bad("weight.scales", weight=Nf4Weight(np.zeros((3, 4), np.uint8), np.ones(5))), bad("weight.codes", weight=Nf4Weight(np.zeros((3, 4), int), np.ones(4)))],
)  # fmt: skip
def dequantize_nf4(weight: Nf4Weight) -> Float[Array, "... d_out"]:
    """The weight as its codes and scales have it, an array of the caller's own, with the dtype of the scales.

    How large a block is follows from the numbers of codes and of scales.
    Raises ValueError where the codes are no bytes, or the scales do not share them evenly.
    """
    codes, scales = weight
    if codes.dtype != np.uint8:
        raise invalid("weight.codes", got=codes.dtype, wants="uint8, two codes a byte")
    if codes.size % len(scales):
        raise invalid("weight.scales", got=f"{len(scales)} of them", wants=f"a number that shares the {codes.size} bytes of codes evenly")
    rows = np.ascontiguousarray(codes).reshape(len(scales), -1)
    values = _pairs(scales.dtype)[rows].view(scales.dtype)   # (blocks, block)
    values *= scales[:, None]                                # (6)
    return values.reshape(*codes.shape[:-1], -1)


@procedure(
    title="NF4 with double quantisation: quantise",
    source="Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, section 3",
    example=lambda rng: example(rng.normal(size=(7, 8)), block=8, group=4),
    rejects=[bad(block=5), bad(weight=np.ones((6, 3)))],
)
def quantize_double_nf4(
    weight: Annotated[Float[Array, "... d_out"], finite], *, block: Annotated[int, at_least(2)] = 64, group: Annotated[int, at_least(1)] = 256
) -> DoubleNf4Weight:
    """As quantize_nf4, the scales in a byte each: with float32, blocks of 64 and groups of 256 a weight takes 4.127 bits.

    The last group may be smaller than the others. Raises ValueError as quantize_nf4 does.
    """
    codes, scales = quantize_nf4(weight, block=block)
    mean = np.asarray(scales.mean())
    centred = scales - mean                                  # (7)
    tops = np.maximum.reduceat(np.abs(centred), np.arange(0, len(scales), group))  # (8)
    each = np.repeat(np.where(tops > 0, tops, 1), group)[: len(scales)]
    return DoubleNf4Weight(codes, _nearest(_dynamic_levels(), centred / each), tops, mean)  # (9)


@procedure(
    title="NF4 with double quantisation: restore",
    source="Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, eq. 6",
    example=lambda rng: example(quantize_double_nf4(rng.normal(size=(7, 8)), block=8, group=4), group=4),
    rejects=[bad(group=3), bad("weight.scale_codes", weight=DoubleNf4Weight(np.zeros((7, 4), np.uint8), np.zeros(7, int), np.ones(2), np.ones(())))],
)  # fmt: skip
def dequantize_double_nf4(weight: DoubleNf4Weight, *, group: Annotated[int, at_least(1)] = 256) -> Float[Array, "... d_out"]:
    """The weight as its codes and the codes of its scales have it; group as it was quantised with.

    Raises ValueError as dequantize_nf4 does, and where the scales are no bytes or make another number of groups.
    """
    codes, scale_codes, tops, mean = weight
    if scale_codes.dtype != np.uint8:
        raise invalid("weight.scale_codes", got=scale_codes.dtype, wants="uint8")
    if len(tops) != -(-len(scale_codes) // group):
        raise invalid("group", got=f"{group}, for {len(scale_codes)} scales in {len(tops)} groups", wants="the size of the groups that weight was quantised with")
    scales = _dynamic_levels().astype(tops.dtype)[scale_codes] * np.repeat(tops, group)[: len(scale_codes)] + mean  # (10)
    return dequantize_nf4(Nf4Weight(codes, scales))
