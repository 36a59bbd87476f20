"""BigBird by gathering: it is the plain form whatever it is given, and what it does not compute."""

import tracemalloc
from functools import partial

import numpy as np
import pytest

from minitransformers.sparse_attention import big_bird_blocks as module
from minitransformers.sparse_attention.big_bird import big_bird
from minitransformers.sparse_attention.big_bird_blocks import big_bird_blocks
from minitransformers.sparse_attention.block_table import block_table, causal_block_table

TABLES = {"both ways": block_table, "causal": causal_block_table}
every_table = pytest.mark.parametrize("kind", TABLES)


def arrays(n, queries=None, d=2, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, length, d)).astype(dtype) for length in (queries or n, n, n)]


RNG = np.random.default_rng(2)
BIASES = {
    "no bias": None,
    "each": RNG.normal(size=(2, 3, 17, 17)),
    "a head": RNG.normal(size=(3, 1, 1)),
    "a key": RNG.normal(size=(1, 17)),
    "a query of a text": RNG.normal(size=(2, 1, 17, 1)),
    "hides": np.where(RNG.random((3, 17, 17)) < 0.3, -np.inf, RNG.normal(size=(3, 17, 17))),
    "more axes": RNG.normal(size=(4, 1, 3, 17, 17)),
}
MASKS = {
    "no mask": None,
    "padding": np.arange(17) < np.array([17, 9])[:, None, None, None],
    "each": RNG.random((2, 3, 17, 17)) < 0.7,
    "a query": RNG.random((17, 1)) < 0.7,
    "more axes": RNG.random((4, 1, 1, 17, 17)) < 0.7,
}


def assert_forms_agree(*args, **config):
    (plain, plain_backward), (out, backward) = (form(None, *args, **config) for form in (big_bird, big_bird_blocks))
    assert out.shape == plain.shape
    np.testing.assert_allclose(out, plain, rtol=0, atol=1e-12)
    dout = np.random.default_rng(3).normal(size=out.shape)
    for own, theirs, arg in zip(backward(dout)[1:], plain_backward(dout)[1:], (*args, None), strict=False):
        assert (own is None) == (theirs is None) and (own is None or own.shape == arg.shape)
        if own is not None:
            np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11)


@every_table
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("mask", MASKS)
def test_the_forms_agree_with_bias_and_mask(bias, mask, kind):
    rng = np.random.default_rng(4)
    q, k, v = (rng.normal(size=shape) for shape in ((2, 3, 17, 4), (2, 1, 17, 4), (2, 1, 17, 5)))
    for queries in (17, 6, 2, 1):
        rows = [a if a is None or a.shape[-2] == 1 else a[..., 17 - queries :, :] for a in (BIASES[bias], MASKS[mask])]
        assert_forms_agree(q[..., 17 - queries :, :], k, v, rows[0], mask=rows[1], block=2, num_random=1, seed=6, table=TABLES[kind])


@every_table
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 9, 23])
@pytest.mark.parametrize("block", [1, 3, 4, 50])
def test_the_forms_agree_at_every_length(block, n, kind):
    """One position, fewer than a block, whole blocks and others; few blocks and many."""
    for queries in {1, n // 2 or 1, n}:
        q, k, v = arrays(n)
        assert_forms_agree(q[:, n - queries :], k, v, block=block, num_random=1, table=TABLES[kind])


SHAPES = {
    "no heads": ((15, 3), (15, 3), (15, 2)),
    "keys without heads": ((2, 15, 3), (15, 3), (15, 2)),
    "queries without heads": ((15, 3), (2, 15, 3), (15, 2)),
    "values with heads of their own": ((15, 3), (15, 3), (3, 15, 2)),
    "texts and heads": ((3, 2, 15, 3), (3, 2, 15, 3), (3, 2, 15, 2)),
    "groups": ((2, 2, 3, 15, 3), (2, 2, 1, 15, 3), (2, 2, 1, 15, 2)),
    "texts that share keys": ((4, 2, 15, 3), (1, 2, 15, 3), (2, 15, 2)),
}


@every_table
@pytest.mark.parametrize("shapes", SHAPES)
def test_the_forms_agree_however_axes_are_shared(shapes, kind):
    rng = np.random.default_rng(7)
    assert_forms_agree(*(rng.normal(size=shape) for shape in SHAPES[shapes]), block=2, num_random=1, table=TABLES[kind])


def peak(function):
    function()                                               # the table is kept
    tracemalloc.start()
    function()
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


@every_table
def test_memory_grows_with_positions_and_not_with_their_square(kind):
    def both_ways(n):
        out, backward = big_bird_blocks(None, *args[n], block=16, num_random=2, table=TABLES[kind])
        backward(out)

    args = {n: arrays(n) for n in (512, 2048)}
    assert peak(partial(both_ways, 2048)) / peak(partial(both_ways, 512)) < 4.5  # a square would be 16


def test_a_step_of_decoding_copies_what_it_reads_and_not_the_cache():
    """However long the text, one query reads four blocks of keys and their values; a cache is a view of a larger room."""
    sizes = []
    for n in (1000, 8000):
        q, *room = arrays(n + 10, queries=1, d=32)
        k, v = (a[:, :n] for a in room)
        sizes.append(peak(partial(big_bird_blocks, None, q, k, v, block=16, num_random=2)))
    assert sizes[1] < 1.2 * sizes[0] and sizes[1] < k.nbytes / 4


def test_bias_and_mask_of_two_keys():
    rng = np.random.default_rng(5)
    bias, mask = rng.normal(size=(2, 2)), np.array([[True, False], [True, True]])
    assert_forms_agree(*arrays(2), bias, mask=mask, block=1, num_random=0, table=block_table)
    assert_forms_agree(*arrays(2), bias, mask=mask, block=1, num_random=0)


def test_a_few_queries_score_the_keys_of_their_own_rows_only(monkeypatch):
    shapes = []

    def spy(params, query, key, value, bias=None, *, mask=None):
        shapes.append((query.shape, key.shape))
        return plain(params, query, key, value, bias, mask=mask)

    plain = module.softmax_attention
    monkeypatch.setattr(module, "softmax_attention", spy)
    for queries in (1, 5, 100):
        big_bird_blocks(None, *arrays(100, queries=queries), block=4, num_random=1)
    reads = (2, 4 * 4, 2)                                    # global, two neighbours, one drawn
    assert [query for query, _ in shapes] == [(2, 1, 1, 2), (2, 2, 4, 2), (2, 25, 4, 2)]
    assert [key for _, key in shapes] == [(2, 1, *reads[1:]), (2, 2, *reads[1:]), (2, 25, *reads[1:])]


def test_float32_stays_float32_with_rows_that_read_everything():
    q, k, v = arrays(40, dtype=np.float32)
    out, backward = big_bird_blocks(None, q, k, v, np.zeros((2, 1, 40), np.float32), block=4, num_random=1, table=block_table)
    assert {a.dtype for a in (out, *backward(out)[1:])} == {np.dtype(np.float32)}


def test_dout_is_not_written_to_and_backward_can_be_called_again():
    q, k, v = arrays(40)
    out, backward = big_bird_blocks(None, q, k, v, block=4, num_random=1, table=block_table)
    dout = np.random.default_rng(1).normal(size=out.shape)
    kept, first, second = dout.copy(), backward(dout), backward(dout)
    np.testing.assert_array_equal(dout, kept)
    for one, two in zip(first[1:4], second[1:4], strict=True):
        np.testing.assert_array_equal(one, two)
