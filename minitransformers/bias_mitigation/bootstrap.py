"""Bootstrap: how much of a measured number is luck of the draw, found by drawing again from what was drawn.

Draw as many rows as there are, with replacement, and measure again; do it two thousand times. The middle 95 % of what comes out is
the interval. What is drawn must be what was drawn once: rows, or pairs as rows of two columns, or clusters (all sentences of a
template, all comments of a person). Drawn within groups, no group can vanish. A difference between two models or groups is measured
on each draw as one number; two intervals that overlap say nothing about it. Costs R measurements.

Source: Efron 1979, doi:10.1214/aos/1176344552; Efron and Tibshirani 1993, An introduction to the bootstrap, chapters 13 (percentiles)
and 14 (BCa). theta is the statistic; Phi the normal distribution function, q the level, e = (1 - q)/2.

    theta_r = theta(the rows of as many units as there are, drawn with replacement within each group)   (1)
    low, high = the quantiles e and 1 - e of theta_r         (2)

BCa, in the place of (2), shifts both quantiles by the bias of theta_r and by how its spread changes with theta; theta_-i is theta
without unit i, and its differences d_i = mean theta_-i - theta_-i:

    z0 = Phi^-1((share of theta_r < theta + share of theta_r <= theta) / 2)   (3)
    a = sum d_i^3 / (6 (sum d_i^2)^(3/2))                    (4)
    z = Phi^-1(e) or Phi^-1(1 - e),   quantile = Phi(z0 + (z0 + z) / (1 - a (z0 + z)))   (5)
"""

import warnings
from collections.abc import Callable
from statistics import NormalDist
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Int, Real
from numpy import ndarray as Array

from minitransformers.foundation import Range, at_least, bad, example, invalid, procedure

inside: Range = Range("above 0 and below 1", lambda low, high: bool(low > 0 and high < 1), (0.0, 1.0, -0.5, float("nan")))
FEW = 20                                                     # units in a group, below which an interval is not to be trusted


class BootstrapInterval(NamedTuple):
    """What was measured, its interval, and the values of all draws; each number as the statistic gives it."""

    estimate: Any
    low: Any
    high: Any
    replicates: Array


def percentile_interval(replicates: Array, *, level: float, estimate: Array, leave_one_out: Callable) -> tuple[Array, Array]:
    """The quantiles of the draws. estimate and leave_one_out are not looked at."""
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2], axis=0)  # (2)
    return low, high


def bca_interval(replicates: Array, *, level: float, estimate: Array, leave_one_out: Callable) -> tuple[Array, Array]:
    """The same quantiles moved, for a bias of the draws and a spread that depends on what is measured: for one statistic, not several.

    leave_one_out() -> the statistic without each unit. Raises ValueError where the draws lie all on one side of the estimate, or
    leaving out a unit changes nothing.
    """
    if np.ndim(estimate):
        raise invalid("statistic", got=f"numbers of shape {np.shape(estimate)}", wants="one number, for BCa")
    normal, without = NormalDist(), leave_one_out()
    share = (np.mean(replicates < estimate) + np.mean(replicates <= estimate)) / 2
    d = without.mean() - without
    if not 0 < share < 1 or not d.any():
        raise invalid("statistic", got="draws all on one side of it, or equal without any unit", wants="one that varies, for BCa")
    z0 = normal.inv_cdf(float(share))                        # (3)
    a = np.sum(d**3) / (6 * np.sum(d**2) ** 1.5)             # (4)
    shifted = [z0 + normal.inv_cdf(e) for e in ((1 - level) / 2, (1 + level) / 2)]
    places = [normal.cdf(z0 + z / (1 - a * z)) for z in shifted]  # (5)
    low, high = np.quantile(replicates, places)
    return low, high


@procedure(
    title="Bootstrap interval",
    source="Efron 1979, doi:10.1214/aos/1176344552; Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13",
    example=lambda rng: example(rng.normal(size=(45, 2)), statistic=lambda rows: float((rows[:, 0] - rows[:, -1]).mean()), rng=rng,
                                resamples=100, groups=np.repeat([0, 1], (20, 25))),
    rejects=[
        bad("rows", rows=np.ones((1, 2)), groups=None), bad(groups=np.r_[np.zeros(44, int), 1]), bad(resamples=99), bad(level=1.0),
        bad(statistic=lambda rows: np.nan), bad("clusters", clusters=np.zeros(45, int), groups=None), bad("clusters", clusters=np.arange(45) % 5),
        bad(groups=np.zeros(44, int)),
    ],
)  # fmt: skip
def bootstrap_interval(
    rows: Real[Array, "rows ..."], *, statistic: Callable, rng: np.random.Generator, resamples: Annotated[int, at_least(100)] = 2000,
    level: Annotated[float, inside] = 0.95, groups: Int[Array, "rows"] | None = None, clusters: Int[Array, "rows"] | None = None,
    interval: Callable = percentile_interval,
) -> BootstrapInterval:  # fmt: skip
    """What statistic(rows) -> a number, or an array of several, may be, going by draws from the rows themselves.

    level is the share of draws in the interval. groups: each keeps its size in every draw. clusters: rows of the same number are
    drawn together. interval is percentile_interval, bca_interval or another of their form.
    Warns where a group has fewer than 20 units to draw from (rows, or clusters).
    Raises ValueError where one has fewer than 2, where a cluster lies in two groups, and where a statistic is not finite.
    """
    stratum = np.zeros(len(rows), int) if groups is None else groups
    _, first, unit = np.unique(np.arange(len(rows)) if clusters is None else clusters, return_index=True, return_inverse=True)
    if (stratum[first][unit] != stratum).any():
        raise invalid("clusters", got="one that lies in two groups", wants="each within one group")
    strata = [np.flatnonzero(stratum[first] == group) for group in np.unique(stratum)]  # the units of each group
    name = "clusters" if clusters is not None else "rows" if groups is None else "groups"
    fewest = min(map(len, strata))
    if fewest < 2:
        raise invalid(name, got=f"{fewest} to draw from", wants="at least 2 in each group")
    if fewest < FEW:
        warnings.warn(f"{name}: got {fewest} to draw from, and an interval from fewer than {FEW} is not to be trusted", stacklevel=5)
    members = [np.flatnonzero(unit == u) for u in range(len(first))] if clusters is not None else None

    def measured(units: Array) -> Array:
        found = np.asarray(statistic(rows[units if members is None else np.concatenate([members[u] for u in units])]), np.float64)
        if not np.isfinite(found).all():
            raise invalid("statistic", got="a number that is not finite", wants="one that every draw has (see groups)")
        return found

    everything = np.arange(len(first))
    estimate = measured(everything)
    draws = ([units[rng.integers(len(units), size=len(units))] for units in strata] for _ in range(resamples))
    replicates = np.stack([measured(np.concatenate(draw)) for draw in draws])  # (1)
    low, high = interval(
        replicates, level=level, estimate=estimate, leave_one_out=lambda: np.stack([measured(np.delete(everything, u)) for u in everything])
    )
    return BootstrapInterval(estimate[()], low, high, replicates)
