"""Decisions and what they are like for each group, each number with an interval of the people about whom they were taken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy import ndarray as Array

from minitransformers.bias_mitigation.bootstrap import bootstrap_interval
from minitransformers.bias_mitigation.group_metrics import equal_opportunity_gap, group_rates, parity_gap
from minitransformers.reporting.seeds import Found
from minitransformers.reporting.tables import mean_and_spread

MEASURES = ("accuracy", "worst group", "parity gap", "tpr gap", "fpr gap")


def measured(decisions: Array, *, labels: Array, groups: Array, weights: Array | None = None) -> Array:
    """The five MEASURES: how many decisions are right, of all and in the group with the fewest, and how far the rates of groups lie apart."""
    rates = group_rates(decisions, labels=labels, groups=groups, weights=weights)
    right = np.average(decisions == labels, weights=weights)
    gaps = parity_gap(rates).difference, equal_opportunity_gap(rates).difference, np.ptp(rates.fpr)
    return np.array([right, rates.accuracy.min(), *gaps])


def with_intervals(
    decisions: Array, other: Array, *, labels: Array, groups: Array, rng: np.random.Generator, resamples: int = 1000
) -> dict[str, float]:
    """The MEASURES of decisions, and by how much they are above those of other decisions about the same people: "parity gap more" and so on.

    Beside each, "... low" and "... high": the middle 95 % of draws of people within each group, the same ones for both decisions.
    """
    size = 8 * (groups.max() + 1)
    by, label, one, two = np.unravel_index(np.arange(size), (size // 8, 2, 2, 2))
    cells = np.ravel_multi_index((groups, labels, decisions, other), (size // 8, 2, 2, 2))

    def both(drawn: Array) -> Array:
        weights = np.bincount(drawn, minlength=size).astype(np.float64)
        own, others = (measured(said, labels=label, groups=by, weights=weights) for said in (one, two))
        return np.concatenate([own, own - others])

    found = bootstrap_interval(cells, statistic=both, rng=rng, resamples=resamples, groups=groups)
    names = [*MEASURES, *(f"{name} more" for name in MEASURES)]
    ends = (("", found.estimate), (" low", found.low), (" high", found.high))
    return {name + end: float(value) for end, values in ends for name, value in zip(names, values, strict=True)}


def told(found: Found, *names: str, measures: Sequence[str] = MEASURES) -> str:
    """Measures of each of these ways, in words."""

    def each(name: str) -> str:
        return ", ".join(f"{measure} {mean_and_spread(found[measure][name][0], '.3f')}" for measure in measures)

    return "; ".join(f"{name}: {each(name)}" for name in names)


def worse(found: Found, name: str) -> list[str]:
    """The MEASURES in which a way's decisions are worse than the others with every seed: "(perhaps)" where with one of them the interval holds 0."""
    said = []
    for measure in MEASURES:
        sign, end = (-1, "high") if measure in ("accuracy", "worst group") else (1, "low")
        if np.min(sign * found[f"{measure} more"][name][0]) > 0:
            said.append(measure + ("" if np.min(sign * found[f"{measure} more {end}"][name][0]) > 0 else " (perhaps)"))
    return said


def lower(found: Found, name: str) -> list[str]:
    """The gaps that are lower than the others' with every seed, by an interval of the difference that lies below 0."""
    return [gap for gap in MEASURES[2:] if np.max(found[f"{gap} more high"][name][0]) < 0]
