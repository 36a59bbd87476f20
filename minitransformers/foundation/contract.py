"""The contract that every concept keeps, and the label that says so.

    out, backward = concept(*differentiable, **configuration)
    grads = backward(dout)

Positional arguments are arrays or trees of arrays and get a gradient each; everything else is keyword-only. A
call is pure: nothing is written to, nothing is remembered, and ``backward`` may be called any number of times.
The output may be what backward reads (the softmax's is): write to it only once the gradients are taken.

``@concept`` puts the function into the catalogue and checks its arguments against the shapes in its signature, at
the outermost call only: the calls that a concept makes of others go straight through.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from minitransformers.foundation import catalogue, shapes

F = TypeVar("F", bound=Callable)

_running = threading.local()


def example(*args: Any, **config: Any) -> catalogue.Example:
    """The arguments and the configuration of a small call, for a label."""
    return catalogue.Example(args, config)


def bad(names: str | None = None, /, **changes: Any) -> catalogue.Rejection:
    """A call that must be refused: the label's example with some arguments replaced.

    The ValueError must contain ``names``; without it, the name of the one argument that is replaced.
    """
    if names is None and len(changes) != 1:
        raise ValueError("bad: say which argument the error must name when more than one is changed")
    return catalogue.Rejection(names or next(iter(changes)), changes)


def invalid(argument: str, *, got: object, wants: str) -> ValueError:
    """The error for an argument that cannot be used: which, what came, what is wanted."""
    return ValueError(f"{argument}: got {got}, wants {wants}")


def whole_number(argument: str, value: Any, *, least: int) -> int:
    """The value as Python's int, which cannot overflow. Raises ValueError unless it is whole and at least ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise invalid(argument, got=value, wants=f"a whole number of at least {least}")
    return number


def positive_number(argument: str, value: Any, *, dtype: Any = np.float64) -> float:
    """The value as Python's float, which widens no array. Raises ValueError unless it is above 0 and finite in the dtype."""
    limits = np.finfo(dtype)
    if not float(limits.smallest_subnormal) <= value <= float(limits.max):
        raise invalid(argument, got=value, wants=f"a finite number above 0 in {limits.dtype}")
    return float(value)


def concept(
    *,
    title: str,
    source: str,
    example: Callable[[np.random.Generator], catalogue.Example],
    roles: Iterable[str] = (),
    rejects: Iterable[catalogue.Rejection] = (),
    step: Callable | None = None,
) -> Callable[[F], F]:
    """Label a function as a concept.

    title and source (authors, year, arXiv id, equation) are what a reader sees; ``example(rng)`` makes the small
    float64 call that the checks run on; roles say where a model can use it; rejects are calls that must raise
    ValueError; step, for a mixer, is ``step(params, x, state, **config) -> (out, state)``: the same outputs, a few
    positions at a time.
    """

    def label(function: F) -> F:
        @functools.wraps(function)
        def outermost(*args: Any, **config: Any) -> Any:
            if getattr(_running, "concept", False):
                return function(*args, **config)
            shapes.check_arguments(function, args, config)
            out, backward = _guarded(function, *args, **config)

            @functools.wraps(backward)
            def checked_backward(dout: Any) -> Any:
                shapes.check_like("dout", dout, out)
                return _guarded(backward, dout)

            return out, checked_backward

        catalogue.register(
            catalogue.Entry(
                name=function.__name__,
                chapter=(function.__module__.split(".") + [""])[1] or function.__module__,
                title=title,
                source=source,
                function=outermost,
                make_example=example,
                roles=tuple(roles),
                rejects=tuple(rejects),
                step=step,
            )
        )
        return outermost  # type: ignore[return-value]

    return label


def trusted(function: F) -> F:
    """Mark a function as one whose arguments are known to fit: the concepts that it calls check nothing again.

    For inner loops, such as decoding a token at a time, that check once at the door.
    """

    @functools.wraps(function)
    def inside(*args: Any, **config: Any) -> Any:
        return _guarded(function, *args, **config)

    return inside  # type: ignore[return-value]


def _guarded(function: Callable, *args: Any, **config: Any) -> Any:
    """Call with the mark set that a concept is running, so that inner concepts are not checked again."""
    before = getattr(_running, "concept", False)
    _running.concept = True
    try:
        return function(*args, **config)
    finally:
        _running.concept = before
