"""Experiments over seeds: what was found, as arrays over the seeds, and a verdict of each seed alone.

An experiment is ``experiment(rng)``, which yields ``curve, x, {measure: number}``; found is measure -> curve -> x -> number,
an array over seeds where several were run.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import connection
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.training.threads import hold_blas, side_by_side

Experiment = Callable[[np.random.Generator], Iterable[tuple[str, Any, dict[str, Any]]]]
Found = dict[str, dict[str, dict[Any, Any]]]


def collect(experiment: Experiment, seeds: Sequence[int], *, watch: Callable[[], Any] = lambda: None) -> Found:
    """What the experiment finds with a fresh generator of each seed, each number an array over the seeds.

    Several seeds run side by side: on Linux in a process each, which begins as a copy of this one (what an experiment writes to
    elsewhere is gone with it), on other systems in a thread each. watch is called after each thing that is found.
    """

    def alone(seed: int) -> list[Any]:
        points = []
        for point in experiment(np.random.default_rng(seed)):
            points.append(point)
            watch()
        return points

    processes = len(seeds) > 1 and sys.platform == "linux"
    lists: dict[str, dict[str, dict[Any, list[float]]]] = {}
    for points in _in_processes(experiment, seeds, watch) if processes else side_by_side(seeds, function=alone):
        for curve, x, numbers in points:
            for measure, number in numbers.items():
                lists.setdefault(measure, {}).setdefault(curve, {}).setdefault(x, []).append(float(number))
    return _mapped(np.array, lists)


def _in_processes(experiment: Experiment, seeds: Sequence[int], watch: Callable[[], Any]) -> list[list[Any]]:
    """The points of each seed. Threads would wait for one another between the many small calls of a model."""
    context = multiprocessing.get_context("fork")
    found: dict[int, list[Any]] = {seed: [] for seed in seeds}
    working: dict[Any, tuple[int, Any]] = {}                 # the pipe to each
    try:
        for seed in seeds:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_send, args=(experiment, seed, theirs), daemon=True)
            process.start()
            theirs.close()
            working[ours] = seed, process
        while working:
            pipe: Any
            for pipe in connection.wait(list(working)):
                seed, process = working[pipe]
                try:
                    point, error = pipe.recv()
                except EOFError:
                    process.join()
                    raise RuntimeError(f"seed {seed}: its process ended with exit code {process.exitcode}") from None
                if error is not None:
                    raise error
                if point is None:
                    process.join()
                    del working[pipe]
                else:
                    found[seed].append(point)
                    watch()
    finally:
        for _, process in working.values():
            process.kill()
            process.join()
    return list(found.values())


def _send(experiment: Experiment, seed: int, pipe: Any) -> None:
    """Each point as it is found, then None; or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)             # the process that waits for us ends us
    hold_blas()
    try:
        for point in experiment(np.random.default_rng(seed)):
            pipe.send((point, None))
        pipe.send((None, None))
    except Exception as error:
        error.add_note(f"in the process of seed {seed}:\n{traceback.format_exc()}")
        pipe.send((None, error))


def tried(
    loss: Callable[..., float], names: Iterable[str], rates: Sequence[float] | Mapping[str, Sequence[float]], rng: np.random.Generator,
    *, alike: bool = True, starts: int = 1,
) -> Iterator[tuple[str, float, dict[str, float]]]:  # fmt: skip
    """What each contestant loses at each rate, ``loss(name, rng, rate=rate)``: what a tuning yields.

    rates are one list for all, or a list for each by name. alike: all from one start, and not each from a start of its own,
    or from several, of which the mean counts, where one may be lucky.
    """
    hold_blas()
    start = rng.integers(2**32) if alike else None
    for name in names:
        for rate in rates[name] if isinstance(rates, Mapping) else rates:
            seeds = rng.integers(2**32, size=starts) if start is None else [start]
            yield name, rate, {"loss": float(np.mean([loss(name, np.random.default_rng(seed), rate=rate) for seed in seeds]))}


def judge(rule: Callable[[Found], Any], found: Found, count: int) -> list[bool]:
    """The rule, asked of each of so many seeds alone."""
    return [bool(rule(_mapped(lambda values, i=i: float(values[i]), found))) for i in range(count)]


def along(points: dict[Any, Any]) -> Array:
    """The numbers of one curve in the order of their xs; (xs, seeds) where there are several seeds."""
    return np.array(list(points.values()))


def one_seed(points: dict[Any, Any]) -> dict[Any, float]:
    """The numbers of one curve, {x: number}, of the first seed: all there is where time is measured."""
    return {x: float(np.ravel(values)[0]) for x, values in points.items()}


def _mapped(function: Callable, found: dict) -> Found:
    return {m: {c: {x: function(v) for x, v in points.items()} for c, points in curves.items()} for m, curves in found.items()}
