"""Weights under which label and group are independent in the data, and nothing else changes."""

import numpy as np
import pytest

from minitransformers.bias_mitigation.group_metrics import group_rates
from minitransformers.bias_mitigation.reweighting import reweighting_weights

RNG = np.random.default_rng(0)
GROUPS = RNG.integers(3, size=200)
LABELS = (RNG.random(200) < np.array([0.2, 0.5, 0.7])[GROUPS]).astype(int)
BEFORE = RNG.uniform(0.3, 2.0, size=200)
WEIGHTS = reweighting_weights(LABELS, groups=GROUPS)


def one_by_one(before):
    total, found = sum(before), []
    for group, label, own in zip(GROUPS, LABELS, before, strict=True):
        of_group = sum(w for w, g in zip(before, GROUPS, strict=True) if g == group)
        of_label = sum(w for w, y in zip(before, LABELS, strict=True) if y == label)
        both = sum(w for w, g, y in zip(before, GROUPS, LABELS, strict=True) if g == group and y == label)
        found.append(own * (of_group / total) * (of_label / total) / (both / total))
    return found


@pytest.mark.parametrize("before", [None, BEFORE])
def test_each_weight_is_what_its_cell_should_hold_over_what_it_holds(before):
    own = reweighting_weights(LABELS, groups=GROUPS, weights=before)
    np.testing.assert_allclose(own, one_by_one(np.ones(200) if before is None else before), rtol=0, atol=1e-12)


@pytest.mark.parametrize("before", [None, BEFORE])
def test_every_group_has_label_1_equally_often_by_weight(before):
    own = reweighting_weights(LABELS, groups=GROUPS, weights=before)
    rates = group_rates(LABELS, labels=LABELS, groups=GROUPS, weights=own)
    overall = np.average(LABELS, weights=before)
    np.testing.assert_allclose(rates.base_rate, overall, rtol=0, atol=1e-13)


@pytest.mark.parametrize("before", [None, BEFORE])
def test_the_mass_of_all_of_each_group_and_of_each_label_stays(before):
    own, start = reweighting_weights(LABELS, groups=GROUPS, weights=before), np.ones(200) if before is None else before
    np.testing.assert_allclose(own.sum(), start.sum(), rtol=1e-13)
    for kinds in (GROUPS, LABELS):
        np.testing.assert_allclose(np.bincount(kinds, own), np.bincount(kinds, start), rtol=1e-13)


def test_where_they_are_independent_already_every_weight_is_one():
    groups, labels = (a.ravel() for a in np.mgrid[:3, :4])
    np.testing.assert_allclose(reweighting_weights(np.tile(labels, 2), groups=np.tile(groups, 2)), 1, rtol=0, atol=1e-15)


def test_weighting_what_is_weighted_changes_nothing():
    np.testing.assert_allclose(reweighting_weights(LABELS, groups=GROUPS, weights=WEIGHTS), WEIGHTS, rtol=0, atol=1e-13)


def test_it_serves_more_than_two_labels():
    labels = RNG.integers(4, size=200)
    own = reweighting_weights(labels, groups=GROUPS)
    table = np.bincount(GROUPS * 4 + labels, own).reshape(3, 4)
    np.testing.assert_allclose(table, np.outer(table.sum(1), table.sum(0)) / 200, rtol=1e-13)


def test_balancing_groups_alone_leaves_the_label_dependent():
    """The plausible variant, one over the size of the group: group masses are equal then, base rates are as before."""
    rates = group_rates(LABELS, labels=LABELS, groups=GROUPS, weights=1 / np.bincount(GROUPS)[GROUPS])
    assert rates.base_rate.max() - rates.base_rate.min() > 0.2


def test_an_empty_cell_is_refused_by_group_and_label():
    with pytest.raises(ValueError, match="labels: got no example of label 1 in group 0"):
        reweighting_weights(np.array([0, 0, 1, 0]), groups=np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="groups: got one kind"):
        reweighting_weights(np.array([0, 1]), groups=np.array([0, 0]))


@pytest.mark.parity
@pytest.mark.parametrize("before", [None, BEFORE])
def test_weights_are_those_of_aif360(before):
    pandas = pytest.importorskip("pandas")
    datasets, algorithms = pytest.importorskip("aif360.datasets"), pytest.importorskip("aif360.algorithms.preprocessing")
    kept = GROUPS < 2                                        # theirs knows two groups
    frame = pandas.DataFrame({"group": GROUPS[kept].astype(float), "label": LABELS[kept].astype(float), "weight": (np.ones(200) if before is None else before)[kept]})
    data = datasets.BinaryLabelDataset(
        df=frame, label_names=["label"], protected_attribute_names=["group"], instance_weights_name="weight", favorable_label=1.0, unfavorable_label=0.0
    )
    theirs = algorithms.Reweighing(unprivileged_groups=[{"group": 0}], privileged_groups=[{"group": 1}]).fit_transform(data)
    own = reweighting_weights(LABELS[kept], groups=GROUPS[kept], weights=None if before is None else before[kept])
    np.testing.assert_allclose(own, theirs.instance_weights, rtol=0, atol=1e-12)
