"""A yes or no about two groups that were made up: worlds of numbers with a rule and a record of it, and models that learn the record by weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.chain import chain
from minitransformers.basics.linear import init_linear, linear
from minitransformers.bias_mitigation.group_metrics import group_rates
from minitransformers.bias_mitigation.weighted_cross_entropy import weighted_cross_entropy
from minitransformers.reporting.bias_mitigation.deciding import init_reader, reader
from minitransformers.reporting.bias_mitigation.decisions import Table
from minitransformers.reporting.bias_mitigation.rated import with_intervals
from minitransformers.reporting.seeds import Found
from minitransformers.reporting.tables import mean_and_spread
from minitransformers.training.fit import fit
from minitransformers.training.task import Loss, Task

PEOPLE, ASKED, NUMBERS, UPDATES, BATCH = 4000, 10_000, 6, 600, 128  # of ASKED half are of each group
NO, RULE = 'always "no"', "the rule itself"
SHOWN = ("worst group", "parity gap", "tpr gap", "fpr gap")


class World(NamedTuple):
    """The share of the minority, by how many degrees its rule is turned, and how much of its yes is recorded as a no."""

    minority: float
    angle: float = 0.0
    lost: float = 0.0

    def true_and_recorded(self, rng: np.random.Generator, people: int) -> tuple[Table, Table]:
        """People with true labels, and the same as they are recorded; the last number about each tells the group."""
        groups = (rng.random(people) < self.minority).astype(np.int64)
        x = rng.standard_normal((people, NUMBERS))
        labels = (rng.random(people) < 1 / (1 + np.exp(-4 * self.along(x, groups)))).astype(np.int64)
        recorded = labels * ((groups == 0) | (rng.random(people) >= self.lost))
        features = np.c_[x, 2 * groups - 1].astype(np.float32)
        return Table(features, labels, groups), Table(features, recorded, groups)

    def along(self, x: Array, groups: Array) -> Array:
        """What the rule of each one's group goes by: a yes is more likely than not where it is above 0."""
        turned = np.radians(self.angle) * groups
        return np.cos(turned) * x[:, 0] + np.sin(turned) * x[:, 1]


def once(people: Table) -> Array:
    """Everybody weighs the same."""
    return np.ones(len(people.labels))


def alike(people: Table) -> Array:
    """Groups weigh alike."""
    return 1 / np.bincount(people.groups)[people.groups]


class Learner(NamedTuple):
    """Where it learns, whether it is linear or has a hidden layer (reader), and how much everybody weighs."""

    world: World
    model: Callable = linear
    weights: Callable[[Table], Array] = once

    def learned(self, rng: np.random.Generator, rate: float, *, steps: int = UPDATES) -> Callable:
        """The model after so many updates, from features to logits and their backward."""
        people = self.world.true_and_recorded(rng, PEOPLE)[1]
        params = [init_linear(rng, NUMBERS + 1, 2)] if self.model is linear else init_reader(rng, NUMBERS + 1)
        run = partial(chain, parts=(linear,)) if self.model is linear else reader
        return partial(run, fit(params, _Weighted(run, people, self.weights(people)), steps=steps, peak=rate, rng=rng))

    def loss(self, rng: np.random.Generator, rate: float, *, steps: int = UPDATES) -> float:
        """The weighted loss for others of the same world, with labels as they are recorded there."""
        people = self.world.true_and_recorded(rng, PEOPLE)[1]
        logits, _ = self.learned(rng, rate, steps=steps)(people.features)
        return float(weighted_cross_entropy(logits, targets=people.labels, weights=self.weights(people).astype(np.float32))[0])


class _Weighted(Task):
    """A yes or no, of examples that count by their weights."""

    def __init__(self, model: Callable, people: Table, weights: Array) -> None:
        self.model, self.people, self.weights = model, people, weights.astype(np.float32)

    def batch(self, rng: np.random.Generator) -> tuple[Array, ...]:
        rows = rng.integers(len(self.weights), size=BATCH)
        return *(part[rows] for part in self.people[:2]), self.weights[rows]

    def loss(self, params: Any, batch: tuple[Array, ...], *, rng: np.random.Generator | None = None) -> Loss:
        x, labels, weights = batch
        logits, backward = self.model(params, x)
        out, loss_backward = weighted_cross_entropy(logits, targets=labels, weights=weights)
        return (out, 1), lambda dloss: backward(loss_backward(dloss[0]))[0]


def decided(
    ways: Mapping[str, Learner], world: World, rates: Mapping[str, float], rng: np.random.Generator, *, base: str, steps: int = UPDATES,
    resamples: int = 1000,
) -> Iterator[tuple[str, dict[str, float]]]:  # fmt: skip
    """Of each way, RULE and NO: MEASURES by true labels, how much more than base has; how often right about either group, and by the record."""
    true, recorded = world._replace(minority=0.5).true_and_recorded(rng, ASKED)
    known: dict[str, Any] = {"labels": true.labels, "groups": true.groups}
    said = {name: way.learned(rng, rates[name], steps=steps)(true.features)[0].argmax(-1) for name, way in ways.items()}
    said[RULE] = (world.along(true.features, true.groups) > 0).astype(np.int64)
    said[NO] = np.zeros(ASKED, np.int64)
    for name, decisions in said.items():
        numbers = with_intervals(decisions, said[base], rng=rng, resamples=resamples, **known)
        each = group_rates(decisions, **known).accuracy
        by_record = group_rates(decisions, labels=recorded.labels, groups=recorded.groups).accuracy[1]
        yield name, numbers | {"majority": each[0], "minority": each[1], "by the record": by_record}


def row(found: Found, name: str, world: str, *more: str) -> list[str]:
    """A row of a table: how often right about either group, SHOWN with their intervals, and more."""

    def cell(measure: str) -> str:
        ends = (np.mean(found[f"{measure} {end}"][name][world]) for end in ("low", "high"))
        return mean_and_spread(found[measure][name][world], ".3f") + " ({:.3f} to {:.3f})".format(*ends)

    sides, others = ([mean_and_spread(found[measure][name][world], ".3f") for measure in of] for of in (("majority", "minority"), more))
    return [name, *sides, *map(cell, SHOWN), *others]
