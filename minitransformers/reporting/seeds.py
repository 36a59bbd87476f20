"""Experiments over seeds: what was found, as arrays over the seeds, and a verdict of each seed alone.

An experiment is ``experiment(rng)``, which yields ``curve, x, {measure: number}``; found is measure -> curve -> x -> number,
an array over seeds where several were run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy import ndarray as Array

Found = dict[str, dict[str, dict[Any, Any]]]


def collect(experiment: Callable[[np.random.Generator], Iterable[tuple[str, Any, dict[str, Any]]]], seeds: Iterable[int]) -> Found:
    """What the experiment finds with a fresh generator of each seed, each number an array over the seeds."""
    lists: dict[str, dict[str, dict[Any, list[float]]]] = {}
    for seed in seeds:
        for curve, x, numbers in experiment(np.random.default_rng(seed)):
            for measure, number in numbers.items():
                lists.setdefault(measure, {}).setdefault(curve, {}).setdefault(x, []).append(float(number))
    return _mapped(np.array, lists)


def alone(found: Found, i: int) -> Found:
    """What the seed number i found, numbers in the place of arrays."""
    return _mapped(lambda values: float(values[i]), found)


def judge(rule: Callable[[Found], Any], found: Found, count: int) -> list[bool]:
    """The rule, asked of each of so many seeds alone."""
    return [bool(rule(alone(found, i))) for i in range(count)]


def along(points: dict[Any, Any]) -> Array:
    """The numbers of one curve in the order of their xs; (xs, seeds) where there are several seeds."""
    return np.array(list(points.values()))


def _mapped(function: Callable, found: dict) -> Found:
    return {m: {c: {x: function(v) for x, v in points.items()} for c, points in curves.items()} for m, curves in found.items()}
