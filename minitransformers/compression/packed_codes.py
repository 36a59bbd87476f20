"""Packed codes: as many bits as a code needs, and not one more.

NumPy's smallest number has eight bits. A code of four or three bits stored in one wastes half of it or more. So the bits of all
codes are written one behind the other, and eight of them make a byte: two codes of four bits, or eight codes of three in three
bytes. Signed codes are moved up by half their range first. Where a code of four bits ends, its byte or half byte ends too, and
two shifts take both codes out at once.

Source: the order is that of ``numpy.packbits``, the first code in the highest bits. Formats of others differ in it.

    u = code + 2^(b-1)                                       (1)
    bit_(b n + i) = bit b - 1 - i of u_n                     (2)
    code = sum_i 2^(b-1-i) bit_(b n + i) - 2^(b-1)           (3)
"""

import math
from typing import Annotated

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.foundation import Range, bad, between, example, invalid, procedure

PACKED_BITS: Range = between(1, 8)


@procedure(
    title="Packed codes: pack",
    source="the order of numpy.packbits",
    example=lambda rng: example(rng.integers(-4, 4, size=(5, 3)).astype(np.int8), bits=3),
    rejects=[bad(codes=np.full((2, 3), 4, np.int8)), bad(codes=np.full((2, 3), -5, np.int8))],
)
def pack_codes(codes: Int[Array, "*shape"], *, bits: Annotated[int, PACKED_BITS], signed: bool = True) -> Int[Array, "bytes"]:
    """The codes in ceil(bits n / 8) bytes (uint8): from -2^(b-1) to 2^(b-1) - 1, or from 0 to 2^b - 1 where they are not signed.

    Raises ValueError for a code that so many bits cannot hold.
    """
    low = -(2 ** (bits - 1)) if signed else 0
    if not low <= codes.min() <= codes.max() < low + 2**bits:
        raise invalid("codes", got=f"from {codes.min()} to {codes.max()}", wants=f"from {low} to {low + 2**bits - 1}, in {bits} bits")
    shifted = (codes.astype(np.int16) - low).astype(np.uint8).ravel()  # (1)
    each = np.unpackbits(shifted[:, None], axis=1)[:, 8 - bits :]  # (codes, bits)
    return np.packbits(each)                                 # (2)


@procedure(
    title="Packed codes: unpack",
    source="the order of numpy.packbits",
    example=lambda rng: example(pack_codes(rng.integers(-4, 4, size=(5, 3)).astype(np.int8), bits=3), bits=3, shape=(5, 3)),
    rejects=[bad("packed", bits=4), bad("packed", shape=(5, 4)), bad(shape=(-5, -3)), bad(packed=np.zeros(6, int))],
)
def unpack_codes(packed: Int[Array, "bytes"], *, bits: Annotated[int, PACKED_BITS], shape: tuple[int, ...], signed: bool = True) -> Int[Array, "*shape"]:
    """The codes again, in the shape that they had: int8 where they are signed and uint8 where not.

    Raises ValueError where the bytes are not uint8, or not as many as the shape and the bits ask for.
    """
    if not isinstance(shape, tuple) or any(length < 0 for length in shape):
        raise invalid("shape", got=shape, wants="a tuple of lengths of axes")
    count, low = math.prod(shape), -(2 ** (bits - 1)) if signed else 0
    if packed.dtype != np.uint8 or len(packed) != -(-bits * count // 8):
        raise invalid("packed", got=f"{len(packed)} of {packed.dtype}", wants=f"{-(-bits * count // 8)} of uint8, for {count} codes of {bits} bits")
    if bits == 4:
        codes = np.stack([packed >> 4, packed & 15], axis=-1).ravel()[:count]  # (3)
    else:
        each = np.unpackbits(packed, count=bits * count).reshape(count, bits)
        whole = np.concatenate([np.zeros((count, 8 - bits), np.uint8), each], axis=1)
        codes = np.packbits(whole, axis=1)[:, 0]             # (3)
    return (codes.astype(np.int16) + low).astype(np.int8 if signed else np.uint8).reshape(shape)
