"""A matrix as a chain of cores: one cut after the other, and what each leaves out."""

import itertools
import math

import numpy as np
import pytest

from minitransformers.compression.tensor_train import prefixes, suffixes, tt_matrix, tt_svd

RNG = np.random.default_rng(0)
ROWS, COLUMNS = (2, 3, 2), (2, 1, 5)
WEIGHT = RNG.normal(size=(12, 10))
FULL = (2, 6, 10, 5, 5)


def element_by_element(cores, rows, columns):
    """Each element as a product of one small matrix for each digit, digits counted by itertools."""
    matrix = np.empty((math.prod(rows), math.prod(columns)))
    for i, row in enumerate(itertools.product(*map(range, rows))):
        for j, column in enumerate(itertools.product(*map(range, columns))):
            product = np.ones((1, 1))
            for core, digit in zip(cores, (*row, *column), strict=True):
                product = product @ core[:, digit]
            matrix[i, j] = product[0, 0]
    return matrix


def contracted(cores):
    """The tensor by np.tensordot, from the left."""
    tensor = cores[0]
    for core in cores[1:]:
        tensor = np.tensordot(tensor, core, axes=1)
    return tensor[0, ..., 0]


def close(cores, weight=WEIGHT):
    return np.linalg.norm(tt_matrix(cores) - weight)


def test_a_train_s_matrix_is_a_product_of_small_matrices_at_each_element():
    cores = [RNG.normal(size=shape) for shape in ((1, 2, 3), (3, 3, 2), (2, 2, 4), (4, 2, 2), (2, 1, 3), (3, 5, 1))]
    np.testing.assert_allclose(tt_matrix(cores), element_by_element(cores, ROWS, COLUMNS), rtol=0, atol=1e-10)
    np.testing.assert_allclose(tt_matrix(cores), contracted(cores).reshape(12, 10), rtol=0, atol=1e-10)


def test_at_full_ranks_the_matrix_comes_back():
    cores = tt_svd(WEIGHT, rows=ROWS, columns=COLUMNS)
    assert tuple(core.shape[2] for core in cores[:-1]) == FULL
    np.testing.assert_allclose(element_by_element(cores, ROWS, COLUMNS), WEIGHT, rtol=0, atol=1e-12)
    np.testing.assert_allclose(close(tt_svd(WEIGHT, rows=ROWS, columns=COLUMNS, ranks=FULL)), 0, atol=1e-12)


def test_a_train_of_low_ranks_is_found_again():
    cores = [RNG.normal(size=shape) for shape in ((1, 2, 2), (2, 3, 3), (3, 2, 2), (2, 2, 3), (3, 1, 2), (2, 5, 1))]
    weight = tt_matrix(cores)
    found = tt_svd(weight, rows=ROWS, columns=COLUMNS, tolerance=1e-10)
    # The three links before the core whose digit has one value are more than the two behind it: two are enough.
    assert tuple(core.shape[2] for core in found[:-1]) == (2, 3, 2, 2, 2)
    np.testing.assert_allclose(tt_matrix(found), weight, rtol=0, atol=1e-9 * np.linalg.norm(weight))


def lost_at_each_cut(weight, ranks):
    """The tail of the singular values of each unfolding of the whole matrix: the best that any train with this rank there can do."""
    sizes = (*ROWS, *COLUMNS)
    sides = itertools.accumulate(sizes[:-1], int.__mul__)
    return [np.linalg.norm(np.linalg.svd(weight.reshape(side, -1), compute_uv=False)[rank:]) for side, rank in zip(sides, ranks, strict=True)]


@pytest.mark.parametrize("ranks", [(1, 1, 1, 1, 1), (2, 3, 4, 3, 2), (2, 6, 3, 3, 3), (1, 3, 6, 5, 5)])
def test_what_is_missing_is_at_most_the_root_of_the_summed_squares_of_the_cuts(ranks):
    lost = lost_at_each_cut(WEIGHT, ranks)
    missing = close(tt_svd(WEIGHT, rows=ROWS, columns=COLUMNS, ranks=ranks))
    assert missing <= np.sqrt(np.sum(np.square(lost))) + 1e-12
    assert missing >= max(lost) - 1e-12                      # and no train of these ranks can be nearer than the worst of its cuts


def test_with_one_cut_the_bound_is_what_is_missing():
    cores = tt_svd(WEIGHT, rows=(12,), columns=(10,), ranks=(4,))
    np.testing.assert_allclose(close(cores), np.linalg.norm(np.linalg.svd(WEIGHT, compute_uv=False)[4:]), rtol=1e-12)


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.1, 0.3, 0.7])
def test_a_tolerance_is_kept_with_ranks_as_small_as_the_cuts_allow(tolerance):
    smooth = np.linalg.qr(RNG.normal(size=(12, 10)))[0] * 0.6 ** np.arange(10)
    cores = tt_svd(smooth, rows=ROWS, columns=COLUMNS, tolerance=tolerance)
    assert close(cores, smooth) <= tolerance * np.linalg.norm(smooth) + 1e-12
    first = cores[0].shape[2]
    lost = np.linalg.svd(smooth.reshape(2, -1), compute_uv=False)
    allowed = tolerance * np.linalg.norm(smooth) / np.sqrt(5)
    assert np.linalg.norm(lost[first:]) <= allowed < np.linalg.norm(lost[first - 1 :]) or first == 1


def test_every_core_but_the_last_has_orthonormal_columns():
    for core in tt_svd(WEIGHT, rows=ROWS, columns=COLUMNS, ranks=(2, 4, 5, 4, 3))[:-1]:
        columns = core.reshape(-1, core.shape[2])
        np.testing.assert_allclose(columns.T @ columns, np.eye(columns.shape[1]), rtol=0, atol=1e-12)


def test_an_all_zero_matrix_has_ranks_of_one():
    cores = tt_svd(np.zeros((12, 10)), rows=ROWS, columns=COLUMNS, tolerance=0.1)
    assert all(core.shape[2] == 1 for core in cores) and not tt_matrix(cores).any()


def test_prefixes_and_suffixes_meet_anywhere_in_the_train():
    cores = tt_svd(WEIGHT, rows=ROWS, columns=COLUMNS)
    for left, right in zip(prefixes(cores), suffixes(cores), strict=True):
        np.testing.assert_allclose((left @ right).reshape(12, 10), WEIGHT, rtol=0, atol=1e-12)


def test_carrying_on_without_the_singular_values_is_told_apart():
    """A variant that is easily written: V^T alone is carried on. Full ranks then do not restore the matrix."""
    U, _, V = np.linalg.svd(WEIGHT, full_matrices=False)
    assert np.linalg.norm(U @ V - WEIGHT) > 0.1
    np.testing.assert_allclose(close(tt_svd(WEIGHT, rows=(12,), columns=(10,))), 0, atol=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"rows: got \(2, 3\), whose product is 6, wants factors of 12"):
        tt_svd(WEIGHT, rows=(2, 3), columns=(2, 5))
    with pytest.raises(ValueError, match=r"columns: got 2 of them, wants 3"):
        tt_svd(WEIGHT, rows=ROWS, columns=(2, 5))
    with pytest.raises(ValueError, match="ranks: got 2 of them, wants 5, one between each two of 6 cores"):
        tt_svd(WEIGHT, rows=ROWS, columns=COLUMNS, ranks=(2, 2))
    with pytest.raises(ValueError, match="ranks: got 3 behind core 0, wants at most 2"):
        tt_svd(WEIGHT, rows=ROWS, columns=COLUMNS, ranks=(3, 2, 2, 2, 2))
    with pytest.raises(ValueError, match="tolerance"):
        tt_svd(WEIGHT, rows=ROWS, columns=COLUMNS, tolerance=-0.1)
    with pytest.raises(ValueError, match=r"cores\.1: got 3 to the left, wants 2, as its neighbour is to the right"):
        tt_matrix([np.ones((1, 2, 2)), np.ones((3, 2, 1))])
    with pytest.raises(ValueError, match=r"cores: got 3 of them, wants an even number"):
        tt_matrix([np.ones((1, 2, 2)), np.ones((2, 2, 2)), np.ones((2, 2, 1))])


@pytest.mark.parity
def test_cores_of_tensorly_make_the_same_matrix_and_its_cuts_are_ours():
    tensorly = pytest.importorskip("tensorly")
    decomposition = pytest.importorskip("tensorly.decomposition")
    ranks = (2, 4, 5, 4, 3)
    own = tt_svd(WEIGHT, rows=ROWS, columns=COLUMNS, ranks=ranks)
    np.testing.assert_allclose(tt_matrix(own), tensorly.tt_to_tensor(own).reshape(12, 10), rtol=0, atol=1e-9)
    theirs = decomposition.tensor_train(WEIGHT.reshape(*ROWS, *COLUMNS), rank=[1, *ranks, 1])
    np.testing.assert_allclose(tt_matrix(own), tensorly.tt_to_tensor(theirs).reshape(12, 10), rtol=0, atol=1e-9)
