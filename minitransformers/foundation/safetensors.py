"""The .safetensors format: a JSON header that says where each array lies, then the arrays. Nothing in it can be run.

    8 bytes       size of the header, unsigned, little-endian
    header        JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {text: text}}
    the rest      the arrays, little-endian, rows first; offsets count from the start of this part

Source: https://github.com/huggingface/safetensors, section "Format". A file is refused, as the reference refuses it,
when an array overlaps another, leaves a gap, or does not fill its offsets: a damaged file never becomes weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import invalid
from minitransformers.foundation.atomic import write_atomically

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}
_SIZES = {name: np.dtype(code).itemsize for name, code in _DTYPES.items()} | {"BF16": 2}
_LARGEST_HEADER = 100_000_000  # as the reference has it


def write_safetensors(path: str | Path, arrays: Mapping[str, Array], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays by name, and a map of text to text, atomically: the file is the old or the new one.

    Raises ValueError for a dtype that the format does not know, a name that is taken, and text that UTF-8 does not have.
    """
    if not all(_is_text(text) for pair in (metadata or {}).items() for text in pair):
        raise invalid("metadata", got=f"{dict(metadata or {})!r:.200}", wants="a map of text to text, without half a surrogate pair")
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts, offset = [], 0
    # Wide items first: every array then starts at a multiple of its item size, so a reader may map the file.
    for name in sorted(arrays, key=lambda name: -np.asarray(arrays[name]).dtype.itemsize):
        array = np.asarray(arrays[name])
        little = array.dtype.newbyteorder("<")
        if name == "__metadata__" or not _is_text(name):
            raise invalid("arrays", got=f"the name {name!r}", wants="another name")
        if little not in _NAMES:
            raise invalid(name, got=str(array.dtype), wants=f"one of {', '.join(map(str, _NAMES))}")
        raw = array.astype(little, order="C", copy=False)
        header[name] = {"dtype": _NAMES[little], "shape": list(array.shape), "data_offsets": [offset, offset + raw.nbytes]}
        parts.append(raw.tobytes() if raw.ndim == 0 or raw.size == 0 else raw.reshape(-1).view(np.uint8).data)
        offset += raw.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)                           # the arrays start at a multiple of eight
    write_atomically(path, [len(text).to_bytes(8, "little"), text, *parts])


def read_safetensors(path: str | Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays, which are the caller's own, and the metadata. bfloat16, which NumPy lacks, is read as float32.

    Raises ValueError that names the file when it is not there, is cut off or is damaged in a way that can be told.
    """
    path = Path(path)
    header, metadata, data = _read(path)
    arrays = {}
    for name, (dtype, shape, begin, end) in header.items():
        raw = data[begin:end]
        if dtype == "BF16":                                   # the upper half of a float32
            array = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            array = np.frombuffer(raw, _DTYPES[dtype]).copy()
        arrays[name] = array.reshape(shape)
    return arrays, metadata


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata alone. Raises ValueError as read_safetensors does."""
    return _read(Path(path))[1]


def _read(path: Path) -> tuple[dict[str, tuple[str, list[int], int, int]], dict[str, str], memoryview]:
    try:
        content = memoryview(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None

    def damaged(why: str) -> ValueError:
        return ValueError(f"{path}: is not a whole .safetensors file: {why}")

    if len(content) < 8:
        raise damaged(f"{len(content)} bytes, wants at least 8")
    size = int.from_bytes(content[:8], "little")
    if size > min(len(content) - 8, _LARGEST_HEADER):
        raise damaged(f"the header should have {size} bytes, but {len(content) - 8} follow")
    try:
        header = json.loads(bytes(content[8 : 8 + size]).decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise damaged(f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise damaged("the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(_is_text(text) for pair in metadata.items() for text in pair):
        raise damaged("__metadata__ is not a map of text to text")

    data, entries = content[8 + size :], {}
    for name, entry in header.items():
        if not _is_text(name):
            raise damaged(f"{name!r:.80} is no name: it holds half a surrogate pair")
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = [*shape, begin, end]
        except (TypeError, KeyError, ValueError):
            raise damaged(f"{name} wants a dtype, a shape and two data_offsets") from None
        if len(entry) != 3 or not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise damaged(f"{name} has a shape or offsets that are no whole numbers")
        if not isinstance(dtype, str) or dtype not in _SIZES:
            raise damaged(f"{name} has the dtype {dtype!r:.80}, wants one of {', '.join(_SIZES)}")
        if len(shape) > 64 or math.prod(n or 1 for n in shape) >= 2**60:  # NumPy leaves empty axes out, too, when it counts bytes
            raise damaged(f"{name} has a shape that no array can have")
        if max(begin, end) > len(data):
            raise damaged(f"{name} has offsets beyond the {len(data)} bytes that follow the header")
        if end - begin != math.prod(shape) * _SIZES[dtype]:
            raise damaged(f"{name} has {end - begin} bytes, but {dtype} of shape {shape} takes {math.prod(shape) * _SIZES[dtype]}")
        entries[name] = dtype, shape, begin, end
    reached = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != reached:
            raise damaged(f"{name} starts at {begin}, but the array before it ends at {reached}")
        reached = end
    if reached != len(data):
        raise damaged(f"the arrays should take {reached} bytes, but {len(data)} follow the header")
    return entries, metadata, data


def _is_text(value: Any) -> bool:
    """Whether it is text that UTF-8 has: JSON can write half a surrogate pair, the reference refuses it."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found
