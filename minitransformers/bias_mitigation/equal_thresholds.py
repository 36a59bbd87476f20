"""Equal opportunity by thresholds: one for each group, so that all have the same true positive rate.

The scores are left as they are. Each group has a curve of the true and false positive rates that its thresholds reach; between two of
them one can go by lot. So every true positive rate can be had by every group, at the false positive rate of its own curve's hull. Which
rate costs the fewest errors is then one question for all groups together. The cost is piecewise linear in it, so its
least value lies at a corner of some hull, and the corners are tried. Costs one sorting. It needs the group at the time of decision.

Source: Hardt, Price and Srebro 2016, arXiv:1610.02413. Differs: fairlearn, whose ThresholdOptimizer does the same,
tries rates on a grid. P_a and N_a are how many of group a have label 1 and label 0.

    tpr_k, fpr_k = shares of label 1 and of label 0 with a score of at least threshold k   (1)
    hull_a = corners of the lower convex hull of the points (tpr_k, fpr_k)   (2)
    fpr_a(t) = hull_a between its corners beside t           (3)
    errors(t) = sum over a of P_a (1 - t) + N_a fpr_a(t)     (4)
    t = of all corners' tpr that of fewest errors, of equals the largest   (5)
    share_a = (t - tpr at the upper corner) / (tpr at the lower corner - tpr at the upper corner)   (6)
    chance = 1 from the upper threshold on, share_a from the lower on, else 0   (7)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, between, example, finite, invalid, procedure


class GroupThresholds(NamedTuple):
    """Of each group the two thresholds (the upper may be infinite: nobody), and with which chance a score between them is selected."""

    upper: Float[Array, "groups"]
    lower: Float[Array, "groups"]
    share: Annotated[Float[Array, "groups"], between(0, 1)]


class EqualOpportunity(NamedTuple):
    """The thresholds, the true positive rate that they give every group, and the expected share of wrong decisions."""

    thresholds: GroupThresholds
    tpr: float
    errors: float


_GROUPS, _LABELS = np.tile(np.arange(12) % 3, (2, 1)), np.tile(np.arange(12) // 3 % 2, (2, 1))


@procedure(
    title="Thresholds of equal opportunity",
    source="Hardt, Price and Srebro 2016, arXiv:1610.02413",
    example=lambda rng: example(rng.normal(size=(2, 12)) + _LABELS, labels=_LABELS, groups=_GROUPS),
    rejects=[bad(groups=0 * _GROUPS), bad(groups=2 * (_GROUPS // 2)), bad(labels=_GROUPS // 2), bad(labels=1 - _GROUPS // 2)],
)
def equal_opportunity_thresholds(
    scores: Annotated[Float[Array, "*members"], finite], *, labels: Annotated[Int[Array, "*members"], between(0, 1)],
    groups: Annotated[Int[Array, "*members"], at_least(0)], tpr: Annotated[float, between(0, 1)] | None = None,
) -> EqualOpportunity:  # fmt: skip
    """Thresholds under which all groups have one true positive rate: tpr, or where it is None the one of fewest expected errors.

    groups numbers the groups from 0 without a gap. The errors are those expected among these members.
    Raises ValueError for fewer than two groups, for one without members, without label 1 or without label 0.
    """
    size = int(groups.max()) + 1
    if size < 2:
        raise invalid("groups", got="one group", wants="at least two to compare")
    hulls = []
    for group in range(size):
        own, label = scores[groups == group], labels[groups == group]
        if not len(own):
            raise invalid("groups", got=f"no member of group {group}", wants="numbers from 0 without a gap")
        if label.min() == label.max():
            raise invalid("labels", got=f"no {1 - label[0]} in group {group}", wants="both labels in each group")
        hulls.append(_hull(own.astype(np.float64), label))
    sizes = np.stack([np.bincount(labels[groups == group], minlength=2) for group in range(size)])
    candidates = np.unique(np.concatenate([hull[:, 0] for hull in hulls])) if tpr is None else np.array([tpr])
    fpr = np.stack([np.interp(candidates, hull[:, 0], hull[:, 1]) for hull in hulls])  # (groups, candidates)  (3)
    wrong = sizes[:, 1].sum() * (1 - candidates) + sizes[:, 0] @ fpr  # (4)
    best = len(candidates) - 1 - int(np.argmin(wrong[::-1]))
    t = candidates[best]                                     # (5)
    corners = [_beside(hull, t) for hull in hulls]
    upper, lower, share = (np.array(part, scores.dtype) for part in zip(*corners, strict=True))
    return EqualOpportunity(GroupThresholds(upper, lower, share), float(t), float(wrong[best] / scores.size))


@procedure(
    title="Chances of selection",
    source="Hardt, Price and Srebro 2016, arXiv:1610.02413",
    example=lambda rng: example(
        rng.normal(size=(2, 12)), thresholds=GroupThresholds(np.array([0.5, 1.5, 1.0]), np.array([-0.5, 0.2, 1.0]), np.array([0.3, 0.8, 0.0])),
        groups=_GROUPS,
    ),
    rejects=[bad(groups=_GROUPS + 1)],
)  # fmt: skip
def selection_chances(
    scores: Annotated[Float[Array, "*members"], finite], *, thresholds: GroupThresholds, groups: Annotated[Int[Array, "*members"], at_least(0)]
) -> Float[Array, "*members"]:
    """With which chance each member is selected, 0 to 1. A decision is a draw: ``rng.random(len(chances)) < chances``.

    Raises ValueError for a group that has no threshold.
    """
    if groups.max() >= len(thresholds.share):
        raise invalid("groups", got=f"group {groups.max()}", wants=f"0 to {len(thresholds.share) - 1}, those that have a threshold")
    upper, lower, share = (part[groups] for part in thresholds)
    return np.where(scores >= upper, 1, np.where(scores >= lower, share, 0)).astype(scores.dtype)  # (7)


def _hull(scores: Array, labels: Array) -> Array:
    """Corners (tpr, fpr, threshold) of the lower hull, tpr from 0 to 1."""
    descending, place = np.unique(-scores, return_inverse=True)
    reached = [np.r_[0, np.cumsum(np.bincount(place, labels == label))] / np.sum(labels == label) for label in (1, 0)]
    points = np.stack([*reached, np.r_[np.inf, -descending]], axis=1)  # (thresholds, 3)  (1)
    corners: list[Array] = []
    for point in points:                                     # tpr and fpr never fall: the points are in order already
        if corners and point[0] == corners[-1][0]:
            continue                                         # as many hits for more false alarms
        while len(corners) > 1 and _is_above(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)                                # (2)
    return np.array(corners)


def _is_above(left: Array, middle: Array, right: Array) -> bool:
    """Whether the middle point lies on or above the line between the other two."""
    return (middle[1] - left[1]) * (right[0] - left[0]) >= (right[1] - left[1]) * (middle[0] - left[0])


def _beside(hull: Array, t: float) -> tuple[float, float, float]:
    """Upper threshold, lower threshold and share that reach the true positive rate t."""
    right = max(1, int(np.searchsorted(hull[:, 0], t)))
    (low, _, upper), (high, _, lower) = hull[right - 1], hull[right]
    return upper, lower, (t - low) / (high - low)            # (6)
