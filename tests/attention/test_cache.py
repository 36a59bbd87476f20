"""The key-value cache: a text read in pieces equals the text read at once, and what is kept is what the arithmetic says."""

import copy
from functools import partial

import numpy as np
import pytest

from minitransformers.attention.cache import KeyValueCache
from minitransformers.attention.grouped_query_attention import (
    grouped_query_attention,
    grouped_query_attention_step,
    init_grouped_query_attention,
)
from minitransformers.attention.masks import sliding_window_mask
from minitransformers.attention.multi_head_attention import (
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.positional.rope import rope

PIECES = [[5, 1, 1, 1, 1], [1] * 9, [9], [2, 3, 1, 3], [1, 8]]


def in_pieces(step, x, pieces, bias=None):
    """The outputs of a step, so many positions at a time."""
    state, outs, start = None, [], 0
    for new in pieces:
        stop = start + new
        extra = {} if bias is None else {"bias": bias[..., start:stop, :stop]}
        out, state = step(x[..., start:stop, :], state, **extra)
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
@pytest.mark.parametrize("config", [{}, {"rotate": partial(rope, base=50.0)}, {"scale": 0.7}], ids=["plain", "rope", "scale"])
@pytest.mark.parametrize("make", [multi_head, grouped])
def test_a_text_in_pieces_equals_the_text_at_once(make, config, pieces):
    rng = np.random.default_rng(0)
    (whole, step), x = make(rng), rng.normal(size=(2, 9, 12))
    out, state = in_pieces(partial(step, **config), x, pieces)
    np.testing.assert_allclose(out, whole(x, **config)[0], rtol=0, atol=1e-12)
    assert state.length == 9


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("make", [multi_head, grouped])
def test_a_bias_comes_as_the_rows_of_the_new_positions(make, pieces):
    """As linear biases (ALiBi) do: minus a slope a head times the distance."""
    rng = np.random.default_rng(1)
    (whole, step), x = make(rng), rng.normal(size=(2, 9, 12))
    distance = np.arange(9)[:, None] - np.arange(9)
    bias = -(2.0 ** -np.arange(1, 7))[:, None, None] * distance
    np.testing.assert_allclose(in_pieces(step, x, pieces, bias)[0], whole(x, bias)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, 3, 4, 20])
@pytest.mark.parametrize("pieces", PIECES)
def test_a_rolling_buffer_equals_the_masked_whole(pieces, window):
    rng = np.random.default_rng(2)
    (whole, step), x = grouped(rng), rng.normal(size=(2, 9, 12))
    expected, _ = whole(x, rotate=rope, mask=sliding_window_mask(9, window=window))
    out, state = in_pieces(partial(step, rotate=rope, window=window), x, pieces)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)
    assert sorted(state.positions) == list(range(max(0, 9 - window), 9))
    assert state.keys.shape[-2] == window


def test_slots_of_a_rolling_buffer_are_positions_mod_window():
    cache = KeyValueCache(window=4)
    for position in range(10):
        key = np.full((1, 1, 2), float(position))
        cache.append(key, -key)
        filled = cache.positions
        np.testing.assert_array_equal(filled % 4, np.arange(len(filled)))
        np.testing.assert_array_equal(cache.keys[0, : len(filled), 0], filled)
        np.testing.assert_array_equal(cache.values[0, : len(filled), 0], -filled)


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


def test_a_rolling_buffer_stops_growing():
    rng, sizes = np.random.default_rng(4), []
    _, step = grouped(rng)
    state = None
    for _ in range(9):
        _, state = step(rng.normal(size=(1, 1, 12)), state, window=4)
        sizes.append(state.bytes)
    assert sizes[:4] == [sizes[0] * n for n in (1, 2, 3, 4)] and set(sizes[4:]) == {sizes[3]}


def test_the_buffer_doubles_and_keeps_what_it_held():
    cache, capacities = KeyValueCache(), []
    assert cache.bytes == 0
    rows = np.random.default_rng(5).normal(size=(1, 70, 2))
    for t in range(70):
        keys, values = cache.append(rows[:, t : t + 1], 2 * rows[:, t : t + 1])
        capacities.append(cache.keys.shape[-2])
    np.testing.assert_array_equal(keys, rows)
    np.testing.assert_array_equal(values, 2 * rows)
    assert sorted(set(capacities)) == [16, 32, 64, 128]
    cache.append(rows.repeat(4, axis=1), rows.repeat(4, axis=1))
    assert cache.length == 350 and cache.keys.shape[-2] >= 350


def test_a_copy_continues_on_its_own():
    rng = np.random.default_rng(6)
    (whole, step), x = multi_head(rng), rng.normal(size=(1, 6, 12))
    _, state = step(x[:, :4], None)
    fork = copy.deepcopy(state)
    step(rng.normal(size=(1, 1, 12)), fork)
    out, _ = step(x[:, 4:], state)
    np.testing.assert_allclose(out, whole(x)[0][:, 4:], rtol=0, atol=1e-13)


@pytest.mark.parametrize("leading", [(), (3,), (2, 2)])
def test_any_number_of_leading_axes_and_the_dtype_stay(leading):
    rng = np.random.default_rng(7)
    (whole, step), x = grouped(rng, np.float32), rng.normal(size=(*leading, 9, 12)).astype(np.float32)
    out, _ = in_pieces(partial(step, rotate=rope), x, [4, 1, 1, 3])
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, whole(x, rotate=rope)[0], rtol=0, atol=1e-5)


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
    with pytest.raises(ValueError, match="key"):
        step(rng.normal(size=(1, 1, 12)), state)
    with pytest.raises(ValueError, match="causal"):
        step(rng.normal(size=(2, 1, 12)), state, causal=False)
    with pytest.raises(ValueError, match="window"):
        KeyValueCache(window=0)
