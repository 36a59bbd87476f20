"""Where to clip: the largest magnitude, a percentile, or what leaves the least squared error."""

from functools import partial

import numpy as np
import pytest

from minitransformers.compression.calibration import activation_bounds, least_error_magnitude, percentile_magnitude
from minitransformers.compression.quantize import dequantize_symmetric, largest_magnitude, quantize_symmetric

WEIGHT = np.random.default_rng(0).standard_t(3, size=(40, 4))  # heavy tails
OUTLIERS = np.random.default_rng(1).normal(size=10_002)      # ten thousand normal numbers and two that are far out
OUTLIERS[:2] = 60, -55


def error_of(values, bound, bits):
    """The squared error that a bound leaves, one value after the other."""
    most, error = 2 ** (bits - 1) - 1, 0.0
    for v in values:
        code = max(-most, min(most, round(v * most / bound)))
        error += (bound * code / most - v) ** 2
    return error


def squared(values, bits, clip):
    """The mean squared error when all values share one step, and its part that is not the two outliers'."""
    restored = dequantize_symmetric(quantize_symmetric(values, bits=bits, axis=None, clip=clip))
    each = (restored - values) ** 2
    return each.mean(), each[2:].mean(), restored


@pytest.mark.parametrize("percent", [0, 37.5, 90, 99.9, 100])
def test_a_percentile_lies_between_the_two_magnitudes_next_to_it(percent):
    found = percentile_magnitude(WEIGHT, percent=percent)
    for j in range(WEIGHT.shape[1]):
        sizes = sorted(abs(v) for v in WEIGHT[:, j])
        place = percent / 100 * (len(sizes) - 1)
        below = sizes[int(place)]
        above = sizes[min(int(place) + 1, len(sizes) - 1)]
        assert found[0, j] == pytest.approx(below + (place - int(place)) * (above - below), rel=1e-12)
    assert found.shape == (1, 4)


def test_a_hundred_percent_is_the_largest_magnitude():
    for axis in (-2, -1, None):
        np.testing.assert_array_equal(percentile_magnitude(WEIGHT, axis=axis, percent=100), largest_magnitude(WEIGHT, axis=axis, bits=8))


def test_it_is_a_percentile_of_magnitudes_not_of_numbers():
    values = np.array([[-100.0], *([[1.0]] * 999)])
    assert percentile_magnitude(values, percent=100) == 100 and np.percentile(values, 100) == 1


def test_a_percentile_does_not_see_how_far_out_an_outlier_is():
    further = OUTLIERS.copy()
    further[:2] *= 1000
    assert percentile_magnitude(OUTLIERS, axis=None) == percentile_magnitude(further, axis=None)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_bound_is_the_best_of_the_grid(bits):
    found = least_error_magnitude(WEIGHT, bits=bits, candidates=20)
    assert found.shape == (1, 4)
    for j in range(4):
        column = WEIGHT[:, j]
        grid = [max(abs(column)) * (20 - i) / 20 for i in range(20)]
        best = min(grid, key=lambda bound: error_of(column, bound, bits))
        assert found[0, j] == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [-2, -1, None])
def test_it_is_never_worse_than_no_clip(axis, bits):
    for seed in range(5):
        values = np.random.default_rng(seed).standard_t(2, size=(30, 5))
        best, plain = (
            np.sum((dequantize_symmetric(quantize_symmetric(values, bits=bits, axis=axis, clip=clip)) - values) ** 2, axis=axis)
            for clip in (least_error_magnitude, largest_magnitude)
        )
        assert (best <= plain).all()


def test_of_two_bounds_equally_good_it_keeps_the_larger():
    values = np.array([[2.0], [-1.0]])                       # under 2 the second becomes 0, under 1 the first becomes 1
    assert error_of(values[:, 0], 2.0, 2) == error_of(values[:, 0], 1.0, 2) == 1
    assert least_error_magnitude(values, bits=2, candidates=2) == 2


def test_one_candidate_is_the_largest_magnitude():
    np.testing.assert_array_equal(least_error_magnitude(WEIGHT, bits=4, candidates=1), largest_magnitude(WEIGHT, axis=-2, bits=4))


def test_the_bits_decide_whether_outliers_are_kept():
    """With eight the bound stays near them, with four it goes to the many."""
    eight, four = (least_error_magnitude(OUTLIERS, axis=None, bits=bits).item() for bits in (8, 4))
    assert eight > 55 and four < 10


def test_on_the_two_outliers_the_largest_magnitude_serves_eight_bits_and_dies_at_four():
    error, _, restored = squared(OUTLIERS, 8, largest_magnitude)
    assert error == pytest.approx((60 / 127) ** 2 / 12, rel=0.03)  # rounding is nearly even within a step
    _, bulk, restored = squared(OUTLIERS, 4, largest_magnitude)
    assert np.count_nonzero(restored) == 2                   # a step is 60 / 7, and no normal number reaches half of it
    assert bulk == np.mean(OUTLIERS[2:] ** 2)


def test_a_percentile_is_best_for_the_many_and_bad_for_the_sum():
    for bits in (4, 8):
        whole, bulk, _ = squared(OUTLIERS, bits, percentile_magnitude)
        plain, plain_bulk, _ = squared(OUTLIERS, bits, largest_magnitude)
        assert bulk < plain_bulk / 10
        lost = (56.0**2 + 51**2) / OUTLIERS.size             # both outliers, cut off near 4
        assert whole == pytest.approx(lost, rel=0.1)
        assert (whole > plain) == (bits == 8)


def test_the_least_squared_error_is_below_both():
    for bits in (4, 8):
        found = squared(OUTLIERS, bits, least_error_magnitude)[0]
        assert found < squared(OUTLIERS, bits, largest_magnitude)[0]
        assert found < squared(OUTLIERS, bits, percentile_magnitude)[0]


def test_any_of_them_is_a_clip():
    for clip in (partial(percentile_magnitude, percent=90), partial(least_error_magnitude, candidates=10)):
        stored = quantize_symmetric(WEIGHT, bits=4, clip=clip)
        np.testing.assert_allclose(stored.step * 7, clip(WEIGHT, axis=-2, bits=4), rtol=1e-15)


@pytest.mark.parametrize("clip", [percentile_magnitude, least_error_magnitude])
def test_columns_of_zeros_and_dtypes_stay(clip):
    narrow = np.concatenate([WEIGHT, np.zeros((40, 1))], axis=1).astype(np.float32)
    bound = clip(narrow, bits=4)
    assert bound.dtype == np.float32 and bound[0, 4] == 0
    assert (dequantize_symmetric(quantize_symmetric(narrow, bits=4, clip=clip))[:, 4] == 0).all()


def test_mostly_zeros_have_a_percentile_of_zero_and_become_zeros():
    values = np.zeros((2000, 1))
    values[0] = 5
    assert (dequantize_symmetric(quantize_symmetric(values, bits=8, clip=percentile_magnitude)) == 0).all()


def test_the_bound_of_activations_is_the_largest_over_all_batches_in_any_order():
    rng = np.random.default_rng(2)
    batches = [rng.normal(size=(2, 5, 3)), 3 * rng.normal(size=(7, 3)), rng.normal(size=3)]
    expected = [max(abs(row[i]) for batch in batches for row in batch.reshape(-1, 3)) for i in range(3)]
    np.testing.assert_array_equal(activation_bounds(batches), expected)
    np.testing.assert_array_equal(activation_bounds(batches[::-1]), expected)
    np.testing.assert_array_equal(activation_bounds(batch for batch in batches), expected)
    averaged = np.mean([np.abs(batch).reshape(-1, 3).max(axis=0) for batch in batches], axis=0)
    assert (averaged < expected).all()                       # a mean over batches would cut off what was seen


def test_no_activation_that_was_seen_is_cut_off():
    batches = [np.random.default_rng(seed).normal(size=(6, 3)) for seed in range(4)]
    bounds = activation_bounds(batches)
    for batch in batches:
        stored = quantize_symmetric(batch, bits=8, axis=-2, clip=lambda *_, **__: bounds[None])
        assert (np.abs(dequantize_symmetric(stored) - batch) <= stored.step / 2 + 1e-15).all()


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="batches: got none"):
        activation_bounds([])
    with pytest.raises(ValueError, match=r"batches: got one of shape \(0, 3\)"):
        activation_bounds([np.zeros((0, 3))])
    with pytest.raises(ValueError, match=r"batches: got one of shape \(\)"):
        activation_bounds([np.float64(3)])
    with pytest.raises(ValueError, match="batches: got 3 and 4 features"):
        activation_bounds([np.ones((2, 3)), np.ones((2, 4))])
    for number in (np.nan, np.inf):
        with pytest.raises(ValueError, match="batches: got a feature that is not finite"):
            activation_bounds([np.full((2, 3), number)])
    for clip in (percentile_magnitude, partial(least_error_magnitude, bits=4)):
        with pytest.raises(ValueError, match="values: got shape"):
            clip(np.zeros((0, 3)))
        with pytest.raises(ValueError, match="values"):
            clip(np.full((2, 3), np.nan))
        with pytest.raises(ValueError, match="axis: got 2"):
            clip(WEIGHT, axis=2)
    for percent in (-1, 100.5):
        with pytest.raises(ValueError, match="percent: got"):
            percentile_magnitude(WEIGHT, percent=percent)
    with pytest.raises(ValueError, match="candidates: got 0"):
        least_error_magnitude(WEIGHT, bits=4, candidates=0)


@pytest.mark.parity
def test_the_percentile_is_torch_s_quantile():
    torch = pytest.importorskip("torch")
    for percent in (50, 90, 99.9):
        theirs = torch.quantile(torch.tensor(np.abs(WEIGHT)), percent / 100, dim=0, keepdim=True)
        np.testing.assert_allclose(percentile_magnitude(WEIGHT, percent=percent), theirs.numpy(), rtol=0, atol=1e-10)
