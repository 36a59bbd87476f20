"""Thresholds by group with one true positive rate, and of those the ones with fewest errors."""

import itertools

import numpy as np
import pytest

from minitransformers.bias_mitigation.equal_thresholds import GroupThresholds, equal_opportunity_thresholds, selection_chances

RNG = np.random.default_rng(0)
GROUPS, LABELS = np.repeat([0, 1, 2], (20, 30, 24)), np.tile([0, 1], 37)
SCORES = RNG.normal(size=74) + LABELS * np.array([0.5, 1.5, 1.0])[GROUPS]
FOUND = equal_opportunity_thresholds(SCORES, labels=LABELS, groups=GROUPS)


def rates(chances, labels=LABELS, groups=GROUPS):
    return np.array([[chances[(groups == g) & (labels == y)].mean() for y in (1, 0)] for g in np.unique(groups)])


def least_false_alarms(scores, labels, t):
    """Over all pairs of thresholds and the mixture of them that has the true positive rate t."""
    points = [((scores >= cut)[labels == 1].mean(), (scores >= cut)[labels == 0].mean()) for cut in [np.inf, *scores]]
    best = np.inf
    for (low, low_alarm), (high, high_alarm) in itertools.product(points, repeat=2):
        if low <= t <= high and high > low:
            share = (t - low) / (high - low)
            best = min(best, (1 - share) * low_alarm + share * high_alarm)
        elif low == t:
            best = min(best, low_alarm)
    return best


@pytest.mark.parametrize("t", [0.0, 0.37, 0.6, 1.0])
def test_every_group_has_the_rate_that_was_asked_for_at_the_fewest_false_alarms(t):
    found = equal_opportunity_thresholds(SCORES, labels=LABELS, groups=GROUPS, tpr=t)
    chances = selection_chances(SCORES, thresholds=found.thresholds, groups=GROUPS)
    each = rates(chances)
    np.testing.assert_allclose(each[:, 0], t, rtol=0, atol=1e-12)
    for group in range(3):
        own = group == GROUPS
        np.testing.assert_allclose(each[group, 1], least_false_alarms(SCORES[own], LABELS[own], t), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.errors, np.mean(np.where(LABELS == 1, 1 - chances, chances)), rtol=0, atol=1e-12)


def test_no_rate_of_a_fine_grid_has_fewer_errors_than_the_one_chosen():
    grid = np.r_[np.linspace(0, 1, 301)]
    others = [equal_opportunity_thresholds(SCORES, labels=LABELS, groups=GROUPS, tpr=float(t)).errors for t in grid]
    assert FOUND.errors <= min(others) + 1e-12
    assert max(others) > FOUND.errors + 0.1


def test_all_groups_have_the_rate_that_was_chosen():
    each = rates(selection_chances(SCORES, thresholds=FOUND.thresholds, groups=GROUPS))
    np.testing.assert_allclose(each[:, 0], FOUND.tpr, rtol=0, atol=1e-12)


def test_one_threshold_for_all_leaves_the_rates_apart():
    """The plausible variant."""
    cut = np.median(SCORES)
    each = rates((cut <= SCORES).astype(float))
    assert each[:, 0].max() - each[:, 0].min() > 0.1


def test_equal_opportunity_costs_errors_or_nothing():
    best = sum(
        min(np.sum((SCORES[g == GROUPS] >= cut) != LABELS[g == GROUPS]) for cut in [np.inf, *SCORES[g == GROUPS]]) for g in range(3)
    )
    assert FOUND.errors >= best / 74 - 1e-12


def test_scores_that_separate_the_labels_need_no_lot():
    found = equal_opportunity_thresholds(10.0 * LABELS + RNG.random(74), labels=LABELS, groups=GROUPS)
    assert found.tpr == 1 and found.errors == 0 and found.thresholds.share.tolist() == [1, 1, 1]


def test_groups_alike_have_thresholds_alike():
    scores, labels = np.tile(SCORES[:20], 2), np.tile(LABELS[:20], 2)
    found = equal_opportunity_thresholds(scores, labels=labels, groups=np.repeat([0, 1], 20))
    for part in found.thresholds:
        assert part[0] == part[1]


def test_any_growing_map_of_a_group_s_scores_leaves_its_chances():
    moved = np.where(GROUPS == 1, np.exp(SCORES) - 40, SCORES)
    other = equal_opportunity_thresholds(moved, labels=LABELS, groups=GROUPS)
    np.testing.assert_array_equal(
        selection_chances(moved, thresholds=other.thresholds, groups=GROUPS), selection_chances(SCORES, thresholds=FOUND.thresholds, groups=GROUPS)
    )


def test_chances_are_one_above_and_nothing_below():
    thresholds = GroupThresholds(np.array([2.0, np.inf]), np.array([1.0, 0.0]), np.array([0.25, 0.5]))
    chances = selection_chances(np.array([2.0, 1.5, 1.0, 0.9, 5.0, -1.0]), thresholds=thresholds, groups=np.array([0, 0, 0, 0, 1, 1]))
    assert chances.tolist() == [1, 0.25, 0.25, 0, 0.5, 0]


def test_thresholds_of_float32_are_float32_and_select_whom_they_were_found_for():
    scores = SCORES.astype(np.float32)
    found = equal_opportunity_thresholds(scores, labels=LABELS, groups=GROUPS)
    chances = selection_chances(scores, thresholds=found.thresholds, groups=GROUPS)
    assert {part.dtype for part in (*found.thresholds, chances)} == {np.dtype(np.float32)}
    assert np.isin(found.thresholds.lower, scores).all()     # no threshold lies between two scores by rounding
    np.testing.assert_allclose(rates(chances)[:, 0], found.tpr, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.errors, np.mean(np.where(LABELS == 1, 1 - chances, chances)), rtol=0, atol=1e-6)


def test_a_group_of_one_label_is_refused_by_name():
    with pytest.raises(ValueError, match="labels: got no 1 in group 1"):
        equal_opportunity_thresholds(np.arange(4.0), labels=np.array([0, 1, 0, 0]), groups=np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="groups: got no member of group 0"):
        equal_opportunity_thresholds(np.arange(4.0), labels=np.array([0, 1, 0, 1]), groups=np.array([1, 1, 2, 2]))


@pytest.mark.parity
def test_chances_are_those_of_fairlearn_s_threshold_optimizer():
    postprocessing = pytest.importorskip("fairlearn.postprocessing")
    base = pytest.importorskip("sklearn.base")

    class Scores(base.BaseEstimator, base.ClassifierMixin):
        """A classifier whose score is its only feature."""

        classes_ = np.array([0, 1])

        def fit(self, x, y):
            self.fitted_ = True
            return self

        def predict(self, x):
            return np.asarray(x)[:, 0]

    # 10, 15 and 12 members of label 1: their rates, multiples of 1/60, lie on a grid of 60 steps.
    theirs = postprocessing.ThresholdOptimizer(
        estimator=Scores().fit(None, None), constraints="true_positive_rate_parity", objective="accuracy_score", grid_size=60, prefit=True, predict_method="predict"
    )
    theirs.fit(SCORES[:, None], LABELS, sensitive_features=GROUPS)
    chances = theirs._pmf_predict(SCORES[:, None], sensitive_features=GROUPS)[:, 1]
    own = selection_chances(SCORES, thresholds=FOUND.thresholds, groups=GROUPS)
    np.testing.assert_allclose(rates(own), rates(chances), rtol=0, atol=1e-9)
    np.testing.assert_allclose(own, chances, rtol=0, atol=1e-9)
