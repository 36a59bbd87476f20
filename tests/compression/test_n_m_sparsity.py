"""N:M sparsity: exactly N of every M inputs of an output, the best that can be kept, and stored without their zeros."""

from itertools import combinations

import numpy as np
import pytest

from minitransformers.compression.n_m_sparsity import NmWeight, compress_n_m, decompress_n_m, n_m_mask
from minitransformers.compression.wanda import wanda_scores

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(24, 5))
PATTERNS = [(2, 4), (1, 4), (1, 2), (3, 8), (2, 3), (5, 6), (4, 4)]


def one_by_one(scores, n, m):
    """In each column, of each m that follow each other, the n largest magnitudes, one after the other."""
    mask = np.zeros(scores.shape, bool)
    for j in range(scores.shape[1]):
        for start in range(0, scores.shape[0], m):
            left = list(range(start, start + m))
            for _ in range(n):
                best = max(left, key=lambda i: (abs(scores[i, j]), -i))
                left.remove(best)
                mask[best, j] = True
    return mask


def pruned(weight, n, m):
    return weight * n_m_mask(weight, n=n, m=m)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_every_group_of_an_output_s_inputs_keeps_exactly_n(n, m):
    mask = n_m_mask(WEIGHT, n=n, m=m)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask.reshape(-1, m, 5).sum(axis=1), n)
    np.testing.assert_array_equal(mask, one_by_one(WEIGHT, n, m))


def test_the_error_is_the_least_that_any_two_of_four_can_have():
    kept = pruned(WEIGHT, 2, 4)
    for j in range(5):
        for group in range(6):
            own = WEIGHT[4 * group : 4 * group + 4, j]
            errors = [np.sum(np.delete(own, pair) ** 2) for pair in combinations(range(4), 2)]
            assert len(errors) == 6
            np.testing.assert_allclose(np.sum((own - kept[4 * group : 4 * group + 4, j]) ** 2), min(errors), rtol=0, atol=1e-15)


def along_the_outputs(weight, n, m):
    """The plausible wrong variant: groups along a row, which is what follows each other in memory."""
    return n_m_mask(np.ascontiguousarray(weight.T), n=n, m=m).T


def test_groups_run_along_the_inputs_and_not_along_the_outputs():
    square = RNG.normal(size=(8, 8))
    per_output = along_the_outputs(square, 2, 4).reshape(2, 4, 8).sum(axis=1)
    assert np.all(n_m_mask(square, n=2, m=4).reshape(2, 4, 8).sum(axis=1) == 2) and not np.all(per_output == 2)


def test_all_of_all_is_the_weight_itself():
    assert n_m_mask(WEIGHT, n=4, m=4).all()
    np.testing.assert_array_equal(decompress_n_m(compress_n_m(WEIGHT, n=4, m=4), m=4), WEIGHT)


def test_of_equal_magnitudes_the_first_stay():
    assert n_m_mask(np.array([[1.0], [-1.0], [1.0], [-1.0]]), n=2, m=4).ravel().tolist() == [True, True, False, False]


def test_any_scores_may_choose():
    weight, norms = np.array([[3.0], [2.0], [1.0], [0.5]]), np.array([0.1, 1.0, 1.0, 9.0])
    assert n_m_mask(wanda_scores(weight, norms=norms), n=2, m=4).ravel().tolist() == [False, True, False, True]
    assert n_m_mask(weight, n=2, m=4).ravel().tolist() == [True, True, False, False]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_what_is_compressed_comes_back_bit_for_bit(n, m, dtype):
    weight = np.where(n_m_mask(WEIGHT, n=n, m=m), WEIGHT, 0).astype(dtype)
    stored = compress_n_m(weight, n=n, m=m)
    restored = decompress_n_m(stored, m=m)
    assert stored.values.shape == (24 // m, n, 5) and restored.dtype == dtype
    np.testing.assert_array_equal(restored.view(np.uint8), weight.view(np.uint8))


def test_a_group_with_fewer_numbers_is_stored_with_zeros():
    weight = np.zeros((8, 2))
    weight[[1, 7], [0, 1]] = 5.0, -6.0
    stored = compress_n_m(weight, n=2, m=4)
    assert stored.values.shape == (2, 2, 2) and np.count_nonzero(stored.values) == 2
    np.testing.assert_array_equal(decompress_n_m(stored, m=4), weight)


@pytest.mark.parametrize(("n", "m", "bits"), [(2, 4, 2), (1, 4, 2), (1, 2, 1), (3, 8, 3), (2, 3, 2), (5, 6, 3)])
def test_its_size_is_that_of_the_formula(n, m, bits):
    weight = pruned(WEIGHT, n, m).astype(np.float32)
    stored = compress_n_m(weight, n=n, m=m)
    kept = 24 * 5 * n // m
    assert stored.values.nbytes == 4 * kept
    assert stored.places.nbytes == -(-kept * bits // 8) and stored.places.dtype == np.uint8


def test_two_of_four_in_float32_take_68_bits_of_128():
    weight = pruned(RNG.normal(size=(64, 32)), 2, 4).astype(np.float32)
    assert sum(part.nbytes for part in compress_n_m(weight, n=2, m=4)) * 8 * 4 == 68 * weight.size
    assert 8 * weight.nbytes * 4 == 128 * weight.size


def test_four_places_make_a_byte_the_first_in_the_highest_bits():
    weight = np.array([[1.0], [0], [2.0], [0], [0], [3.0], [0], [4.0]])
    stored = compress_n_m(weight, n=2, m=4)
    assert stored.values.ravel().tolist() == [1, 2, 3, 4]
    assert stored.places.tolist() == [0b00_10_01_11]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="m: got 5, wants a number that divides the 24 inputs"):
        n_m_mask(WEIGHT, n=2, m=5)
    with pytest.raises(ValueError, match="n: got 5, wants at most m, 4"):
        n_m_mask(WEIGHT, n=5, m=4)
    with pytest.raises(ValueError, match="n: got 0"):
        n_m_mask(WEIGHT, n=0, m=4)
    with pytest.raises(ValueError, match="m: got 1, wants a whole number from 2 to 256"):
        n_m_mask(WEIGHT, n=1, m=1)
    with pytest.raises(ValueError, match="weight: got a group with more than 2 numbers"):
        compress_n_m(WEIGHT, n=2, m=4)
    stored = compress_n_m(pruned(WEIGHT, 2, 4), n=2, m=4)
    with pytest.raises(ValueError, match=r"weight\.places: got uint8 of shape \(14,\), wants uint8 of shape \(15,\), 2 bits a value"):
        decompress_n_m(NmWeight(stored.values, stored.places[:-1]), m=4)
    with pytest.raises(ValueError, match=r"weight\.places: got int64"):
        decompress_n_m(NmWeight(stored.values, stored.places.astype(int)), m=4)
    with pytest.raises(ValueError, match=r"weight\.places: got places that do not ascend"):
        decompress_n_m(NmWeight(stored.values, 0 * stored.places), m=4)
    with pytest.raises(ValueError, match=r"weight\.places: got places that do not ascend or lie beyond"):
        decompress_n_m(NmWeight(np.ones((1, 2, 2)), np.array([0b01_11_01_11], np.uint8)), m=3)
    with pytest.raises(ValueError, match="m: got 4, wants at least 5"):
        decompress_n_m(NmWeight(np.ones((1, 5, 1)), np.zeros(2, np.uint8)), m=4)


@pytest.mark.parity
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_the_masks_are_those_of_locuslab_wanda(n, m):
    """lib/prune.py, prune_magnitude, written again: of each m inputs the prune_n = m - n smallest are removed."""
    torch = pytest.importorskip("torch")
    magnitudes = torch.tensor(WEIGHT.T.copy()).abs()         # (d_out, d_in), as PyTorch has it
    removed = torch.zeros_like(magnitudes, dtype=bool)
    for start in range(0, 24, m):
        smallest = torch.topk(magnitudes[:, start : start + m], m - n, dim=1, largest=False)[1]
        removed.scatter_(1, start + smallest, True)
    np.testing.assert_allclose(n_m_mask(WEIGHT, n=n, m=m), ~removed.numpy().T, rtol=0, atol=0)
