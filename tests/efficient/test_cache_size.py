"""What a cache costs: the formulas against real caches, against counted reads, and against published figures."""

from functools import partial

import numpy as np
import pytest

from minitransformers import LanguageModelConfig, init_language_model, language_model_step
from minitransformers.attention.cache import KeyValueCache
from minitransformers.attention.core import causal_attention, softmax_attention
from minitransformers.attention.grouped_query_attention import (
    grouped_query_attention_step,
    init_grouped_query_attention,
)
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention_step
from minitransformers.attention.sliding_window_attention import init_sliding_window_attention, sliding_window_attention_step
from minitransformers.basics.linear import Linear
from minitransformers.efficient.cache_size import cache_size, reserved_slots
from minitransformers.efficient.paged_attention import PagePool
from minitransformers.efficient.rolling_cache import rolling_cache


class Counted:
    """A core that counts the numbers of keys and values that it is given, and the multiply-adds of scores and mixtures."""

    def __init__(self, core):
        self.core, self.read, self.multiply_adds = core, 0, 0

    def __call__(self, params, query, key, value, bias=None, *, mask=None):
        self.read = key.size + value.size
        scores = np.broadcast_shapes((*query.shape[:-1], 1), (*key.shape[:-2], 1, key.shape[-2]))
        self.multiply_adds = int(np.prod(scores)) * (query.shape[-1] + value.shape[-1])
        return self.core(params, query, key, value, bias, mask=mask)


def layers():
    """The step of a layer over a counting core, what it takes of cache_size, and the core; values of another width where they may be."""
    rng = np.random.default_rng(0)
    wide = init_multi_head_attention(rng, 12, num_heads=4)
    wide = wide._replace(value=Linear(rng.standard_normal((12, 8), np.float32), None), output=Linear(rng.standard_normal((8, 12), np.float32), None))
    core = Counted(causal_attention)
    yield partial(multi_head_attention_step, wide, num_heads=4, core=core), {"num_kv_heads": 4, "d_value": 2}, core
    for kv_heads in (4, 2, 1):
        core, params = Counted(causal_attention), init_grouped_query_attention(rng, 12, num_heads=4, num_kv_heads=kv_heads)
        yield partial(grouped_query_attention_step, params, num_heads=4, num_kv_heads=kv_heads, core=core), {"num_kv_heads": kv_heads}, core
        core, params = Counted(softmax_attention), init_sliding_window_attention(rng, 12, num_heads=4, num_kv_heads=kv_heads)
        yield (partial(grouped_query_attention_step, params, num_heads=4, num_kv_heads=kv_heads, core=core, window=5),
               {"num_kv_heads": kv_heads, "window": 5}, core)  # fmt: skip


@pytest.mark.parametrize(("step", "settings", "core"), layers())
def test_bytes_reads_and_products_are_those_of_a_real_cache_at_every_token(step, settings, core):
    state, rng = None, np.random.default_rng(1)
    for length in range(1, 12):
        _, state = step(rng.standard_normal((3, 1, 12), np.float32), state)
        size = cache_size(length, num_heads=4, d_head=3, batch=3, **settings)
        assert (size.bytes, size.read, size.multiply_adds) == (state.bytes, core.read, core.multiply_adds)
        assert size.bytes == 4 * size.read


def test_the_layer_of_sliding_window_attention_keeps_as_much():
    rng = np.random.default_rng(2)
    params, state = init_sliding_window_attention(rng, 12, num_heads=4, num_kv_heads=2, dtype=np.float64), None
    for length in range(1, 12):
        _, state = sliding_window_attention_step(params, rng.normal(size=(1, 1, 12)), state, num_heads=4, window=5)
        assert state.bytes == cache_size(length, num_heads=4, num_kv_heads=2, d_head=3, window=5, bytes_per_number=8).bytes


def test_the_caches_of_a_whole_model_add_up():
    config = LanguageModelConfig(
        11, context=16, d_model=12, num_layers=3, num_heads=4, mixer="grouped_query_attention", options={"mixer": {"num_kv_heads": 2}}
    )
    params, state = init_language_model(np.random.default_rng(3), config), None
    for length in range(1, 9):
        _, state = language_model_step(params, np.zeros((2, 1), int), state, config=config)
        caches = [cache for cache in state.blocks if isinstance(cache, KeyValueCache)]
        size = cache_size(length, num_heads=4, num_kv_heads=2, d_head=3, num_layers=3, batch=2)
        assert len(caches) == 3 and sum(cache.bytes for cache in caches) == size.bytes
        assert size.multiply_adds == 3 * 2 * 4 * length * (3 + 3)


def test_a_ring_takes_from_the_start_what_a_full_window_takes():
    rng, ring = np.random.default_rng(4), None
    for _ in range(9):
        key, value = rng.standard_normal((3, 2, 1, 4), np.float32), rng.standard_normal((3, 2, 1, 6), np.float32)
        ring = rolling_cache(ring, key, value, window=5)
        assert ring.bytes == cache_size(5, num_heads=2, num_kv_heads=2, d_head=4, d_value=6, batch=3, window=5).bytes


def test_pages_take_what_their_slots_take():
    rng, pool = np.random.default_rng(5), PagePool(num_blocks=20, block_size=4, num_kv_heads=2, d_head=3)
    text = pool.start()
    pool.append(text, *rng.standard_normal((2, 2, 13, 3), np.float32))
    (slots,) = reserved_slots(np.array([13]), longest=20, block_size=4).paged
    blocks = 20 - pool.free_blocks
    assert pool.keys[:, :blocks].nbytes + pool.values[:, :blocks].nbytes == cache_size(int(slots), num_heads=4, num_kv_heads=2, d_head=3).bytes


def test_known_figures():
    """Llama 3 8B, in 16 bits: 128 KiB a token; with as many key heads as query heads 512 KiB, with one 16 KiB. A window of 4,096 in 32,768: 8 times less."""
    llama = {"num_heads": 32, "d_head": 128, "num_layers": 32, "bytes_per_number": 2}
    assert [cache_size(1, num_kv_heads=heads, **llama).bytes for heads in (8, 32, 1)] == [131_072, 524_288, 16_384]
    whole, window = (cache_size(32_768, num_kv_heads=8, window=w, **llama) for w in (None, 4096))
    assert whole.bytes == 8 * window.bytes and whole.multiply_adds == 8 * window.multiply_adds


@pytest.mark.parametrize("kv_heads", [12, 6, 4, 3, 2, 1])
def test_sharing_divides_bytes_and_reads_by_the_group_and_no_product(kv_heads):
    group = 12 // kv_heads
    full, shared = (cache_size(100, num_heads=12, num_kv_heads=heads, d_head=8) for heads in (12, kv_heads))
    assert full.bytes == group * shared.bytes and full.read == group * shared.read
    assert full.multiply_adds == shared.multiply_adds == 12 * 100 * 16
    assert shared.intensity == group and full.intensity == 1


def test_a_window_ends_the_growth_where_it_is_full():
    sizes = [cache_size(length, num_heads=2, num_kv_heads=1, d_head=4, window=6) for length in range(1, 12)]
    assert [size.read for size in sizes] == [8 * min(length, 6) for length in range(1, 12)]
    assert sizes[5:] == [sizes[5]] * 6


def test_heads_that_do_not_divide_are_refused_by_name():
    for kv_heads in (3, 8):
        with pytest.raises(ValueError, match=f"num_kv_heads: got {kv_heads}, wants a number of heads that divides 4"):
            cache_size(5, num_heads=4, num_kv_heads=kv_heads, d_head=2)


def test_reserved_slots_are_those_of_a_loop_and_of_the_pool():
    lengths = np.arange(1, 70)
    reserved = reserved_slots(lengths, longest=80, block_size=6)
    for n, contiguous, buddy, paged in zip(lengths, *reserved, strict=True):
        power, blocks = 1, 0
        while power < n:
            power *= 2
        while 6 * blocks < n:
            blocks += 1
        pool = PagePool(num_blocks=20, block_size=6, num_kv_heads=1, d_head=1)
        pool.append(pool.start(), *np.zeros((2, 1, n, 1), np.float32))
        assert (contiguous, buddy, paged) == (80, power, 6 * blocks) and paged == 6 * (20 - pool.free_blocks)
    assert (reserved.paged - lengths).max() == 5 and (reserved.buddy < 2 * lengths).all()


def test_powers_of_two_are_exact_where_floats_are_not():
    lengths = np.array([2**40 - 1, 2**40, 2**40 + 1])
    assert reserved_slots(lengths, longest=2**50, block_size=1).buddy.tolist() == [2**40, 2**40, 2**41]


@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_lengths_may_be_integers_of_any_kind(kind):
    lengths = np.array([5, 9, 200])
    for mine, theirs in zip(*(reserved_slots(a, longest=200, block_size=4) for a in (lengths.astype(kind), lengths)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ValueError, match="lengths: got up to 200, wants at most the longest, 100"):
        reserved_slots(lengths, longest=100, block_size=4)
