"""The contract that every concept keeps, and the labels that say so.

    out, backward = concept(*differentiable, **configuration)
    grads = backward(dout)

Positional arguments are arrays or trees of arrays and get a gradient each; everything else is keyword-only. A
call is pure: nothing is written to, nothing is remembered, and ``backward`` may be called any number of times.
The output may be what backward reads (the softmax's is): write to it only once the gradients are taken.
None in the place of dout, or of a part of it, means zero.

``@concept`` puts the function into the catalogue and checks its arguments against its signature, at the outermost call
only: the calls that a concept makes of others go straight through. ``@procedure`` does the same for what has no gradient,
and ``@checked`` checks alone.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from minitransformers.foundation import catalogue, trees
from minitransformers.foundation.shapes import InvalidArgument
from minitransformers.foundation.signature import check_arguments, check_gradients_fit, check_like

F = TypeVar("F", bound=Callable)
Backward = Callable[[Any], Any]  # dout -> a gradient for each positional argument

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


def invalid(argument: str, *, got: object, wants: str) -> InvalidArgument:
    """The error for an argument that cannot be used: which, what came, what is wanted."""
    return InvalidArgument(f"{argument}: got {got}, wants {wants}")


def concept(
    *,
    title: str,
    source: str,
    example: Callable[[np.random.Generator], catalogue.Example],
    roles: Iterable[str] = (),
    rejects: Iterable[catalogue.Rejection] = (),
    step: Callable | None = None,
    form_of: str | None = None,
    gradient_of: Callable | None = None,
    large: Callable[[np.random.Generator], catalogue.Example] | None = None,
) -> Callable[[F], F]:
    """Label a function as a concept.

    title and source (authors, year, arXiv id, equation) are what a reader sees; ``example(rng)`` makes the small
    float64 call that the checks run on; roles say where a model can use it; rejects are calls that must raise
    ValueError and that no annotation tells; step, for a mixer, is ``step(params, x, state, **config) -> (out, state)``:
    the same outputs, a few positions at a time. form_of names the concept that this is another form of: the two share a
    page. gradient_of, where backward is a surrogate's, gives that surrogate: ``gradient_of(*args, **config)`` is a
    function of the same args whose gradient at these args backward returns (straight-through: ``lambda x: lambda x: x``).
    large is for a concept in which so many factors meet that the example's numbers cannot all grow a thousandfold: the call
    whose do, in the check of large inputs.
    """

    def label(function: F) -> F:
        @functools.wraps(function)
        def outermost(*args: Any, **config: Any) -> Any:
            if mark := getattr(_running, "mark", None):
                if mark is EXPLAINING:
                    check_arguments(function, args, config)
                out, backward = function(*args, **config)
                return out, _none_is_zero(backward, out) if isinstance(out, tuple) else backward
            out, backward = _outermost(function, args, config)

            @functools.wraps(backward)
            def checked_backward(dout: Any) -> Any:
                check_like("dout", dout, out)
                gradients = _guarded(backward, (_filled(dout, out),), {})
                check_gradients_fit(function, args, gradients)
                return gradients

            return out, checked_backward

        outermost.__doc__ = catalogue.explained(function)
        catalogue.register(
            catalogue.Entry(
                **_said(function, outermost), title=title, source=source, make_example=example, roles=tuple(roles), rejects=tuple(rejects),
                step=step, form_of=form_of, gradient_of=gradient_of, make_large=large,
            )
        )  # fmt: skip
        return outermost  # type: ignore[return-value]

    return label


def procedure(
    *,
    title: str,
    source: str,
    example: Callable[[np.random.Generator], catalogue.Example],
    rejects: Iterable[catalogue.Rejection] = (),
    roles: Iterable[str] = (),
) -> Callable[[F], F]:
    """Label a function that has no gradient: a mask, a cache, a metric, a choice, a projection found by algebra.

    The arguments of the label are those of concept. Procedures that belong together may share a file, and then share the
    page of its name.
    """

    def label(function: F) -> F:
        outermost = checked(function)
        outermost.__doc__ = catalogue.explained(function)
        catalogue.register(
            catalogue.Entry(
                **_said(function, outermost), title=title, source=source, make_example=example, roles=tuple(roles), rejects=tuple(rejects),
                is_procedure=True,
            )
        )  # fmt: skip
        return outermost

    return label


def _said(function: Callable, outermost: Callable) -> dict[str, Any]:
    chapter = (function.__module__.split(".") + [""])[1] or function.__module__
    return {"name": function.__name__, "chapter": chapter, "function": outermost}


def checked(function: F) -> F:
    """Check the arguments of an outermost call against the signature, and convert its numbers, as the labels do."""

    @functools.wraps(function)
    def outermost(*args: Any, **config: Any) -> Any:
        return function(*args, **config) if getattr(_running, "mark", None) else _outermost(function, args, config)

    return outermost  # type: ignore[return-value]


def trusted(function: F) -> F:
    """Mark a function as one whose arguments are known to fit: the concepts that it calls check nothing again.

    For inner loops, such as decoding a token at a time, that check once at the door.
    """

    @functools.wraps(function)
    def inside(*args: Any, **config: Any) -> Any:
        return _guarded(function, args, config)

    return inside  # type: ignore[return-value]


def slot(function: Callable) -> Callable:
    """A concept that learns nothing, as a slot calls it: ``inner(None, *arrays, **config)``, and None for its gradient.

    The inner function raises ValueError for parameters, which it would lose.
    """

    @functools.wraps(function)
    def inner(params: None, *arrays: Any, **config: Any) -> Any:
        if params is not None:
            raise invalid("params", got=type(params).__name__, wants=f"None: {getattr(function, '__name__', 'this')} learns nothing")
        out, backward = function(*arrays, **config)

        def with_none(dout: Any) -> tuple:
            gradients = backward(dout)
            return (None, *gradients) if isinstance(gradients, tuple) else (None, gradients)

        return out, with_none

    return inner


# What is going on in this thread: a concept runs, and those that it calls check nothing; or it has failed, and is run
# once more to find out where: then they do.
INSIDE, EXPLAINING = "inside", "explaining"


def _outermost(function: Callable, args: tuple, config: dict[str, Any]) -> Any:
    """Check, then call. Where the call fails for want of a check inside it, the error says what did not fit where."""
    args, config = check_arguments(function, args, config)
    try:
        return _guarded(function, args, config)
    except InvalidArgument:
        raise
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        try:
            _guarded(function, args, config, EXPLAINING)
        except InvalidArgument as found:
            raise InvalidArgument(f"{function.__name__}, within: {found}") from error
        except Exception:
            pass
        raise


def _guarded(function: Callable, args: tuple, config: dict[str, Any], mark: str = INSIDE) -> Any:
    """Call with the mark set that a concept is running."""
    before = getattr(_running, "mark", None)
    _running.mark = mark
    try:
        return function(*args, **config)
    finally:
        _running.mark = before


def _none_is_zero(backward: Callable, out: tuple) -> Callable:
    return lambda dout: backward(_filled(dout, out))


def _filled(dout: Any, out: Any) -> Any:
    """dout with zeros in the place of None."""
    if dout is None:
        return trees.map(np.zeros_like, out)
    if isinstance(out, (tuple, list)):
        if not isinstance(dout, (tuple, list)) or len(dout) != len(out):
            got = f"{len(dout)} parts" if isinstance(dout, (tuple, list)) else type(dout).__name__
            raise invalid("dout", got=got, wants=f"{len(out)} parts, as the output has")
        return type(dout)(map(_filled, dout, out)) if not hasattr(dout, "_fields") else type(dout)(*map(_filled, dout, out))
    return dout
