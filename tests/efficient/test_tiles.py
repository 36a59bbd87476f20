"""Tiles cover every score that may be seen, once, never hold more than they may, and leave out what nobody sees."""

import numpy as np
import pytest

from minitransformers.efficient.tiles import add_to, beyond, part, tiles

CASES = [((), 7, 7), ((2, 3), 5, 9), ((3, 1, 2), 1, 40), ((4,), 9, 3), ((1,), 1, 1)]


def covered(batch, queries, keys, **settings):
    """How often each score is in a tile."""
    count = np.zeros((*batch, queries, keys), int)
    for _, seen in tiles(batch, queries, keys, **settings):
        for _, both in seen:
            count[both] += 1
    return count


@pytest.mark.parametrize(("batch", "queries", "keys"), CASES)
@pytest.mark.parametrize("tile", [1, 2, 3, 4, 5, 6, 50])
def test_every_score_is_in_exactly_one_tile_and_none_is_larger_than_it_may_be(batch, queries, keys, tile):
    assert np.all(covered(batch, queries, keys, tile=tile) == 1)
    for rows, seen in tiles(batch, queries, keys, tile=tile):
        for columns, both in seen:
            scores = np.empty((*batch, queries, keys))[both]
            assert scores.size <= tile * tile
            assert columns[:-2] == rows[:-2] == both[:-2] and (rows[-2], columns[-2]) == both[-2:]


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "tile", "sizes"),
    [
        ((2, 3), 8, 8, 4, {(4, 4)}),                         # one head at a time
        ((2, 3), 2, 12, 4, {(2, 8), (2, 4)}),                # two queries: twice the keys
        ((2, 5), 1, 99, 4, {(1, 16), (1, 3)}),
        ((2, 3), 2, 4, 5, {(3, 2, 4)}),                      # 24 of 25: a whole axis of heads
        ((2, 2), 2, 2, 4, {(2, 2, 2, 2)}),                   # exactly 16: all at once
        ((2, 2), 1, 30, 4, {(2, 2, 1, 4), (2, 2, 1, 2)}),    # heads before a second tile of keys
    ],
)
def test_few_queries_leave_room_for_more_keys_and_heads(batch, queries, keys, tile, sizes):
    whole = np.empty((*batch, queries, keys))
    assert {whole[both].shape for _, seen in tiles(batch, queries, keys, tile=tile) for _, both in seen} == sizes


@pytest.mark.parametrize("diagonal", [-8, -3, 0, 2, 30])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (5, 9), (9, 4)])
@pytest.mark.parametrize("tile", [1, 2, 3, 20])
def test_beyond_the_diagonal_there_are_no_tiles_and_no_scores(queries, keys, tile, diagonal):
    a, b = np.arange(queries)[:, None], np.arange(keys)
    seen = np.zeros((2, queries, keys), bool)
    for _, places in tiles((2,), queries, keys, tile=tile, diagonal=diagonal):
        for _, both in places:
            hidden = beyond(diagonal, both)
            seen[both] = True if hidden is None else ~hidden
            assert hidden is None or (hidden.any() and not hidden.all())
    np.testing.assert_array_equal(seen, np.broadcast_to(b <= a + diagonal, seen.shape))


def test_looking_back_takes_about_half_the_tiles():
    number = {d: sum(len(seen) for _, seen in tiles((), 64, 64, tile=4, diagonal=d)) for d in (None, 0)}
    assert number == {None: 256, 0: 136}


def test_tiles_that_the_mask_rules_out_are_left_out():
    mask = np.zeros((3, 1, 8), bool)
    mask[1, 0, 4:6] = True
    count = covered((3,), 4, 8, tile=2, mask=mask)
    np.testing.assert_array_equal(count, np.broadcast_to(np.repeat(mask[..., ::2] | mask[..., 1::2], 2, axis=-1), count.shape))


def test_a_part_is_a_view_in_which_an_axis_of_one_serves_every_place():
    place = (1, slice(None), slice(2, 4), slice(0, 3))
    for shape in ((2, 3, 6, 5), (1, 3, 6, 5), (2, 1, 1, 5), (3, 6, 1), (6, 5), (1, 1, 1, 1)):
        a = np.random.default_rng(0).normal(size=shape)
        found = part(a, place)
        assert np.shares_memory(found, a)
        np.testing.assert_array_equal(np.broadcast_to(found, (3, 2, 3)), np.broadcast_to(a, (2, 3, 6, 5))[place])


def test_what_is_added_at_all_places_is_the_sum_over_what_was_served():
    gradient = np.random.default_rng(1).normal(size=(2, 3, 5, 6))
    for shape in ((2, 3, 5, 6), (2, 1, 5, 6), (3, 5, 6), (1, 1, 6), (5, 1), (1, 1)):
        whole = np.zeros(shape)
        for tile in (2, 6):
            for _, seen in tiles((2, 3), 5, 6, tile=tile):
                for _, both in seen:
                    add_to(whole, both, gradient[both] / 2)
        full = (1,) * (4 - len(shape)) + shape
        expected = gradient.sum(axis=tuple(i for i, n in enumerate(full) if n == 1), keepdims=True).reshape(shape)
        np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-13)
