"""Sizes that do not fit the text: one position, less than a block, no whole number of blocks, and settings beyond the text or below one."""

import tracemalloc
from functools import partial

import numpy as np
import pytest

from minitransformers import (
    big_bird,
    big_bird_blocks,
    block_mask,
    block_table,
    causal_attention,
    causal_block_table,
    fixed_attention,
    fixed_attention_fast,
    init_multi_head_attention,
    local_global_attention,
    local_global_attention_blocks,
    longformer_attention,
    longformer_blocks,
    lsh_attention,
    lsh_attention_sorted,
    lsh_buckets,
    lsh_chunks,
    lsh_chunks_across,
    moba,
    multi_head_attention,
    routing,
    routing_gathered,
    strided,
    strided_fast,
)
from minitransformers.sparse_attention.longformer_attention import init_longformer_attention
from minitransformers.sparse_attention.reformer_attention import init_reformer_attention, reformer_attention
from minitransformers.sparse_attention.routing import random_centroids

CORES = {
    "window": (local_global_attention, local_global_attention_blocks, {"window": 3, "causal": True}),
    "dilated": (local_global_attention, local_global_attention_blocks, {"window": 2, "dilation": 3, "global_positions": (0, 5)}),
    "strided": (strided, strided_fast, {"stride": 4}),
    "fixed": (fixed_attention, fixed_attention_fast, {"stride": 4, "summary": 2}),
    "BigBird": (big_bird, big_bird_blocks, {"block": 4, "num_random": 1}),
    "BigBird both ways": (big_bird, big_bird_blocks, {"block": 4, "num_random": 1, "table": block_table}),
    "routing": (routing, routing_gathered, {"centroids": random_centroids(np.random.default_rng(0), 3, 4)}),
}
LENGTHS = (1, 2, 3, 4, 5, 9, 23)                             # blocks are of 4
HUGE = 10**6


def arrays(n):
    return np.random.default_rng(n).normal(size=(3, 2, n, 4))


def assert_all_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("name", CORES)
def test_at_any_length_the_fast_form_is_the_plain_one(name, n):
    plain, fast, settings = CORES[name]
    (out, backward), (expected, expected_backward) = (form(None, *arrays(n), **settings) for form in (fast, plain))
    assert np.isfinite(out).all() and out.shape == (2, n, 4)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)
    assert_all_close(backward(np.cos(out))[1:4], expected_backward(np.cos(out))[1:4])


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(
    "core",
    [
        partial(local_global_attention, window=HUGE, causal=True),
        partial(local_global_attention_blocks, window=HUGE, causal=True),
        partial(local_global_attention, window=1, global_positions=tuple(range(40)), causal=True),
        partial(local_global_attention_blocks, window=1, global_positions=tuple(range(40)), causal=True),
        partial(strided, stride=HUGE),
        partial(strided_fast, stride=HUGE),
        partial(fixed_attention, stride=HUGE),
        partial(fixed_attention_fast, stride=HUGE),
        partial(fixed_attention, stride=5, summary=5),
        partial(fixed_attention_fast, stride=5, summary=5),
        partial(big_bird, block=HUGE),
        partial(big_bird_blocks, block=HUGE),
        partial(big_bird, block=2, num_random=40),
        partial(big_bird_blocks, block=2, num_random=40),
        partial(routing, centroids=np.eye(4)[:1], size=HUGE),
        partial(routing_gathered, centroids=np.eye(4)[:1], size=HUGE),
        partial(routing_gathered, centroids=np.concatenate([np.eye(4), -np.eye(4)]), size=HUGE),
        partial(moba, block=40, top=1),
        partial(moba, block=4, top=HUGE),
    ],
    ids=lambda core: "-".join([core.func.__name__, *core.keywords]),
)
def test_a_pattern_larger_than_the_text_is_dense_attention(core, n):
    (out, backward), (expected, expected_backward) = (form(None, *arrays(n)) for form in (core, causal_attention))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)
    assert_all_close(backward(np.cos(out))[1:4], expected_backward(np.cos(out))[1:4])


def test_a_block_longer_than_the_text_is_not_filled_up():
    given = arrays(9)
    big_bird_blocks(None, *given, block=HUGE)                # what is imported at the first call is no cost of the form
    tracemalloc.start()
    try:
        big_bird_blocks(None, *given, block=HUGE)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("form", [lsh_attention, lsh_attention_sorted], ids=["plain", "sorted"])
def test_one_chunk_longer_than_the_text_is_attention_to_all_earlier_ones(form, n):
    x, _, value = arrays(n)
    out, _ = form(x, value, chunks=lsh_chunks(np.zeros((2, 1, n), int), chunk=HUGE))
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    weights = np.exp(x @ unit.swapaxes(-1, -2)) * np.tri(n, k=-1)
    weights[:, 0, 0] = 1                                     # the first position finds nobody, and reads itself
    np.testing.assert_allclose(out, weights @ value / weights.sum(-1, keepdims=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", LENGTHS)
def test_more_buckets_than_positions_and_chunks_across_of_any_length(n):
    x, _, value = arrays(n)
    buckets = lsh_buckets(x, rounds=2, num_buckets=64)
    for cut in (lsh_chunks, lsh_chunks_across):
        for chunk in (1, 4, HUGE):
            chunks = cut(buckets, chunk=chunk)
            assert_all_close(lsh_attention_sorted(x, value, chunks=chunks)[:1], lsh_attention(x, value, chunks=chunks)[:1])


# Each core stands inside an attention, where its settings are checked as well.
@pytest.mark.parametrize(
    ("core", "settings", "named"),
    [
        *((core, {"window": window}, f"window: got {window}, wants a whole number of at least 1")
          for core in (local_global_attention, local_global_attention_blocks) for window in (0, -2)),
        (local_global_attention_blocks, {"window": 2.5}, r"window: got 2\.5"),
        (local_global_attention_blocks, {"window": 2, "dilation": 0}, "dilation: got 0"),
        (local_global_attention_blocks, {"window": 2, "global_positions": (3, -1)}, r"global_positions\.1: got -1"),
        (local_global_attention_blocks, {"window": 2, "global_positions": (3, 3)}, r"global_positions: got \(3, 3\)"),
        *((core, {"stride": 0}, "stride: got 0") for core in (strided, strided_fast, fixed_attention, fixed_attention_fast)),
        *((core, {"stride": 3, "summary": 4}, "summary: got 4, wants at most the stride of 3") for core in (fixed_attention, fixed_attention_fast)),
        *((core, {"block": 0}, "block: got 0") for core in (big_bird, big_bird_blocks, moba)),
        *((core, {"block": 4, "num_random": -1}, "num_random: got -1") for core in (big_bird, big_bird_blocks)),
        (moba, {"block": 4, "top": 0}, "top: got 0"),
        *((core, {"centroids": np.eye(4), "size": 0}, "size: got 0") for core in (routing, routing_gathered)),
        *((core, {"centroids": np.ones((0, 4))}, r"centroids: got shape \(0, 4\), wants no empty axis") for core in (routing, routing_gathered)),
        *((core, {"centroids": np.eye(5)}, "centroids: got shape") for core in (routing, routing_gathered)),
    ],
)  # fmt: skip
def test_a_size_that_is_none_is_refused_by_name_alone_and_inside_an_attention(core, settings, named):
    params, x = init_multi_head_attention(np.random.default_rng(0), 8, num_heads=2, dtype=np.float64), np.ones((7, 8))
    for call in (partial(core, None, *arrays(7), **settings), partial(multi_head_attention, params, x, num_heads=2, core=partial(core, **settings))):
        with pytest.raises(ValueError, match=named):
            call()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (partial(longformer_blocks, *arrays(7), *arrays(7), window=2, global_positions=(7,)), r"global_positions: got \(7,\), wants .* from 0 to 6"),
        (partial(longformer_blocks, *arrays(1), *arrays(1), window=2, global_positions=(1,)), r"global_positions: got \(1,\), wants .* from 0 to 0"),
        (partial(lsh_buckets, arrays(7)[0], rounds=0, num_buckets=4), "rounds: got 0"),
        *((partial(lsh_buckets, arrays(7)[0], rounds=1, num_buckets=buckets), f"num_buckets: got {buckets}, wants") for buckets in (0, 1, 3)),
        *((partial(cut, np.zeros((1, 7), int), chunk=0), "chunk: got 0") for cut in (lsh_chunks, lsh_chunks_across)),
        *((partial(form, *arrays(7)[:2], chunks=np.zeros((2, 1, 6), int)), "chunks: got shape") for form in (lsh_attention, lsh_attention_sorted)),
        *((partial(table, 0), "blocks: got 0") for table in (block_table, causal_block_table)),
        (partial(block_mask, causal_block_table(3), block=0, queries=9, keys=9), "block: got 0"),
        (partial(block_mask, causal_block_table(3), block=4, queries=13, keys=13), "keys: got 13, 4 blocks of 4, wants 3 blocks"),
        *((partial(core, None, *np.ones((3, 0, 4)), **settings), r"query: got shape \(0, 4\), wants no empty axis")
          for name in CORES for *cores, settings in [CORES[name]] for core in cores),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_text_is_refused_by_name(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"num_buckets": 3}, "num_buckets: got 3, wants an even number"), ({"num_buckets": 0}, "num_buckets: got 0"), ({"chunk": 0}, "chunk: got 0"),
     ({"rounds": 0}, "rounds: got 0"), ({"num_heads": 3}, "num_heads: got 3")],
)  # fmt: skip
def test_layers_refuse_as_their_parts_do(changes, named):
    params = init_reformer_attention(np.random.default_rng(0), 8, num_heads=2, dtype=np.float64)
    with pytest.raises(ValueError, match=named):
        reformer_attention(params, np.ones((7, 8)), **{"num_heads": 2, "rounds": 1, "num_buckets": 4, "chunk": 2, **changes})


@pytest.mark.parametrize("n", [1, 2])
def test_layers_read_texts_shorter_than_their_window(n):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 8))
    params = init_longformer_attention(rng, 8, num_heads=2, dtype=np.float64)
    out, backward = longformer_attention(params, x, num_heads=2, window=5, global_positions=(0,), dilation=3)
    assert np.isfinite(out).all() and np.isfinite(backward(out)[1]).all()
    with pytest.raises(ValueError, match=rf"global_positions: got \({n},\)"):
        longformer_attention(params, x, num_heads=2, window=5, global_positions=(n,))
    shared = init_reformer_attention(rng, 8, num_heads=2, dtype=np.float64)
    out, backward = reformer_attention(shared, x, num_heads=2, rounds=2, num_buckets=64, chunk=5)
    assert np.isfinite(out).all() and np.isfinite(backward(out)[1]).all()
