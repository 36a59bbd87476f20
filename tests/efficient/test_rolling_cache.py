"""The ring of slots: at every step it is attention within a window, in the same memory for any length, and nothing is overwritten too soon."""

import copy
from functools import partial

import numpy as np
import pytest

from minitransformers.attention.banded_attention import banded_attention
from minitransformers.attention.cache import key_value_cache
from minitransformers.attention.core import causal_attention, softmax_attention
from minitransformers.attention.heads import merge_heads, split_heads
from minitransformers.attention.masks import sliding_window_mask
from minitransformers.attention.prepare import on_both, unprepared
from minitransformers.attention.sliding_window_attention import (
    init_sliding_window_attention,
    sliding_window_attention,
    sliding_window_attention_step,
)
from minitransformers.attention.soft_cap import soft_capped_attention
from minitransformers.basics.linear import linear
from minitransformers.efficient.rolling_cache import RollingCache, rolling_attention, rolling_cache
from minitransformers.positional.alibi import Alibi, alibi
from minitransformers.positional.rope import rope

PIECES = [[1] * 23, [3, 3, 1, 2] * 2 + [3, 1, 1], [2] * 11 + [1]]


def arrays(n, heads=2, d=4, seed=0):
    """Queries, keys and values (2, heads, n, ...), values of another width."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, heads, n, d)), rng.normal(size=(2, heads, n, d)), rng.normal(size=(2, heads, n, 3))


def in_pieces(pieces, query, key, value, *, window, **rows):
    """Outputs over a rolling cache, so many positions at a time, and the rings after each piece."""
    outs, rings, start, ring = [], [], 0, None
    core = rows.pop("core", softmax_attention)
    for new in pieces:
        part, stop = slice(start, start + new), start + new
        out, ring = rolling_attention(
            None, query[..., part, :], key[..., part, :], value[..., part, :], ring, window=window, core=core,
            **{name: a[..., part, :stop] for name, a in rows.items()},
        )  # fmt: skip
        outs.append(out)
        rings.append(ring)
        start = stop
    return np.concatenate(outs, axis=-2), rings


def naive(query, key, value, window, bias):
    """One head, one query at a time: a dict from slot to what stands there, as a ring is described."""
    slots, out = {}, np.zeros((len(query), value.shape[1]))
    for t in range(len(query)):
        slots[t % window] = (t, key[t], value[t])
        scores = {p: query[t] @ k / np.sqrt(len(k)) + bias[t, p] for p, k, _ in slots.values()}
        total = sum(np.exp(s) for s in scores.values())
        out[t] = sum(np.exp(scores[p]) / total * v for p, _, v in slots.values())
    return out


@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_each_step_is_that_of_a_naive_ring(pieces):
    query, key, value = arrays(23)
    bias = np.random.default_rng(1).normal(size=(2, 23, 23))
    out, _ = in_pieces(pieces, query, key, value, window=3, bias=bias)
    for b, h in np.ndindex(2, 2):
        np.testing.assert_allclose(out[b, h], naive(query[b, h], key[b, h], value[b, h], 3, bias[h]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 22, 23, 40])
def test_token_by_token_it_equals_banded_attention_at_every_step(window):
    query, key, value = arrays(23)
    expected, _ = banded_attention(None, query, key, value, window=window)
    out, _ = in_pieces([1] * 23, query, key, value, window=window)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("window", [3, 4, 8, 40])
def test_pieces_of_up_to_a_window_equal_banded_attention(window, pieces):
    query, key, value = arrays(23)
    rng = np.random.default_rng(2)
    bias, mask = rng.normal(size=(2, 23, 23)), rng.random((2, 1, 23, 23)) < 0.7
    expected, _ = banded_attention(None, query, key, value, bias, window=window, mask=mask)
    out, _ = in_pieces(pieces, query, key, value, window=window, bias=np.broadcast_to(bias, (2, 2, 23, 23)), mask=mask)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("core", [causal_attention, partial(soft_capped_attention, cap=0.5)], ids=["causal", "capped"])
def test_any_core_that_takes_a_mask_reads_a_ring(core):
    query, key, value = arrays(23)
    expected, _ = banded_attention(None, query, key, value, window=4, core=core)
    out, _ = in_pieces([4, 1, 3, 1, 1, 4, 4, 2, 3], query, key, value, window=4, core=core)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


def test_a_longer_text_than_the_window_has_no_effect_until_the_window_is_full():
    """Up to W positions it is a plain cache."""
    query, key, value = arrays(9)
    out, rings = in_pieces([1] * 9, query, key, value, window=9)
    np.testing.assert_allclose(out, causal_attention(None, query, key, value)[0], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(rings[-1].keys, key)


def ring_step(params, x, ring, *, num_heads, window, prepare=unprepared, bias=None):
    """A step of sliding-window attention whose state is a ring; keys have as many heads as queries."""
    query, key, value = (split_heads(linear(part, x)[0], num_heads) for part in params[:3])
    start = 0 if ring is None else ring.length
    query, key = prepare(None, query, key, positions=np.arange(start, start + x.shape[-2]))[0]
    heads, ring = rolling_attention(None, query, key, value, ring, window=window, bias=bias)
    return linear(params.output, merge_heads(heads))[0], ring


@pytest.mark.parametrize("pieces", [[1] * 13, [4, 1, 3, 4, 1]], ids=str)
@pytest.mark.parametrize("position", ["rotated", "biased"])
def test_a_layer_over_a_ring_equals_the_layer_whose_cache_keeps_order(position, pieces):
    """Rotations are in the keys, whatever slot they lie in; a bias by distance takes the positions of the slots."""
    rng = np.random.default_rng(3)
    params, x = init_sliding_window_attention(rng, 12, num_heads=3, dtype=np.float64), rng.normal(size=(2, 13, 12))
    settings = {"num_heads": 3, "window": 4, "prepare": on_both(rope) if position == "rotated" else unprepared}
    slopes = Alibi(np.array([1.0, 0.5, 0.25]))
    bias = alibi(slopes, num_queries=13, num_keys=13)[0] if position == "biased" else None
    whole, _ = sliding_window_attention(params, x, bias, **settings)
    ring = cache = None
    start = 0
    for new in pieces:
        part = x[:, start : start + new]
        start += new
        rows = None if bias is None else alibi(slopes, num_queries=new, num_keys=start)[0]
        out, ring = ring_step(params, part, ring, **settings, bias=rows)
        kept, cache = sliding_window_attention_step(params, part, cache, **settings, bias=rows)
        np.testing.assert_allclose(out, whole[:, start - new : start], rtol=0, atol=1e-12)
        np.testing.assert_allclose(out, kept, rtol=0, atol=1e-12)


def test_columns_in_the_order_of_slots_would_be_wrong():
    """The negative control: a bias by distance that is not taken by position."""
    query, key, value = arrays(10)
    bias = alibi(Alibi(np.array([1.0, 0.5])), num_queries=10, num_keys=10)[0]
    expected, _ = banded_attention(None, query, key, value, bias, window=4)
    _, rings = in_pieces([1] * 10, query, key, value, window=4, bias=bias)
    ring = rings[-1]
    right, wrong = (softmax_attention(None, query[..., -1:, :], ring.keys, ring.values, bias[..., -1:, columns])[0]
                    for columns in (ring.positions, slice(-4, None)))  # fmt: skip
    np.testing.assert_allclose(right, expected[..., -1:, :], rtol=0, atol=1e-12)
    assert np.abs(wrong - expected[..., -1:, :]).max() > 1e-3


def test_writing_before_attending_would_be_wrong():
    """The keys of a piece overwrite what its first queries may still see."""
    query, key, value = arrays(10)
    expected, _ = banded_attention(None, query, key, value, window=4)
    _, rings = in_pieces([4, 3], query[..., :7, :], key[..., :7, :], value[..., :7, :], window=4)
    ring = rolling_cache(rings[-1], key[..., 7:, :], value[..., 7:, :], window=4)
    back = np.arange(7, 10)[:, None] - ring.positions
    out, _ = softmax_attention(None, query[..., 7:, :], ring.keys, ring.values, mask=(back >= 0) & (back < 4))
    np.testing.assert_allclose(out[..., -1, :], expected[..., -1, :], rtol=0, atol=1e-12)
    assert np.abs(out[..., 0, :] - expected[..., 7, :]).max() > 1e-2


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_change_reaches_as_far_as_the_layers_carry_it_and_exactly_no_further(layers):
    """layers (W - 1) positions ahead; beyond, not a bit changes."""
    rng, window, where = np.random.default_rng(4), 4, 3
    n = where + layers * (window - 1) + 6
    stack = [init_sliding_window_attention(rng, 6, num_heads=2, dtype=np.float64) for _ in range(layers)]
    x = rng.normal(size=(n, 6))
    changed = x.copy()
    changed[where] += 1.0

    def run(hidden):
        rings, outs = [None] * layers, []
        for t in range(n):
            h = hidden[t : t + 1]
            for i, params in enumerate(stack):
                added, rings[i] = ring_step(params, h, rings[i], num_heads=2, window=window)
                h = h + added
            outs.append(h)
        return np.concatenate(outs)

    affected = np.flatnonzero((run(x) != run(changed)).any(axis=1))
    assert affected.tolist() == list(range(where, where + layers * (window - 1) + 1))


def test_a_slot_tells_its_position():
    ring = None
    for t in range(23):
        mark = np.full((1, 1, 1), float(t))
        ring = rolling_cache(ring, mark, -mark, window=5)
        assert ring.length == t + 1 and ring.held == min(t + 1, 5)
        assert ring.keys[0, : ring.held, 0].tolist() == ring.positions.tolist()
        assert sorted(ring.positions) == list(range(max(0, t - 4), t + 1))
        assert [p % 5 for p in ring.positions] == list(range(ring.held))
        in_order, values = ring.in_order()
        assert in_order[0, :, 0].tolist() == sorted(ring.positions) == (-values[0, :, 0]).tolist()


@pytest.mark.parametrize("window", [1, 3, 8])
def test_it_holds_what_a_cache_with_a_window_holds(window):
    _, key, value = arrays(20)
    ring = cache = None
    for t in range(20):
        part = slice(t, t + 1)
        ring = rolling_cache(ring, key[..., part, :], value[..., part, :], window=window)
        cache = key_value_cache(cache, key[..., part, :], value[..., part, :], window=window)
        for mine, theirs in zip(ring.in_order(), (cache.keys, cache.values), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert sorted(ring.positions) == cache.positions.tolist()


def test_the_memory_is_the_same_from_the_first_position_on():
    """2 arrays: batch * heads * window * (width of keys + width of values) * bytes a number."""
    query, key, value = arrays(40)
    _, rings = in_pieces([1] * 40, query, key, value, window=6)
    assert {ring.bytes for ring in rings} == {2 * 2 * 6 * (4 + 3) * 8}
    assert {ring.keys.base is None and ring.keys.shape[-2] for ring in rings} == {6}, "no larger buffer stands behind it"


def test_a_ring_that_was_appended_to_is_as_it_was_and_can_be_continued_in_two_ways():
    _, key, value = arrays(9)
    past = rolling_cache(rolling_cache(None, key[..., :4, :], value[..., :4, :], window=4), key[..., 4:6, :], value[..., 4:6, :], window=4)
    before = copy.deepcopy(past)
    one, other = (rolling_cache(past, sign * key[..., 6:8, :], value[..., 6:8, :], window=4) for sign in (1, -1))
    for name in ("keys", "values"):
        np.testing.assert_array_equal(getattr(past, name), getattr(before, name))
    np.testing.assert_array_equal(one.at(7)[0], -other.at(7)[0])
    np.testing.assert_array_equal(one.at(5)[0], other.at(5)[0])


def test_a_position_that_was_overwritten_is_refused_by_name():
    _, key, value = arrays(9)
    ring = None
    for start in (0, 3, 6):
        ring = rolling_cache(ring, key[..., start : start + 3, :], value[..., start : start + 3, :], window=4)
    for position in (5, 6, 7, 8):
        np.testing.assert_array_equal(ring.at(position)[0], key[..., position, :])
        np.testing.assert_array_equal(ring.at(position)[1], value[..., position, :])
    for position in (-1, 0, 4, 9):
        with pytest.raises(ValueError, match=f"position: got {position}, wants from 5 to 8: the ring holds the last 4"):
            ring.at(position)


def test_errors_name_what_does_not_fit():
    query, key, value = arrays(5)
    with pytest.raises(ValueError, match="key: got 5 new positions, wants at most the window of 4: a longer text comes in pieces"):
        rolling_cache(None, key, value, window=4)
    with pytest.raises(ValueError, match="key: got 5 new positions"):
        rolling_attention(None, query, key, value, window=4)
    ring = rolling_cache(None, key, value, window=6)
    with pytest.raises(ValueError, match="window: got 5, wants 6, as the ring was started with"):
        rolling_cache(ring, key, value, window=5)
    for bad in (key[:1], key[..., :3]):
        with pytest.raises(ValueError, match="key"):
            rolling_cache(ring, bad, value[: len(bad)], window=6)
        with pytest.raises(ValueError, match=r"keys?: got"):
            rolling_attention(None, query[: len(bad), ..., : bad.shape[-1]], bad, value[: len(bad)], ring, window=6)
    for name, columns in (("bias", np.zeros((5, 6))), ("mask", np.ones((5, 12), bool))):
        with pytest.raises(ValueError, match=f"{name}: got {columns.shape[1]} columns, wants 10, for all positions so far"):
            rolling_attention(None, query, key, value, ring, window=6, **{name: columns})
    with pytest.raises(ValueError, match="past: got tuple, wants RollingCache"):
        rolling_cache((key, value, 5), key, value, window=6)
    with pytest.raises(ValueError, match="past: got KeyValueCache, wants RollingCache"):
        rolling_cache(key_value_cache(None, key, value), key, value, window=6)
    with pytest.raises(ValueError, match="window: got 0"):
        rolling_cache(None, key, value, window=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_stays(dtype):
    query, key, value = (a.astype(dtype) for a in arrays(7))
    out, rings = in_pieces([3, 1, 1, 2], query, key, value, window=3)
    assert out.dtype == rings[-1].keys.dtype == rings[-1].values.dtype == dtype
    expected = softmax_attention(None, query, key, value, mask=sliding_window_mask(7, window=3))[0]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


def test_an_empty_ring_is_a_start():
    _, key, value = arrays(2)
    empty = RollingCache(np.zeros((2, 2, 4, 4)), np.zeros((2, 2, 4, 3)), 0)
    assert empty.held == 0 and empty.positions.tolist() == []
    with pytest.raises(ValueError, match="position: got 0"):
        empty.at(0)
    np.testing.assert_array_equal(rolling_cache(empty, key, value, window=4).keys, rolling_cache(None, key, value, window=4).keys)
