"""Rates of groups and their gaps: four counts a group, and every criterion by its name."""

import numpy as np
import pytest

from minitransformers.bias_mitigation.group_metrics import (
    equal_opportunity_gap,
    equalized_odds_gap,
    group_rates,
    mean_odds_gap,
    parity_gap,
    signed_gaps,
)

RNG = np.random.default_rng(0)
GROUPS, LABELS, DECISIONS = RNG.integers(4, size=300), RNG.integers(2, size=300), RNG.integers(2, size=300)
WEIGHTS = RNG.uniform(0.2, 3.0, size=300)
RATES = group_rates(DECISIONS, labels=LABELS, groups=GROUPS)


def one_by_one(weights):
    rows = []
    for group in range(4):
        own = [i for i in range(300) if GROUPS[i] == group]

        def share(of, among, own=own):
            chosen = [i for i in own if among(i)]
            return sum(weights[i] for i in chosen if of(i)) / sum(weights[i] for i in chosen)

        rows.append((
            len(own), sum(int(LABELS[i]) for i in own), share(lambda i: LABELS[i] == 1, lambda i: True), share(lambda i: DECISIONS[i] == 1, lambda i: True),
            share(lambda i: DECISIONS[i] == 1, lambda i: LABELS[i] == 1), share(lambda i: DECISIONS[i] == 1, lambda i: LABELS[i] == 0),
            share(lambda i: DECISIONS[i] == LABELS[i], lambda i: True), share(lambda i: LABELS[i] == 1, lambda i: DECISIONS[i] == 1),
        ))  # fmt: skip
    return np.array(rows).T


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_each_rate_is_a_share_of_the_group_counted_one_by_one(weights):
    found = group_rates(DECISIONS, labels=LABELS, groups=GROUPS, weights=weights)
    np.testing.assert_allclose(np.array(found), one_by_one(np.ones(300) if weights is None else weights), rtol=0, atol=1e-12)


def test_a_weight_of_two_is_a_second_copy():
    twice = np.r_[np.arange(300), np.arange(50)]
    copied = group_rates(DECISIONS[twice], labels=LABELS[twice], groups=GROUPS[twice])
    weighted = group_rates(DECISIONS, labels=LABELS, groups=GROUPS, weights=1.0 + (np.arange(300) < 50))
    np.testing.assert_allclose(np.array(weighted[2:]), np.array(copied[2:]), rtol=0, atol=1e-12)


def test_gaps_are_the_largest_less_the_smallest():
    assert parity_gap(RATES).difference == RATES.selection.max() - RATES.selection.min()
    assert equal_opportunity_gap(RATES).ratio == RATES.tpr.min() / RATES.tpr.max()
    tpr, fpr = RATES.tpr.max() - RATES.tpr.min(), RATES.fpr.max() - RATES.fpr.min()
    assert equalized_odds_gap(RATES).difference == max(tpr, fpr)
    np.testing.assert_allclose(mean_odds_gap(RATES).difference, (tpr + fpr) / 2, rtol=0, atol=1e-15)


@pytest.mark.parametrize("answer", [0, 1])
def test_a_constant_predictor_has_no_gap_at_all(answer):
    found = group_rates(np.full(300, answer), labels=LABELS, groups=GROUPS)
    assert parity_gap(found).difference == equal_opportunity_gap(found).difference == equalized_odds_gap(found).difference == 0
    np.testing.assert_allclose(found.accuracy, found.base_rate if answer else 1 - found.base_rate, rtol=0, atol=1e-15)
    assert np.isnan(found.ppv).all() == (answer == 0)


def test_the_perfect_predictor_has_equal_odds_and_the_parity_gap_of_the_base_rates():
    found = group_rates(LABELS, labels=LABELS, groups=GROUPS)
    assert equalized_odds_gap(found).difference == 0 and found.accuracy.tolist() == [1] * 4
    assert parity_gap(found).difference == found.base_rate.max() - found.base_rate.min() > 0


def test_numbering_the_groups_anew_changes_no_gap():
    other = group_rates(DECISIONS, labels=LABELS, groups=np.array([2, 0, 3, 1])[GROUPS])
    np.testing.assert_array_equal(other.tpr[[2, 0, 3, 1]], RATES.tpr)
    for gap in (parity_gap, equal_opportunity_gap, equalized_odds_gap):
        assert gap(other) == gap(RATES)


def test_signed_gaps_turn_round_with_the_groups_and_can_cancel():
    one, other = signed_gaps(RATES, unprivileged=1, privileged=3), signed_gaps(RATES, unprivileged=3, privileged=1)
    np.testing.assert_allclose(one, -np.array(other), rtol=0, atol=1e-15)
    crossed = RATES._replace(tpr=np.array([0.9, 0.5, 0.7, 0.7]), fpr=np.array([0.1, 0.5, 0.3, 0.3]))
    assert abs(signed_gaps(crossed, unprivileged=0, privileged=1).average_odds_difference) < 1e-15
    np.testing.assert_allclose(equalized_odds_gap(crossed).difference, 0.4, rtol=0, atol=1e-15)
    np.testing.assert_allclose(mean_odds_gap(crossed).difference, 0.4, rtol=0, atol=1e-15)


def test_the_true_positive_rate_is_not_precision():
    """The plausible mistake, dividing by those selected: the two differ wherever a group is selected more often than it is positive."""
    assert np.abs(RATES.tpr - RATES.ppv).max() > 0.01
    hits = np.bincount(GROUPS, LABELS * DECISIONS)
    np.testing.assert_allclose(RATES.tpr * RATES.positives, hits, rtol=0, atol=1e-10)


def test_rates_of_nobody_are_refused_by_group_or_nan():
    decisions, labels = np.array([1, 0, 1, 0]), np.array([1, 0, 1, 1])
    with pytest.raises(ValueError, match=r"labels: got no 0 in group 1, which has no false positive rate"):
        group_rates(decisions, labels=labels, groups=np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="groups: got no member of group 1"):
        group_rates(decisions, labels=labels, groups=np.array([0, 0, 2, 2]))
    found = group_rates(decisions, labels=labels, groups=np.array([0, 0, 2, 2]), empty="nan")
    assert np.isnan(found.selection).tolist() == [False, True, False] and np.isnan(found.fpr).tolist() == [False, True, True]
    assert parity_gap(found).difference == 0.0 and equal_opportunity_gap(found).difference == 0.5
    with pytest.raises(ValueError, match=r"rates.fpr: got 1 groups that have one"):
        equalized_odds_gap(found)


def test_a_ratio_of_nothing_to_nothing_is_nan():
    found = parity_gap(group_rates(np.zeros(300, int), labels=LABELS, groups=GROUPS))
    assert found.difference == 0 and np.isnan(found.ratio)


@pytest.mark.parity
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_gaps_and_rates_are_those_of_fairlearn(weights):
    theirs = pytest.importorskip("fairlearn.metrics")
    rates = group_rates(DECISIONS, labels=LABELS, groups=GROUPS, weights=weights)
    common = {"sensitive_features": GROUPS, "sample_weight": weights}
    pairs = [
        (parity_gap(rates), (theirs.demographic_parity_difference, theirs.demographic_parity_ratio), {}),
        (equal_opportunity_gap(rates), (theirs.equal_opportunity_difference, theirs.equal_opportunity_ratio), {}),
        *((gap(rates), (theirs.equalized_odds_difference, theirs.equalized_odds_ratio), {"agg": agg}) for gap, agg in ((equalized_odds_gap, "worst_case"), (mean_odds_gap, "mean"))),
    ]
    for own, functions, settings in pairs:
        np.testing.assert_allclose(own, [f(LABELS, DECISIONS, **common, **settings) for f in functions], rtol=0, atol=1e-12)
    if weights is None:
        for rate, function in ((rates.selection, theirs.selection_rate), (rates.tpr, theirs.true_positive_rate), (rates.fpr, theirs.false_positive_rate)):
            frame = theirs.MetricFrame(metrics=function, y_true=LABELS, y_pred=DECISIONS, sensitive_features=GROUPS)
            np.testing.assert_allclose(rate, frame.by_group.to_numpy(), rtol=0, atol=1e-12)


@pytest.mark.parity
def test_signed_gaps_are_those_of_aif360():
    pandas = pytest.importorskip("pandas")
    datasets, metrics = pytest.importorskip("aif360.datasets"), pytest.importorskip("aif360.metrics")
    frame = pandas.DataFrame({"group": GROUPS.astype(float), "label": LABELS.astype(float)})
    truth = datasets.BinaryLabelDataset(df=frame, label_names=["label"], protected_attribute_names=["group"], favorable_label=1.0, unfavorable_label=0.0)
    decided = truth.copy()
    decided.labels = DECISIONS[:, None].astype(float)
    theirs = metrics.ClassificationMetric(truth, decided, unprivileged_groups=[{"group": 0}], privileged_groups=[{"group": 2}])
    own = signed_gaps(RATES, unprivileged=0, privileged=2)
    expected = [theirs.statistical_parity_difference(), theirs.equal_opportunity_difference(), theirs.average_odds_difference()]
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-12)
