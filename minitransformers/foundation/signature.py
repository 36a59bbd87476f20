"""Signatures that are kept: every argument of a call against its annotation, and every setting as Python's own number.

What an annotation may say, and what a call is then held to:

    Float[Array, "... d_model"]                   an array of that kind and shape (see shapes)
    Annotated[Float[Array, "heads"], positive]    and of numbers in that range (see ranges)
    Annotated[int, at_least(1)], int              a whole number; an np.int64 becomes an int, which cannot overflow
    Annotated[float, finite], float               a number; an np.float64 becomes a float, which widens no array
    bool, str, Literal["half", "interleaved"]     what they say
    Callable, np.random.Generator, any class      an instance of it
    Linear, Annotated[Linear, "d_model d_hidden"] a tuple of parameters, field by field, in the second form with Linear's
                                                  axes, in the order in which they first appear, named as the caller does
    list[X], X | None, Linear | Embedding         a list of such, such or None, one or the other
    Sequence[X]                                   a list or a tuple of such
    Any                                           a tree of parameters, each tuple in it checked as what it is

The axis names of a tuple belong to it, but for d_model: a part is as wide as what it is a part of. Stacked items of a list
may differ among themselves where what holds them has no width of its own.
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np

from minitransformers.foundation.ranges import Range, finite
from minitransformers.foundation.shapes import KINDS, Call, InvalidArgument, Scope, check_array, same_dtype

_LARGEST = 2**63 - 1
Check = Callable[[Any, str, Scope, Call], Any]

_SHARED = [("d_model", "d_model")]


def check_arguments(function: Callable, args: tuple, config: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments, numbers as Python's own. Raises InvalidArgument for the first that does not fit its annotation.

    Which arguments there must be is not asked here: Python does, when the function is called.
    """
    names, rest, checks = compiled(function)
    given = {**dict(zip(names, args, strict=False)), **config}  # several times faster than inspect's bind
    scope, call, config = Scope(), Call(), dict(config)
    by_position = list(args)
    for name, check in checks.items():
        if name in given:
            value = check(given[name], name, scope, call)
            if name in config:
                config[name] = value
            else:
                by_position[names.index(name)] = value
        elif name == rest:
            for i in range(len(names), len(args)):
                check(args[i], f"{name}.{i - len(names)}", scope, call)
    return tuple(by_position), config


def check_tree(name: str, tree: Any) -> None:
    """Raise InvalidArgument, naming the place, where a tree of parameters does not fit the annotations of its own tuples."""
    _tree(tree, name, Scope(), Call())


def axis_sizes(tree: Any, axis: str, path: str) -> Iterator[tuple[str, int]]:
    """The place and the size of every axis of that name in a tree of parameters, as the annotations of its tuples name them."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        for name, dims in _dims(type(tree)).items():
            part = getattr(tree, name)
            if part is not None and axis in dims:
                yield f"{path}.{name}", part.shape[dims.index(axis) - len(dims)]
    if isinstance(tree, (tuple, list)):
        for i, part in enumerate(tree):
            yield from axis_sizes(part, axis, f"{path}.{getattr(tree, '_fields', range(len(tree)))[i]}")


def check_like(name: str, value: Any, pattern: Any) -> None:
    """Raise InvalidArgument where ``value`` has not the structure, shapes and dtypes of ``pattern``; None stands for zeros."""
    if value is None:
        return
    if isinstance(pattern, (tuple, list)):
        if not isinstance(value, (tuple, list)) or len(value) != len(pattern):
            raise InvalidArgument(f"{name}: got {_describe(value)}, wants {len(pattern)} parts, as the output has")
        for i, (part, wanted) in enumerate(zip(value, pattern, strict=True)):
            check_like(f"{name}.{getattr(pattern, '_fields', range(len(pattern)))[i]}", part, wanted)
    elif not hasattr(value, "dtype") or np.shape(value) != np.shape(pattern) or value.dtype != getattr(pattern, "dtype", None):
        raise InvalidArgument(f"{name}: got {_describe(value)}, wants {_describe(pattern)}, as the output is")


def check_gradients_fit(function: Callable, args: tuple, gradients: Any) -> None:
    """Raise InvalidArgument, naming the argument, where a gradient has another shape than the array that it belongs to.

    No annotation tells what is in a slot how wide its neighbours are. Parameters of a wrong size may be broadcast: the
    output has the right shape, and only the gradient shows it.
    """
    names = compiled(function)[0]
    by_position = gradients if len(args) > 1 and isinstance(gradients, tuple) else (gradients,)
    for i, (array, gradient) in enumerate(zip(args, by_position, strict=False)):
        _fits(array, gradient, names[i] if i < len(names) else f"argument {i}")


def _fits(value: Any, gradient: Any, path: str) -> None:
    if isinstance(value, (tuple, list)) and isinstance(gradient, (tuple, list)):
        for i, (part, dpart) in enumerate(zip(value, gradient, strict=False)):
            _fits(part, dpart, f"{path}.{getattr(value, '_fields', range(len(value)))[i]}")
    elif hasattr(value, "dtype") and hasattr(gradient, "dtype") and value.shape != gradient.shape:
        raise InvalidArgument(f"{path}: got shape {value.shape}, wants {gradient.shape}, to which it was broadcast")


def _describe(value: Any) -> str:
    return f"{value.dtype} of shape {np.shape(value)}" if hasattr(value, "dtype") else type(value).__name__


@functools.cache
def compiled(function: Callable) -> tuple[list[str], str, dict[str, Check]]:
    """The names of what is given by position, the name of the rest (*rest), and a check for each that has one, in order."""
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), "")
    checks = {p.name: _compile(hints[p.name]) for p in parameters if p.name in hints and p.kind != p.VAR_KEYWORD}
    return by_position, rest, {name: check for name, check in checks.items() if check is not None}


def wanted(hint: Any) -> str:
    """What a setting's annotation asks for, in words: "a whole number of at least 1"; empty where it says nothing in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        ranges = [extra for extra in arguments[1:] if isinstance(extra, Range)]
        kind = {int: "a whole number", float: "a finite number"}.get(arguments[0], "finite numbers")
        return f"{kind} {ranges[0].words}".strip() if ranges else wanted(arguments[0])
    if origin in (typing.Union, types.UnionType):
        parts = [wanted(argument) for argument in arguments if argument is not type(None)]
        return " or ".join([*parts, "None"] if type(None) in arguments else parts) if all(parts) else ""
    if origin is typing.Literal:
        return " or ".join(map(repr, arguments))
    if origin is Callable or hint is Callable:
        return "a function"
    return {int: "a whole number", float: "a finite number", bool: "True or False", str: "text"}.get(hint, "")


def _compile(hint: Any) -> Check | None:
    """A function (value, path, scope, call) that checks one annotation and returns the value, or None where it says nothing."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:                           # first: it lends its base's attributes
        return _compile_annotated(arguments[0], arguments[1:])
    if hasattr(hint, "dim_str") and hasattr(hint, "dtypes"):
        return _array(KINDS.get(hint.__name__.split("[")[0]), tuple(hint.dim_str.split()))
    if origin in (typing.Union, types.UnionType):
        return _compile_union(arguments)
    if origin is list:
        return _list(_compile(arguments[0]))
    if origin is Sequence:
        return _sequence(_compile(arguments[0]))
    if origin is typing.Literal:
        return _literal(arguments)
    if origin is Callable:
        hint = Callable
    if hint is Any:
        return _tree
    if hint in (int, float):
        return _number(hint, finite)
    if hint is bool:
        return _boolean
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return _named_tuple(hint)
    if hint is Callable:
        return _function
    if isinstance(hint, type) and hint not in (object, type, np.ndarray):
        return _instance(hint)
    return None


def _compile_annotated(base: Any, extras: tuple) -> Check | None:
    for extra in extras:
        if isinstance(extra, str):
            return _named_tuple(base, extra.split())
        if isinstance(extra, Range):
            return _number(base, extra) if base in (int, float) else _ranged(_compile(base), extra)
    return _compile(base)


def _compile_union(arguments: tuple) -> Check | None:
    inner = [check for check in map(_compile, (a for a in arguments if a is not type(None))) if check is not None]
    if type(None) in arguments and len(arguments) == 2 and inner:
        return lambda value, path, scope, call: None if value is None else inner[0](value, path, scope, call)
    if all(hasattr(argument, "_fields") for argument in arguments):
        return _one_of(dict(zip(arguments, inner, strict=True)))
    return None


def _array(kinds: str | None, dims: tuple[str, ...]) -> Check:
    def check(value: Any, path: str, scope: Scope, call: Call) -> Any:
        check_array(value, path, scope, call, kinds=kinds, dims=dims)
        return value

    return check


def _ranged(inner: Check | None, allowed: Range) -> Check:
    def check(value: Any, path: str, scope: Scope, call: Call) -> Any:
        if inner is not None:
            inner(value, path, scope, call)
        low, high = value.min(), value.max()                 # a NaN is both, and lies in no range
        if not allowed.allows(low, high):
            raise InvalidArgument(f"{path}: got numbers from {low:.4g} to {high:.4g}, wants finite numbers {allowed.words}".rstrip())
        return value

    return check


def _number(kind: type, allowed: Range) -> Check:
    """An int or a float in a range, the float also as the call's dtype holds it."""
    words = f"a {'whole' if kind is int else 'finite'} number {allowed.words}".rstrip()

    def check(value: Any, path: str, scope: Scope, call: Call) -> Any:
        try:
            if isinstance(value, (bool, np.bool_)) or (kind is float and not _is_number(value)):
                raise TypeError
            number = operator.index(value) if kind is int else float(value)
            if kind is int and abs(number) > _LARGEST:       # NumPy counts in 64 bits
                raise OverflowError
        except (TypeError, ValueError, OverflowError):
            raise InvalidArgument(f"{path}: got {_short(value)}, wants {words}") from None
        if not allowed.allows(number, number):
            raise InvalidArgument(f"{path}: got {_short(value)}, wants {words}")
        if kind is float and call.dtype is not None and call.dtype != np.float64:
            with np.errstate(over="ignore"):
                narrow = float(call.dtype.type(number))
            if not allowed.allows(narrow, narrow):
                raise InvalidArgument(f"{path}: got {_short(value)}, which is {narrow} in {call.dtype}, wants {words}")
        return number

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "fiu")


def _boolean(value: Any, path: str, scope: Scope, call: Call) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidArgument(f"{path}: got {_short(value)}, wants True or False")
    return bool(value)


def _literal(allowed: tuple) -> Check:
    def check(value: Any, path: str, scope: Scope, call: Call) -> Any:
        if not any(type(value) is type(own) and value == own for own in allowed):
            raise InvalidArgument(f"{path}: got {_short(value)}, wants {' or '.join(map(repr, allowed))}")
        return value

    return check


def _function(value: Any, path: str, scope: Scope, call: Call) -> Any:
    """A function; of a functools.partial the settings that it holds are checked and converted as well."""
    if not callable(value) or isinstance(value, types.ModuleType):
        raise InvalidArgument(f"{path}: got {_short(value)}, wants a function")
    if type(value) is functools.partial and value.keywords and hasattr(value.func, "__wrapped__"):
        checks = compiled(value.func)[2]
        held = {name: checks[name](own, f"{path}.{name}", Scope(), call) if name in checks else own for name, own in value.keywords.items()}
        return functools.partial(value.func, *value.args, **held)
    return value


def _instance(cls: type) -> Check:
    words = "None, for nothing is learned" if cls is type(None) else "text" if cls is str else f"a {cls.__name__}"

    def check(value: Any, path: str, scope: Scope, call: Call) -> Any:
        if not isinstance(value, cls):
            raise InvalidArgument(f"{path}: got {_short(value)}, wants {words}")
        return value

    return check


def _short(value: Any) -> str:
    text = repr(value) if not hasattr(value, "dtype") or np.ndim(value) == 0 else _describe(value)
    return text if len(text) <= 60 else f"{text[:40]}…"


def _list(inner: Check | None) -> Check | None:
    if inner is None:
        return None

    def check(value: Any, path: str, scope: Scope, call: Call) -> Any:
        if not isinstance(value, list):
            raise InvalidArgument(f"{path}: got {type(value).__name__}, wants a list")
        for i, item in enumerate(value):
            inner(item, f"{path}.{i}", _inside(scope, _SHARED), call)
        return value

    return check


def _sequence(inner: Check | None) -> Check:
    def check(value: Any, path: str, scope: Scope, call: Call) -> Any:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise InvalidArgument(f"{path}: got {_short(value)}, wants a list or a tuple")
        return value if inner is None else tuple(inner(item, f"{path}.{i}", scope, call) for i, item in enumerate(value))

    return check


def _tree(value: Any, path: str, scope: Scope, call: Call) -> Any:
    """What an annotation of Any leaves open: tuples of parameters are checked as what they are, arrays for their dtype."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        _named_tuple(type(value))(value, path, scope, call)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):                     # a list is a stack of like parts, a tuple a chain of unlike ones
            _tree(item, f"{path}.{i}", scope if isinstance(value, list) else Scope(), call)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "fc":
        same_dtype(value.dtype, path, call)
        if 0 in value.shape:
            raise InvalidArgument(f"{path}: got shape {value.shape}, wants no empty axis")
    elif isinstance(value, (str, bytes)):
        raise InvalidArgument(f"{path}: got {_short(value)}, wants parameters")
    return value


@functools.cache
def _fields(cls: type) -> tuple[list[tuple[str, Check | None]], list[str]]:
    """The check of each field, and the tuple's axis names in the order in which they first appear."""
    hints = typing.get_type_hints(cls, include_extras=True)
    names: list[str] = []
    for hint in hints.values():
        for part in [hint, *typing.get_args(hint)]:
            names += [token for token in getattr(part, "dim_str", "").split() if token.isidentifier() and token not in names]
    return [(name, _compile(hints[name])) for name in cls._fields], names  # type: ignore[attr-defined]


@functools.cache
def _dims(cls: type) -> dict[str, list[str]]:
    """The axes of each field that is an array."""
    hints = typing.get_type_hints(cls, include_extras=True)
    parts = {name: next((part for part in [hint, *typing.get_args(hint)] if hasattr(part, "dim_str")), None) for name, hint in hints.items()}
    return {name: part.dim_str.split() for name, part in parts.items() if part is not None}


def _named_tuple(cls: type, names: list[str] | None = None) -> Check:
    """The tuple's fields. names are what the caller calls its axes, all of them."""
    pairs = _SHARED                                          # (inside, outside)
    if names is not None:
        own = _fields(cls)[1]
        if len(own) != len(names):
            raise TypeError(f"Annotated[{cls.__name__}, {' '.join(names)!r}]: its axes are {' '.join(own)}")
        pairs = list(zip(own, names, strict=True))

    def check(value: Any, path: str, scope: Scope, call: Call) -> Any:
        if not isinstance(value, cls):
            raise InvalidArgument(f"{path}: got {type(value).__name__}, wants {cls.__name__}")
        inner = scope if names is None and "." not in path else _inside(scope, pairs)
        for (name, field_check), part in zip(_fields(cls)[0], value, strict=True):
            if field_check is not None:
                field_check(part, f"{path}.{name}", inner, call)
        if inner is not scope:
            _outside(scope, inner, pairs)
        return value

    return check


def _one_of(checks: dict[type, Check]) -> Check:
    def check(value: Any, path: str, scope: Scope, call: Call) -> Any:
        if type(value) not in checks:
            raise InvalidArgument(f"{path}: got {type(value).__name__}, wants {' or '.join(cls.__name__ for cls in checks)}")
        return checks[type(value)](value, path, scope, call)

    return check


def _inside(scope: Scope, pairs: list[tuple[str, str]]) -> Scope:
    """The scope of a part: of the names around it those in pairs, each as it is called inside."""
    known = [(mine, theirs) for mine, theirs in pairs if theirs in scope.sizes]
    return Scope({mine: scope.sizes[theirs] for mine, theirs in known}, {mine: scope.places[theirs] for mine, theirs in known})


def _outside(scope: Scope, inner: Scope, pairs: list[tuple[str, str]]) -> None:
    """What a part has bound, under the names that the scope around it uses."""
    for mine, theirs in pairs:
        if mine not in inner.sizes:
            continue
        size, place = inner.sizes[mine], inner.places[mine]
        if scope.sizes.setdefault(theirs, size) != size:     # two axes of the part have one name outside
            raise InvalidArgument(f"{place}: got {mine} = {size}, wants {theirs} = {scope.sizes[theirs]} as in {scope.places[theirs]}")
        scope.places.setdefault(theirs, place)
