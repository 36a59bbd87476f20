"""The GGUF format of llama.cpp: metadata and tensors in one file, the weights mostly in blocks of few bits. Nothing in it can be run.

    4 bytes       "GGUF"
    version       2 or 3, which differ in nothing that is read here; all numbers are little-endian
    counts        how many tensors, how many metadata
    metadata      key, type, value; a string is its length and its UTF-8, an array the type of its members, their number, and they
    tensors       name, number of axes, sizes with the fastest axis first, type, offset
    the rest      from the next multiple of general.alignment (32 where it is not said); the offsets count from here

Source: https://github.com/ggml-org/ggml, docs/gguf.md, and the layouts of blocks in src/ggml-common.h. Blocks lie along the
fastest axis, the last one of the arrays that are returned. d and m are float16; q are whole numbers.

    F32, F16, BF16   the numbers themselves; BF16 is the upper half of a float32   (1)
    Q8_0    34 bytes for 32 weights: d, then 32 signed bytes q:   w = d q          (2)
    Q4_0    18 bytes for 32 weights: d, then 16 bytes of q:       w = d (q - 8)    (3)
    Q4_1    20 bytes for 32 weights: d, m, then 16 bytes of q:    w = d q + m      (4)

A byte of four-bit q holds two: that of weight i in its lower half, that of weight i + 16 in its upper.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

_AT_ONCE = 65_536  # weights: a quarter of a megabyte, which stays in the cache between the operations on it
_DEEPEST = 8  # arrays of arrays


class Kind(NamedTuple):
    """A type of tensors: weights in a block, its bytes, and ``decode(blocks, out)`` from bytes (n, bytes) to float32 (n, weights)."""

    name: str
    weights: int
    bytes: int
    decode: Callable[[Array, Array], None]


class GgufTensor(NamedTuple):
    """A tensor as it lies in the file; shape is as NumPy has it, the fastest axis last."""

    kind: Kind
    shape: tuple[int, ...]
    raw: memoryview

    def dequantized(self) -> Array:
        """The weights as float32, in an array of the caller's own."""
        blocks = np.frombuffer(self.raw, np.uint8).reshape(-1, self.kind.bytes)
        out = np.empty((len(blocks), self.kind.weights), np.float32)
        step = _AT_ONCE // self.kind.weights
        with np.errstate(invalid="ignore"):                  # a scale may be inf
            for start in range(0, len(blocks), step):
                self.kind.decode(blocks[start : start + step], out[start : start + step])
        return out.reshape(self.shape)


class Gguf(NamedTuple):
    """What a file holds. Arrays of numbers among the metadata are NumPy's, those of strings lists."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: str | Path) -> Gguf:
    """The metadata and the tensors, which stay as they lie in the file until they are asked for.

    Raises ValueError that names the file where it cannot be read, is no GGUF or one of another version, is cut off or damaged in a way
    that can be told, or holds a tensor of a type that is not read here.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return _read(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(content: bytes) -> Gguf:
    if content[:4] != b"GGUF":
        raise ValueError(f"is not a GGUF file: it starts with {content[:4]!r}, not with b'GGUF'")
    file = _Cursor(content, 4)
    version = file.number("I", "the version")
    if version not in (2, 3):
        hint = ", which is that of a big-endian file" if version in (2 << 24, 3 << 24) else ""
        raise ValueError(f"is a GGUF file of version {version}{hint}; wants 2 or 3, little-endian")
    num_tensors, num_metadata = file.number("Q", "the counts"), file.number("Q", "the counts")
    metadata: dict[str, Any] = {}
    for i in range(num_metadata):
        key = file.text(f"the key of metadata {i}")
        what = f"the metadata {key!r:.80}"
        if key in metadata:
            raise ValueError(f"is damaged: {what} stand there twice")
        metadata[key] = file.value(file.number("I", what), what)
    tensors = [file.tensor(i) for i in range(num_tensors)]
    if len({name for name, *_ in tensors}) < len(tensors):
        raise ValueError("is damaged: a tensor stands there twice")

    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 8 or alignment % 8:
        raise ValueError(f"is damaged: general.alignment is {alignment!r:.40}, wants a multiple of 8")
    start = -(-file.place // alignment) * alignment          # -(-a // b) rounds up
    data, reached = memoryview(content)[start:], 0
    for name, kind, shape, offset in sorted(tensors, key=lambda tensor: tensor[3]):
        size = _size(shape, kind)
        if offset + size > len(data):
            raise ValueError(f"is cut off or damaged: the tensor {name!r:.80} ends {offset + size:,} bytes behind the head, where there are {len(data):,}")
        if offset % alignment or offset < reached:
            why = f"is no multiple of {alignment}" if offset % alignment else "lies within another tensor"
            raise ValueError(f"is damaged: the offset of the tensor {name!r:.80}, {offset:,}, {why}")
        reached = offset + size
    return Gguf(metadata, {name: GgufTensor(kind, shape, data[at : at + _size(shape, kind)]) for name, kind, shape, at in tensors})


def _size(shape: tuple[int, ...], kind: Kind) -> int:
    return math.prod(shape) // kind.weights * kind.bytes


class _Cursor:
    """A place in the file, and what is read from there; everything is looked for before anything is made of its size."""

    def __init__(self, content: bytes, place: int) -> None:
        self.content, self.place = content, place

    def skip(self, size: int, what: str) -> int:
        """Where ``size`` bytes begin, behind which the cursor then stands."""
        start, left = self.place, len(self.content) - self.place
        if size > left:
            raise ValueError(f"is cut off or damaged: {what} wants {size:,} bytes, of which {left:,} are there")
        self.place += size
        return start

    def number(self, code: str, what: str) -> Any:
        form = _FORMS[code]
        return form.unpack_from(self.content, self.skip(form.size, what))[0]

    def text(self, what: str) -> str:
        size = self.number("Q", what)
        start = self.skip(size, what)
        try:
            return self.content[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"is damaged: {what} is not UTF-8, at byte {error.start}") from None

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            if depth == _DEEPEST:
                raise ValueError(f"is damaged: {what} are nested too deeply")
            member, count = self.number("I", what), self.number("Q", what)
            if member in _NUMBERS:
                code = _NUMBERS[member]
                stored = np.dtype("u1" if code == "?" else f"<{code}")
                start = self.skip(count * stored.itemsize, what)
                return np.frombuffer(self.content, stored, count, start).astype(code)
            if count * 8 > len(self.content) - self.place:   # the shortest member is a string of no characters
                raise ValueError(f"is cut off or damaged: {what} should have {count:,} members")
            return [self.value(member, what, depth + 1) for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"is damaged: {what} are of type {kind}, which there is not")
        return self.number(_NUMBERS[kind], what)

    def tensor(self, i: int) -> tuple[str, Kind, tuple[int, ...], int]:
        name = self.text(f"the name of tensor {i}")
        what = f"the tensor {name!r:.80}"
        axes = self.number("I", what)
        if axes > 4:
            raise ValueError(f"is damaged: {what} has {axes} axes, wants at most 4")
        shape = tuple(self.number("Q", what) for _ in range(axes))[::-1]
        number, offset = self.number("I", what), self.number("Q", what)
        if number not in KINDS:
            known = ", ".join(f"{n} ({kind.name})" for n, kind in KINDS.items())
            raise ValueError(f"holds {what} of type {number}, which is not read here; wants one of {known}")
        kind = KINDS[number]
        if math.prod(size or 1 for size in shape) >= 2**60 or (shape[-1] if shape else 1) % kind.weights:
            raise ValueError(f"is damaged: {what} has the shape {shape}, which no tensor of type {kind.name} has")
        return name, kind, shape, offset


def _f32(blocks: Array, out: Array) -> None:
    out[...] = blocks.view("<f4")                            # (1)


def _f16(blocks: Array, out: Array) -> None:
    out[...] = blocks.view("<f2")


def _bf16(blocks: Array, out: Array) -> None:
    np.left_shift(blocks.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def _q8_0(blocks: Array, out: Array) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _halves(blocks, 1), out=out)  # (2)


def _q4_0(blocks: Array, out: Array) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= 8
    out *= _halves(blocks, 1)                                # (3)


def _q4_1(blocks: Array, out: Array) -> None:
    scale, minimum = np.split(_halves(blocks, 2), 2, axis=1)
    _nibbles(blocks[:, 4:], out)
    out *= scale
    out += minimum                                           # (4)


def _halves(blocks: Array, count: int) -> Array:
    """The float16 numbers at the head of each block, (n, count) in float32."""
    return blocks[:, : 2 * count].copy().view("<f2").astype(np.float32)


def _nibbles(packed: Array, out: Array) -> None:
    np.bitwise_and(packed, 15, out=out[:, :16], casting="unsafe")
    np.right_shift(packed, 4, out=out[:, 16:], casting="unsafe")


KINDS = {
    0: Kind("F32", 1, 4, _f32), 1: Kind("F16", 1, 2, _f16), 2: Kind("Q4_0", 32, 18, _q4_0), 3: Kind("Q4_1", 32, 20, _q4_1),
    8: Kind("Q8_0", 32, 34, _q8_0), 30: Kind("BF16", 1, 2, _bf16),
}  # fmt: skip
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FORMS = {code: struct.Struct(f"<{code}") for code in "BbHhIifQqd?"}
