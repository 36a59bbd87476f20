"""Attention to selected blocks, sorted by block: it is the plain form whatever it is given, and what it does not compute."""

import tracemalloc
from functools import partial

import numpy as np
import pytest

from minitransformers.attention.core import causal
from minitransformers.attention.masks import causal_mask
from minitransformers.reporting import peak_megabytes
from minitransformers.sparse_attention import selected_block_attention_fast as module
from minitransformers.sparse_attention.selected_block_attention import selected_block_attention
from minitransformers.sparse_attention.selected_block_attention_fast import selected_block_attention_fast


def choice(rng, shape, blocks, picks):
    selected = np.argsort(rng.random((*shape, blocks)), axis=-1)[..., :picks]
    selected[..., 0][rng.random(shape) < 0.2] = -1
    return selected


def assert_forms_agree(*args, **config):
    (plain, plain_backward), (out, backward) = (form(*args, **config) for form in (selected_block_attention, selected_block_attention_fast))
    assert out.shape == plain.shape
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-12)
    dout = np.random.default_rng(3).normal(size=out.shape)
    for own, theirs, arg in zip(backward(dout), plain_backward(dout), (*args, None), strict=False):
        assert (own is None) == (theirs is None) and (own is None or own.shape == arg.shape)
        if own is not None:
            np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11)


RNG = np.random.default_rng(2)
BIASES = {
    "no bias": None,
    "each": RNG.normal(size=(2, 3, 13, 13)),
    "a head": RNG.normal(size=(3, 1, 1)),
    "a key": RNG.normal(size=(1, 13)),
    "a query of a text": RNG.normal(size=(2, 1, 13, 1)),
    "hides": np.where(RNG.random((3, 13, 13)) < 0.3, -np.inf, RNG.normal(size=(3, 13, 13))),
    "more axes": RNG.normal(size=(4, 1, 3, 13, 13)),
}
MASKS = {
    "no mask": None,
    "padding": np.arange(13) < np.array([13, 8])[:, None, None, None],
    "each": RNG.random((2, 3, 13, 13)) < 0.7,
    "a query": RNG.random((13, 1)) < 0.7,
    "more axes": RNG.random((4, 1, 1, 13, 13)) < 0.7,
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
def test_the_forms_agree_with_bias_and_mask(bias, mask):
    rng = np.random.default_rng(4)
    q, k, v = (rng.normal(size=shape) for shape in ((2, 3, 13, 4), (2, 1, 13, 4), (2, 1, 13, 5)))
    for queries in (13, 5, 2, 1):
        rows = [a if a is None or a.shape[-2] == 1 else a[..., 13 - queries :, :] for a in (BIASES[bias], MASKS[mask])]
        selected = choice(rng, (2, 3, queries), 5, 2)
        assert_forms_agree(q[..., 13 - queries :, :], k, v, rows[0], mask=rows[1], selected=selected, block=3)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 23])
@pytest.mark.parametrize("block", [1, 3, 4, 50])
def test_the_forms_agree_at_every_length(block, n):
    rng = np.random.default_rng(5)
    k, v = rng.normal(size=(2, 2, n, 3))
    for queries in {1, n // 2 or 1, n}:
        for picks in (1, 3):
            selected = choice(rng, (2, queries), max(picks, -(-n // block)), picks)
            selected[selected >= -(-n // block)] = -1
            assert_forms_agree(rng.normal(size=(2, queries, 3)), k, v, selected=selected, block=block)


SHAPES = {
    "no heads": ((9, 3), (9, 3), (9, 2), (9, 2)),
    "keys without heads": ((2, 9, 3), (9, 3), (9, 2), (2, 9, 2)),
    "queries without heads": ((9, 3), (2, 9, 3), (9, 2), (9, 2)),
    "values with heads of their own": ((9, 3), (9, 3), (3, 9, 2), (9, 2)),
    "texts and heads": ((3, 2, 9, 3), (3, 2, 9, 3), (3, 2, 9, 2), (3, 2, 9, 2)),
    "groups that share a choice": ((2, 2, 3, 9, 3), (2, 2, 1, 9, 3), (2, 2, 1, 9, 2), (2, 2, 1, 9, 2)),
    "choices that share a query": ((9, 3), (9, 3), (9, 2), (4, 9, 2)),
    "texts that share keys": ((4, 2, 9, 3), (1, 2, 9, 3), (2, 9, 2), (4, 1, 9, 2)),
}


@pytest.mark.parametrize("shapes", SHAPES)
def test_the_forms_agree_however_axes_are_shared(shapes):
    rng, (*sizes, chosen) = np.random.default_rng(7), SHAPES[shapes]
    assert_forms_agree(*(rng.normal(size=size) for size in sizes), selected=choice(rng, chosen[:-1], 5, chosen[-1]), block=2)


def test_bias_and_mask_of_two_keys():
    rng = np.random.default_rng(8)
    selected = np.array([[0, -1], [1, 0]])
    assert_forms_agree(*rng.normal(size=(3, 2, 3)), rng.normal(size=(2, 2)), mask=np.array([[True, True], [False, True]]), selected=selected, block=1)


def peak(function):
    function()
    tracemalloc.start()
    function()
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


def test_memory_grows_with_positions_and_not_with_their_square():
    def both_ways(n):
        rng = np.random.default_rng(9)
        q, k, v = rng.normal(size=(3, n, 2))
        out, backward = selected_block_attention_fast(q, k, v, selected=choice(rng, (n,), 8, 2), block=16)
        backward(out)

    assert peak(lambda: both_ways(2048)) / peak(lambda: both_ways(512)) < 4.5  # a square would be 16


def test_a_step_of_decoding_copies_what_it_reads_and_not_the_cache():
    sizes = []
    for n in (1000, 8000):
        room = np.random.default_rng(10).normal(size=(2, 2, n + 10, 32))
        k, v = room[..., :n, :]                              # a cache is a view of a larger room
        q, selected = room[0, :, :1], np.tile([0, 17, 40], (2, 1, 1))
        sizes.append(peak(lambda q=q, k=k, v=v, selected=selected: selected_block_attention_fast(q, k, v, selected=selected, block=16)))
    assert sizes[1] < 1.2 * sizes[0] and sizes[1] < k.nbytes / 4


def scored(monkeypatch):
    """How many scores each call computes."""
    found, plain = [], module.dot_products

    def spy(query, key, scale):
        found.append(query.shape[0] * query.shape[1] * key.shape[1])
        return plain(query, key, scale)

    monkeypatch.setattr(module, "dot_products", spy)
    return found


def test_no_more_scores_are_computed_than_selected_pairs_ask_for(monkeypatch):
    """Each block's last piece is filled up with less than a block of queries."""
    found, rng = scored(monkeypatch), np.random.default_rng(11)
    q, k, v = rng.normal(size=(3, 256, 2))
    place = np.arange(256)
    selected = np.stack([place // 8, rng.integers(np.maximum(place // 8, 1))], axis=-1)
    selected[:8, 1] = -1
    selected_block_attention_fast(q, k, v, selected=selected, block=8)
    pairs = int((selected >= 0).sum())
    assert pairs * 8 <= found[0] < (pairs + 32 * 8) * 8


def test_blocks_that_lie_ahead_are_not_computed(monkeypatch):
    found = scored(monkeypatch)
    q, k, v = np.random.default_rng(12).normal(size=(3, 64, 2))
    selected_block_attention_fast(q, k, v, selected=np.tile([0, 7], (64, 1)), block=8)
    assert found[0] == 64 * 8 + 8 * 8                        # the last block is seen by the last eight queries only


def test_the_heads_of_a_group_share_pieces(monkeypatch):
    found, rng = scored(monkeypatch), np.random.default_rng(13)
    q, k, v = (rng.normal(size=(heads, n, 2)) for heads, n in ((4, 1), (1, 32), (1, 32)))
    selected_block_attention_fast(q, k, v, selected=np.array([[[0, 3]]]), block=8)
    assert found[0] == 2 * 4 * 8                             # two blocks, all four heads in the piece of each


def test_the_causal_mask_itself_is_not_looked_at(monkeypatch):
    """What ``causal`` puts around a core says nothing that is not known."""
    masks, plain = [], module._cells

    def spy(*args):
        masks.append(args[0])
        return plain(*args)

    monkeypatch.setattr(module, "_cells", spy)
    q, k, v = np.random.default_rng(14).normal(size=(3, 9, 2))
    selected = np.arange(9)[:, None] // 2

    def core(params, query, key, value, bias=None, *, mask=None):
        return selected_block_attention_fast(query, key, value, bias, selected=selected, block=2, mask=mask)

    out, _ = causal(core)(None, q, k, v)
    assert masks == []
    same, _ = causal(core)(None, q, k, v, mask=np.ones((9, 9), bool))
    assert masks == [(9, 9)]
    np.testing.assert_array_equal(out, same)
    other, _ = selected_block_attention_fast(q, k, v, selected=selected, block=2, mask=causal_mask(9, 9).copy())
    np.testing.assert_array_equal(out, other)


def test_a_block_that_is_longer_than_the_text_costs_no_more_than_the_text():
    rng = np.random.default_rng(21)
    q, k, v = rng.normal(size=(3, 2, 9, 4))
    selected = np.zeros((2, 9, 1), int)
    assert_forms_agree(q, k, v, selected=selected, block=1000)
    long, short = (peak_megabytes(partial(selected_block_attention_fast, q, k, v, selected=selected, block=block)) for block in (100_000, 9))
    assert long < 1.5 * short
