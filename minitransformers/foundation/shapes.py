"""Shapes: arrays against the jaxtyping annotations that the reader sees in the signature.

``Float[Array, "... queries d_head"]`` says: floating, the last axis is d_head wherever d_head stands, the axis before
it is queries, and anything may stand in front. The message names the argument, what it got and what it wants:

    x: got shape (2, 3, 8), wants (..., d_model) with d_model = 7 as in params.gain

What is understood of jaxtyping's axis language: names, numbers, ``...``, ``*batch`` (axes that must agree wherever the
name stands), ``*#batch`` (axes that broadcast together), ``#name`` (1 or the named size) and products such as ``2*d``.
Floating arrays are float32 or float64, and all those of a call have one dtype.
"""

from __future__ import annotations

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


def check_array(value: Any, path: str, scope: Scope, call: Call, *, kinds: str | None, dims: list[str]) -> None:
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


def _fit(shape: tuple[int, ...], dims: list[str], path: str, scope: Scope) -> str | None:
    """None where the shape fits and its new names are bound; otherwise what to add to the message."""
    variadic = [i for i, token in enumerate(dims) if token == "..." or token.startswith("*")]
    if len(shape) < len(dims) - len(variadic) or (not variadic and len(shape) != len(dims)):
        return ""
    extra = len(shape) - len(dims) + 1
    sizes: list[Any] = list(shape)
    if variadic:
        first = variadic[0]
        sizes = [*shape[:first], shape[first : first + extra], *shape[first + extra :]]
    for token, size in zip(dims, sizes, strict=True):
        if token in ("...", "_"):
            continue
        name = token.lstrip("*#")
        if name not in scope.sizes and name.isidentifier():
            if not (token.startswith("#") and size == 1):
                scope.sizes[name], scope.places[name] = size, path
            continue
        wanted: Any = scope.sizes[name] if name.isidentifier() else _evaluate(name, scope.sizes)
        if token.startswith("*#"):
            try:
                scope.sizes[name] = np.broadcast_shapes(wanted, size)
            except ValueError:
                return f" with {name} = {wanted} as in {scope.places[name]}, or axes that broadcast with it"
        elif size != wanted and not (token.startswith("#") and size == 1) and wanted is not None:
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
