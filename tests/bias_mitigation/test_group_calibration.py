"""Calibration by score bin, and the identity that leaves the false positive rate no choice."""

import numpy as np
import pytest

from minitransformers.bias_mitigation.group_calibration import calibration_by_group, false_positive_identity
from minitransformers.bias_mitigation.group_metrics import group_rates

RNG = np.random.default_rng(0)
GROUPS = RNG.integers(3, size=400)
LABELS = (RNG.random(400) < np.array([0.2, 0.4, 0.6])[GROUPS]).astype(int)
DECISIONS = (RNG.random(400) < 0.2 + 0.6 * LABELS).astype(int)


def test_the_identity_returns_the_measured_false_positive_rate():
    rates = group_rates(DECISIONS, labels=LABELS, groups=GROUPS)
    np.testing.assert_allclose(false_positive_identity(rates.base_rate, rates.ppv, rates.tpr), rates.fpr, rtol=0, atol=1e-12)


def test_the_identity_holds_for_every_table_of_small_counts():
    counts = np.array([(a, b, c, d) for a in range(1, 5) for b in range(4) for c in range(1, 4) for d in range(1, 4)], float)
    hits, false_alarms, misses, rejections = counts.T
    positives, negatives = hits + misses, false_alarms + rejections
    found = false_positive_identity(positives / (positives + negatives), hits / (hits + false_alarms), hits / positives)
    np.testing.assert_allclose(found, false_alarms / negatives, rtol=0, atol=1e-12)


def test_equal_precision_and_equal_hits_force_false_alarms_as_far_apart_as_the_odds():
    base = np.array([0.2, 0.5, 0.3])
    fpr = false_positive_identity(base, np.full(3, 0.8), np.full(3, 0.6))
    odds = base / (1 - base)
    np.testing.assert_allclose(fpr / fpr[0], odds / odds[0], rtol=0, atol=1e-12)
    assert fpr.max() - fpr.min() > 0.1


def test_only_a_perfect_precision_or_equal_base_rates_make_them_equal():
    assert false_positive_identity(np.array([0.2, 0.5]), np.ones(2), np.full(2, 0.6)).tolist() == [0, 0]
    equal = false_positive_identity(np.array([0.3, 0.3]), np.full(2, 0.7), np.full(2, 0.6))
    assert equal[0] == equal[1]


def test_rates_of_the_compas_file_agree_to_their_three_digits():
    """Its two largest groups, 6,172 defendants after the usual filter, and a score of 5 or above as the decision."""
    found = false_positive_identity(np.array([0.523, 0.391]), np.array([0.650, 0.595]), np.array([0.715, 0.504]))
    np.testing.assert_allclose(found, [0.423, 0.220], rtol=0, atol=2e-3)  # the inputs are rounded to three digits


def test_forgetting_the_odds_is_another_number():
    p, ppv, tpr = np.array([0.2, 0.5]), np.array([0.8, 0.7]), np.array([0.6, 0.5])
    assert np.abs(false_positive_identity(p, ppv, tpr) - (1 - ppv) / ppv * tpr).max() > 0.05


def one_by_one(scores, bins):
    found = np.full((3, bins, 3), np.nan)
    for group in range(3):
        for b in range(bins):
            inside = [i for i in range(400) if GROUPS[i] == group and b / bins <= scores[i] and (scores[i] < (b + 1) / bins or b == bins - 1)]
            found[group, b, 0] = len(inside)
            if inside:
                found[group, b, 1:] = sum(scores[i] for i in inside) / len(inside), sum(LABELS[i] for i in inside) / len(inside)
    return np.moveaxis(found, -1, 0)


@pytest.mark.parametrize("bins", [1, 4, 8])
def test_each_bin_is_counted_one_by_one(bins):
    scores = RNG.random(400)
    scores[:5] = [0.0, 0.25, 0.5, 0.75, 1.0]                 # edges
    found = calibration_by_group(scores, labels=LABELS, groups=GROUPS, bins=bins)
    np.testing.assert_allclose(np.array([found.members, found.mean_score, found.positive_rate]), one_by_one(scores, bins), rtol=0, atol=1e-12)
    assert found.members.sum() == 400


def test_a_bin_of_nobody_is_nan_and_not_zero():
    found = calibration_by_group(np.full(400, 0.95), labels=LABELS, groups=GROUPS, bins=2)
    assert np.isnan(found.positive_rate[:, 0]).all() and not np.isnan(found.positive_rate[:, 1]).any()


def test_the_base_rate_of_each_group_is_a_calibrated_score():
    """Calibration alone promises little: a score that says the same to all of a group has it."""
    base = np.bincount(GROUPS, LABELS) / np.bincount(GROUPS)
    found = calibration_by_group(base[GROUPS], labels=LABELS, groups=GROUPS, bins=20)
    there = found.members > 0
    np.testing.assert_allclose(found.positive_rate[there], found.mean_score[there], rtol=0, atol=1e-12)


def test_impossible_rates_are_refused():
    with pytest.raises(ValueError, match="ppv: got numbers that need a false positive rate of 36"):
        false_positive_identity(np.array([0.9]), np.array([0.2]), np.array([1.0]))
    with pytest.raises(ValueError, match="groups: got no member of group 0"):
        calibration_by_group(np.full(2, 0.5), labels=np.ones(2, int), groups=np.array([1, 1]))
