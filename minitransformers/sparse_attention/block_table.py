"""Block tables: which blocks of keys each block of queries reads, its neighbours, the global ones and a few drawn at random.

A window alone needs many layers to join two far positions. A few random edges make the graph of blocks an expander, in which
any two are a few steps apart, and a global block joins them in two. Source: Zaheer et al. 2020, arXiv:2007.14062, section 2
(random, window and global attention) and appendix D (in blocks). The draws are ours: uniform, without replacement, from the
blocks that a row does not read anyway, for every head by itself. (The authors' code draws rows near the end from fewer.)

    read_i = {0, last} and {i - 1, i, i + 1}                 (1)
    read_i = {0} and {i - 1, i}, in the causal table         (2)
    drawn_i = num_random of the blocks outside read_i, in the causal table of those before i   (3)
    seen_ij = j is in read_i or drawn_i                      (4)

Where fewer blocks are left than are to be drawn, all are taken: with few blocks a row reads everything. Blocks 0 and last read
all keys in the first table. In the causal one none does, as it would see the future, and row i depends on i and on the seed
alone: **a longer text adds rows and changes none**, so that a text can be decoded a position at a time.
"""

import functools
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, invalid, procedure


class BlockTable(NamedTuple):
    """For every block of queries the blocks of keys that it reads, in order, -1 behind the last; blocks that read all keys.

    Under causal a query reads no position behind its own.
    """

    picks: Int[Array, "heads blocks picks"]
    dense: Bool[Array, "blocks"]
    causal: Bool[Array, ""]


@procedure(
    title="Block table",
    source="Zaheer et al. 2020, arXiv:2007.14062, section 2 and appendix D",
    example=lambda rng: example(9, heads=2, num_random=2, seed=int(rng.integers(100))),
)
def block_table(
    blocks: Annotated[int, at_least(1)], *, heads: Annotated[int, at_least(1)] = 1, num_random: Annotated[int, at_least(0)] = 3,
    seed: Annotated[int, at_least(0)] = 0,
) -> BlockTable:  # fmt: skip
    """The table of an encoder, which looks both ways: a draw for every head.

    Equal arguments give the same table. Its arrays are shared and read-only.
    """
    return _table(blocks, heads, num_random, seed, causal=False)


@procedure(
    title="Causal block table",
    source="Zaheer et al. 2020, arXiv:2007.14062, section 2, without what lies ahead",
    example=lambda rng: example(9, heads=2, num_random=2, seed=int(rng.integers(100))),
)
def causal_block_table(
    blocks: Annotated[int, at_least(1)], *, heads: Annotated[int, at_least(1)] = 1, num_random: Annotated[int, at_least(0)] = 3,
    seed: Annotated[int, at_least(0)] = 0,
) -> BlockTable:  # fmt: skip
    """The table of a decoder: no later blocks, no rows that read all. The rows of a shorter text are the first of a longer one's.

    Equal arguments give the same table. Its arrays are shared and read-only.
    """
    return _table(blocks, heads, num_random, seed, causal=True)


@functools.lru_cache(maxsize=64)
def _table(blocks: int, heads: int, num_random: int, seed: int, *, causal: bool) -> BlockTable:
    row = np.arange(blocks)[:, None]
    neighbours = row + (np.arange(-1, 1) if causal else np.arange(-1, 2))
    last = 0 if causal else blocks - 1
    dense = np.zeros(blocks, bool) if causal else (row == 0)[:, 0] | (row == last)[:, 0]
    inside = (neighbours > 0) & (neighbours < (last or blocks))  # the global ones are read anyway; blocks stands for none
    fixed = np.concatenate([0 * row, 0 * row + (last or blocks), np.where(inside, neighbours, blocks)], axis=1)  # (1)  (2)
    before = np.maximum(row - 2, 0)                          # blocks 1 to i - 2 are free, and i + 2 to last - 1
    free = np.where(dense[:, None], 0, before if causal else before + np.maximum(last - row - 2, 0))
    drawn = np.stack([_drawn(np.random.default_rng([seed, head]), free, num_random) for head in range(heads)])
    drawn = np.where(drawn < 0, blocks, np.where(drawn < before, drawn + 1, drawn - before + row + 2))  # the how-manieth free block  (3)
    picks = np.sort(np.concatenate([np.broadcast_to(fixed, (heads, *fixed.shape)), drawn], axis=-1), axis=-1)
    picks = np.where((picks == blocks) | dense[:, None], -1, picks)
    picks = picks[..., : max(1, (picks >= 0).sum(-1).max())]  # (4)
    table = BlockTable(picks, dense, np.array(causal))
    for array in table:
        array.setflags(write=False)                          # every caller gets these very arrays
    return table


def _drawn(rng: np.random.Generator, free: Array, count: int) -> Array:
    """So many different numbers below ``free`` for each row, fewer and then -1 where there are not so many; row after row."""
    numbers = rng.integers(np.maximum(free - np.arange(count), 1))  # of those that are left, the how-manieth
    for t in range(count):
        for earlier in np.sort(numbers[:, :t], axis=1).T:    # those that are taken do not count
            numbers[:, t] += numbers[:, t] >= earlier
    return np.where(np.arange(count) < free, numbers, -1)


@procedure(
    title="Mask of a block table",
    source="Zaheer et al. 2020, arXiv:2007.14062, section 2",
    example=lambda rng: example(causal_block_table(4, heads=2, num_random=1), block=3, queries=5, keys=11),
    rejects=[bad(keys=13), bad("queries", queries=12), bad("keys", keys=9, queries=9)],
)
def block_mask(
    table: BlockTable, *, block: Annotated[int, at_least(1)], queries: Annotated[int, at_least(1)], keys: Annotated[int, at_least(1)]
) -> Bool[Array, "heads queries keys"]:
    """Which of the keys each query may see by the table, block positions a block; the queries are the last of the positions.

    Raises ValueError where there are more queries than keys, or the keys do not fill as many blocks as the table has.
    """
    heads, blocks, _ = table.picks.shape
    if queries > keys:
        raise invalid("queries", got=queries, wants=f"at most as many as keys, {keys}: they are the last of their positions")
    if -(-keys // block) != blocks:
        raise invalid("keys", got=f"{keys}, {-(-keys // block)} blocks of {block}", wants=f"{blocks} blocks, as the table has")
    seen = np.zeros((heads, blocks, blocks + 1), bool)
    np.put_along_axis(seen, table.picks, True, axis=-1)      # -1 goes behind the last block
    seen[:, table.dense] = True
    place = np.arange(keys)
    last = place[keys - queries :, None]
    return seen[:, last // block, place // block] & ((place <= last) | ~table.causal)
