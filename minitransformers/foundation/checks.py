"""The checks that every concept in the catalogue passes without a test written for it.

``run(entry)`` holds one concept against the whole table; each row is a function of the same name below, so that a
test can ask for one of them alone. All work on the label's example: small, float64, made by any generator.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minitransformers.foundation import trees
from minitransformers.foundation.catalogue import Entry, Example
from minitransformers.foundation.gradients import GradientReport, check_gradients, one_each


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
    return [check(entry, seed=seed) for check in CHECKS.values()]


def gradient_report(entry: Entry, *, seed: int = 0) -> GradientReport:
    """The gradient checker's report on the label's example."""
    example = _example(entry, seed)
    return check_gradients(entry.function, *example.args, rng_for_check=np.random.default_rng([seed, 1]), **example.config)


def gradients(entry: Entry, *, seed: int = 0) -> Outcome:
    """Central differences, Taylor remainder and HIPS autograd agree with the backward (≤ 1e-6, ≥ 1.8, ≤ 1e-10)."""
    report = gradient_report(entry, seed=seed)
    return Outcome("gradients", report.error, report.bound, "\n".join(report.failures()))


def dtypes(entry: Entry, *, seed: int = 0) -> Outcome:
    """float32 in, float32 out, in the output and every gradient; the same for float64; and the two agree to 1e-4."""
    exact, single = _example(entry, seed), _as_dtype(_example(entry, seed), np.float32)
    worst, found = 0.0, []
    out64, grads64 = _forward_and_backward(entry, exact, seed)
    out32, grads32 = _forward_and_backward(entry, single, seed)
    for what, wide, narrow in (("output", out64, out32), ("gradient", grads64, grads32)):
        pairs = list(zip(trees.leaves(wide, what), trees.leaves(narrow, what), strict=True))
        scale = max([float(np.max(np.abs(a), initial=0)) for (_, a), _ in pairs] + [1e-30])
        for (path, a), (_, b) in pairs:
            if a.dtype != np.float64 or b.dtype != np.float32:
                found.append(f"{path}: {a.dtype} from float64, {b.dtype} from float32")
            worst = float(np.maximum(worst, np.max(np.abs(a - b), initial=0) / scale))
    if not worst <= 1e-4:
        found.append(f"float32 differs from float64 by {worst:.2g}")
    return Outcome("dtypes", worst, 1e-4, "; ".join(found))


def purity(entry: Entry, *, seed: int = 0) -> Outcome:
    """Inputs and dout are not written to, backward can be called twice, and a call can be repeated bit for bit."""
    example = _example(entry, seed)
    before = _arrays(example)
    copies = [a.copy() for a in before]
    out, backward = _call(entry, example)
    dout = _random_like(out, seed)
    dout_copy = trees.map(np.array, dout)
    out_copy = trees.map(np.array, out)
    first = trees.map(np.array, _as_tuple(backward(dout), example))
    second = _as_tuple(backward(dout), example)
    again, backward_again = _call(entry, example)
    third = _as_tuple(backward_again(dout), example)
    found = [
        message
        for message, ok in (
            ("an argument was written to", all(map(np.array_equal, before, copies))),
            ("dout was written to", _same(dout, dout_copy)),
            ("backward changed the output", _same(out, out_copy)),
            ("a second backward differs", _same(first, second)),
            ("a second call differs", _same(out, again) and _same(first, third)),
        )
        if not ok
    ]
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
    for layout in (fortran, spread, zero_stride):
        plain = trees.map(lambda a: np.array(layout(a), order="C"), example.args)
        strided = trees.map(lambda a: layout(np.asarray(a)), example.args)
        reference = _forward_and_backward(entry, Example(plain, example.config), seed)
        found = _forward_and_backward(entry, Example(strided, example.config), seed)
        worst = float(np.maximum(worst, _difference(reference, found)))
    return Outcome("strides", worst, 1e-12, "" if worst <= 1e-12 else f"memory layout changes the result by {worst:.2g}")


def batches(entry: Entry, *, seed: int = 0) -> Outcome:
    """Where leading axes are promised, one more of them equals a loop over it."""
    batched = _batched_arguments(entry)
    one, two = _example(entry, seed), _example(entry, seed + 1)
    if not batched or any(isinstance(v, np.random.Generator) for v in one.config.values()):
        return Outcome("batches", 0.0, 1e-12)
    names = list(inspect.signature(entry.function).parameters)

    def stack(name: str, a: Any, b: Any) -> Any:
        return np.stack([a, b]) if name in batched and a is not None else a

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
                worst = np.maximum(worst, _difference(grads[j][i], g))
        shared.append([g for j, g in enumerate(part_grads) if names[j] not in batched])
    for j, own in enumerate([g for j, g in enumerate(grads) if names[j] not in batched]):
        worst = np.maximum(worst, _difference(own, trees.map(np.add, shared[0][j], shared[1][j])))
    return Outcome("batches", float(worst), 1e-12, "" if worst <= 1e-12 else f"a batch differs from a loop by {worst:.2g}")


def large_inputs(entry: Entry, *, seed: int = 0) -> Outcome:
    """Arguments a thousand times larger give finite outputs and gradients, in float32."""
    example = _as_dtype(_example(entry, seed), np.float32)
    example = Example(trees.map(lambda a: a * np.float32(1e3), example.args), example.config)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        try:
            results = _forward_and_backward(entry, example, seed)
        except FloatingPointError as error:
            return Outcome("large inputs", 1.0, 0.0, str(error))
    broken = [path for path, leaf in trees.leaves(results) if not np.all(np.isfinite(leaf))]
    return Outcome("large inputs", float(len(broken)), 0.0, f"not finite: {', '.join(broken)}" if broken else "")


def rejections(entry: Entry, *, seed: int = 0) -> Outcome:
    """Every bad call on the label raises a ValueError that names the argument."""
    example, found = _example(entry, seed), []
    for rejection in entry.rejects:
        spoiled = rejection.spoil(entry.function, example)
        try:
            _call(entry, spoiled)
            found.append(f"{rejection.names}: a bad value was accepted")
        except ValueError as error:
            if rejection.names not in str(error):
                found.append(f"{rejection.names}: the error does not name it: {error}")
        except Exception as error:
            found.append(f"{rejection.names}: {type(error).__name__} instead of ValueError: {error}")
    if not entry.rejects:
        found.append("the label lists no bad call")
    return Outcome("rejections", float(len(found)), 0.0, "; ".join(found))


CHECKS: dict[str, Callable[..., Outcome]] = {
    "gradients": gradients,
    "dtypes": dtypes,
    "purity": purity,
    "strides": strides,
    "batches": batches,
    "large inputs": large_inputs,
    "rejections": rejections,
}


def _example(entry: Entry, seed: int) -> Example:
    return entry.example(np.random.default_rng(seed))


def _call(entry: Entry, example: Example) -> Any:
    from minitransformers.foundation.gradients import _fresh

    return entry.function(*example.args, **_fresh(example.config))


def _random_like(out: Any, seed: int) -> Any:
    rng = np.random.default_rng([seed, 2])
    return trees.map(lambda leaf: np.asarray(rng.normal(size=np.shape(leaf))).astype(leaf.dtype), out)


def _as_tuple(grads: Any, example: Example) -> tuple:
    return one_each(grads, len(example.args))


def _forward_and_backward(entry: Entry, example: Example, seed: int) -> tuple:
    out, backward = _call(entry, example)
    return out, _as_tuple(backward(_random_like(out, seed)), example)


def _as_dtype(example: Example, dtype: Any) -> Example:
    def convert(leaf: Any) -> Any:
        return leaf.astype(dtype) if getattr(leaf, "dtype", np.dtype(bool)).kind == "f" else leaf

    def convert_config(value: Any) -> Any:
        # Frozen weights and memories come by keyword and have the dtype of the rest.
        is_tree = isinstance(value, (np.ndarray, list)) or (isinstance(value, tuple) and hasattr(value, "_fields"))
        return trees.map(convert, value) if is_tree else value

    return Example(trees.map(convert, example.args), {k: convert_config(v) for k, v in example.config.items()})


def _arrays(example: Example) -> list[np.ndarray]:
    leaves = [leaf for _, leaf in trees.leaves(example.args)] + [v for v in example.config.values() if isinstance(v, np.ndarray)]
    return [leaf for leaf in leaves if isinstance(leaf, np.ndarray)]


def _same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for (_, x), (_, y) in zip(trees.leaves(a), trees.leaves(b), strict=True))


def _difference(a: Any, b: Any) -> float:
    """The largest difference between two trees relative to the largest element (1 where that is smaller); NaN where one is."""
    pairs = [(x, y) for (_, x), (_, y) in zip(trees.leaves(a), trees.leaves(b), strict=True)]
    scale = max([1.0] + [float(np.max(np.abs(x), initial=0)) for x, _ in pairs])
    return float(np.max([0.0] + [np.max(np.abs(np.asarray(x) - y), initial=0) for x, y in pairs])) / scale  # Python's max loses a NaN


def _batched_arguments(entry: Entry) -> set[str]:
    """Arguments whose annotation begins with free leading axes."""
    hints = typing.get_type_hints(entry.function)
    names = set()
    for name, hint in hints.items():
        for part in [hint, *typing.get_args(hint)]:
            if getattr(part, "dim_str", "").startswith(("...", "*")):
                names.add(name)
    return names
