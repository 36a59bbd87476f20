"""Calls of the catalogue that nobody thought of, each put in a class: right, refused by name, or a fault.

    python -m tests.fuzz                      500 calls
    python -m tests.fuzz --calls 10000        more
    python -m tests.fuzz --seed 7 rope ssd    others, of some concepts

A call is an entry's example with one to three things changed: an array of another dtype, shape, layout or with other numbers, a
setting of another kind or size, a parameter left out. A fault is an exception that is no InvalidArgument, an argument
that was written to, an output or a gradient of another dtype than the arguments, a gradient of another shape than its argument, and
a gradient that differs from differences of the output.
"""

from __future__ import annotations

import argparse
import collections
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minitransformers import catalogue, trees
from minitransformers.foundation.gradients import fresh
from minitransformers.foundation.shapes import InvalidArgument

FAULTS = ("bare exception", "argument written to", "dtype changed", "gradient of another shape", "gradient wrong")
Array = np.ndarray


class Outcome(NamedTuple):
    """What became of a call: its class, what was changed, and what there is to say."""

    kind: str
    call: str
    message: str = ""


# Changes of an array. "mild" ones leave a call that should work, with numbers for which differences mean something.
MILD: dict[str, Callable[[np.random.Generator, Array], Any]] = {
    "in Fortran's order": lambda rng, a: np.asfortranarray(a),
    "every second": lambda rng, a: np.repeat(a, 2, axis=0)[::2] if a.ndim else a,
    "read-only": lambda rng, a: _frozen(a.copy()),
    "other numbers": lambda rng, a: a + 0.1 * rng.normal(size=a.shape) if a.dtype.kind == "f" else a,
}
WILD: dict[str, Callable[[np.random.Generator, Array], Any]] = {
    "as float32": lambda rng, a: a.real.astype(np.float32),
    "as float16": lambda rng, a: a.real.astype(np.float16),
    "as int64": lambda rng, a: a.real.astype(np.int64),
    "as uint8": lambda rng, a: a.real.astype(np.uint8),
    "as complex128": lambda rng, a: a.astype(np.complex128),
    "as bool": lambda rng, a: a.astype(bool),
    "as object": lambda rng, a: a.astype(object),
    "as str": lambda rng, a: a.astype(str),
    "with NaN": lambda rng, a: _with(rng, a, np.nan),
    "with inf": lambda rng, a: _with(rng, a, np.inf),
    "with -inf": lambda rng, a: _with(rng, a, -np.inf),
    "1e30 times as large": lambda rng, a: a * 1e30 if a.dtype.kind == "f" else a,
    "zeros": lambda rng, a: np.zeros_like(a),
    "negative": lambda rng, a: -np.abs(a) if a.dtype.kind in "fi" else a,
    "one axis more": lambda rng, a: a[None],
    "one axis less": lambda rng, a: a[0] if a.ndim and len(a) else a,
    "one longer": lambda rng, a: _axis(rng, a, lambda a, i: np.concatenate([a, a.take([0], i)], i)),
    "one shorter": lambda rng, a: _axis(rng, a, lambda a, i: a.take(range(a.shape[i] - 1), i)),
    "an axis of 1": lambda rng, a: _axis(rng, a, lambda a, i: a.take([0], i)),
    "an axis of 0": lambda rng, a: _axis(rng, a, lambda a, i: a.take([], i)),
    "two axes swapped": lambda rng, a: a.swapaxes(0, -1) if a.ndim > 1 else a,
    "as a list": lambda rng, a: a.tolist(),
    "a number": lambda rng, a: 1.5,
    "None": lambda rng, a: None,
    "text": lambda rng, a: "text",
}
SETTINGS = (
    None, True, False, 0, 1, 2, 3, 7, -1, 10**6, 10**400, 0.0, 0.5, 1.0, 1.5, -0.5, 1e-300, 1e39, 1e308, float("inf"), float("-inf"),
    float("nan"), "text", "", b"x", (), [1], {}, 1j, np.int8(1), np.int64(2), np.uint8(3), np.float32(0.5), np.float64(0.5),
    np.float16(1), np.array(2), np.array([1.0]), np.ones((2, 2), bool), object(),
)  # fmt: skip


def _frozen(a: Array) -> Array:
    a.setflags(write=False)
    return a


def _with(rng: np.random.Generator, a: Array, value: float) -> Array:
    if a.dtype.kind != "f" or not a.size:
        return a
    a = a.copy()
    a.flat[rng.integers(a.size)] = value
    return a


def _axis(rng: np.random.Generator, a: Array, change: Callable[[Array, int], Array]) -> Array:
    axes = [i for i, size in enumerate(a.shape) if size]
    return change(a, int(rng.choice(axes))) if axes else a


def calls(rng: np.random.Generator, names: list[str] | None = None) -> Iterator[tuple[catalogue.Entry, catalogue.Example, str, bool]]:
    """Changed calls without end: the entry, its call, in words, and whether all changes are mild."""
    entries = [entry for name, entry in catalogue.entries().items() if not names or name in names]
    while True:
        entry = entries[rng.integers(len(entries))]
        example, said, mild = entry.example(np.random.default_rng(int(rng.integers(2**32)))), [], True
        for _ in range(rng.integers(1, 4)):
            example, words, is_mild = _changed(rng, entry, example)
            said.append(words)
            mild &= is_mild
        yield entry, example, f"{entry.name}: {', '.join(said)}", mild


def _changed(rng: np.random.Generator, entry: catalogue.Entry, example: catalogue.Example) -> tuple[catalogue.Example, str, bool]:
    known = inspect.signature(entry.function).parameters
    settings = [name for name, p in known.items() if p.kind is p.KEYWORD_ONLY]
    if settings and rng.random() < 0.35:
        name, value = settings[rng.integers(len(settings))], SETTINGS[rng.integers(len(SETTINGS))]
        return catalogue.Example(example.args, {**example.config, name: value}), f"{name}={str(value)[:20]}", False
    leaves = [(path, leaf) for path, leaf in trees.leaves((example.args, example.config)) if isinstance(leaf, np.ndarray)]
    if not leaves:
        return example, "nothing", True
    place, mild = int(rng.integers(len(leaves))), bool(rng.random() < 0.4)
    words, change = list((MILD if mild else WILD).items())[rng.integers(len(MILD if mild else WILD))]
    seen = -1

    def changed(leaf: Any) -> Any:
        nonlocal seen
        seen += isinstance(leaf, np.ndarray)
        return change(rng, leaf) if isinstance(leaf, np.ndarray) and seen == place else leaf

    try:
        with np.errstate(all="ignore"):
            args, config = _mapped((example.args, example.config), changed)
    except (TypeError, ValueError, OverflowError):           # NumPy cannot make this change to these numbers
        return example, "nothing", True
    return catalogue.Example(args, config), f"{leaves[place][0]} {words}", mild


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The tree with its leaves changed; what is neither array nor container stays."""
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(part, change) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(part, change) for part in value)
    return change(value)


def outcome(entry: catalogue.Entry, example: catalogue.Example, words: str, *, mild: bool) -> Outcome:
    """The class of one call."""
    arrays = [leaf for _, leaf in trees.leaves((example.args, example.config)) if isinstance(leaf, np.ndarray) and leaf.dtype != object]
    before = [a.copy() for a in arrays]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            returned = entry.function(*example.args, **fresh(example.config))
            if entry.is_procedure:
                kind, message = "ran", ""
            else:
                kind, message = _of_gradients(entry, example, returned, mild)
    except InvalidArgument as error:
        kind, message = "refused by name", str(error)
    except MemoryError as error:                             # a window of a million positions may be asked for
        kind, message = "too large", str(error)
    except Exception as error:
        kind, message = "bare exception", f"{type(error).__name__}: {error}"
    if any(not np.array_equal(a, old, equal_nan=a.dtype.kind in "fc") for a, old in zip(arrays, before, strict=True)):
        kind, message = "argument written to", ""
    return Outcome(kind, words, message)


def _of_gradients(entry: catalogue.Entry, example: catalogue.Example, returned: Any, mild: bool) -> tuple[str, str]:
    out, backward = returned
    rng = np.random.default_rng(0)
    dout = trees.map(lambda a: rng.normal(size=np.shape(a)).astype(np.asarray(a).dtype), out)
    gradients = backward(dout)
    gradients = gradients if len(example.args) > 1 and isinstance(gradients, tuple) else (gradients,)
    given = dict(trees.leaves(example.args))
    found = dict(trees.leaves(gradients))
    dtypes = {leaf.dtype for leaf in given.values() if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f"}
    ours = [leaf for _, leaf in trees.leaves(out)] + list(found.values())
    if len(dtypes) == 1 and any(np.asarray(a).dtype.kind == "f" and np.asarray(a).dtype not in dtypes for a in ours):
        return "dtype changed", f"{dtypes} to {({np.asarray(a).dtype for a in ours})}"
    for path, gradient in found.items():
        if path in given and np.shape(given[path]) != np.shape(gradient):
            return "gradient of another shape", f"{path}: {np.shape(given[path])} and {np.shape(gradient)}"
    if not mild or entry.gradient_of is not None:
        return "ran", ""
    difference = _difference(entry, example, dout, gradients)
    return ("ran", "") if difference < 1e-4 else ("gradient wrong", f"a relative difference of {difference:.1g}")


def _difference(entry: catalogue.Entry, example: catalogue.Example, dout: Any, gradients: tuple, size: float = 1e-6) -> float:
    """How far the slope along a random direction is from that of differences, relative to the larger."""
    rng = np.random.default_rng(1)
    direction = trees.map(lambda a: rng.normal(size=np.shape(a)), gradients)
    steps = dict(trees.leaves(direction))

    def loss(sign: int) -> float:
        args = trees.unflatten(example.args, [a + sign * size * steps[p] if p in steps else a for p, a in trees.leaves(example.args)])
        out = entry.function(*args, **fresh(example.config))[0]
        return float(sum(np.vdot(d, o) for (_, d), (_, o) in zip(trees.leaves(dout), trees.leaves(out), strict=True)))

    along = float(sum(np.vdot(g, v) for (_, g), (_, v) in zip(trees.leaves(gradients), trees.leaves(direction), strict=True)))
    measured = (loss(1) - loss(-1)) / (2 * size)
    scale = max(abs(along), abs(measured), 1e-3 * sum(float(np.linalg.norm(g)) for _, g in trees.leaves(gradients)), 1e-12)
    return abs(along - measured) / scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    stream, found = calls(np.random.default_rng(given.seed), given.names), []
    for _ in range(given.calls):
        entry, example, words, mild = next(stream)
        found.append(outcome(entry, example, words, mild=mild))
    for each in dict.fromkeys(each for each in found if each.kind in FAULTS):
        print(f"{each.kind}: {each.call}\n    {each.message[:200]}")
    for kind, number in collections.Counter(each.kind for each in found).most_common():
        print(f"{number:7,}  {kind}")


if __name__ == "__main__":
    main()
