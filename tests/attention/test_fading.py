"""Fading: the three measures, the bound, and the table of the setting in which softmax fades and SSMax does not."""

from functools import partial

import numpy as np
import pytest
from attention_cases import WEIGHTINGS

from minitransformers.attention.fading import fading, focus, largest_possible
from minitransformers.attention.softmax_off_by_one import softmax_off_by_one
from minitransformers.basics.softmax import softmax

SIZES = (10, 100, 1000, 10_000)
EVERY = [pytest.param(partial(weighting, None), id=name) for name, (weighting, _) in WEIGHTINGS.items()]


def one_marked(keys):
    """One score of 3 among scores of -2: a spread of 5."""
    return np.where(np.arange(keys) == 0, 3.0, -2.0)[None]


def naive(weights):
    total = sum(abs(float(w)) for w in weights)
    shares = [abs(float(w)) / total for w in weights]
    return max(shares), -sum(s * np.log(s) for s in shares if s > 0), 1 / sum(s * s for s in shares)


def test_the_measures_equal_a_loop_over_the_keys():
    weights = np.random.default_rng(0).normal(size=(2, 3, 7))
    weights[0, 1, 2] = 0
    found = focus(weights)
    for place in np.ndindex(2, 3):
        np.testing.assert_allclose([part[place] for part in found], naive(weights[place]), rtol=1e-12)


def test_equal_shares_and_a_single_key_are_the_ends():
    even, single = focus(np.full(8, -0.3)), focus(np.array([0.0, 0.2, 0.0]))
    np.testing.assert_allclose(even, [1 / 8, np.log(8), 8], rtol=1e-14)
    np.testing.assert_array_equal(single, [1, 0, 1])


def test_a_query_that_weighs_nothing_is_measured_as_nothing():
    np.testing.assert_array_equal(focus(np.zeros((2, 3))), np.zeros((3, 2)))


def test_the_size_of_the_weights_does_not_matter_even_where_squares_underflow():
    weights = np.random.default_rng(1).random((4, 6))
    for scale in (1e-200, 1e200):
        np.testing.assert_allclose(focus(scale * weights), focus(weights), rtol=1e-12)
    found = focus(np.array([1e-30, 3e-30], np.float32))
    np.testing.assert_allclose(found.support, 1.6, rtol=1e-6)
    assert all(part.dtype == np.float32 for part in found)


def test_the_support_lies_between_the_inverse_of_the_largest_share_and_the_exponential_of_the_entropy():
    found = focus(np.random.default_rng(2).normal(size=(50, 9)))
    assert np.all(1 / found.largest <= found.support + 1e-12)
    assert np.all(found.support <= np.exp(found.entropy) + 1e-12)


def test_the_softmax_fades_as_the_table_says():
    found = fading(one_marked(SIZES[-1]), sizes=SIZES)
    np.testing.assert_allclose(found.largest, [0.9428, 0.5999, 0.1293, 0.0146], atol=5e-5)
    assert np.all(np.diff(found.largest) < 0) and np.all(np.diff(found.support) > 0)
    np.testing.assert_array_equal(found.keys, SIZES)


def test_a_base_of_n_does_not_fade():
    def base_n(scores):
        return softmax(0.43 * np.log(scores.shape[-1]) * scores)

    found = fading(one_marked(SIZES[-1]), sizes=SIZES, weighting=base_n)
    np.testing.assert_allclose(found.largest, [0.9401, 0.9951, 0.9996, 1.0], atol=5e-5)


def test_the_bound_is_reached_by_one_score_at_the_top_and_all_others_at_the_bottom():
    found = fading(one_marked(SIZES[-1]), sizes=SIZES)
    np.testing.assert_allclose(found.largest, largest_possible(found.keys, spread=5.0), rtol=1e-12)


def test_no_scores_exceed_the_bound_and_a_bound_without_the_spread_is_exceeded():
    scores = np.random.default_rng(3).normal(size=(200, 64))
    spread = np.ptp(scores, axis=-1)
    largest = focus(softmax(scores)[0]).largest
    assert all(top <= largest_possible(np.array(64), spread=s) for top, s in zip(largest, spread, strict=True))
    assert largest.max() > largest_possible(np.array(64), spread=float(spread.min()) / 2)


def test_a_sink_hides_no_fading_as_shares_are_of_what_is_weighed():
    scores = one_marked(50)
    np.testing.assert_allclose(fading(scores, sizes=[50], weighting=partial(softmax_off_by_one, None))[1:], fading(scores, sizes=[50])[1:], rtol=1e-12)


@pytest.mark.parametrize("weighting", EVERY)
def test_every_weighting_of_the_catalogue_can_be_measured(weighting):
    found = fading(np.random.default_rng(4).normal(size=(2, 3, 64)), sizes=[1, 8, 64], weighting=weighting)
    assert np.all((found.largest >= 0) & (found.largest <= 1)) and np.all(found.support <= found.keys + 1e-9)
    assert np.all(found.entropy <= np.log(found.keys) + 1e-9)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: fading(np.ones((2, 4)), sizes=[5]), "sizes"),
        (lambda: fading(np.ones((2, 4)), sizes=[0]), "sizes"),
        (lambda: focus(np.ones((3, 0))), "weights"),
        (lambda: focus(np.array([1.0, np.nan])), "weights"),
        (lambda: largest_possible(np.array(4), spread=-1.0), "spread"),
        (lambda: largest_possible(np.array(4), spread=np.nan), "spread"),
    ],
)
def test_a_bad_argument_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parity
def test_the_entropy_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    weights = np.random.default_rng(5).random((3, 7))
    np.testing.assert_allclose(focus(weights).entropy, stats.entropy(weights, axis=-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [[], [2.5], [0], 2, "12"])
def test_sizes_are_whole_numbers_of_keys(sizes):
    with pytest.raises(ValueError, match=r"sizes(\.0)?: got"):
        fading(np.zeros((2, 4)), sizes=sizes)


def test_no_key_has_no_largest_weight():
    with pytest.raises(ValueError, match="keys: got"):
        largest_possible(np.array([3, 0]), spread=0.5)
