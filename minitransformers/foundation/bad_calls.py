"""Bad calls, made from a signature: what no label has to list, because the annotations say it already."""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minitransformers.foundation import trees
from minitransformers.foundation.catalogue import Example, Rejection
from minitransformers.foundation.ranges import Range


def bad_calls(function: Callable, example: Example) -> Iterator[tuple[str, Rejection]]:
    """Changes of one argument of the example, each with words for it, that must be refused by the argument's name."""
    hints = typing.get_type_hints(function, include_extras=True)
    given = _given(function, example)
    floats = sum(getattr(leaf, "dtype", np.dtype(bool)).kind == "f" for _, leaf in trees.leaves(list(given.values())))
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in hints or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = given.get(name, parameter.default)
        for what, bad in _bad_values(hints[name], value, floats):
            yield f"{name} = {what}", Rejection(name, {name: bad})


def resized(example: Example) -> Iterator[tuple[str, Example]]:
    """The example with one axis of one array one longer, or cut to 1. Some of these calls are right and some are not.

    Of the layers of a stack, which are alike, the first is taken.
    """
    for path, leaf in _unlike(example.args):
        for axis in range(np.ndim(leaf)):
            for what, take in (("longer", [*range(leaf.shape[axis]), leaf.shape[axis] - 1]), ("1", [0])):
                if len(take) != leaf.shape[axis]:
                    changed = np.take(leaf, take, axis=axis)
                    yield f"args.{path}, axis {axis} {what}", Example(_replaced(example.args, path, changed), example.config)


def _unlike(tree: Any) -> list[tuple[str, Any]]:
    """The leaves, without those that are the same place in a later item of a list."""
    found: dict[str, tuple[str, Any]] = {}
    for path, leaf in trees.leaves(tree):
        found.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "0", path), (path, leaf))
    return list(found.values())


def _given(function: Callable, example: Example) -> dict[str, Any]:
    return {**dict(zip(inspect.signature(function).parameters, example.args, strict=False)), **example.config}


def _replaced(tree: Any, wanted: str, leaf: Any) -> Any:
    found = [(path, leaf if path == wanted else old) for path, old in trees.leaves(tree)]
    return trees.unflatten(tree, [new for _, new in found])


def _bad_values(hint: Any, value: Any, floats: int) -> Iterator[tuple[str, Any]]:
    """Values that an annotation does not allow, in words and as they are."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    allowed = None
    if origin is typing.Annotated:
        allowed = next((extra for extra in arguments[1:] if isinstance(extra, Range)), None)
        hint, origin, arguments = arguments[0], typing.get_origin(arguments[0]), typing.get_args(arguments[0])
    if origin in (typing.Union, types.UnionType):
        if len(arguments) == 2 and type(None) in arguments:
            inner = _bad_values(next(a for a in arguments if a is not type(None)), value, floats)
            yield from ((what, bad) for what, bad in inner if bad is not None)
        return
    if hint in (int, float):
        wrong = [*(allowed.outside if allowed else (math.nan, math.inf)), "text", None, True, [1], *([1.5] if hint is int else [10**400])]
        yield from ((repr(bad), hint(bad) if hint is int and isinstance(bad, float) and bad.is_integer() else bad) for bad in wrong)
    elif hint is bool:
        yield from ((repr(bad), bad) for bad in (2, "yes", None))
    elif origin is typing.Literal:
        yield from ((repr(bad), bad) for bad in ("no such", 7, None, [1]))
    elif hint is str or hint is Callable or origin is Callable or hint is np.random.Generator:
        yield from ((repr(bad), bad) for bad in (7, [1]))
    elif isinstance(value, np.ndarray) and hasattr(hint, "dim_str"):
        yield from _bad_arrays(hint, value, floats, allowed)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield "7", 7
        for path, leaf in _unlike(value):
            for what, bad in (*_bad_dtypes(leaf, floats), ("a list", leaf.tolist() if leaf.ndim else [1.0])):
                yield f"{path}, {what}", _replaced(value, path, bad)
        for path, number, bad in _beyond_their_ranges(value):
            yield f"{number} in {path}", bad


def _beyond_their_ranges(params: Any) -> Iterator[tuple[str, float, Any]]:
    """Parameters with a number in one field that the field's own annotation does not allow, at any depth."""
    hints = typing.get_type_hints(type(params), include_extras=True)
    inner: Iterator[tuple[str, float, Any]]
    for name, value in zip(params._fields, params, strict=True):
        if hasattr(value, "_fields"):
            inner = ((f"{name}.{path}", number, bad) for path, number, bad in _beyond_their_ranges(value))
        else:
            annotated = [hints[name], *typing.get_args(hints[name])]  # a field may also be None
            extras = [extra for hint in annotated for extra in getattr(hint, "__metadata__", ())]
            allowed = next((extra for extra in extras if isinstance(extra, Range)), None)
            inner = ((name, number, bad) for number, bad in _outside(value, allowed)) if isinstance(value, np.ndarray) else iter(())
        for path, number, bad in inner:
            yield path, number, params._replace(**{name: bad})


def _bad_arrays(hint: Any, value: np.ndarray, floats: int, allowed: Range | None) -> Iterator[tuple[str, Any]]:
    yield "a list", [1.0, 2.0]
    if hint.__name__.split("[")[0] in ("Float", "Int", "Bool"):
        yield from _bad_dtypes(value, floats)
    if value.ndim:
        yield "an empty array", value[..., :0]
    if not any(token == "..." or token.startswith("*") for token in hint.dim_str.split()):
        yield "one axis more", value[None]
    yield from ((f"{number} in it", bad) for number, bad in _outside(value, allowed))


def _outside(value: np.ndarray, allowed: Range | None) -> Iterator[tuple[float, np.ndarray]]:
    """The array with one number that the range does not allow."""
    for number in () if allowed is None else allowed.outside:
        if value.dtype.kind == "f" or math.isfinite(number):
            bad = value.copy()
            bad.flat[-1] = number
            yield number, bad


def _bad_dtypes(value: np.ndarray, floats: int) -> Iterator[tuple[str, Any]]:
    kinds = {"f": (np.int64, np.float16, np.complex128, bool), "i": (np.float64, bool), "u": (np.float64, bool), "b": (np.int64, np.float64)}
    for dtype in kinds.get(value.dtype.kind, ()):
        yield np.dtype(dtype).name, value.astype(dtype)
    if value.dtype.kind == "f" and floats > 1:
        yield "float32 beside float64", value.astype(np.float32)
