"""Shapes: arrays against the jaxtyping annotations that the reader sees in the signature.

``Float[Array, "... queries d_head"]`` says: floating, the last axis is d_head wherever d_head stands, the axis before
it is queries, and anything may stand in front. The message names the argument, what it got and what it wants:

    x: got shape (2, 3, 8), wants (..., d_model) with d_model = 7 as in params.gain

What is understood of jaxtyping's axis language: names, numbers, ``...``, ``*batch`` (axes that must agree wherever the
name stands), ``*#batch`` (axes that broadcast together), ``#name`` (1 or the named size) and products such as ``2*d``.
Floating arrays are float32 or float64, and all those of a call have one dtype.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KINDS = {"Float": "f", "Int": "iu", "Integer": "iu", "Bool": "b", "Complex": "c", "Real": "fiu", "Num": "fiuc", "Shaped": None}
_KIND_WORDS = {"f": "floating", "iu": "integer", "b": "boolean", "c": "complex", "fiu": "real", "fiuc": "numeric"}
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class InvalidArgument(ValueError):
    """An argument that cannot be used. The message names it, and says what came and what is wanted."""


@dataclass
class Scope:
    """Sizes seen so far, and where each was seen first."""

    sizes: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """What all arguments of one call share: the floating dtype and the argument that set it."""

    dtype: np.dtype | None = None
    dtype_from: str = ""


def check_array(value: Any, path: str, scope: Scope, call: Call, *, kinds: str | None, dims: tuple[str, ...]) -> None:
    """Raise InvalidArgument, naming the path, unless the value is an array of that kind and of the shape that dims ask for."""
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        word = _KIND_WORDS.get(kinds or "", "")
        raise InvalidArgument(f"{path}: got {type(value).__name__}, wants a NumPy array{f' ({word})' if word else ''}")
    if kinds is not None and value.dtype.kind not in kinds:
        raise InvalidArgument(f"{path}: got {value.dtype}, wants a {_KIND_WORDS[kinds]} array")
    if kinds == "f":
        same_dtype(value.dtype, path, call)
    shape = tuple(value.shape)
    if 0 in shape:
        raise InvalidArgument(f"{path}: got shape {shape}, wants no empty axis")
    reason = _fit(shape, dims, path, scope)
    if reason is not None:
        raise InvalidArgument(f"{path}: got shape {shape}, wants ({', '.join(dims)}){reason}")


def same_dtype(dtype: np.dtype, path: str, call: Call) -> None:
    """Raise InvalidArgument unless the dtype is that of the call, which the first floating array sets."""
    if dtype not in _FLOATS:
        raise InvalidArgument(f"{path}: got {dtype}, wants float32 or float64")
    if call.dtype is None:
        call.dtype, call.dtype_from = dtype, path
    elif dtype != call.dtype:
        raise InvalidArgument(f"{path}: got {dtype}, wants {call.dtype}, as {call.dtype_from} is")


@functools.cache
def _parsed(dims: tuple[str, ...]) -> tuple[int | None, list[tuple[str, str, bool]]]:
    """Where any number of axes may stand, if anywhere; and of each token its marks, its name, and whether that is one."""
    variadic = next((i for i, token in enumerate(dims) if token == "..." or token.startswith("*")), None)
    names = [(token, token.lstrip("*#")) for token in dims]
    return variadic, [(token[: len(token) - len(name)], name, name.isidentifier() and name != "_") for token, name in names]


def _fit(shape: tuple[int, ...], dims: tuple[str, ...], path: str, scope: Scope) -> str | None:
    """None where the shape fits and its new names are bound; otherwise what to add to the message."""
    variadic, tokens = _parsed(dims)
    if len(shape) < len(dims) - (variadic is not None) or (variadic is None and len(shape) != len(dims)):
        return ""
    sizes: Any = shape
    if variadic is not None:
        extra = len(shape) - len(dims) + 1
        sizes = [*shape[:variadic], shape[variadic : variadic + extra], *shape[variadic + extra :]]
    for (marks, name, is_name), size in zip(tokens, sizes, strict=True):
        if name in ("...", "_"):
            continue
        if is_name and name not in scope.sizes:
            if not (marks == "#" and size == 1):
                scope.sizes[name], scope.places[name] = size, path
            continue
        wanted: Any = scope.sizes[name] if is_name else _evaluate(name, scope.sizes)
        if marks == "*#":
            try:
                scope.sizes[name] = np.broadcast_shapes(wanted, size)
            except ValueError:
                return f" with {name} = {wanted} as in {scope.places[name]}, or axes that broadcast with it"
        elif size != wanted and not (marks == "#" and size == 1) and wanted is not None:
            place = f" as in {scope.places[name]}" if name in scope.places else ""
            return f" with {name} = {wanted}{place}" if not name.isdigit() else ""
    return None


def _evaluate(expression: str, sizes: dict[str, Any]) -> int | None:
    """A number or a product of names, such as 2*d_model; None while one of its names is unknown."""
    product = 1
    for factor in expression.split("*"):
        if factor.isdigit():
            product *= int(factor)
        elif factor in sizes:
            product *= sizes[factor]
        else:
            return None
    return product
