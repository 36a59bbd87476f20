"""Bootstrap intervals: rows, clusters and groups drawn as they were drawn once."""

from functools import partial

import numpy as np
import pytest
import scipy.stats

from minitransformers.bias_mitigation.bootstrap import bca_interval, bootstrap_interval, percentile_interval
from minitransformers.bias_mitigation.group_metrics import group_rates, parity_gap

RNG = np.random.default_rng(0)
ROWS = RNG.exponential(size=40)


def mean(rows):
    return float(np.mean(rows))


def test_it_is_the_quantiles_of_the_draws_made_one_by_one():
    found = bootstrap_interval(ROWS, statistic=mean, rng=np.random.default_rng(1), resamples=200, level=0.9)
    rng, values = np.random.default_rng(1), []
    for _ in range(200):
        values.append(sum(ROWS[i] for i in rng.integers(40, size=40)) / 40)
    np.testing.assert_allclose(found.replicates, values, rtol=0, atol=1e-12)
    values = sorted(values)
    for end, share in ((found.low, 0.05), (found.high, 0.95)):
        place = share * 199
        low, part = int(place), place - int(place)
        np.testing.assert_allclose(end, values[low] + part * (values[low + 1] - values[low]), rtol=0, atol=1e-12)
    assert found.estimate == ROWS.mean()


def test_a_group_keeps_its_size_in_every_draw():
    groups = np.repeat([3, 8, 9], (20, 24, 30))
    sizes = lambda rows: np.array([np.sum(rows == g) for g in (3, 8, 9)])  # noqa: E731
    found = bootstrap_interval(groups, statistic=sizes, rng=RNG, resamples=100, groups=groups)
    assert (found.replicates == [20, 24, 30]).all()
    loose = bootstrap_interval(groups, statistic=sizes, rng=RNG, resamples=100)
    assert loose.replicates[:, 0].std() > 1


def test_rows_of_a_cluster_are_drawn_together():
    clusters = np.repeat(np.arange(25), 4)
    rows = np.stack([clusters, np.tile(np.arange(4), 25)], axis=1)

    def whole(drawn):
        counts = np.zeros((25, 4), int)
        np.add.at(counts, tuple(drawn.T), 1)
        assert (counts == counts[:, :1]).all() and counts.sum() == 100
        return float(counts[0, 0])

    bootstrap_interval(rows, statistic=whole, rng=RNG, resamples=100, clusters=clusters, groups=clusters % 1)


def test_clusters_widen_the_interval_where_their_rows_agree():
    """The plausible mistake: ten copies of each row, drawn as if they were ten times as much to know."""
    clusters = np.repeat(np.arange(40), 10)
    copied = ROWS[clusters]
    widths = {}
    for name, of in (("rows", None), ("clusters", clusters)):
        found = bootstrap_interval(copied, statistic=mean, rng=np.random.default_rng(2), resamples=400, clusters=of)
        widths[name] = found.high - found.low
    plain = bootstrap_interval(ROWS, statistic=mean, rng=np.random.default_rng(2), resamples=400)
    np.testing.assert_allclose(widths["clusters"], plain.high - plain.low, rtol=0, atol=1e-12)
    assert widths["rows"] < 0.5 * widths["clusters"]


def test_a_paired_difference_is_narrower_than_two_intervals_suggest():
    common = RNG.normal(size=60)
    rows = np.stack([common + 0.1 * RNG.normal(size=60) + 0.2, common + 0.1 * RNG.normal(size=60)], axis=1)
    one, other, apart = (
        bootstrap_interval(rows, statistic=statistic, rng=np.random.default_rng(3), resamples=400)
        for statistic in (lambda r: mean(r[:, 0]), lambda r: mean(r[:, 1]), lambda r: mean(r[:, 0] - r[:, 1]))
    )
    assert one.low < other.high                              # the two overlap
    assert apart.low > 0                                     # and still the difference is not 0
    np.testing.assert_allclose(apart.replicates, one.replicates - other.replicates, rtol=0, atol=1e-12)


def test_several_numbers_come_from_the_same_draws():
    both = bootstrap_interval(ROWS, statistic=lambda r: np.array([r.mean(), r.max()]), rng=np.random.default_rng(4), resamples=150)
    alone = bootstrap_interval(ROWS, statistic=mean, rng=np.random.default_rng(4), resamples=150)
    np.testing.assert_allclose(both.replicates[:, 0], alone.replicates, rtol=0, atol=1e-15)
    assert both.low.shape == both.high.shape == (2,) and both.low[0] == alone.low


def test_it_measures_the_gap_of_groups():
    groups = np.repeat([0, 1], 40)
    rows = np.stack([groups, np.tile([0, 1], 40), RNG.integers(2, size=80)], axis=1)
    statistic = lambda r: parity_gap(group_rates(r[:, 2], labels=r[:, 1], groups=r[:, 0])).difference  # noqa: E731
    found = bootstrap_interval(rows, statistic=statistic, rng=RNG, resamples=100, groups=groups)
    assert found.low <= found.estimate <= found.high or found.low >= 0


def test_a_statistic_that_never_varies_has_an_interval_of_no_width():
    found = bootstrap_interval(np.full(30, 2.0), statistic=mean, rng=RNG, resamples=100)
    assert found.low == found.high == found.estimate == 2


def test_a_larger_level_holds_a_smaller_one():
    wide, narrow = (bootstrap_interval(ROWS, statistic=mean, rng=np.random.default_rng(5), resamples=200, level=level) for level in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_few_members_are_warned_of_by_name():
    with pytest.warns(UserWarning, match="groups: got 5 to draw from"):
        bootstrap_interval(ROWS, statistic=mean, rng=RNG, resamples=100, groups=np.repeat([0, 1], (35, 5)))
    with pytest.warns(UserWarning, match="rows: got 19 to draw from"):
        bootstrap_interval(ROWS[:19], statistic=mean, rng=RNG, resamples=100)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="rows: got 1 to draw from, wants at least 2"):
        bootstrap_interval(ROWS[:1], statistic=mean, rng=RNG)
    with pytest.raises(ValueError, match="clusters: got one that lies in two groups"):
        bootstrap_interval(ROWS, statistic=mean, rng=RNG, groups=np.arange(40) % 2, clusters=np.arange(40) // 2)
    with pytest.raises(ValueError, match="statistic: got a number that is not finite"):
        bootstrap_interval(ROWS, statistic=lambda r: np.nan, rng=RNG)
    with pytest.raises(ValueError, match=r"statistic: got numbers of shape \(2,\)"):
        bootstrap_interval(ROWS, statistic=lambda r: np.array([r.mean(), r.max()]), rng=RNG, resamples=100, interval=bca_interval)


@pytest.mark.parametrize(("interval", "method"), [(percentile_interval, "percentile"), (bca_interval, "BCa")])
@pytest.mark.parametrize("statistic", [np.mean, partial(np.std, ddof=1)])
def test_both_intervals_are_scipy_s_from_the_same_draws(interval, method, statistic):
    own = bootstrap_interval(ROWS, statistic=statistic, rng=np.random.default_rng(6), resamples=300, interval=interval)
    theirs = scipy.stats.bootstrap((ROWS,), statistic, n_resamples=300, method=method, rng=np.random.default_rng(6), vectorized=False)
    np.testing.assert_allclose(own.replicates, theirs.bootstrap_distribution, rtol=0, atol=1e-12)
    np.testing.assert_allclose([own.low, own.high], theirs.confidence_interval, rtol=0, atol=1e-9)


def test_bca_moves_with_the_skew():
    plain, moved = (
        bootstrap_interval(ROWS, statistic=mean, rng=np.random.default_rng(7), resamples=500, interval=interval) for interval in (percentile_interval, bca_interval)
    )
    assert moved.low > plain.low and moved.high > plain.high


@pytest.mark.slow
def test_an_interval_of_a_share_holds_the_truth_about_as_often_as_it_says():
    rng, held = np.random.default_rng(8), 0
    for _ in range(600):
        found = bootstrap_interval((rng.random(80) < 0.4).astype(float), statistic=lambda r: r.mean(), rng=rng, resamples=200)
        held += found.low <= 0.4 <= found.high
    assert 0.90 < held / 600 < 0.98                          # .95 by name; three standard errors of 600 are .027, and 200 draws cost a little
