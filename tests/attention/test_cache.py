"""The key-value cache: a text read in pieces equals the text read at once, appending is pure, and what is kept is bounded."""

import copy
from functools import partial

import numpy as np
import pytest

from minitransformers.attention import cache as module
from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.attention.cache import key_value_cache
from minitransformers.attention.core import causal_attention, softmax_attention
from minitransformers.attention.grouped_query_attention import (
    grouped_query_attention,
    grouped_query_attention_step,
    init_grouped_query_attention,
)
from minitransformers.attention.masks import padding_mask, sliding_window_mask
from minitransformers.attention.multi_head_attention import (
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.attention.prepare import on_both
from minitransformers.positional.rope import rope

PIECES = [[5, 1, 1, 1, 1], [1] * 9, [9], [2, 3, 1, 3], [1, 8]]
SETTINGS = {
    "plain": {},
    "rope": {"prepare": on_both(partial(rope, base=50.0))},
    "scale": {"core": partial(causal_attention, scale=0.7)},
}


def in_pieces(step, x, pieces, **rows):
    """The outputs of a step, so many positions at a time; bias and mask come as the rows of the new positions."""
    state, outs, start = None, [], 0
    for new in pieces:
        stop = start + new
        out, state = step(x[..., start:stop, :], state, **{name: a[..., start:stop, :stop] for name, a in rows.items()})
        outs.append(out)
        start = stop
    return np.concatenate(outs, axis=-2), state


def multi_head(rng, dtype=np.float64):
    params = init_multi_head_attention(rng, 12, num_heads=6, dtype=dtype)
    return partial(multi_head_attention, params, num_heads=6), partial(multi_head_attention_step, params, num_heads=6)


def grouped(rng, dtype=np.float64):
    params = init_grouped_query_attention(rng, 12, num_heads=6, num_kv_heads=2, dtype=dtype)
    heads = {"num_heads": 6, "num_kv_heads": 2}
    return partial(grouped_query_attention, params, **heads), partial(grouped_query_attention_step, params, **heads)


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("make", [multi_head, grouped])
def test_a_text_in_pieces_equals_the_text_at_once(make, settings, pieces):
    rng = np.random.default_rng(0)
    (whole, step), x = make(rng), rng.normal(size=(2, 9, 12))
    out, state = in_pieces(partial(step, **SETTINGS[settings]), x, pieces)
    np.testing.assert_allclose(out, whole(x, **SETTINGS[settings])[0], rtol=0, atol=1e-12)
    assert state.length == 9


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("make", [multi_head, grouped])
def test_bias_and_mask_come_as_the_rows_of_the_new_positions(make, pieces):
    """As linear biases (ALiBi) do: minus a slope a head times the distance."""
    rng = np.random.default_rng(1)
    (whole, step), x = make(rng), rng.normal(size=(2, 9, 12))
    distance = np.arange(9)[:, None] - np.arange(9)
    bias = -(2.0 ** -np.arange(1, 7))[:, None, None] * distance
    mask = np.broadcast_to(padding_mask(np.array([9, 6]), 9), (2, 1, 9, 9)) | np.eye(9, dtype=bool)
    np.testing.assert_allclose(in_pieces(step, x, pieces, bias=bias)[0], whole(x, bias)[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(in_pieces(step, x, pieces, bias=bias, mask=mask)[0], whole(x, bias, mask=mask)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, 3, 4, 20])
@pytest.mark.parametrize("pieces", PIECES)
def test_a_cache_with_a_window_equals_the_masked_whole(pieces, window):
    rng = np.random.default_rng(2)
    (whole, step), x, bias = grouped(rng), rng.normal(size=(2, 9, 12)), rng.normal(size=(6, 9, 9))
    expected, _ = whole(x, bias, prepare=on_both(rope), mask=sliding_window_mask(9, window=window))
    banded = partial(banded_attention_blocks, window=window, core=softmax_attention)
    out, state = in_pieces(partial(step, prepare=on_both(rope), core=banded, window=window), x, pieces, bias=bias)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)
    kept = min(9, window - 1 + pieces[-1])                   # what the last positions appended may look at
    assert state.positions.tolist() == list(range(9 - kept, 9))
    assert state.keys.shape[-2] == state.values.shape[-2] == kept


def test_keys_stay_in_order_and_only_the_window_is_kept():
    cache = None
    for position in range(40):
        key = np.full((1, 1, 2), float(position))
        cache = key_value_cache(cache, key, -key, window=4)
        np.testing.assert_array_equal(cache.positions, np.arange(max(0, position - 3), position + 1))
        np.testing.assert_array_equal(cache.keys[0, :, 0], cache.positions)
        np.testing.assert_array_equal(cache.values[0, :, 0], -cache.positions)
        assert cache.length == position + 1


def test_the_cache_shrinks_with_the_key_heads():
    """2 arrays * batch * key heads * positions * width * bytes a number, so the ratio is that of the heads."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, 7, 12)).astype(np.float32)
    sizes = {}
    for num_kv_heads in (6, 3, 2, 1):
        params = init_grouped_query_attention(rng, 12, num_heads=6, num_kv_heads=num_kv_heads)
        _, cache = grouped_query_attention_step(params, x, None, num_heads=6, num_kv_heads=num_kv_heads)
        assert cache.bytes == 2 * 3 * num_kv_heads * 7 * 2 * 4
        sizes[num_kv_heads] = cache.bytes
    assert [sizes[6] // sizes[k] for k in (6, 3, 2, 1)] == [1, 2, 3, 6]


def test_a_cache_with_a_window_stops_growing():
    rng, sizes = np.random.default_rng(4), []
    _, step = grouped(rng)
    state = None
    for _ in range(9):
        _, state = step(rng.normal(size=(1, 1, 12)), state, window=4)
        sizes.append(state.bytes)
    assert sizes[:4] == [sizes[0] * n for n in (1, 2, 3, 4)] and set(sizes[4:]) == {sizes[3]}


class Counted(module._Room):
    """A room that notes how large it is and how many positions are written into it, new ones and those of an older room."""

    made: list = []

    def __init__(self, key, value, capacity):
        super().__init__(key, value, capacity)
        self.made.append([capacity, 0])

    def put(self, key, value):
        self.made[-1][1] += key.shape[-2]
        super().put(key, value)


@pytest.fixture
def rooms(monkeypatch):
    Counted.made = []
    monkeypatch.setattr(module, "_Room", Counted)
    return Counted.made


def copied(rooms, appended):
    """How many positions were written besides those that were appended."""
    return sum(written for _, written in rooms) - appended


def rows(n, seed=5):
    return np.random.default_rng(seed).normal(size=(1, n, 2))


def appended(n, window=None, cache=None, seed=5):
    text = rows(n, seed)
    for t in range(n):
        cache = key_value_cache(cache, text[:, t : t + 1], 2 * text[:, t : t + 1], window=window)
    return cache


def test_the_room_doubles_and_keeps_what_it_held(rooms):
    cache, text = appended(70), rows(70)
    np.testing.assert_array_equal(cache.keys, text)
    np.testing.assert_array_equal(cache.values, 2 * text)
    assert [capacity for capacity, _ in rooms] == [16, 34, 70]
    cache = key_value_cache(cache, text.repeat(4, axis=1), text.repeat(4, axis=1))
    assert cache.length == 350
    np.testing.assert_array_equal(cache.keys[:, :70], text)


def test_a_long_loop_copies_fewer_positions_than_it_appends(rooms):
    appended(3000)
    assert len(rooms) <= 9 and copied(rooms, 3000) < 2 * 3000


@pytest.mark.parametrize("window", [1, 4, 50])
def test_with_a_window_a_long_loop_needs_a_bounded_room_and_copies_as_few(rooms, window):
    cache = appended(1000, window)
    assert max(capacity for capacity, _ in rooms) <= max(16, 2 * window)
    assert copied(rooms, 1000) <= 1000
    np.testing.assert_array_equal(cache.keys, rows(1000)[:, -window:])


def test_a_long_prompt_is_let_go_once_it_has_left_the_window(rooms):
    text = rows(500)
    cache = key_value_cache(None, text, text, window=4)
    np.testing.assert_array_equal(cache.keys, text)          # its own positions may look at all of it
    appended(3, cache=cache)
    assert rooms[-1][0] == 16 and len(rooms) == 2


@pytest.mark.parametrize("window", [None, 4])
def test_a_cache_that_was_appended_to_is_as_it_was_and_can_be_continued_in_two_ways(window):
    past = appended(20, window)
    before = copy.deepcopy(past)
    one, other = (appended(30, cache=past, seed=seed) for seed in (6, 7))
    third = key_value_cache(past, rows(2, 8), rows(2, 8))
    for name in ("keys", "values"):
        np.testing.assert_array_equal(getattr(past, name), getattr(before, name))
    assert past.length == before.length == 20 and one.length == other.length == 50
    for cache, text in ((one, np.concatenate([rows(20), rows(30, 6)], axis=1)), (other, np.concatenate([rows(20), rows(30, 7)], axis=1))):
        np.testing.assert_array_equal(cache.keys, text[:, -cache.keys.shape[-2] :])
        np.testing.assert_array_equal(cache.values, 2 * cache.keys)
    np.testing.assert_array_equal(third.keys[:, -2:], rows(2, 8))
    np.testing.assert_array_equal(third.keys[:, :-2], past.keys[:, -(third.keys.shape[-2] - 2) :])


def test_only_the_second_way_to_continue_a_cache_costs_a_copy(rooms):
    past = appended(20)
    made = len(rooms)
    key_value_cache(past, rows(1, 6), rows(1, 6))
    assert len(rooms) == made
    key_value_cache(past, rows(1, 7), rows(1, 7))
    assert len(rooms) == made + 1


@pytest.mark.parametrize("make", [multi_head, grouped])
def test_a_state_that_two_continuations_share_serves_both(make):
    rng = np.random.default_rng(6)
    (whole, step), x, other = make(rng), rng.normal(size=(1, 6, 12)), rng.normal(size=(1, 2, 12))
    _, state = step(x[:, :4], None)
    beside, _ = step(other, state)
    out, _ = step(x[:, 4:], state)
    np.testing.assert_allclose(out, whole(x)[0][:, 4:], rtol=0, atol=1e-13)
    np.testing.assert_allclose(beside, whole(np.concatenate([x[:, :4], other], axis=1))[0][:, 4:], rtol=0, atol=1e-13)


def test_a_deep_copy_continues_on_its_own():
    rng = np.random.default_rng(6)
    (whole, step), x = multi_head(rng), rng.normal(size=(1, 6, 12))
    _, state = step(x[:, :4], None)
    fork = copy.deepcopy(state)
    step(rng.normal(size=(1, 1, 12)), fork)
    for held in (state, fork):
        np.testing.assert_allclose(step(x[:, 4:], held)[0], whole(x)[0][:, 4:], rtol=0, atol=1e-13)


@pytest.mark.parametrize("leading", [(), (3,), (2, 2)])
def test_any_number_of_leading_axes_and_the_dtype_stay(leading):
    rng = np.random.default_rng(7)
    (whole, step), x = grouped(rng, np.float32), rng.normal(size=(*leading, 9, 12)).astype(np.float32)
    out, _ = in_pieces(partial(step, prepare=on_both(rope)), x, [4, 1, 1, 3])
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, whole(x, prepare=on_both(rope))[0], rtol=0, atol=1e-5)


def test_huge_float32_scores_stay_finite():
    rng = np.random.default_rng(8)
    _, step = multi_head(rng, np.float32)
    out, state = step((1e6 * rng.normal(size=(1, 4, 12))).astype(np.float32), None)
    out, _ = step((1e6 * rng.normal(size=(1, 1, 12))).astype(np.float32), state)
    assert np.isfinite(out).all()


def test_errors_name_what_does_not_fit():
    rng = np.random.default_rng(9)
    _, step = multi_head(rng)
    _, state = step(rng.normal(size=(2, 3, 12)), None)
    with pytest.raises(ValueError, match="key: got"):
        step(rng.normal(size=(1, 1, 12)), state)
    past = key_value_cache(None, np.ones((2, 3, 4)), np.ones((2, 3, 5)), window=3)
    for key, value, named in (((3, 1, 4), (3, 1, 5), "key"), ((2, 1, 5), (2, 1, 5), "key"), ((2, 1, 4), (2, 1, 4), "value")):
        with pytest.raises(ValueError, match=f"{named}: got shape|{named}: got float64 of shape"):
            key_value_cache(past, np.ones(key), np.ones(value))
    with pytest.raises(ValueError, match="key: got float32"):
        key_value_cache(past, np.ones((2, 1, 4), np.float32), np.ones((2, 1, 5), np.float32))
    with pytest.raises(ValueError, match="window: got 4, wants 3, as the cache was started with"):
        key_value_cache(past, np.ones((2, 1, 4)), np.ones((2, 1, 5)), window=4)
    with pytest.raises(ValueError, match="window: got 0"):
        key_value_cache(None, np.ones((2, 3, 4)), np.ones((2, 3, 4)), window=0)
    with pytest.raises(ValueError, match="past: got int"):
        key_value_cache(7, np.ones((2, 3, 4)), np.ones((2, 3, 4)))
