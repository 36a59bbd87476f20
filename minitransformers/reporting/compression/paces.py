"""What sections on speed share: the time of one call over that of another, forward or both ways, within one run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minitransformers.reporting.measures import paired_times
from minitransformers.reporting.seeds import Found
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.threads import hold_blas

FORWARD, BOTH = "forward", "forward and backward"


def quiet() -> None:
    """One thread, and memory that is kept."""
    keep_freed_memory()
    hold_blas()


def compared(dense: Callable, other: Callable, *, way: str, rounds: int) -> float:
    """The time of other over that of dense, each a call that gives out and backward: FORWARD alone or BOTH ways."""

    def run(call: Callable) -> None:
        found = call()
        if way == BOTH:
            out, backward = found
            backward(out)

    return paired_times({"dense": partial(run, dense), "other": partial(run, other)}, rounds=rounds)["other"].median


def ratio(found: Found, name: str, x: Any = FORWARD) -> float:
    """What was found of one name at x."""
    return float(np.ravel(found["ratio"][name][x])[0])


def told(found: Found, *names: str, x: Any = FORWARD) -> str:
    """The same of several, in words."""
    return ", ".join(f"{name} {ratio(found, name, x):.2f}" for name in names)
