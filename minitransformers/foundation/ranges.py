"""Ranges: what a number may be, said in the signature, where people read it and the outermost call checks it.

    eps: Annotated[float, at_least(0)] = 1e-6
    window: Annotated[int, at_least(1)]
    delta: Annotated[Float[Array, "*batch positions"], at_least(0)]

Every range leaves out NaN and both infinities. A floating setting must lie in its range in the dtype of the call, too:
1e-320 is above 0, but in float32 it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Range:
    """Which numbers are allowed.

    words ends the sentence "wants a finite number ..."; allows(smallest, largest) tells whether all numbers between the
    two are in the range; outside are a few numbers that are not, from which bad calls are made.
    """

    words: str
    allows: Callable[[Any, Any], bool]
    outside: tuple[float, ...]


def at_least(least: float) -> Range:
    """From ``least`` on, itself included."""
    return Range(f"of at least {least}", lambda low, high: bool(least <= low and high < math.inf), (least - 1, *_NEVER))


def above(bound: float) -> Range:
    """More than ``bound``."""
    return Range(f"above {bound}", lambda low, high: bool(bound < low and high < math.inf), (bound, bound - 1, *_NEVER))


def at_most(most: float) -> Range:
    """Up to ``most``, itself included."""
    return Range(f"of at most {most}", lambda low, high: bool(-math.inf < low and high <= most), (most + 1, *_NEVER))


def below(bound: float) -> Range:
    """Less than ``bound``."""
    return Range(f"below {bound}", lambda low, high: bool(-math.inf < low and high < bound), (bound, bound + 1, *_NEVER))


def between(least: float, most: float) -> Range:
    """From ``least`` to ``most``, both included."""
    return Range(f"from {least} to {most}", lambda low, high: bool(least <= low and high <= most), (least - 1, most + 1, *_NEVER))


def from_to_below(least: float, bound: float) -> Range:
    """From ``least``, itself included, to below ``bound``."""
    words = f"of at least {least} and below {bound}"
    return Range(words, lambda low, high: bool(least <= low and high < bound), (least - 1, bound, *_NEVER))


_NEVER = (math.nan, math.inf, -math.inf)

positive = above(0)
negative = below(0)
finite = Range("", lambda low, high: bool(-math.inf < low and high < math.inf), _NEVER)


def _is_log_rate(low: Any, high: Any) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.exp(low) > 0 and np.exp(high) < np.inf)


# The logarithm of a rate, which must not have become 0 or infinite in its dtype.
log_rate = Range("whose exponential is finite and above 0", _is_log_rate, (-800.0, 800.0, *_NEVER))
