"""Group metrics: what a classifier's decisions are like for each group, and how far groups lie apart.

A decision can be right or wrong in two ways, so a group has a table of four counts, and every rate below is a quotient of them.
Groups can be equal in one rate and unequal in another, and often must be (group_calibration). So there is no gap called the gap: each
has the name of its criterion. Costs one pass over the members.

Source: Hardt, Price and Srebro 2016, arXiv:1610.02413 (equal opportunity, equalised odds); Dwork et al. 2011, arXiv:1104.3913
(statistical parity). Gaps are the largest less the smallest over any number of groups, as in the library fairlearn; the signed ones
of two groups are those of the library AIF360. y is the label, d the decision, a the group.

    n_ayd = weight of the members of group a with label y and decision d   (1)
    selection_a = n_a.1 / n_a..,   base_a = n_a1. / n_a..,   accuracy_a = (n_a00 + n_a11) / n_a..   (2)
    tpr_a = n_a11 / n_a1.,   fpr_a = n_a01 / n_a0.,   ppv_a = n_a11 / n_a.1   (3)
    gap = max_a r_a - min_a r_a,   ratio = min_a r_a / max_a r_a   (4)
    odds gap = max(gap of tpr, gap of fpr), or their mean   (5)
    signed = r_u - r_p,   average odds = ((fpr_u - fpr_p) + (tpr_u - tpr_p)) / 2   (6)
"""

from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, between, example, invalid, procedure


class GroupRates(NamedTuple):
    """One number for each group, 0 to groups - 1: members, those of label 1 and the rates; a rate of nobody is NaN."""

    members: Int[Array, "groups"]
    positives: Int[Array, "groups"]
    base_rate: Float[Array, "groups"]
    selection: Float[Array, "groups"]
    tpr: Float[Array, "groups"]
    fpr: Float[Array, "groups"]
    accuracy: Float[Array, "groups"]
    ppv: Float[Array, "groups"]


class RateGap(NamedTuple):
    """The largest rate less the smallest (0 is equal), and the smallest over the largest (1 is equal; NaN where all are 0)."""

    difference: float
    ratio: float


class SignedGaps(NamedTuple):
    """Of two groups the unprivileged one's rate less the privileged one's, under the names that AIF360 has for them."""

    statistical_parity_difference: float
    equal_opportunity_difference: float
    average_odds_difference: float


_GROUPS, _LABELS = np.tile(np.arange(12) % 3, (2, 1)), np.tile(np.arange(12) // 3 % 2, (2, 1))


def _rates(rng: np.random.Generator) -> GroupRates:
    return group_rates(rng.integers(2, size=(2, 12)), labels=_LABELS, groups=_GROUPS)


@procedure(
    title="Rates of groups",
    source="Hardt, Price and Srebro 2016, arXiv:1610.02413",
    example=lambda rng: example(1 - (_LABELS + _GROUPS // 2) % 2, labels=_LABELS, groups=_GROUPS, weights=rng.uniform(0.5, 2.0, size=(2, 12))),
    rejects=[
        bad(groups=0 * _GROUPS), bad(groups=2 * (_GROUPS // 2)), bad(labels=_GROUPS // 2), bad(labels=1 - _GROUPS // 2),
        bad(weights=np.zeros((2, 12))), bad("labels", decisions=np.zeros((2, 11), int)),
    ],
)  # fmt: skip
def group_rates(
    decisions: Annotated[Int[Array, "*members"], between(0, 1)], *, labels: Annotated[Int[Array, "*members"], between(0, 1)],
    groups: Annotated[Int[Array, "*members"], at_least(0)], weights: Annotated[Float[Array, "*members"], at_least(0)] | None = None,
    empty: Literal["raise", "nan"] = "raise",
) -> GroupRates:  # fmt: skip
    """Selection, true and false positive rate, accuracy and precision of each group, each from 0 to 1.

    groups numbers the groups from 0 without a gap. weights, at least 0, count a member more than once or less; members and positives do not go by them.
    empty says what becomes of a rate of nobody. A group that selects nobody has a ppv of NaN in any case.
    Raises ValueError for fewer than two groups, and with "raise" for a group without members, without label 1 (no tpr) or
    without label 0 (no fpr), or whose weights are 0.
    """
    size, cell = number_of_groups(groups), (4 * groups + 2 * labels + decisions).ravel()
    weights = None if weights is None else weights.ravel()
    members = np.bincount(cell, minlength=4 * size).reshape(size, 2, 2)
    n = np.bincount(cell, weights, minlength=4 * size).reshape(size, 2, 2).astype(np.float64)  # (1)
    if empty == "raise":
        _check_somebody(members, n)
    every, selected, of_label = n.sum(axis=(1, 2)), n[:, :, 1].sum(axis=1), n.sum(axis=2)
    with np.errstate(invalid="ignore"):                      # 0/0 is NaN: a rate of nobody
        base, selection, accuracy = of_label[:, 1] / every, selected / every, (n[:, 0, 0] + n[:, 1, 1]) / every  # (2)
        tpr, fpr, ppv = n[:, 1, 1] / of_label[:, 1], n[:, 0, 1] / of_label[:, 0], n[:, 1, 1] / selected  # (3)
    return GroupRates(members.sum(axis=(1, 2)), members[:, 1].sum(axis=1), base, selection, tpr, fpr, accuracy, ppv)


_NOBODY = GroupRates(np.array([3, 0]), np.array([1, 0]), *(np.array([0.5, np.nan]) for _ in range(6)))


@procedure(
    title="Statistical parity gap",
    source="Dwork et al. 2011, arXiv:1104.3913",
    example=lambda rng: example(_rates(rng)),
    rejects=[bad(rates=_NOBODY)],
)
def parity_gap(rates: GroupRates) -> RateGap:
    """How far the shares of selected members lie apart. Raises ValueError where fewer than two groups have one (NaN is left out)."""
    return _gap("selection", rates.selection)


@procedure(
    title="Equal opportunity gap",
    source="Hardt, Price and Srebro 2016, arXiv:1610.02413, definition 2.2",
    example=lambda rng: example(_rates(rng)),
    rejects=[bad(rates=_NOBODY)],
)
def equal_opportunity_gap(rates: GroupRates) -> RateGap:
    """How far the true positive rates lie apart. Raises ValueError where fewer than two groups have one (NaN is left out)."""
    return _gap("tpr", rates.tpr)


@procedure(
    title="Equalised odds gap",
    source="Hardt, Price and Srebro 2016, arXiv:1610.02413, definition 2.1",
    example=lambda rng: example(_rates(rng)),
    rejects=[bad(rates=_NOBODY)],
)
def equalized_odds_gap(rates: GroupRates) -> RateGap:
    """How far true and false positive rates lie apart, the worse of the two.

    Raises ValueError where fewer than two groups have a rate (NaN is left out).
    """
    tpr, fpr = _gap("tpr", rates.tpr), _gap("fpr", rates.fpr)
    return RateGap(max(tpr.difference, fpr.difference), float(np.minimum(tpr.ratio, fpr.ratio)))  # (5)


@procedure(
    title="Mean odds gap",
    source="Hardt, Price and Srebro 2016, arXiv:1610.02413, definition 2.1; the mean as in fairlearn",
    example=lambda rng: example(_rates(rng)),
    rejects=[bad(rates=_NOBODY)],
)
def mean_odds_gap(rates: GroupRates) -> RateGap:
    """How far true and false positive rates lie apart, the mean of both, in which a large gap and a small one are one of the middle.

    Raises ValueError where fewer than two groups have a rate (NaN is left out).
    """
    tpr, fpr = _gap("tpr", rates.tpr), _gap("fpr", rates.fpr)
    return RateGap((tpr.difference + fpr.difference) / 2, (tpr.ratio + fpr.ratio) / 2)


@procedure(
    title="Signed gaps of two groups",
    source="Bellamy et al. 2018 (AIF360), arXiv:1810.01943",
    example=lambda rng: example(_rates(rng), unprivileged=0, privileged=2),
    rejects=[bad(unprivileged=3), bad(privileged=3), bad("unprivileged", unprivileged=2)],
)
def signed_gaps(rates: GroupRates, *, unprivileged: Annotated[int, at_least(0)], privileged: Annotated[int, at_least(0)]) -> SignedGaps:
    """The unprivileged group's rates less the privileged group's, below 0 where it has less; NaN where a rate is.

    In the average odds a difference above 0 and one below cancel. Raises ValueError for a group that is not there, or twice one.
    """
    for name, group in (("unprivileged", unprivileged), ("privileged", privileged)):
        if group >= len(rates.members):
            raise invalid(name, got=group, wants=f"a group, 0 to {len(rates.members) - 1}")
    if unprivileged == privileged:
        raise invalid("unprivileged", got=unprivileged, wants="another group than the privileged one")
    selection, tpr, fpr = (float(r[unprivileged] - r[privileged]) for r in (rates.selection, rates.tpr, rates.fpr))
    return SignedGaps(selection, tpr, (fpr + tpr) / 2)       # (6)


def number_of_groups(groups: Array) -> int:
    """One more than the largest number. Raises ValueError where that is one group."""
    size = int(groups.max()) + 1
    if size < 2:
        raise invalid("groups", got="one group", wants="at least two to compare")
    return size


def _check_somebody(members: Array, n: Array) -> None:
    of_label = members.sum(axis=2)
    for group, label in np.argwhere(of_label == 0).tolist():
        if of_label[group].sum() == 0:
            raise invalid("groups", got=f"no member of group {group}", wants='numbers from 0 without a gap, or empty="nan"')
        rate = ("false", "true")[label]
        raise invalid("labels", got=f"no {label} in group {group}, which has no {rate} positive rate", wants='both labels in each group, or empty="nan"')
    for group, label in np.argwhere(n.sum(axis=2) == 0).tolist():
        raise invalid("weights", got=f"0 for all of label {label} in group {group}", wants='a weight above 0 there, or empty="nan"')


def _gap(name: str, rates: Array) -> RateGap:
    known = rates[~np.isnan(rates)]
    if len(known) < 2:
        raise invalid(f"rates.{name}", got=f"{len(known)} groups that have one", wants="at least two to compare")
    low, high = float(known.min()), float(known.max())
    return RateGap(high - low, low / high if high else float("nan"))  # (4)
