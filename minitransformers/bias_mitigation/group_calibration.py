"""Calibration of groups, and what it costs: where base rates differ, groups cannot be equal in everything.

A score of 0.7 is calibrated in a group where 7 of 10 who have it have label 1. Groups can each be calibrated, and still be unequal in
who is wrongly selected. That is no fault of a classifier. Base rate, precision and true positive rate fix the false positive rate, by
counting alone. With unequal base rates and the first two rates equal, the third cannot be. Costs one pass over the members.

Source: Chouldechova 2016, arXiv:1610.07524; Kleinberg, Mullainathan and Raghavan 2016, arXiv:1609.05807, for scores. p is
the base rate of a group.

    calibration_ab = share of label 1 among the members of group a in score bin b   (1)
    fpr = p/(1 - p) (1 - ppv)/ppv tpr                        (2)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.bias_mitigation.group_metrics import number_of_groups
from minitransformers.foundation import at_least, bad, between, example, from_to_below, invalid, procedure
from minitransformers.models.sampling import probability


class GroupCalibration(NamedTuple):
    """Of each group and score bin the members, their mean score and their share of label 1; NaN where nobody is."""

    edges: Float[Array, "edges"]
    members: Int[Array, "groups bins"]
    mean_score: Float[Array, "groups bins"]
    positive_rate: Float[Array, "groups bins"]


_GROUPS, _LABELS = np.tile(np.arange(12) % 3, (2, 1)), np.tile(np.arange(12) // 3 % 2, (2, 1))


@procedure(
    title="Calibration of groups",
    source="Chouldechova 2016, arXiv:1610.07524",
    example=lambda rng: example((np.arange(12) // 6 + rng.uniform(0.1, 0.9, size=(2, 12))) / 2, labels=_LABELS, groups=_GROUPS, bins=2),
    rejects=[bad(groups=0 * _GROUPS), bad(groups=2 * (_GROUPS // 2))],
)
def calibration_by_group(
    scores: Annotated[Float[Array, "*members"], between(0, 1)], *, labels: Annotated[Int[Array, "*members"], between(0, 1)],
    groups: Annotated[Int[Array, "*members"], at_least(0)], bins: Annotated[int, at_least(1)] = 10,
) -> GroupCalibration:  # fmt: skip
    """Of each group and each of equally wide bins of the score how many have label 1, beside the score that they were given.

    A bin holds its lower edge, the last one both. Raises ValueError for fewer than two groups and for a group without members.
    """
    size, edges = number_of_groups(groups), np.linspace(0, 1, bins + 1)
    place = np.minimum(np.searchsorted(edges, scores.astype(np.float64), side="right") - 1, bins - 1)
    cell = (groups * bins + place).ravel()
    members, total, positive = (np.bincount(cell, w, minlength=size * bins).reshape(size, bins) for w in (None, scores.ravel(), labels.ravel()))
    if empty := np.flatnonzero(members.sum(axis=1) == 0).tolist():
        raise invalid("groups", got=f"no member of group {empty[0]}", wants="numbers from 0 without a gap")
    with np.errstate(invalid="ignore"):
        return GroupCalibration(edges, members, total / members, positive / members)  # (1)


@procedure(
    title="False positive identity",
    source="Chouldechova 2016, arXiv:1610.07524",
    example=lambda rng: example(rng.uniform(0.2, 0.4, size=3), rng.uniform(0.6, 0.9, size=3), rng.uniform(0.3, 0.9, size=3)),
    rejects=[bad("ppv", base_rate=np.full(3, 0.9), ppv=np.full(3, 0.2))],
)
def false_positive_identity(
    base_rate: Annotated[Float[Array, "*shape"], from_to_below(0, 1)], ppv: Annotated[Float[Array, "*shape"], probability],
    tpr: Annotated[Float[Array, "*shape"], between(0, 1)],
) -> Float[Array, "*shape"]:  # fmt: skip
    """The false positive rate that base rate, precision and true positive rate leave no choice about.

    Raises ValueError where it would be above 1: no decisions have these three.
    """
    fpr = base_rate / (1 - base_rate) * (1 - ppv) / ppv * tpr  # (2)
    if fpr.max() > 1 + 1e-9:                                 # rates that were measured may give 1 and a rounding
        raise invalid("ppv", got=f"numbers that need a false positive rate of {fpr.max():.3g}", wants="at most 1")
    return fpr
