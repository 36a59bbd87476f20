"""Pages of a shared pool: what is written is found again under any program, nothing is lost or held twice, and a refusal changes nothing."""

import copy
from collections import Counter
from functools import partial

import numpy as np
import pytest

from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.attention.core import causal_attention
from minitransformers.attention.grouped_query_attention import (
    grouped_query_attention_step,
    init_grouped_query_attention,
)
from minitransformers.attention.heads import merge_heads, split_heads
from minitransformers.attention.soft_cap import soft_capped_attention
from minitransformers.basics.linear import linear
from minitransformers.efficient.cache_size import reserved_slots
from minitransformers.efficient.merge_attention import merge_attention
from minitransformers.efficient.paged_attention import OutOfBlocks, PagePool, paged_attention
from minitransformers.positional.rope import rope

HEADS, D, D_VALUE = 2, 3, 4


def pool_of(num_blocks, block_size, dtype=np.float64):
    return PagePool(num_blocks=num_blocks, block_size=block_size, num_kv_heads=HEADS, d_head=D, d_value=D_VALUE, dtype=dtype)


def rows(rng, new):
    return rng.normal(size=(HEADS, new, D)), rng.normal(size=(HEADS, new, D_VALUE))


def read(pool, text):
    """The keys and values of a text, position by position, through its table."""
    (table,), (length,) = pool.tables([text])
    size, found = pool.keys.shape[2], [np.zeros((HEADS, length, width)) for width in (D, D_VALUE)]
    for t in range(length):
        for a, into in zip((pool.keys, pool.values), found, strict=True):
            into[:, t] = a[:, table[t // size], t % size]
    return found


def state(pool):
    return copy.deepcopy(vars(pool))


def assert_same_state(before, after):
    for name, value in before.items():
        np.testing.assert_equal(after[name], value, err_msg=name)


def assert_books_balance(pool, texts):
    """Each block is free or read, and by as many texts as its count says."""
    readers = Counter(block for text in texts for block in pool.tables([text])[0][0].tolist())
    assert [readers[block] for block in range(len(pool.references))] == pool.references.tolist()
    assert pool.free_blocks + len(readers) == len(pool.references)
    assert sorted(pool._free) == [block for block in range(len(pool.references)) if not readers[block]]


@pytest.mark.parametrize(("block_size", "seed"), [(1, 0), (3, 1), (4, 2)])
def test_a_random_program_leaves_every_text_what_it_would_have_alone(block_size, seed):
    """1,200 appends, forks and frees, some of which find no room, beside a cache of its own for every text."""
    rng, pool = np.random.default_rng(seed), pool_of(24, block_size)
    alone: dict[int, tuple] = {}
    done, refused = Counter(), 0
    for _ in range(1200):
        ends = ["free", "free"] if len(alone) > 6 else []
        kind = ["start", "fork", "free", "append", "append", "append", *ends][rng.integers(6 + len(ends))] if alone else "start"
        text = list(alone)[rng.integers(len(alone))] if alone else -1
        if kind == "start":
            text = pool.start()
            alone[text] = np.zeros((HEADS, 0, D)), np.zeros((HEADS, 0, D_VALUE))
        elif kind == "append":
            new = rows(rng, int(rng.integers(1, 2 * block_size + 2)))
            before = state(pool)
            try:
                pool.append(text, *new)
            except OutOfBlocks:
                refused += 1
                assert_same_state(before, vars(pool))
            else:
                alone[text] = tuple(np.concatenate(both, axis=1) for both in zip(alone[text], new, strict=True))
        elif kind == "fork":
            alone[pool.fork(text)] = alone[text]
        else:
            pool.free(text)
            del alone[text]
        done[kind] += 1
        assert_books_balance(pool, alone)
        if alone:
            looked_at = list(alone)[rng.integers(len(alone))]
            assert all(map(np.array_equal, read(pool, looked_at), alone[looked_at]))
    assert min(done.values()) > 80 and refused > 50, "the program must have done everything, failing too"
    for text in alone:
        np.testing.assert_array_equal(read(pool, text)[0], alone[text][0])
        pool.free(text)
    assert pool.free_blocks == 24 and not pool.references.any()


def naive(query, key, value):
    """One text: softmax attention of its last positions, by loops."""
    (heads, queries, _), length, group = query.shape, key.shape[1], query.shape[0] // key.shape[0]
    out = np.zeros((heads, queries, value.shape[2]))
    for h, i in np.ndindex(heads, queries):
        sees = range(length - queries + i + 1)
        weights = [np.exp(query[h, i] @ key[h // group, j] / np.sqrt(query.shape[2])) for j in sees]
        out[h, i] = sum(w * value[h // group, j] for w, j in zip(weights, sees, strict=True)) / sum(weights)
    return out


def filled(rng, lengths, block_size, num_blocks=40):
    """A pool in which texts of these lengths grew side by side, among others that are gone."""
    pool, texts, kept = pool_of(num_blocks, block_size), [], {}
    texts = [pool.start() for _ in lengths]
    parts = {text: [] for text in texts}
    while any(pool.tables([text])[1][0] < n for text, n in zip(texts, lengths, strict=True)):
        passing = pool.start()
        pool.append(passing, *rows(rng, 2))
        for text, n in zip(texts, lengths, strict=True):
            left = n - int(pool.tables([text])[1][0])
            if left:
                parts[text].append(rows(rng, min(left, int(rng.integers(1, 4)))))
                pool.append(text, *parts[text][-1])
        pool.free(passing)
    kept = [tuple(np.concatenate([part[i] for part in parts[text]], axis=1) for i in (0, 1)) for text in texts]
    return pool, texts, kept


@pytest.mark.parametrize("queries", [1, 2, 3])
@pytest.mark.parametrize("block_size", [1, 2, 4, 16])
def test_attention_over_pages_equals_contiguous_attention(block_size, queries):
    """Texts of different lengths in one call, blocks anywhere, four query heads for two key heads."""
    rng, lengths = np.random.default_rng(3), [7, 3, 16, 4, 12, 5]
    pool, texts, kept = filled(rng, lengths, block_size, num_blocks=80)
    tables, found = pool.tables(texts)
    assert found.tolist() == lengths
    query = rng.normal(size=(len(lengths), 2 * HEADS, queries, D))
    out = paged_attention(query, pool_keys=pool.keys, pool_values=pool.values, tables=tables, lengths=found)
    for i, (key, value) in enumerate(kept):
        np.testing.assert_allclose(out[i], naive(query[i], key, value), rtol=0, atol=1e-12)
    assert (block_size == 16) or any((np.diff(table[: -(-n // block_size)]) != 1).any() for table, n in zip(tables, lengths, strict=True))


def test_pages_read_one_by_one_and_merged_are_the_same():
    """As a kernel does it: softmax over one block at a time, merged by the totals."""
    rng, size = np.random.default_rng(4), 4
    pool, texts, _ = filled(rng, [11, 6], size)
    tables, lengths = pool.tables(texts)
    query = rng.normal(size=(2, HEADS, 1, D))
    out = paged_attention(query, pool_keys=pool.keys, pool_values=pool.values, tables=tables, lengths=lengths)
    for i, length in enumerate(lengths):
        merged = None
        for page, start in enumerate(range(0, length, size)):
            key, value = (a[:, tables[i, page], : min(size, length - start)] for a in (pool.keys, pool.values))
            powers = np.exp(query[i] @ key.swapaxes(-1, -2) / np.sqrt(D))
            part = powers @ value / powers.sum(-1, keepdims=True), np.log(powers.sum(-1))
            merged = part if merged is None else merge_attention(*merged, *part)[0]
        np.testing.assert_allclose(merged[0], out[i], rtol=0, atol=1e-12)


CORES = {"capped": partial(soft_capped_attention, cap=0.3), "causal": causal_attention, "banded": partial(banded_attention_blocks, window=3)}


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("core", CORES)
def test_any_core_reads_pages_those_with_a_mask_of_their_own_too(core, queries):
    """Texts of 6 and 8 are read together, the shorter padded in front: every core ends at the last key."""
    rng = np.random.default_rng(5)
    pool, texts, kept = filled(rng, [6, 9, 8], 4)
    tables, lengths = pool.tables(texts)
    query = rng.normal(size=(3, HEADS, queries, D))
    call = {"pool_keys": pool.keys, "pool_values": pool.values, "tables": tables, "lengths": lengths}
    out = paged_attention(query, **call, core=CORES[core])
    for i, (key, value) in enumerate(kept):
        mask = np.tri(queries, key.shape[1], key.shape[1] - queries, dtype=bool)
        np.testing.assert_allclose(out[i], CORES[core](None, query[i], key, value, mask=mask)[0], rtol=0, atol=1e-12)


def test_a_layer_decodes_a_batch_of_unequal_texts_as_each_decodes_alone():
    """Grouped queries, rotated keys: each text through the pool, and through a cache of its own."""
    rng, size = np.random.default_rng(6), {"num_heads": 4, "num_kv_heads": 2}
    params = init_grouped_query_attention(rng, 8, **size, dtype=np.float64)
    pool = PagePool(num_blocks=30, block_size=3, num_kv_heads=2, d_head=2, dtype=np.float64)
    prompts = [rng.normal(size=(n, 8)) for n in (1, 6, 4)]
    new = rng.normal(size=(5, 3, 1, 8))                      # (steps, texts, positions, d_model)

    def turned(part, heads, x, start):
        return rope(split_heads(linear(part, x)[0], heads), positions=np.arange(start, start + len(x)))[0]

    def written(text, x):
        start = int(pool.tables([text])[1][0])
        pool.append(text, turned(params.key, 2, x, start), split_heads(linear(params.value, x)[0], 2))
        return turned(params.query, 4, x, start)

    def prepare(_, query, key, *, positions):
        return (rope(query, positions=positions)[0], rope(key, positions=positions)[0]), None

    texts, caches = [pool.start() for _ in prompts], []
    for text, prompt in zip(texts, prompts, strict=True):
        written(text, prompt)
        caches.append(grouped_query_attention_step(params, prompt, None, **size, prepare=prepare)[1])
    for step in new:
        query = np.stack([written(text, x) for text, x in zip(texts, step, strict=True)])
        tables, lengths = pool.tables(texts)
        heads = paged_attention(query, pool_keys=pool.keys, pool_values=pool.values, tables=tables, lengths=lengths)
        together = linear(params.output, merge_heads(heads))[0]
        for i, x in enumerate(step):
            out, caches[i] = grouped_query_attention_step(params, x, caches[i], **size, prepare=prepare)
            np.testing.assert_allclose(together[i], out, rtol=0, atol=1e-12)


def test_a_fork_copies_nothing_and_the_first_to_write_copies_one_block():
    rng, pool = np.random.default_rng(7), pool_of(10, 4)
    one = pool.start()
    pool.append(one, *rows(rng, 10))                         # two full blocks and half of one
    other = pool.fork(one)
    assert pool.free_blocks == 7
    before = [a.copy() for a in read(pool, one)]
    pool.append(other, *rows(rng, 1))
    assert pool.free_blocks == 6
    (mine, theirs), _ = pool.tables([one, other])
    assert mine[:2].tolist() == theirs[:2].tolist() and mine[2] != theirs[2]
    pool.append(one, *rows(rng, 1))                          # now nobody else reads its last block: it writes in place
    assert pool.free_blocks == 6 and pool.tables([one])[0][0].tolist() == mine.tolist()
    for text in (one, other):
        for kept, found in zip(before, read(pool, text), strict=True):
            np.testing.assert_array_equal(found[:, :10], kept)
    assert np.abs(read(pool, one)[0][:, 10] - read(pool, other)[0][:, 10]).min() > 0


def test_a_fork_at_the_end_of_a_block_never_copies():
    rng, pool = np.random.default_rng(8), pool_of(10, 4)
    one = pool.start()
    pool.append(one, *rows(rng, 8))
    others = [pool.fork(one) for _ in range(3)]
    for text in (one, *others):
        pool.append(text, *rows(rng, 1))
    assert pool.free_blocks == 10 - 2 - 4 and pool.references.tolist().count(4) == 2


def test_samples_of_one_prompt_store_it_once():
    """Eight samples of a prompt of 50: its three full blocks once, and for each the rest of it and its own."""
    rng, pool = np.random.default_rng(9), pool_of(60, 16)
    first = pool.start()
    pool.append(first, *rows(rng, 50))
    texts = [first, *(pool.fork(first) for _ in range(7))]
    for text in texts:
        pool.append(text, *rows(rng, 20))                    # positions 50 to 69: blocks 3 and 4
    assert 60 - pool.free_blocks == 3 + 8 * 2
    assert reserved_slots(np.full(8, 70), longest=70, block_size=16).paged.sum() // 16 == 8 * 5


def test_a_fork_outlives_its_parent_and_an_empty_text_can_be_forked():
    rng, pool = np.random.default_rng(10), pool_of(4, 4)
    one, new = pool.start(), rows(rng, 6)
    empty = pool.fork(one)
    pool.append(one, *new)
    other = pool.fork(one)
    pool.free(one)
    np.testing.assert_array_equal(read(pool, other)[0], new[0])
    pool.free(empty)
    pool.free(other)
    assert pool.free_blocks == 4


def test_the_blocks_that_were_freed_last_are_used_first():
    rng, pool = np.random.default_rng(11), pool_of(5, 2)
    one, two = pool.start(), pool.start()
    pool.append(one, *rows(rng, 4))
    pool.append(two, *rows(rng, 2))
    tables, _ = pool.tables([one, two])
    assert tables.tolist() == [[0, 1], [2, -1]], "the shorter has -1 behind its end"
    pool.free(one)
    three = pool.start()
    pool.append(three, *rows(rng, 6))
    assert pool.tables([three])[0].tolist() == [[0, 1, 3]]


def test_out_of_blocks_is_refused_with_counts_and_changes_nothing():
    rng, pool = np.random.default_rng(12), pool_of(3, 4)
    one = pool.start()
    pool.append(one, *rows(rng, 5))
    other = pool.fork(one)
    before = state(pool)
    with pytest.raises(OutOfBlocks, match="key: got 8 positions, which want 3 blocks, wants at most the 1 that are free"):
        pool.append(other, *rows(rng, 8))                    # a copy of the shared block, and two more
    assert_same_state(before, vars(pool))
    pool.append(other, *rows(rng, 3))                        # the copy alone: there is just room for it
    assert pool.free_blocks == 0
    with pytest.raises(OutOfBlocks):
        pool.append(other, *rows(rng, 1))
    pool.append(one, *rows(rng, 3))                          # in place
    assert issubclass(OutOfBlocks, ValueError)


def test_what_was_freed_is_unknown():
    rng, pool = np.random.default_rng(13), pool_of(3, 4)
    text = pool.start()
    pool.append(text, *rows(rng, 2))
    pool.free(text)
    before = state(pool)
    for use in (pool.free, pool.fork, lambda text: pool.append(text, *rows(rng, 1)), lambda text: pool.tables([text])):
        for unknown in (text, 7, -1):
            with pytest.raises(ValueError, match=f"text: got {unknown}, wants one that was started or forked, and not freed"):
                use(unknown)
        for nothing in ("0", 0.0, True, [0], None):          # no name of a text, though some are equal to one
            with pytest.raises(ValueError, match="text: got"):
                use(nothing)
    assert_same_state(before, vars(pool))
    assert pool.start() != text, "a name is never given again: a late second free cannot hit another text"


def test_what_a_text_leaves_behind_does_not_reach_the_next():
    """0 times NaN is NaN, behind a mask as well: neither what stands behind a text's end is read, nor for padding what is not its own."""
    rng, pool = np.random.default_rng(14), pool_of(5, 4)
    one = pool.start()
    pool.append(one, *(np.full_like(a, np.nan) for a in rows(rng, 20)))
    pool.free(one)
    kept = [rows(rng, n) for n in (6, 7)]
    texts = [pool.start() for _ in kept]
    for text, new in zip(texts, kept, strict=True):
        pool.append(text, *new)
    assert np.isnan(pool.keys).any()
    tables, lengths = pool.tables(texts)
    query = rng.normal(size=(2, HEADS, 1, D))
    out = paged_attention(query, pool_keys=pool.keys, pool_values=pool.values, tables=tables, lengths=lengths)
    for i, (key, value) in enumerate(kept):
        np.testing.assert_allclose(out[i], naive(query[i], key, value), rtol=0, atol=1e-12)


def test_texts_of_equally_many_blocks_are_read_together_and_no_block_is_read_for_another():
    rng, lengths, seen = np.random.default_rng(18), [5, 16, 8, 2, 7], []
    pool, texts, _ = filled(rng, lengths, 4)
    tables, found = pool.tables(texts)

    def watched(params, query, key, value, bias=None, *, mask=None):
        seen.append((len(key), key.shape[-2]))
        return causal_attention(params, query, key, value, bias, mask=mask)

    paged_attention(rng.normal(size=(5, HEADS, 1, D)), pool_keys=pool.keys, pool_values=pool.values, tables=tables, lengths=found, core=watched)
    assert seen == [(1, 2), (3, 8), (1, 16)]                 # (texts, positions): of one block, of two, of four


def test_a_block_that_is_longer_than_every_text_is_half_empty_and_right():
    rng, pool = np.random.default_rng(19), pool_of(2, 1000)
    text, other, kept, query = pool.start(), pool.start(), rows(rng, 3), rng.normal(size=(1, HEADS, 1, D))
    pool.append(text, *kept)
    tables, lengths = pool.tables([text])
    out = paged_attention(query, pool_keys=pool.keys, pool_values=pool.values, tables=tables, lengths=lengths)
    np.testing.assert_allclose(out[0], naive(query[0], *kept), rtol=0, atol=1e-12)
    tables, lengths = pool.tables([text, other])             # the other has written nothing yet: there is nothing to read
    with pytest.raises(ValueError, match="lengths: got numbers from 0 to 3, wants finite numbers of at least 1"):
        paged_attention(np.repeat(query, 2, axis=0), pool_keys=pool.keys, pool_values=pool.values, tables=tables, lengths=lengths)


def test_positions_may_come_one_by_one_or_at_once():
    rng, once, each = np.random.default_rng(15), pool_of(6, 4), pool_of(6, 4)
    new, text, other = rows(rng, 21), once.start(), each.start()
    once.append(text, *new)
    for t in range(21):
        each.append(other, new[0][:, t : t + 1], new[1][:, t : t + 1])
    np.testing.assert_array_equal(once.keys, each.keys)
    np.testing.assert_array_equal(once.values, each.values)


def test_errors_name_what_does_not_fit():
    rng, pool = np.random.default_rng(16), pool_of(4, 2)
    text, (key, value) = pool.start(), rows(rng, 2)
    for argument, call in (
        ("key", (key[:1], value)), ("key", (key[..., :2], value)), ("value", (key, value[..., :2])), ("value", (key, value[:, :1])),
        ("key", (key.astype(np.float32), value.astype(np.float32))), ("value", (key, value.astype(np.float32))), ("key", (key[:, :0], value[:, :0])),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=argument):
            pool.append(text, *call)
    assert pool.free_blocks == 4
    for name in ("num_blocks", "block_size", "num_kv_heads", "d_head"):
        with pytest.raises(ValueError, match=f"{name}: got 0"):
            PagePool(**{"num_blocks": 1, "block_size": 1, "num_kv_heads": 1, "d_head": 1, name: 0})
    pool.append(text, key, value)
    call = {"pool_keys": pool.keys, "pool_values": pool.values, "tables": np.array([[0]]), "lengths": np.array([2])}
    for changes, message in (
        ({"lengths": np.array([3])}, "lengths: got 3 to 3, wants from 1, the queries, to 2, the table"),
        ({"tables": np.array([[4]])}, "tables: got blocks from 4 to 4, wants blocks from 0 to 3"),
        ({"tables": np.array([[-1]])}, "tables: got blocks from -1"),
        ({"lengths": np.array([2, 2])}, "lengths: got shape"),
    ):
        with pytest.raises(ValueError, match=message):
            paged_attention(rng.normal(size=(1, HEADS, 1, D)), **{**call, **changes})
    with pytest.raises(ValueError, match="pool_keys: got 2, wants a number of heads that divides 3"):
        paged_attention(rng.normal(size=(1, 3, 1, D)), **call)
    with pytest.raises(ValueError, match="lengths: got 2 to 2, wants from 3, the queries"):
        paged_attention(rng.normal(size=(1, HEADS, 3, D)), **call)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_integers_of_any_kind_are_lengths(kind):
    rng = np.random.default_rng(17)
    pool, texts, _ = filled(rng, [5, 9], 4)
    tables, lengths = pool.tables(texts)
    query = rng.normal(size=(2, HEADS, 1, D))
    call = {"pool_keys": pool.keys, "pool_values": pool.values}
    expected = paged_attention(query, **call, tables=tables, lengths=lengths)
    used = np.where(tables < 0, 99, tables).astype(kind)     # behind a text's end anything may stand
    np.testing.assert_array_equal(paged_attention(query, **call, tables=used, lengths=lengths.astype(kind)), expected)
