"""Weights out of PyTorch's first file format, which is a pickle, without running one: what reads it here can build arrays and nothing else.

A pickle is a program for a small machine with a stack, and whoever runs it with Python's own machine runs whatever its author wanted. Here
the program is read opcode by opcode (pickletools tells them apart, and runs nothing). The few that a dict of tensors needs are known, and
three kinds of names: an ordered dict, the function that makes a tensor of a storage, and storages. All else is refused by its name.

    five pickles   a number that marks the format · its version, 1001 · sizes and byte order of the machine ·
                   the dict, in which a tensor says: storage, first number, shape, strides · the names of the storages, in order
    the rest       for each storage its count, 8 bytes, and its numbers, little-endian

Source: PyTorch's torch/serialization.py, the format before 1.6 (2020); what opcodes do: Python's pickletools. The format since then is a
zip archive, and is refused: such weights are published as .safetensors, too.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2",
    "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_GLOBALS = {_DICT, _TENSOR, *(f"torch {name}" for name in _DTYPES)}


class _Global(NamedTuple):
    """A name that a program may say. It is never looked up."""

    name: str


class _Storage(NamedTuple):
    key: str
    dtype: str
    size: int


class _Tensor(NamedTuple):
    """What a tensor is: the numbers first, first + stride, ... of a storage."""

    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()


def read_torch_file(path: str | Path) -> dict[str, Array]:
    """The arrays of a dict of tensors by name, each of them the caller's own; where they were (on which device) does not matter.

    Raises ValueError that names the file when it is not there, is cut off or damaged, is of the later format, or holds anything but a
    dict of tensors; for what would have been run, with its name.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return _arrays(content)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error) or 'is damaged'}".partition("\n")[0]) from None


def _arrays(content: bytes) -> dict[str, Array]:
    if content.startswith(b"PK"):
        raise ValueError("is a zip archive, as PyTorch writes since version 1.6; wants the format before it, or .safetensors")
    file = io.BytesIO(content)
    if _run(file) != _MAGIC or _run(file) != _VERSION:
        raise ValueError(f"does not begin as a file of PyTorch, version {_VERSION}, does")
    machine, tensors, keys = _run(file), _run(file), _run(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("was not written on a little-endian machine")
    if not isinstance(tensors, dict) or not all(isinstance(tensor, _Tensor) for tensor in tensors.values()):
        raise ValueError("holds something else than a dict of tensors")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("has no list of its storages")
    storages: dict[str, _Storage] = {}
    for tensor in tensors.values():
        if storages.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
            raise ValueError(f"says two things of the storage {tensor.storage.key:.40}")
    if sorted(keys) != sorted(storages):
        raise ValueError(f"has {len(keys)} storages, and its tensors want {len(storages)}, or others")
    numbers = {key: _numbers(file, storages[key]) for key in keys}
    if file.read(1):
        raise ValueError("goes on behind its last storage")
    return {name: _view(name, tensor, numbers[tensor.storage.key]) for name, tensor in tensors.items()}


def _numbers(file: io.BytesIO, storage: _Storage) -> Array:
    dtype, count = np.dtype(storage.dtype), file.read(8)
    in_bytes = storage.size * dtype.itemsize
    raw = file.read(in_bytes)
    if len(count) < 8 or len(raw) < in_bytes:
        raise ValueError("is cut off")
    if struct.unpack("<q", count)[0] != storage.size:
        raise ValueError(f"has {struct.unpack('<q', count)[0]} numbers in a storage of {storage.size}")
    return np.frombuffer(raw, dtype)


def _view(name: str, tensor: _Tensor, numbers: Array) -> Array:
    """The numbers that a tensor says are its own. What lies outside the storage, or would grow beyond it, is no tensor."""
    _, first, shape, strides = tensor
    total: int = math.prod(shape)  # type: ignore[arg-type]  # of Python's own whole numbers, which do not overflow
    last = first + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if total > len(numbers) or (total and last >= len(numbers)):
        raise ValueError(f"{name:.80}: lies outside its storage of {len(numbers)} numbers")
    if not total:
        return np.zeros(shape, numbers.dtype)
    steps = tuple(numbers.itemsize * stride for stride in strides)
    return np.array(np.lib.stride_tricks.as_strided(numbers[first:], shape, steps), order="C")


def _run(file: io.BytesIO) -> Any:
    """What one of the pickles makes: numbers, texts, tuples, lists and dicts of them, and the tuples that are defined here."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return stack.pop() if len(stack) == 1 else _refuse("leaves something on the stack")
            _step(opcode.name, argument, stack, memo)
    except (IndexError, KeyError, UnicodeDecodeError, OverflowError, MemoryError):
        raise ValueError("is damaged") from None
    raise ValueError("is cut off")


def _refuse(what: str) -> Any:
    raise ValueError(what)


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """One opcode, if it is one of the few."""
    match name:
        case "PROTO":
            pass
        case "BINPUT" | "LONG_BINPUT":
            memo[argument] = stack[-1]
        case "BINGET" | "LONG_BINGET":
            stack.append(memo[argument])
        case "MARK":
            stack.append(_MARK)
        case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
            stack.append(argument)
        case "NONE" | "NEWTRUE" | "NEWFALSE":
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
            stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            stack.append(tuple(reversed([stack.pop() for _ in range(int(name[-1]))])))
        case "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        case "APPEND" | "APPENDS":
            items = [stack.pop()] if name == "APPEND" else _since_mark(stack)
            _of(list, stack[-1]).extend(items)
        case "SETITEM" | "SETITEMS":
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else _since_mark(stack)
            keys = items[::2]
            if len(items) % 2 or not all(isinstance(key, str) for key in keys):
                raise ValueError("has a dict with keys that are no names")
            _of(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))
        case "GLOBAL":
            if argument not in _GLOBALS:
                raise ValueError(f"asks for {argument.replace(' ', '.'):.100}, which is not needed for weights: it is not run")
            stack.append(_Global(argument))
        case "BINPERSID":
            stack.append(_storage(stack.pop()))
        case "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments))
        case "BUILD":                                        # versions of modules, which PyTorch hangs on the dict
            _of(dict, stack.pop())
            _of(dict, stack[-1])
        case _:
            raise ValueError(f"has the opcode {name}, which is not needed for weights: it is not run")


def _since_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _of(kind: type, value: Any) -> Any:
    return value if type(value) is kind else _refuse(f"does with a {type(value).__name__} what is done with a {kind.__name__}")


def _storage(said: Any) -> _Storage:
    match said:
        case ("storage", _Global(kind), str(key), str(), int(count), None) if kind.startswith("torch ") and 0 <= count < 2**48:
            return _Storage(key, _DTYPES[kind.removeprefix("torch ")], count)
    raise ValueError("speaks of something that is no storage, or is a part of another")


def _called(function: Any, arguments: Any) -> Any:
    """The two calls that are needed: an empty dict, and a tensor."""
    match function, arguments:
        case _Global(name), () if name == _DICT:
            return {}
        case _Global(name), (_Storage() as storage, int(first), tuple(shape), tuple(strides), bool(), dict()) if name == _TENSOR:
            whole = all(type(number) is int and 0 <= number < 2**48 for number in (first, *shape, *strides))
            if whole and len(shape) == len(strides) <= 32:
                return _Tensor(storage, first, shape, strides)
            raise ValueError("has a tensor with a shape that none has")
    raise ValueError(f"calls {function.name.replace(' ', '.') if isinstance(function, _Global) else 'what is no function'} in a way that is not needed for weights")
