"""Is this backward right? A judge that needs nothing but the function, and says what is wrong.

    report = check_gradients(rms_norm, params, x, eps=1e-6)
    assert_gradients(my_layer, params, x)                   # raises AssertionError that teaches

Three witnesses are heard, for a loss L = <dout, f(arguments)> with a *random* dout (with ones, a LayerNorm backward
that has lost a term still passes):

1. **Central differences** of every argument, by the five-point formula, whose own error falls as h^4. First along a few
   random directions v, in which every element moves by 0.5 to 1.5, up or down: <g, v> sees a single wrong element as
   well as a whole wrong term, and only numbers that cancel in each direction could hide. Arrays whose gradients are of
   one size move together. Where the two sides disagree, or rounding is too loud to tell, each half of the arrays is moved
   by itself, then each array, then every element, and it is this that says which is wrong and why; directions=0 looks at
   the elements always. Each difference chooses its step: where two estimates at one step disagree (a stiff
   softmax, a kink), a smaller step is tried. It is taken of each output before they are summed, so large outputs that
   do not move add no rounding noise, and gradients of 1e-8 are judged as sharply as gradients of 1.
2. **The Taylor remainder** f(x + hv) - f(x) - h<g, v> along a random direction v: halving h must quarter it. With a
   wrong gradient it only halves. No tolerance is needed.
3. **HIPS autograd**, where it is installed and can trace the forward (no slice assignment, no ``out=``).

Where a backward is a surrogate's (straight-through, gradient reversal), all three look at the surrogate.

The error of an argument is its largest deviation, of an element or along a direction, relative to the largest element of
its gradient. Floor: a gradient
that drowns in what rounding does to the difference is judged by that rounding, and a deviation that rounding explains
(a gradient that is zero, as that of attention's key bias) counts relative to the largest gradient of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitransformers.foundation import trees
from minitransformers.foundation.causes import close, shape_cause, value_cause
from minitransformers.foundation.contract import trusted

BOUND = 1e-6  # largest error, relative to the gradient, that passes
ORDER = 1.8  # smallest order of the Taylor remainder that passes
AUTOGRAD_BOUND = 1e-10  # largest difference from HIPS autograd that passes
DIRECTIONS = 2  # in which an argument is moved as a whole, before its elements are
_RETURNED = "backward"  # where a report speaks of all that comes back, and of no one argument
_STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
# A seed that nobody else uses: with that of the caller's data, dout could equal an argument, and a transposed gradient
# x^T dout would be symmetric and pass.
_SEED = 0x9E3779B97F4A7C15
_EPS = float(np.finfo(np.float64).eps)


@dataclass
class ArgumentReport:
    """What was found for one array among the arguments.

    error is relative to the gradient's largest element; index is where it is largest, analytic and numeric the two
    values there; cause is the likely mistake in words, empty where the gradient passes. index is None where the argument
    was moved as a whole: then the values are the slopes along the direction in which they differ most.
    """

    path: str
    shape: tuple[int, ...]
    error: float
    index: tuple[int, ...] | None = ()
    analytic: float = 0.0
    numeric: float = 0.0
    cause: str = ""

    def told(self, bound: float) -> str:
        """What is wrong with it, in words."""
        if self.path == _RETURNED:
            return self.cause
        if self.error == float("inf") and self.analytic == self.numeric:  # nothing could be compared
            return f"gradient of {self.path}: {self.cause}"
        where = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        compared = f"backward says {self.analytic:.9g}, central differences say {self.numeric:.9g} (error {self.error:.2g}, bound {bound:.0e})"
        return f"gradient of {self.path}{where} is wrong: {compared}{f'; {self.cause}' if self.cause else ''}"


@dataclass
class GradientReport:
    """The verdict on one function.

    order is that of the Taylor remainder (inf where only rounding is left); autograd is the largest difference from
    HIPS autograd relative to the gradient, None where that could not trace the forward, with the reason.
    """

    name: str
    arguments: list[ArgumentReport] = field(default_factory=list)
    order: float = float("inf")
    autograd: float | None = None
    autograd_reason: str = ""
    bound: float = BOUND

    @property
    def worst(self) -> ArgumentReport:
        """The argument with the largest error."""
        return max(self.arguments, key=lambda argument: (np.nan_to_num(argument.error, nan=np.inf)))

    @property
    def error(self) -> float:
        """The largest error of any argument."""
        return self.worst.error if self.arguments else 0.0

    @property
    def passed(self) -> bool:
        """Whether every witness agrees."""
        return not self.failures()

    def failures(self) -> list[str]:
        """What is wrong, in words, one entry a finding."""
        found = []
        for a in self.arguments:
            if not a.error <= self.bound:
                found.append(a.told(self.bound))
        if not self.order >= ORDER:
            found.append(f"halving the step shrinks the Taylor remainder with order {self.order:.2f}, wants {ORDER}")
        if self.autograd is not None and not self.autograd <= AUTOGRAD_BOUND:
            found.append(f"HIPS autograd's gradient differs by {self.autograd:.2g}, bound {AUTOGRAD_BOUND:.0e}")
        return found

    def __str__(self) -> str:
        width = max([len(a.path) for a in self.arguments] + [8])
        rows = [f"{self.name}: {'passed' if self.passed else 'FAILED'}"]
        for a in self.arguments:
            rows.append(f"  {a.path:<{width}}  {a.shape!s:<14} error {a.error:8.1e}  {_place(a.index)}: {a.analytic:.9g} | {a.numeric:.9g}")
        second = f"{self.autograd:.1e}" if self.autograd is not None else f"not used ({self.autograd_reason})"
        rows.append(f"  Taylor order {self.order:.2f}   HIPS autograd {second}")
        return "\n".join(rows + [f"  {finding}" for finding in self.failures()])


def _place(index: tuple[int, ...] | None) -> str:
    return "along a direction" if index is None else f"at {index}"


def assert_gradients(function: Callable, *args: Any, bound: float = BOUND, **config: Any) -> GradientReport:
    """check_gradients, and AssertionError with the findings where one of them fails."""
    report = check_gradients(function, *args, bound=bound, **config)
    if not report.passed:
        raise AssertionError("\n".join([f"{report.name}:", *(f"  {finding}" for finding in report.failures())]))
    return report


def check_gradients(
    function: Callable,
    *args: Any,
    rng_for_check: np.random.Generator | None = None,
    bound: float = BOUND,
    directions: int = DIRECTIONS,
    second_opinion: bool = True,
    gradient_of: Callable | None = None,
    **config: Any,
) -> GradientReport:
    """Hold the backward of ``function(*args, **config) -> (out, backward)`` against differences of its forward.

    args are float64 arrays or trees of them; config goes through. A generator in config is copied before every call,
    so that each call draws the same numbers. rng_for_check draws dout and the directions (default: a fixed seed).
    directions is in how many an argument is moved as a whole before its elements are moved one by one; 0: only one by one.
    second_opinion=False leaves HIPS autograd out. gradient_of is for a backward that is a surrogate's: ``gradient_of(*args,
    **config)`` makes a function of the same args, and it is this function that is differentiated.
    Raises ValueError where an argument is not float64; a wrong structure or shape of a gradient is a finding.
    """
    rng = rng_for_check if rng_for_check is not None else np.random.default_rng(_SEED)
    names = _argument_names(function, len(args))
    tree = dict(zip(names, args, strict=True))
    paths, values = [], []
    for name in names:
        for path, leaf in trees.leaves(tree[name], name):
            array = np.asarray(leaf)
            if array.dtype != np.float64:
                raise ValueError(f"{path}: got {array.dtype}, wants float64 (differences of anything less are noise)")
            paths.append(path)
            values.append(array.copy())

    out, backward = function(*trees.unflatten(args, values), **fresh(config))
    surrogate = None if gradient_of is None else gradient_of(*trees.unflatten(args, [v.copy() for v in values]), **fresh(config))

    @trusted                                                 # the call above has checked what these calls have in common
    def forward(new_values: list[Any]) -> Any:
        new_args = trees.unflatten(args, new_values)
        return function(*new_args, **fresh(config))[0] if surrogate is None else surrogate(*new_args)

    def outputs(new_values: list[np.ndarray]) -> list[np.ndarray]:
        # A copy: a function that returns its argument returns what the next difference writes to.
        return [np.array(leaf, np.float64) for _, leaf in trees.leaves(forward(new_values))]

    dout = trees.map(lambda leaf: np.asarray(rng.normal(size=np.shape(leaf))), out)
    weights = [leaf for _, leaf in trees.leaves(dout)]
    gradients = one_each(backward(dout), len(args))
    report = GradientReport(getattr(function, "__name__", repr(function)), bound=bound)
    analytic = _matched(report, names, args, gradients)
    if analytic is None:
        return report
    found = _found_along_directions(outputs, values, weights, analytic, directions, bound, rng)
    numeric = {i: _central_differences(outputs, values, i, weights) for i, agreed in enumerate(found) if agreed is None}
    overall = max([float(np.max(np.abs(numeric[i][0] if i in numeric else own), initial=0)) for i, own in enumerate(analytic)], default=0.0)
    for i, (path, array, own, agreed) in enumerate(zip(paths, values, analytic, found, strict=True)):
        report.arguments.append(
            _compare(path, array, own, *numeric[i], overall, bound) if agreed is None else ArgumentReport(path, array.shape, *agreed)
        )
    _name_swapped(report, analytic, {i: differences for i, (differences, _) in numeric.items()})
    if all(np.shape(own) == array.shape for own, array in zip(analytic, values, strict=True)):
        report.order = _taylor_order(outputs, values, analytic, weights, rng)
        if second_opinion:
            report.autograd, report.autograd_reason = _autograd(forward, values, dout, analytic)
    return report


def one_each(gradients: Any, count: int) -> Any:
    """Contract rule 2 as a tuple: a lone gradient comes without one, and an optional argument left out has None."""
    if isinstance(gradients, tuple) and not hasattr(gradients, "_fields"):
        while len(gradients) > count and gradients[-1] is None:
            gradients = gradients[:-1]
        return gradients
    return (gradients,) if count == 1 else gradients


def _argument_names(function: Callable, count: int) -> list[str]:
    import inspect

    try:
        parameters = [p for p in inspect.signature(function).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters][:count]
    return names + [f"argument {i}" for i in range(len(names), count)]


def fresh(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with its generators copied, so that each call draws the same numbers."""
    import copy

    return {k: copy.deepcopy(v) if isinstance(v, np.random.Generator) else v for k, v in config.items()}


def _found_along_directions(
    outputs: Callable, values: list[np.ndarray], weights: list[np.ndarray], analytic: list[np.ndarray], count: int, bound: float,
    rng: np.random.Generator,
) -> list[tuple[float, None, float, float] | None]:  # fmt: skip
    """What _along_directions says of each argument's array, None where its elements have to be looked at."""
    found: list[tuple[float, None, float, float] | None] = [None] * len(values)
    sizes = [_unit(array) * float(np.max(np.abs(own), initial=0)) for array, own in zip(values, analytic, strict=True)]
    worth = [i for i, own in enumerate(analytic) if own.shape == values[i].shape and own.size and np.isfinite(sizes[i]) and count]

    def look(group: list[int]) -> None:
        agreed = None
        if len(group) > 1 or values[group[0]].size > count:
            agreed = _along_directions(outputs, values, group, weights, [analytic[i] for i in group], count, bound, rng)
        if agreed is not None:
            for i in group:
                found[i] = agreed
        elif len(group) > 1:
            look(group[: len(group) // 2])
            look(group[len(group) // 2 :])

    for group in _of_one_size(worth, sizes):
        look(group)
    return found


def _of_one_size(which: list[int], sizes: list[float]) -> list[list[int]]:
    """Indices in groups, within which the largest size is at most ten times the smallest."""
    groups: list[list[int]] = []
    for i in sorted(which, key=lambda i: sizes[i]):
        if groups and sizes[i] <= 10 * sizes[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _along_directions(
    outputs: Callable, values: list[np.ndarray], which: list[int], weights: list[np.ndarray], own: list[np.ndarray], count: int, bound: float,
    rng: np.random.Generator,
) -> tuple[float, None, float, float] | None:  # fmt: skip
    """The error, no index, and both slopes of the direction in which they differ most; None: one has to look closer.

    Some arrays move together, each by its own unit. No element moves by less than half of it, and what is let through is
    measured by the array whose gradient matters least: one element that is wrong by the bound, of any of them, is ten times that.
    """
    smallest = min(_unit(values[i]) * float(np.max(np.abs(g))) for i, g in zip(which, own, strict=True))
    worst = (0.0, None, 0.0, 0.0)
    for _ in range(count):
        direction = {}
        for i in which:
            shape = values[i].shape
            direction[i] = _unit(values[i]) * rng.choice((-1.0, 1.0), size=shape) * rng.uniform(0.5, 1.5, size=shape)
        slope = sum(float(np.sum(g * v)) for g, v in zip(own, direction.values(), strict=True))
        for steps in (_STEPS, _STEPS[1:], _STEPS[2:]):           # a shorter step meets a kink of fewer elements
            numeric, noise = _slope(outputs, values, direction, weights, steps=steps)
            deviation = abs(slope - numeric)
            if max(deviation, noise / 16) <= bound / 20 * smallest:
                break
        else:
            return None
        worst = max(worst, (deviation / smallest, None, slope, numeric), key=lambda found: found[0])
    return worst


def _unit(numbers: np.ndarray) -> float:
    """In which a step is measured: that of the largest number, and not less than 1."""
    return max(1.0, float(np.max(np.abs(numbers), initial=0)))


def _central_differences(
    outputs: Callable, values: list[np.ndarray], which: int, weights: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The derivative of <weights, outputs> by each element of one argument, and the rounding noise of each."""
    array = values[which]
    derivative, noise, largest = np.zeros(array.shape), np.zeros(array.shape), 0.0
    for index in np.ndindex(array.shape):
        direction, unit = np.zeros(array.shape), _unit(array[index])
        direction[index] = unit
        slope, rounding = _slope(outputs, values, {which: direction}, weights, largest * unit)
        derivative[index], noise[index] = slope / unit, rounding / unit
        largest = max(largest, abs(float(derivative[index])))
    return derivative, noise


def _slope(
    outputs: Callable, values: list[np.ndarray], direction: dict[int, np.ndarray], weights: list[np.ndarray], largest: float = 0.0,
    *, steps: tuple[float, ...] = _STEPS,
) -> tuple[float, float]:  # fmt: skip
    """The derivative of <weights, outputs> as some arguments move, each along its direction, and its rounding noise.

    largest is a slope beside which an error of 1e-9 does not count.
    """
    work = list(values)

    def moved(by: float) -> list[np.ndarray]:
        for i, towards in direction.items():
            work[i] = values[i] + by * towards
        return outputs(work)

    best, found = float("inf"), (0.0, 0.0)
    for h in steps:
        near = [(p - m, np.maximum(np.abs(p), np.abs(m))) for p, m in zip(moved(h), moved(-h), strict=True)]
        far = [p - m for p, m in zip(moved(2 * h), moved(-2 * h), strict=True)]
        simple = sum(float(np.sum(w * d)) for w, (d, _) in zip(weights, near, strict=True)) / (2 * h)
        wide = sum(float(np.sum(w * d)) for w, d in zip(weights, far, strict=True)) / (4 * h)
        estimate = (4 * simple - wide) / 3
        moving = [(d != 0) | (f != 0) for (d, _), f in zip(near, far, strict=True)]
        if not any(map(np.any, moving)):  # nothing moves: then a gradient can only be told from zero above the rounding of all
            moving = [np.ones_like(m) for m in moving]
        squares = sum(float(np.sum((w * s)[m] ** 2)) for w, (_, s), m in zip(weights, near, moving, strict=True))
        rounding = 16 * _EPS * squares**0.5 / h
        # |estimate - simple| is the error of the simple formula; the five-point one has about its square.
        truncation = (estimate - simple) ** 2 / max(abs(estimate), _EPS)
        if not truncation + rounding >= best:
            best, found = truncation + rounding, (estimate, rounding)
        largest = max(largest, abs(estimate))
        if truncation <= max(1e-9 * largest, rounding):
            break
    return found


def _matched(report: GradientReport, names: list[str], args: tuple, gradients: Any) -> list[Any] | None:
    """The gradients' leaves beside the arguments', or None with a finding where the structures differ."""
    while isinstance(gradients, tuple) and len(gradients) > len(args) and gradients[-1] is None:
        gradients = gradients[:-1]  # of an optional argument that was left out
    if not isinstance(gradients, tuple) or len(gradients) != len(args):
        report.arguments.append(ArgumentReport(_RETURNED, (), np.inf, cause=f"backward returns {_plural(gradients)}, wants {len(args)}, one an argument"))
        return None
    try:
        matched: list[Any] = []
        for name, argument, gradient in zip(names, args, gradients, strict=True):
            trees.map(lambda leaf, own: matched.append(np.asarray(own)), argument, gradient, path=name)
            if matched and matched[-1].dtype.kind not in "fiub":
                raise ValueError(f"that of {name} is {_plural(gradient)}, wants an array")
        return matched
    except ValueError as error:
        report.arguments.append(ArgumentReport(_RETURNED, (), np.inf, cause=f"what backward returns does not fit the arguments: {error}"))
        return None


def _plural(gradients: Any) -> str:
    if isinstance(gradients, tuple):
        return f"{len(gradients)} gradient{'s' * (len(gradients) != 1)}"
    return {"NoneType": "nothing", "ndarray": "an array"}.get(name := type(gradients).__name__, f"a {name}")


def _compare(
    path: str, array: np.ndarray, own: np.ndarray, numeric: np.ndarray, noise: np.ndarray, overall: float, bound: float
) -> ArgumentReport:
    if own.shape != array.shape:
        return ArgumentReport(path, array.shape, np.inf, cause=shape_cause(own, numeric))
    if array.size == 0:
        return ArgumentReport(path, array.shape, 0.0)
    largest = max(float(np.max(np.abs(np.nan_to_num(own)))), float(np.max(np.abs(numeric))), float(np.finfo(float).tiny))
    deviation = np.where(np.isfinite(own), np.abs(own - numeric), np.inf)
    scale = np.maximum(largest, noise / bound)
    errors = deviation / np.where(deviation <= noise, np.maximum(scale, overall), scale)
    index = tuple(int(i) for i in np.unravel_index(np.argmax(errors), array.shape))
    found = ArgumentReport(path, array.shape, float(errors[index]), index, float(own[index]), float(numeric[index]))
    if not found.error <= bound:
        found.cause = value_cause(own, numeric, bound)
    return found


def _name_swapped(report: GradientReport, analytic: list[np.ndarray], numeric: dict[int, np.ndarray]) -> None:
    """Add the cause where two arguments' gradients stand in each other's place."""
    for i, found in enumerate(report.arguments):
        for j, other in enumerate(report.arguments):
            if i != j and found.cause and other.cause and numeric[j].any() and close(analytic[i], numeric[j]):
                found.cause = f"it is the gradient of {other.path}: are the two returned in the wrong order?"


def _taylor_order(outputs: Callable, values: list, gradients: list, weights: list, rng: np.random.Generator) -> float:
    """The order with which the first-order Taylor remainder shrinks; inf where it is rounding from the start."""
    direction = [rng.normal(size=v.shape) for v in values]
    slope = sum(float(np.sum(g * v)) for g, v in zip(gradients, direction, strict=True))
    base = outputs(values)
    best = -np.inf
    for first in (1e-3, 1e-5):  # a kink inside the longer step spoils the order there, not in the shorter
        remainders, floors = [], []
        for h in first * 0.5 ** np.arange(5):
            moved = outputs([x + h * v for x, v in zip(values, direction, strict=True)])
            change = sum(float(np.sum(w * (m - b))) for w, m, b in zip(weights, moved, base, strict=True))
            remainders.append(abs(change - h * slope))
            size = sum(float(np.sum((w * b) ** 2)) for w, b in zip(weights, base, strict=True)) ** 0.5
            floors.append(200 * _EPS * (size + abs(slope) * h))
        orders = [
            np.log2(remainders[i] / remainders[i + 1]) if remainders[i + 1] > 0 else np.inf
            for i in range(4)
            if remainders[i + 1] > floors[i + 1]
        ]
        best = max(best, float(np.median(orders)) if orders else (np.inf if remainders[0] <= 4 * floors[0] else -np.inf))
        if best >= ORDER:
            break
    return best


def _autograd(forward: Callable, values: list, dout: Any, analytic: list) -> tuple[float | None, str]:
    """The largest relative difference from the gradients of HIPS autograd, or None and why there is none."""
    try:
        import autograd
        import autograd.numpy as anp
    except ImportError:
        return None, "not installed"
    weights = [leaf for _, leaf in trees.leaves(dout)]

    def loss(boxes: list) -> Any:
        out = [leaf for _, leaf in trees.leaves(forward(boxes))]
        total = 0.0
        for w, leaf in zip(weights, out, strict=True):
            if _boxed_as_constant(leaf):
                raise TypeError("a box inside a box")
            total = total + anp.sum(w * leaf)
        return total

    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            traced = autograd.grad(loss)([v.copy() for v in values])
    except Exception as error:  # whatever a tracer meets: slice assignment, out=, a function it does not know
        return None, f"not traceable: {_untraced(error)}"
    worst = 0.0
    for theirs, own in zip(traced, analytic, strict=True):
        scale = max(np.max(np.abs(own), initial=0), max((np.max(np.abs(a), initial=0) for a in analytic), default=0) * 1e-3, 1e-300)
        worst = float(np.maximum(worst, np.max(np.abs(theirs - own), initial=0) / scale))  # Python's max loses a NaN
    return worst, ""


# What HIPS autograd says of a forward that it cannot trace, and what it was that it could not: the first that fits.
_UNTRACED = (
    (r"__array_ufunc__\(.* out=\(", "out="),                  # a write into an array that is there; x += y is one
    (r"__array_ufunc__\(<ufunc '(\w+)'>", r"np.\1"),
    (r"unexpected keyword argument '(\w+)'", r"\1="),
    (r"'ArrayBox' object has no attribute '(\w+)'", r".\1"),
    (r"array element with a sequence", "slice assignment"),
    (r"a box inside a box|ArrayBox|got object|array of references|numpy.object_", "object array"),
)


def _untraced(error: Exception) -> str:
    """What stopped the tracer, in a word or two; the error's type where its message is not known."""
    import re

    for pattern, words in _UNTRACED:
        if found := re.search(pattern, str(error), re.DOTALL):
            return found.expand(words)
    return type(error).__name__


def _boxed_as_constant(leaf: Any) -> bool:
    """Whether the tracer took traced numbers for constants: np.concatenate makes an array of boxes, and a box plus that is one."""
    if hasattr(leaf, "_value"):
        return np.asarray(leaf._value).dtype == object
    return np.asarray(leaf).dtype == object and any(map(_boxed_as_constant, np.ravel(leaf)))
