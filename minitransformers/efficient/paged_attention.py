"""Paged attention: keys and values lie in blocks of a shared pool, wherever one is free, and a table says where.

A cache that lies in one piece must be reserved for the longest text that may come, and most of the reservation is never used.
Blocks of b positions are handed out as a text grows, and taken back when it ends: what is lost is less than one block a text.
Texts that begin alike share the blocks of their beginning, which are counted, and copied by the first who writes into one that
others still read. Source: Kwon et al. 2023 (vLLM), arXiv:2309.06180, sections 3.1 and 4.

    position t lies in block table[t // b], slot t mod b     (1)
    n new positions want ceil((length + n) / b) - ceil(length / b) blocks, and one to copy a shared, half-filled last block into   (2)
    a fork has the table of its parent, and each block in it one reference more   (3)
    a block without references is free                       (4)
    keys of a text = pool at the places (1) of its positions, in their order   (5)
    query i of n sees the keys j <= length - n + i           (6)

PagePool changes in place: a pool is memory that texts compete for. Reading it, paged_attention, is a pure function of its arrays.
What is refused leaves the pool as it was. Differs from the paper: the keys of the texts that have equally many blocks are gathered
into one array, and the core is any that takes a mask; a kernel reads each block where it lies.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.heads import check_heads
from minitransformers.attention.masks import causal_mask
from minitransformers.foundation import InvalidArgument, at_least, bad, checked, example, invalid, procedure

Size = Annotated[int, at_least(1)]


class OutOfBlocks(InvalidArgument):
    """The pool has fewer free blocks than are wanted. Nothing was changed: free a text, and try again."""


class PagePool:
    """Blocks of keys and values, (kv_heads, blocks, block_size, width), the texts that lie in them, and who reads which block."""

    @checked
    def __init__(
        self, *, num_blocks: Size, block_size: Size, num_kv_heads: Size, d_head: Size, d_value: Size | None = None, dtype: type = np.float32
    ) -> None:
        self.keys: Array = np.zeros((num_kv_heads, num_blocks, block_size, d_head), dtype)
        self.values: Array = np.zeros((num_kv_heads, num_blocks, block_size, d_value or d_head), dtype)
        self.references = np.zeros(num_blocks, int)
        self._free = list(range(num_blocks))[::-1]           # the last that was freed is the first to be used
        self._tables: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self._started = 0

    @property
    def free_blocks(self) -> int:
        """How many blocks nobody reads."""
        return len(self._free)

    def start(self) -> int:
        """A new text without positions; returns its name, which no other text ever gets."""
        name, self._started = self._started, self._started + 1
        self._tables[name], self._lengths[name] = [], 0
        return name

    @checked
    def append(self, text: int, key: Float[Array, "kv_heads new d_head"], value: Float[Array, "kv_heads new d_value"]) -> None:
        """Write new positions behind a text. Raises OutOfBlocks where they do not fit, ValueError for an unknown text or other sizes."""
        table, length, size = self._table(text), self._lengths[text], self.keys.shape[2]
        for argument, pool, own in (("key", self.keys, key), ("value", self.values, value)):
            if (own.shape[0], own.shape[2], own.dtype) != (pool.shape[0], pool.shape[3], pool.dtype):
                raise invalid(argument, got=f"{own.dtype} of shape {own.shape}", wants=f"{pool.dtype} of shape ({pool.shape[0]}, new, {pool.shape[3]})")
        end = length + key.shape[1]
        shared = length % size > 0 and self.references[table[-1]] > 1
        wanted = -(-end // size) - len(table) + shared       # (2)
        if wanted > len(self._free):
            raise OutOfBlocks(f"key: got {key.shape[1]} positions, which want {wanted} blocks, wants at most the {len(self._free)} that are free")
        if shared:
            old, table[-1] = table[-1], self._take()
            self.keys[:, table[-1]], self.values[:, table[-1]] = self.keys[:, old], self.values[:, old]
            self.references[old] -= 1
        table += [self._take() for _ in range(wanted - shared)]
        positions = np.arange(length, end)
        blocks, slots = np.array(table)[positions // size], positions % size  # (1)
        self.keys[:, blocks, slots], self.values[:, blocks, slots] = key, value
        self._lengths[text] = end

    def fork(self, text: int) -> int:
        """A second text that begins as this one does. Nothing is copied. Raises ValueError for an unknown text."""
        table, other = self._table(text), self.start()
        self._tables[other], self._lengths[other] = table.copy(), self._lengths[text]
        self.references[table] += 1                          # (3)
        return other

    def free(self, text: int) -> None:
        """Forget a text, and free the blocks that no other reads. Raises ValueError for an unknown text, one freed before among them."""
        table = self._table(text)
        del self._tables[text], self._lengths[text]
        self.references[table] -= 1
        self._free += [block for block in reversed(table) if self.references[block] == 0]  # (4)

    def tables(self, texts: Sequence[int]) -> tuple[Int[Array, "batch pages"], Int[Array, " batch"]]:
        """The block tables of some texts, -1 behind their ends, and their lengths: what paged_attention wants."""
        found = [self._table(text) for text in texts]
        tables = np.full((len(found), max(map(len, found), default=0)), -1)
        for row, table in zip(tables, found, strict=True):
            row[: len(table)] = table
        return tables, np.array([self._lengths[text] for text in texts], int)

    def _table(self, text: int) -> list[int]:
        if isinstance(text, bool) or not isinstance(text, int | np.integer) or text not in self._tables:
            raise invalid("text", got=text, wants="one that was started or forked, and not freed")
        return self._tables[text]

    def _take(self) -> int:
        block = self._free.pop()
        self.references[block] = 1
        return block


@procedure(
    title="Paged attention",
    source="Kwon et al. 2023 (vLLM), arXiv:2309.06180, section 4.1",
    example=lambda rng: _example(rng),
    rejects=[
        bad(lengths=np.array([5, 9])), bad(lengths=np.array([1, 3])), bad(tables=np.array([[0, 6], [5, -1]])), bad(tables=np.array([[3, 0], [-1, 0]])),
        bad("pool_keys", query=np.ones((2, 3, 2, 3))),
    ],
)  # fmt: skip
def paged_attention(
    query: Float[Array, "batch heads queries d_head"], *, pool_keys: Float[Array, "kv_heads blocks block_size d_head"],
    pool_values: Float[Array, "kv_heads blocks block_size d_value"], tables: Int[Array, "batch pages"],
    lengths: Annotated[Int[Array, "batch"], at_least(1)], core: Callable = softmax_attention,
) -> Float[Array, "batch heads queries d_value"]:  # fmt: skip
    """What the last positions of each text read of all that it has in the pool, its own keys included.

    Text i has lengths[i] positions in the blocks tables[i]; what stands in its table and in its last block behind its end is not
    looked at. Query heads share key heads as in grouped_query_attention. core gets keys that end at the last position (see
    attention/core), and no parameters.
    Raises ValueError where a text is shorter than its queries or longer than its table, a table names a block that is not
    there, or the heads do not divide.
    """
    (batch, heads, queries, d_head), (kv_heads, blocks, size, _) = query.shape, pool_keys.shape
    check_heads("pool_keys", kv_heads, heads)
    tables, lengths = tables.astype(np.int64), lengths.astype(np.int64)  # differences of unsigned numbers would wrap
    pages = -(-lengths // size)
    if lengths.min() < queries or pages.max() > tables.shape[1]:
        raise invalid("lengths", got=f"{lengths.min()} to {lengths.max()}", wants=f"from {queries}, the queries, to {tables.shape[1] * size}, the table")
    named = tables[np.arange(tables.shape[1]) < pages[:, None]]
    if named.min() < 0 or named.max() >= blocks:
        raise invalid("tables", got=f"blocks from {named.min()} to {named.max()}", wants=f"blocks from 0 to {blocks - 1}")

    grouped = query.reshape(batch, kv_heads, -1, queries, d_head)
    out = np.empty((*grouped.shape[:-1], pool_values.shape[-1]), query.dtype)
    for count in np.unique(pages):                           # texts of equally many pages: padding is less than a page
        texts = pages == count
        positions = lengths[texts, None] + np.arange(-lengths[texts].max(), 0)  # all end at the last key; below 0 where a text is shorter
        real = np.maximum(positions, 0)
        slots = np.take_along_axis(tables[texts], real // size, axis=1) * size + real % size  # (1)
        keys, values = _gathered(pool_keys, slots), _gathered(pool_values, slots)  # (5)
        sees = (positions >= 0)[:, None, None, None] & causal_mask(queries, slots.shape[1])  # (6)
        out[texts], _ = core(None, grouped[texts], keys, values, mask=sees)
    return out.reshape(batch, heads, queries, -1)


def _gathered(pool: Float[Array, "kv_heads blocks block_size width"], slots: Int[Array, "texts positions"]) -> Array:
    """What lies in these slots of the pool: (texts, kv_heads, 1, positions, width)."""
    rows = pool.reshape(len(pool), -1, pool.shape[-1]).take(slots, axis=1)
    return rows.swapaxes(0, 1)[:, :, None]


def _example(rng: np.random.Generator):
    pool = {"pool_keys": rng.normal(size=(2, 6, 4, 3)), "pool_values": rng.normal(size=(2, 6, 4, 5))}
    return example(rng.normal(size=(2, 4, 2, 3)), **pool, tables=np.array([[3, 0], [5, -1]]), lengths=np.array([7, 2]))
