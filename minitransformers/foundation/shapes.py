"""Checks arguments against the jaxtyping annotations that the reader sees in the signature.

``Float[Array, "... queries d_head"]`` says: floating, the last axis is d_head wherever d_head stands, the axis before
it is queries, and anything may stand in front. The message names the argument, what it got and what it wants:

    x: got shape (2, 3, 8), wants (..., d_model) with d_model = 7 as in params.gain

What is understood of jaxtyping's axis language: names, numbers, ``...``, ``*batch`` (axes that must agree wherever the
name stands), ``*#batch`` (axes that broadcast together), ``#name`` (1 or the named size) and products such as ``2*d``.
The axis names of a parameter tuple belong to it; ``Annotated[Linear, "d_model d_hidden"]`` gives Linear's axes, in the
order in which they first appear, names in the tuple that holds it.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_KINDS = {"Float": "f", "Int": "iu", "Integer": "iu", "Bool": "b", "Complex": "c", "Real": "fiu", "Num": "fiuc", "Shaped": None}
_KIND_WORDS = {"f": "floating", "iu": "integer", "b": "boolean", "c": "complex", "fiu": "real", "fiuc": "numeric"}


@dataclass
class _Scope:
    """Sizes seen so far, and where each was seen first."""

    sizes: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)


@dataclass
class _Call:
    """What all arguments of one call share: the floating dtype and the argument that set it."""

    dtype: np.dtype | None = None
    dtype_from: str = ""


def check_arguments(function: Callable, args: tuple, config: dict[str, Any]) -> None:
    """Raise ValueError for the first argument that does not fit its annotation.

    Which arguments there must be is not asked here: Python does, when the function is called.
    """
    names, rest, checks = _compiled(function)
    given = {**dict(zip(names, args, strict=False)), **config}  # several times faster than inspect.s bind
    if len(args) > len(names):
        given[rest] = args[len(names) :]
    scope, call = _Scope(), _Call()
    for name, check in checks.items():
        if name in given:
            check(given[name], name, scope, call)


def check_like(name: str, value: Any, pattern: Any) -> None:
    """Raise ValueError where ``value`` has not the structure, shapes and dtypes of ``pattern``."""
    if isinstance(pattern, (tuple, list)):
        if not isinstance(value, (tuple, list)) or len(value) != len(pattern):
            raise ValueError(f"{name}: got {_describe(value)}, wants {len(pattern)} parts, as the output has")
        for i, (part, wanted) in enumerate(zip(value, pattern, strict=True)):
            check_like(f"{name}.{getattr(pattern, '_fields', range(len(pattern)))[i]}", part, wanted)
    elif not hasattr(value, "dtype") or np.shape(value) != np.shape(pattern) or value.dtype != pattern.dtype:
        raise ValueError(f"{name}: got {_describe(value)}, wants {_describe(pattern)}, as the output is")


def _describe(value: Any) -> str:
    return f"{value.dtype} of shape {np.shape(value)}" if hasattr(value, "dtype") else type(value).__name__


@functools.cache
def _compiled(function: Callable) -> tuple[list[str], str, dict[str, Callable]]:
    """The names of what is given by position, the name of the rest (*rest), and a check for each that has one, in order."""
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), "")
    checks = {p.name: _compile(hints[p.name]) for p in parameters if p.name in hints}
    return by_position, rest, {name: check for name, check in checks.items() if check is not None}


def _compile(hint: Any) -> Callable | None:
    """A function (value, path, scope, call) that checks one annotation, or None where it says nothing about arrays."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hasattr(hint, "dim_str") and hasattr(hint, "dtypes"):
        return functools.partial(_check_array, kinds=_KINDS.get(hint.__name__.split("[")[0]), dims=hint.dim_str.split())
    if origin is typing.Annotated:
        return _compile_tuple(arguments[0], arguments[1].split())
    if origin in (typing.Union, types.UnionType):
        inner = [check for check in map(_compile, arguments) if check is not None]
        if type(None) in arguments and len(inner) == 1:
            return lambda value, path, scope, call: None if value is None else inner[0](value, path, scope, call)
        if all(hasattr(argument, "_fields") for argument in arguments):
            return functools.partial(_check_one_of, checks=dict(zip(arguments, inner, strict=True)))
        return None
    if origin is list:
        inner_check = _compile(arguments[0])
        return inner_check and functools.partial(_check_list, inner=inner_check)
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return _compile_tuple(hint, None)
    return None


def _compile_tuple(cls: type, names: list[str] | None) -> Callable:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [(name, _compile(hints[name])) for name in cls._fields]  # type: ignore[attr-defined]
    if names is not None:
        own = _axis_names(hints.values())
        if len(own) != len(names):
            raise TypeError(f"Annotated[{cls.__name__}, {' '.join(names)!r}]: its axes are {' '.join(own)}")

    def check(value: Any, path: str, scope: _Scope, call: _Call) -> None:
        if not isinstance(value, cls):
            raise ValueError(f"{path}: got {type(value).__name__}, wants {cls.__name__}")
        top = "." not in path
        inner = scope if top and names is None else _Scope()
        if names is not None:
            inner.sizes = {mine: scope.sizes[theirs] for mine, theirs in zip(own, names, strict=True) if theirs in scope.sizes}
            inner.places = {mine: scope.places[theirs] for mine, theirs in zip(own, names, strict=True) if theirs in scope.places}
        for (name, field_check), part in zip(fields, value, strict=True):
            if field_check is not None:
                field_check(part, f"{path}.{name}", inner, call)
        if names is not None:
            for mine, theirs in zip(own, names, strict=True):
                if mine in inner.sizes:
                    scope.sizes.setdefault(theirs, inner.sizes[mine])
                    scope.places.setdefault(theirs, inner.places[mine])

    return check


def _axis_names(hints: Any) -> list[str]:
    """Axis names in the order in which they first appear in a parameter tuple."""
    names: list[str] = []
    for hint in hints:
        for part in [hint, *typing.get_args(hint)]:
            for token in getattr(part, "dim_str", "").split():
                if token.isidentifier() and token not in names:
                    names.append(token)
    return names


def _check_one_of(value: Any, path: str, scope: _Scope, call: _Call, *, checks: dict[type, Callable]) -> None:
    if type(value) not in checks:
        raise ValueError(f"{path}: got {type(value).__name__}, wants {' or '.join(cls.__name__ for cls in checks)}")
    checks[type(value)](value, path, scope, call)


def _check_list(value: Any, path: str, scope: _Scope, call: _Call, *, inner: Callable) -> None:
    if not isinstance(value, list):
        raise ValueError(f"{path}: got {type(value).__name__}, wants a list")
    for i, item in enumerate(value):
        inner(item, f"{path}.{i}", _Scope(), call)


def _check_array(value: Any, path: str, scope: _Scope, call: _Call, *, kinds: str | None, dims: list[str]) -> None:
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        word = _KIND_WORDS.get(kinds or "", "")
        raise ValueError(f"{path}: got {type(value).__name__}, wants a NumPy array{f' ({word})' if word else ''}")
    if kinds is not None and value.dtype.kind not in kinds:
        raise ValueError(f"{path}: got {value.dtype}, wants a {_KIND_WORDS[kinds]} array")
    if kinds == "f":
        if call.dtype is None:
            call.dtype, call.dtype_from = value.dtype, path
        elif value.dtype != call.dtype:
            raise ValueError(f"{path}: got {value.dtype}, wants {call.dtype}, as {call.dtype_from} is")
    shape = tuple(value.shape)
    if 0 in shape:
        raise ValueError(f"{path}: got shape {shape}, wants no empty axis")
    reason = _fit(shape, dims, path, scope)
    if reason is not None:
        raise ValueError(f"{path}: got shape {shape}, wants ({', '.join(dims)}){reason}")


def _fit(shape: tuple[int, ...], dims: list[str], path: str, scope: _Scope) -> str | None:
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
