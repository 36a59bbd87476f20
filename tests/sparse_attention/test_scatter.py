"""Scatter-add: equal to a loop, adjoint to a gather, and strict about places that do not exist."""

import numpy as np
import pytest

from minitransformers.sparse_attention.scatter import scatter_add_rows


def by_loop(index, rows, n):
    """One row after the other."""
    out = np.zeros((n, rows.shape[-1]))
    for i, row in zip(index, rows, strict=True):
        out[i] += row
    return out


def test_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    index, rows = rng.integers(5, size=17), rng.normal(size=(17, 3))
    np.testing.assert_allclose(scatter_add_rows(index, rows, 5), by_loop(index, rows, 5), rtol=0, atol=1e-14)


def test_each_text_of_a_batch_has_its_own_places():
    rng = np.random.default_rng(1)
    index, rows = rng.integers(4, size=(2, 3, 7)), rng.normal(size=(2, 3, 7, 5))
    out = scatter_add_rows(index, rows, 4)
    assert out.shape == (2, 3, 4, 5)
    for text in np.ndindex(2, 3):
        np.testing.assert_allclose(out[text], by_loop(index[text], rows[text], 4), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 7), (2, 1, 7)])
def test_an_index_is_shared_along_the_axes_that_it_lacks(shape):
    rng = np.random.default_rng(2)
    index, rows = rng.integers(4, size=shape), rng.normal(size=(2, 3, 7, 5))
    np.testing.assert_array_equal(
        scatter_add_rows(index, rows, 4), scatter_add_rows(np.broadcast_to(index, (2, 3, 7)).copy(), rows, 4)
    )


def test_is_the_adjoint_of_a_gather():
    """<dpicked, key[index]> = <scatter(dpicked), key> for any key and any dpicked."""
    rng = np.random.default_rng(3)
    index, key, dpicked = rng.integers(6, size=11), rng.normal(size=(6, 4)), rng.normal(size=(11, 4))
    np.testing.assert_allclose(np.sum(dpicked * key[index]), np.sum(scatter_add_rows(index, dpicked, 6) * key), rtol=1e-12)


def test_a_place_that_no_row_goes_to_is_zero():
    out = scatter_add_rows(np.array([2, 2]), np.ones((2, 3)), 4)
    np.testing.assert_array_equal(out, [[0] * 3, [0] * 3, [2] * 3, [0] * 3])


def test_no_rows_at_all():
    np.testing.assert_array_equal(scatter_add_rows(np.zeros(0, int), np.zeros((0, 2)), 3), np.zeros((3, 2)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("integer", [np.int32, np.int64, np.uint8])
def test_keeps_the_dtype_of_the_rows(dtype, integer):
    index, rows = np.array([1, 0, 1], integer), np.ones((3, 2), dtype)
    assert scatter_add_rows(index, rows, 2).dtype == dtype


def test_writes_to_neither_argument_and_reads_any_layout():
    rng = np.random.default_rng(4)
    index, rows = rng.integers(3, size=6), rng.normal(size=(6, 4))
    kept = index.copy(), rows.copy()
    expected = scatter_add_rows(index, rows, 3)
    np.testing.assert_array_equal(scatter_add_rows(index, np.asfortranarray(rows), 3), expected)
    np.testing.assert_array_equal(scatter_add_rows(np.repeat(index, 2)[::2], np.repeat(rows, 2, axis=1)[:, ::2], 3), expected)
    np.testing.assert_array_equal(index, kept[0])
    np.testing.assert_array_equal(rows, kept[1])


@pytest.mark.parametrize(
    "index, why",
    [
        (np.array([0, 3]), "0 to 3"),
        (np.array([-1, 2]), "-1 to 2"),
        (np.array([0.0, 1.0]), "float64"),
        (np.array([True, False]), "bool"),
        (np.array([0, 1, 2]), "shape"),
        (np.array([[0, 1]]), "shape"),
    ],
)
def test_refuses_what_is_no_place(index, why):
    with pytest.raises(ValueError, match=rf"index: .*{why}"):
        scatter_add_rows(index, np.ones((2, 4)), 3)


def test_refuses_leading_axes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"index: .*broadcasts"):
        scatter_add_rows(np.zeros((3, 2), int), np.ones((2, 2, 4)), 3)
