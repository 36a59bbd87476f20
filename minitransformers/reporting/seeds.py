"""Experiments over seeds: what was found, as arrays over the seeds, and a verdict of each seed alone.

An experiment is ``experiment(rng)``, which yields ``curve, x, {measure: number}``; found is measure -> curve -> x -> number,
an array over seeds where several were run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.training.threads import side_by_side

Experiment = Callable[[np.random.Generator], Iterable[tuple[str, Any, dict[str, Any]]]]
Found = dict[str, dict[str, dict[Any, Any]]]


def collect(experiment: Experiment, seeds: Sequence[int], *, watch: Callable[[], Any] = lambda: None) -> Found:
    """What the experiment finds with a fresh generator of each seed, each number an array over the seeds.

    The seeds run side by side, a thread each. watch is called after each thing that is found.
    """

    def alone(seed: int) -> list[tuple[str, Any, dict[str, Any]]]:
        points = []
        for point in experiment(np.random.default_rng(seed)):
            points.append(point)
            watch()
        return points

    lists: dict[str, dict[str, dict[Any, list[float]]]] = {}
    for points in side_by_side(seeds, function=alone):
        for curve, x, numbers in points:
            for measure, number in numbers.items():
                lists.setdefault(measure, {}).setdefault(curve, {}).setdefault(x, []).append(float(number))
    return _mapped(np.array, lists)


def judge(rule: Callable[[Found], Any], found: Found, count: int) -> list[bool]:
    """The rule, asked of each of so many seeds alone."""
    return [bool(rule(_mapped(lambda values, i=i: float(values[i]), found))) for i in range(count)]


def along(points: dict[Any, Any]) -> Array:
    """The numbers of one curve in the order of their xs; (xs, seeds) where there are several seeds."""
    return np.array(list(points.values()))


def _mapped(function: Callable, found: dict) -> Found:
    return {m: {c: {x: function(v) for x, v in points.items()} for c, points in curves.items()} for m, curves in found.items()}
