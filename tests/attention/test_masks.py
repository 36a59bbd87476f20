import numpy as np
import pytest

from minitransformers.attention.masks import band_mask, causal_mask, padding_mask, prefix_mask, segment_mask, sliding_window_mask

SIZES = [(1, 1), (5, 5), (2, 5), (1, 6)]


def by_hand(queries, keys, rule):
    return np.array([[rule(i + keys - queries, j) for j in range(keys)] for i in range(queries)])


@pytest.mark.parametrize(("queries", "keys"), SIZES)
def test_each_rule_entry_by_entry(queries, keys):
    assert np.array_equal(causal_mask(queries, keys), by_hand(queries, keys, lambda i, j: j <= i))
    for n in (1, 2, 9):
        assert np.array_equal(sliding_window_mask(queries, keys, window=n), by_hand(queries, keys, lambda i, j: i - n < j <= i))
        assert np.array_equal(band_mask(queries, keys, reach=n), by_hand(queries, keys, lambda i, j: abs(i - j) <= n))
        assert np.array_equal(prefix_mask(queries, keys, prefix=n), by_hand(queries, keys, lambda i, j: j < n or j <= i))


def test_the_queries_are_the_last_positions():
    assert np.array_equal(causal_mask(2, 5), causal_mask(5)[3:])
    assert np.array_equal(sliding_window_mask(2, 5, window=3), sliding_window_mask(5, window=3)[3:])


def test_more_queries_than_keys_leaves_the_first_with_nothing():
    assert causal_mask(3, 2).tolist() == [[False, False], [True, False], [True, True]]


def test_a_window_holds_exactly_as_many_keys_as_it_says():
    assert sliding_window_mask(7, window=3).sum(-1).tolist() == [1, 2, 3, 3, 3, 3, 3]


def test_reach_grows_by_one_window_less_one_with_every_layer():
    once = sliding_window_mask(16, window=4).astype(int)
    assert (np.linalg.matrix_power(once, 3)[-1] > 0).sum() == 3 * (4 - 1) + 1


def test_limits_are_the_causal_mask():
    assert np.array_equal(sliding_window_mask(5, window=5), causal_mask(5))
    assert np.array_equal(prefix_mask(5, prefix=0), causal_mask(5))
    assert prefix_mask(5, prefix=5).all() and band_mask(5, reach=4).all()


def test_padding_hides_the_end_of_each_sequence():
    assert padding_mask(np.array([2, 0, 3]), 3)[:, 0, 0].tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert padding_mask(np.ones((4, 2), int), 3).shape == (4, 2, 1, 1, 3)


def test_documents_packed_into_a_row_do_not_see_each_other():
    mask = segment_mask(np.array([[0, 0, 1]]))
    assert mask.shape == (1, 1, 3, 3)
    assert mask[0, 0].tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_masks_compose():
    mask = causal_mask(3) & padding_mask(np.array([3, 1]), 3) & segment_mask(np.array([[0, 0, 0], [0, 1, 1]]))
    assert mask.shape == (2, 1, 3, 3)
    assert mask[1, 0].tolist() == [[True, False, False], [False] * 3, [False] * 3]


def test_masks_are_made_once_and_cannot_be_written_to():
    assert causal_mask(4) is causal_mask(4, 4)
    with pytest.raises(ValueError, match="read-only"):
        causal_mask(4)[0, 0] = False


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: causal_mask(0), "queries"),
        (lambda: causal_mask(3, 2.0), "keys"),
        (lambda: sliding_window_mask(3, window=0), "window"),
        (lambda: sliding_window_mask(3, window=1.5), "window"),
        (lambda: band_mask(3, reach=-1), "reach"),
        (lambda: prefix_mask(3, prefix=-1), "prefix"),
        (lambda: padding_mask(np.array([4]), 3), "lengths"),
        (lambda: padding_mask(np.array([-1]), 3), "lengths"),
        (lambda: padding_mask(np.array([1.0]), 3), "lengths"),
        (lambda: segment_mask(np.array(1)), "segments"),
        (lambda: segment_mask(np.ones(3)), "segments"),
    ],
)
def test_a_bad_argument_is_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parity
@pytest.mark.parametrize("window", [1, 3, 8])
def test_the_window_is_that_of_hugging_face(window):
    torch = pytest.importorskip("torch")
    masking = pytest.importorskip("transformers.masking_utils")
    allows = masking.sliding_window_causal_mask_function(window)
    theirs = np.array([[bool(allows(0, 0, torch.tensor(i), torch.tensor(j))) for j in range(6)] for i in range(6)])
    assert np.array_equal(sliding_window_mask(6, window=window), theirs)


@pytest.mark.parity
def test_the_causal_mask_is_pytorch_s_lower_right_one():
    pytest.importorskip("torch")
    from torch.nn.attention.bias import causal_lower_right

    assert np.array_equal(causal_mask(2, 5), causal_lower_right(2, 5)._materialize())
