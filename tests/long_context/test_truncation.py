"""Truncation: what is kept of a text that is too long, and what is lost."""

from functools import partial

import numpy as np
import pytest

from minitransformers.long_context.truncation import keep_head, keep_head_and_tail, keep_tail, truncate

FIRST, LAST = np.array([101]), np.array([102, 103])
KEEPS = {"head": keep_head, "tail": keep_tail, "head and tail": partial(keep_head_and_tail, head=3)}


def one_by_one(way, length, room):
    """Each token asked for itself."""
    kept = []
    for i in range(length):
        from_end = length - i
        near = {"head": i < room, "tail": from_end <= room, "head and tail": i < 3 or from_end <= room - 3}[way]
        if near or length <= room:
            kept.append(i)
    return kept


@pytest.mark.parametrize("way", KEEPS)
@pytest.mark.parametrize("length", [0, 1, 4, 7, 8, 9, 23])
def test_each_token_is_kept_or_lost_by_its_place(way, length):
    kept = KEEPS[way](length, room=7)
    assert kept.tolist() == one_by_one(way, length, 7)


@pytest.mark.parametrize("way", KEEPS)
@pytest.mark.parametrize("length", [1, 2, 9, 50])
def test_the_budget_is_never_exceeded_and_used_up_where_something_is_lost(way, length):
    ids = np.arange(length)
    read = truncate(ids, budget=10, keep=KEEPS[way], before=FIRST, after=LAST)
    assert len(read.ids) == min(length + 3, 10) and read.lost == (length > 7)
    np.testing.assert_array_equal(read.ids, [*FIRST, *ids[read.places], *LAST])


@pytest.mark.parametrize("way", KEEPS)
def test_a_text_that_fits_is_kept_whole_and_no_token_twice(way):
    for length in range(1, 8):
        read = truncate(np.arange(length), budget=10, keep=KEEPS[way], before=FIRST, after=LAST)
        np.testing.assert_array_equal(read.places, np.arange(length))
        assert not read.lost


def test_the_order_of_the_text_is_kept():
    for keep in KEEPS.values():
        assert (np.diff(keep(50, room=7)) > 0).all()


def test_a_head_of_nothing_is_the_tail_and_one_of_the_whole_room_the_head():
    np.testing.assert_array_equal(keep_head_and_tail(20, room=7, head=0), keep_tail(20, room=7))
    np.testing.assert_array_equal(keep_head_and_tail(20, room=7, head=7), keep_head(20, room=7))


def test_the_published_setting_keeps_128_and_382_of_510():
    read = truncate(np.arange(2000), budget=512, keep=partial(keep_head_and_tail, head=128), before=FIRST, after=FIRST)
    np.testing.assert_array_equal(read.places, [*range(128), *range(2000 - 382, 2000)])


def test_a_cue_at_any_place_is_kept_by_all_ways_equally_often():
    """512 of 2000 places: the share is the room's, wherever it lies. What differs is where the losses are."""
    shares = {way: len(keep(2000, room=512)) / 2000 for way, keep in KEEPS.items()}
    assert set(shares.values()) == {0.256}


def test_a_cue_near_either_end_is_kept_by_head_and_tail_alone():
    ends = [*range(100), *range(1900, 2000)]
    found = {way: np.isin(ends, keep(2000, room=512)).mean() for way, keep in {**KEEPS, "head and tail": partial(keep_head_and_tail, head=256)}.items()}
    assert found == {"head": 0.5, "tail": 0.5, "head and tail": 1.0}


def test_what_stands_beside_the_tokens_is_cut_with_the_same_places():
    ids, labels = np.arange(20) + 50, np.arange(20) % 3
    read = truncate(ids, budget=8, keep=keep_tail, before=FIRST)
    np.testing.assert_array_equal(labels[read.places], labels[-7:])
    np.testing.assert_array_equal(read.ids[1:], ids[-7:])


def test_a_tail_that_counts_from_the_whole_budget_is_told_apart():
    """The common mistake: the special tokens are put on after the cut. The budget is then exceeded by as many."""

    def wrong(ids, budget):
        return np.concatenate([FIRST, ids[keep_tail(len(ids), room=budget)], LAST])

    ids = np.arange(20)
    assert len(wrong(ids, 10)) == 13 and len(truncate(ids, budget=10, keep=keep_tail, before=FIRST, after=LAST).ids) == 10


def test_a_head_and_tail_that_overlap_are_told_apart():
    def wrong(length, *, room):
        return np.concatenate([np.arange(3), np.arange(length - (room - 3), length)])

    with pytest.raises(ValueError, match="keep: got 7 places, wants at most 7, ascending"):
        truncate(np.arange(6), budget=7, keep=wrong)


def test_bad_budgets_are_refused():
    with pytest.raises(ValueError, match="budget: got 3, wants at least 4: 3 special tokens, and one of the text"):
        truncate(np.arange(5), budget=3, before=FIRST, after=LAST)
    with pytest.raises(ValueError, match="budget: got 0, wants a whole number of at least 1"):
        truncate(np.arange(5), budget=0)
    with pytest.raises(ValueError, match="room: got 0, wants a whole number of at least 1"):
        keep_head(5, room=0)
    with pytest.raises(ValueError, match="head: got 8, wants at most the room, 7"):
        keep_head_and_tail(5, room=7, head=8)
    with pytest.raises(ValueError, match="keep: got 2 places, wants at most 4, ascending from 0 to below 5"):
        truncate(np.arange(5), budget=4, keep=lambda length, *, room: np.array([3, 3]))
    with pytest.raises(ValueError, match="keep: got 3 places"):
        truncate(np.arange(5), budget=4, keep=lambda length, *, room: np.array([-1, 0, 3]))
