"""The checks that every entry of the catalogue passes without a test written for it.

``run(entry)`` holds one concept or procedure against its whole table; each row is a function of the same name below, so
that a test can ask for one of them alone. All work on the label's example: small, float64, made by any generator.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitransformers.foundation import trees
from minitransformers.foundation.bad_calls import bad_calls, resized
from minitransformers.foundation.catalogue import Entry, Example, Rejection
from minitransformers.foundation.contract import InvalidArgument
from minitransformers.foundation.gradients import DIRECTIONS, GradientReport, check_gradients, fresh, one_each


@dataclass(frozen=True)
class Outcome:
    """One check of one concept: what was measured beside its bound; an empty message means passed."""

    check: str
    measured: float
    bound: float
    message: str = ""

    @property
    def passed(self) -> bool:
        """Whether the check found nothing wrong."""
        return not self.message


def run(entry: Entry, *, seed: int = 0) -> list[Outcome]:
    """Every check, in the order of the table."""
    return [check(entry, seed=seed) for check in checks_of(entry).values()]


def checks_of(entry: Entry) -> dict[str, Callable[..., Outcome]]:
    """The checks by name: a procedure has no gradient to hold against anything."""
    return {name: check for name, check in CHECKS.items() if not (entry.is_procedure and name in _OF_GRADIENTS)}


def gradient_report(entry: Entry, *, seed: int = 0, directions: int = DIRECTIONS) -> GradientReport:
    """The gradient checker's report on the label's example. directions is check_gradients' own."""
    example = _example(entry, seed)
    return check_gradients(
        entry.function, *example.args, rng_for_check=np.random.default_rng([seed, 1]), gradient_of=entry.gradient_of,
        directions=directions, **example.config,
    )  # fmt: skip


def gradients(entry: Entry, *, seed: int = 0) -> Outcome:
    """Central differences, Taylor remainder and HIPS autograd agree with the backward (≤ 1e-6, ≥ 1.8, ≤ 1e-10)."""
    report = gradient_report(entry, seed=seed)
    return Outcome("gradients", report.error, report.bound, "\n".join(report.failures()))


def dtypes(entry: Entry, *, seed: int = 0) -> Outcome:
    """float32 in, float32 out, in the output and every gradient; the same for float64; and the two agree to 1e-4.

    A procedure may compute in float64 whatever comes in.
    """
    exact, single = _example(entry, seed), _as_dtype(_example(entry, seed), np.float32)
    worst, found = 0.0, []
    for what, wide, narrow in zip(("output", "gradient"), _results(entry, exact, seed), _results(entry, single, seed), strict=False):
        pairs = [(path, np.asarray(a), np.asarray(b)) for (path, a), (_, b) in zip(_leaves(wide, what), _leaves(narrow, what), strict=True)]
        scale = max([_largest(a) for _, a, _ in pairs if a.dtype.kind in "fiuc"] + [1e-30])
        for path, a, b in pairs:
            if a.dtype.kind != "f":
                worst = max(worst, float(not np.array_equal(a, b)))
                continue
            if a.dtype != np.float64 or not (b.dtype == np.float32 or (entry.is_procedure and b.dtype == np.float64)):
                found.append(f"{path}: {a.dtype} from float64, {b.dtype} from float32")
            worst = float(np.maximum(worst, _apart(a, b) / scale))
    if not worst <= 1e-4:
        found.append(f"float32 differs from float64 by {worst:.2g}")
    return Outcome("dtypes", worst, 1e-4, "; ".join(found))


def purity(entry: Entry, *, seed: int = 0) -> Outcome:
    """Inputs and dout are not written to, backward can be called twice, and a call can be repeated bit for bit."""
    example = _example(entry, seed)
    before = _arrays(example)
    copies = [a.copy() for a in before]
    out, backward = _call(entry, example)
    out_copy = _copied(out)
    again, backward_again = _call(entry, example)
    rows = [
        ("an argument was written to", all(map(np.array_equal, before, copies))),
        ("a second call differs", _same(out_copy, again)),
        ("a second call changed what the first returned", _same(out, out_copy)),
    ]
    if backward is not None:
        dout = _random_like(out, seed)
        dout_copy = _copied(dout)
        first, second, third = (_copied(_as_tuple(back(dout), example)) for back in (backward, backward, backward_again))
        rows += [
            ("an argument was written to", all(map(np.array_equal, before, copies))),
            ("dout was written to", _same(dout, dout_copy)),
            ("backward changed the output", _same(out, out_copy)),
            ("a second backward differs", _same(first, second)),
            ("a second call's backward differs", _same(first, third)),
        ]
    found = list(dict.fromkeys(message for message, ok in rows if not ok))
    return Outcome("purity", float(len(found)), 0.0, "; ".join(found))


def strides(entry: Entry, *, seed: int = 0) -> Outcome:
    """Non-contiguous, Fortran-ordered and broadcast (zero-stride) inputs give what contiguous ones give."""

    def fortran(a: np.ndarray) -> np.ndarray:
        return np.asarray(a, order="F")                      # np.asfortranarray would give a scalar an axis

    def spread(a: np.ndarray) -> np.ndarray:
        return np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a

    def zero_stride(a: np.ndarray) -> np.ndarray:
        return np.broadcast_to(a[:1], a.shape) if a.ndim else a

    example, worst = _example(entry, seed), 0.0
    same = _results(entry, example, seed)                    # the first two layouts hold the example's own numbers
    repeated = _results(entry, _mapped(example, lambda a: np.array(zero_stride(a), order="C")), seed)
    for layout, reference in ((fortran, same), (spread, same), (zero_stride, repeated)):
        strided = _mapped(example, lambda a, layout=layout: layout(np.asarray(a)))
        worst = float(np.maximum(worst, _difference(reference, _results(entry, strided, seed))))
    return Outcome("strides", worst, 1e-12, "" if worst <= 1e-12 else f"memory layout changes the result by {worst:.2g}")


def batches(entry: Entry, *, seed: int = 0) -> Outcome:
    """Where leading axes are promised, one more of them equals a loop over it."""
    batched = _batched_arguments(entry)
    one, two = _example(entry, seed), _example(entry, seed + 1)
    if not batched or any(isinstance(v, np.random.Generator) for v in one.config.values()):
        return Outcome("batches", 0.0, 1e-12)
    names = list(inspect.signature(entry.function).parameters)

    def stack(name: str, a: Any, b: Any) -> Any:
        return trees.map(lambda x, y: np.stack([x, y]), a, b) if name in batched and a is not None else a

    args = tuple(stack(names[i], a, b) for i, (a, b) in enumerate(zip(one.args, two.args, strict=True)))
    config = {k: stack(k, v, two.config[k]) for k, v in one.config.items()}
    two = Example(
        tuple(b if names[i] in batched else a for i, (a, b) in enumerate(zip(one.args, two.args, strict=True))),
        {k: two.config[k] if k in batched else v for k, v in one.config.items()},
    )
    out, backward = _call(entry, Example(args, config))
    if any(np.ndim(leaf) == 0 for _, leaf in trees.leaves(out)):
        return Outcome("batches", 0.0, 1e-12)  # a loss sums over its batch: no axis is left to loop over
    dout = _random_like(out, seed)
    grads = _as_tuple(backward(dout), one)
    worst = 0.0
    shared: list[list] = []
    for i, example in enumerate((one, two)):
        part, part_backward = _call(entry, example)
        worst = np.maximum(worst, _difference(trees.map(lambda a: a[i], out), part))
        part_grads = _as_tuple(part_backward(trees.map(lambda a: a[i], dout)), one)
        for j, g in enumerate(part_grads):
            if names[j] in batched and g is not None:
                worst = np.maximum(worst, _difference(trees.map(lambda a: a[i], grads[j]), g))
        shared.append([g for j, g in enumerate(part_grads) if names[j] not in batched])
    for j, own in enumerate([g for j, g in enumerate(grads) if names[j] not in batched]):
        worst = np.maximum(worst, _difference(own, trees.map(np.add, shared[0][j], shared[1][j])))
    return Outcome("batches", float(worst), 1e-12, "" if worst <= 1e-12 else f"a batch differs from a loop by {worst:.2g}")


def large_inputs(entry: Entry, *, seed: int = 0) -> Outcome:
    """Arguments a thousand times larger give finite outputs and gradients, in float32."""
    example = _as_dtype(entry.large_example(np.random.default_rng(seed)), np.float32)
    example = Example(trees.map(lambda a: a * np.float32(1e3), example.args), example.config)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        try:
            results = _results(entry, example, seed)
        except FloatingPointError as error:
            return Outcome("large inputs", 1.0, 0.0, str(error))
    broken = [path for path, leaf in trees.leaves(results) if not np.all(np.isfinite(leaf))]
    return Outcome("large inputs", float(len(broken)), 0.0, f"not finite: {', '.join(broken)}" if broken else "")


def rejections(entry: Entry, *, seed: int = 0) -> Outcome:
    """Every bad call on the label raises a ValueError that names the argument."""
    example = _example(entry, seed)
    found = [f"{rejection.names}: {problem}" for rejection in entry.rejects if (problem := _refused(entry, rejection, example))]
    return Outcome("rejections", float(len(found)), 0.0, "; ".join(found))


def signature(entry: Entry, *, seed: int = 0) -> Outcome:
    """Every bad call that the annotations tell of raises a ValueError that names the argument."""
    example, found = _example(entry, seed), []
    for what, rejection in bad_calls(entry.function, example):
        if problem := _refused(entry, rejection, example):
            found.append(f"{what}: {problem}")
    return Outcome("signature", float(len(found)), 0.0, "; ".join(found[:10]))


def shapes(entry: Entry, *, seed: int = 0) -> Outcome:
    """An axis that is one longer, or 1, is refused by name, or gives gradients of the arguments' own shapes."""
    found = []
    for what, example in resized(_example(entry, seed)):
        try:
            out, backward = _call(entry, example)
            if backward is not None:
                pairs = zip(trees.leaves(example.args), trees.leaves(_as_tuple(backward(_random_like(out, seed)), example)), strict=True)
                found += [f"{what}: the gradient of {path} has shape {g.shape}" for (path, a), (_, g) in pairs if np.shape(a) != np.shape(g)]
        except InvalidArgument:
            continue
        except Exception as error:
            found.append(f"{what}: {type(error).__name__}: {error}")
    return Outcome("shapes", float(len(found)), 0.0, "; ".join(found[:10]))


def scalars(entry: Entry, *, seed: int = 0) -> Outcome:
    """Settings that come as NumPy's numbers give the same bits as Python's."""
    example = _example(entry, seed)
    kinds: dict[type, type] = {bool: np.bool_, int: np.int64, float: np.float64}
    spoiled = {k: kinds[type(v)](v) if type(v) in kinds else v for k, v in _with_defaults(entry, example).items()}
    same = _same(_results(entry, example, seed), _results(entry, Example(example.args, spoiled), seed))
    return Outcome("scalars", float(not same), 0.0, "" if same else "NumPy's numbers as settings change the result or its dtype")


def zeros(entry: Entry, *, seed: int = 0) -> Outcome:
    """None in the place of a part of dout gives what zeros give."""
    example = _example(entry, seed)
    out, backward = _call(entry, example)
    dout, worst = _random_like(out, seed), 0.0
    for i in range(len(out) if isinstance(out, tuple) else 0):
        parts = [[*dout[:i], part, *dout[i + 1 :]] for part in (None, trees.zeros_like(out[i]))]
        with_none, with_zeros = (_as_tuple(backward(type(dout)(*p) if hasattr(dout, "_fields") else tuple(p)), example) for p in parts)
        worst = max(worst, _difference(with_none, with_zeros))
    nothing = _difference(_as_tuple(backward(None), example), trees.zeros_like(_as_tuple(backward(dout), example)))
    worst = max(worst, nothing)
    return Outcome("zeros", worst, 0.0, "" if worst == 0 else f"None for zero changes a gradient by {worst:.2g}")


def steps(entry: Entry, *, seed: int = 0) -> Outcome:
    """Where there is a step: one position at a time, several at once and the full pass agree (≤ 1e-10)."""
    if entry.step is None:
        return Outcome("steps", 0.0, 1e-10)
    example = _example(entry, seed)
    return Outcome("steps", *_stepwise(entry, example))


def _stepwise(entry: Entry, example: Example) -> tuple[float, float, str]:
    assert entry.step is not None
    names, known = list(inspect.signature(entry.function).parameters), inspect.signature(entry.step).parameters
    given = {**dict(zip(names, example.args, strict=False)), **example.config}
    params, x = example.args[:2]
    besides = {k: v for k, v in given.items() if k not in (*names[:2], "bias", "mask")}  # what is said of a whole text's pairs
    whole, _ = entry.function(params, x, *(besides.pop(k) for k in names[2 : len(example.args)] if k in besides), **besides)
    config = {k: v for k, v in given.items() if k in known and k not in (*names[:2], "bias", "mask")}
    worst, n = 0.0, x.shape[-2]
    for sizes in ([1] * n, [n], [n - n // 2, *[1] * (n // 2)]):
        state, start = None, 0
        for size in sizes:
            out, state = entry.step(params, x[..., start : start + size, :], state, **config)
            worst = float(np.maximum(worst, _difference(out, whole[..., start : start + size, :])))
            start += size
    return worst, 1e-10, "" if worst <= 1e-10 else f"the steps differ from the whole by {worst:.2g}"


CHECKS: dict[str, Callable[..., Outcome]] = {
    "gradients": gradients,
    "dtypes": dtypes,
    "purity": purity,
    "strides": strides,
    "batches": batches,
    "large inputs": large_inputs,
    "zeros": zeros,
    "scalars": scalars,
    "shapes": shapes,
    "signature": signature,
    "rejections": rejections,
    "steps": steps,
}

_OF_GRADIENTS = ("gradients", "batches", "large inputs", "zeros", "steps")


def _example(entry: Entry, seed: int) -> Example:
    return entry.example(np.random.default_rng(seed))


def _call(entry: Entry, example: Example) -> tuple[Any, Any]:
    """The output, and backward, which a procedure has not."""
    result = entry.function(*example.args, **fresh(example.config))
    return (result, None) if entry.is_procedure else result


def _results(entry: Entry, example: Example, seed: int) -> tuple:
    """The output, and the gradients at a random dout where there are any."""
    out, backward = _call(entry, example)
    return (out,) if backward is None else (out, _as_tuple(backward(_random_like(out, seed)), example))


def _refused(entry: Entry, rejection: Rejection, example: Example) -> str:
    """What is wrong with how a bad call is refused; empty where it is refused by name."""
    try:
        _call(entry, rejection.spoil(entry.function, example))
        return "a bad value was accepted"
    except ValueError as error:
        return "" if rejection.names in str(error) else f"the error does not name it: {error}"
    except Exception as error:
        return f"{type(error).__name__} instead of ValueError: {error}"


def _with_defaults(entry: Entry, example: Example) -> dict[str, Any]:
    parameters = inspect.signature(entry.function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY and p.default is not p.empty}
    return {**defaults, **example.config}


def _random_like(out: Any, seed: int) -> Any:
    rng = np.random.default_rng([seed, 2])
    return trees.map(lambda leaf: np.asarray(rng.normal(size=np.shape(leaf))).astype(leaf.dtype), out)


def _as_tuple(grads: Any, example: Example) -> tuple:
    return one_each(grads, len(example.args))


def _mapped(example: Example, function: Callable) -> Example:
    """The example with the function applied to every array, those in trees that come by keyword included."""

    def mapped(value: Any) -> Any:
        is_tree = isinstance(value, (np.ndarray, list)) or (isinstance(value, tuple) and hasattr(value, "_fields"))
        return trees.map(lambda leaf: function(leaf) if isinstance(leaf, np.ndarray) else leaf, value) if is_tree else value

    return Example(trees.map(lambda leaf: function(leaf) if isinstance(leaf, np.ndarray) else leaf, example.args), {k: mapped(v) for k, v in example.config.items()})


def _as_dtype(example: Example, dtype: Any) -> Example:
    # Frozen weights and memories come by keyword and have the dtype of the rest.
    return _mapped(example, lambda a: a.astype(dtype) if a.dtype.kind == "f" else a)


def _arrays(example: Example) -> list[np.ndarray]:
    return [leaf for _, leaf in trees.leaves((example.args, list(example.config.values()))) if isinstance(leaf, np.ndarray)]


def _leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    """Arrays, numbers and texts; what else a procedure returns (the room that a cache grows into) is its own affair."""
    plain = (np.ndarray, np.generic, bool, int, float, str)
    return [(path, leaf) for path, leaf in trees.leaves(tree, path) if isinstance(leaf, plain)]


def _copied(tree: Any) -> Any:
    return trees.map(lambda leaf: np.array(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)


def _same(a: Any, b: Any) -> bool:
    """Whether two trees are the same, bit for bit and in their dtypes."""

    def equal(x: Any, y: Any) -> bool:
        x, y = np.asarray(x), np.asarray(y)
        return x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind in "fc")

    return all(equal(x, y) for (_, x), (_, y) in zip(_leaves(a), _leaves(b), strict=True))


def _difference(a: Any, b: Any) -> float:
    """The largest difference between two trees relative to the largest element (1 where that is smaller); NaN where one is."""
    pairs = [(np.asarray(x), np.asarray(y)) for (_, x), (_, y) in zip(_leaves(a), _leaves(b), strict=True)]
    if not all(np.array_equal(x, y) for x, y in pairs if x.dtype.kind not in "fiuc"):
        return float("inf")
    pairs = [(x, y) for x, y in pairs if x.dtype.kind in "fiuc"]
    scale = max([1.0] + [_largest(x) for x, _ in pairs])
    return float(np.max([0.0] + [_apart(x, y) for x, y in pairs])) / scale  # Python's max loses a NaN


def _largest(x: np.ndarray) -> float:
    """The largest of the numbers beside which a difference is measured: an infinity (a logit not to be drawn) is none."""
    return float(np.max(np.abs(x), initial=0, where=~np.isinf(x)))


def _apart(x: np.ndarray, y: np.ndarray) -> float:
    """The largest difference; two equal infinities do not differ."""
    apart = np.zeros(np.broadcast(x, y).shape, np.result_type(x, y, np.float64))
    return float(np.max(np.abs(np.subtract(x, y, where=x != y, out=apart)), initial=0))


def _batched_arguments(entry: Entry) -> set[str]:
    """Arguments whose annotation begins with free leading axes, and trees of nothing but such arrays."""

    def batched(hint: Any) -> bool:
        if fields := getattr(hint, "_fields", ()):
            hints = typing.get_type_hints(hint)
            return all(batched(hints[field]) for field in fields)
        parts = [hint, *typing.get_args(hint)]
        return any(getattr(p, "dim_str", "").startswith(("...", "*")) for p in parts) or any(hasattr(p, "_fields") and batched(p) for p in parts[1:])

    return {name for name, hint in typing.get_type_hints(entry.function).items() if batched(hint)}
