"""Memory traffic of attention: how many numbers go between a large slow memory and a small fast one, with tiles and without.

What waits in attention is not the arithmetic but the scores, which do not fit where the arithmetic is done. This counts words, one a
number, of the forward of one head without a mask: by formula, and by a run in which every load and every store is counted.
Source: Dao et al. 2022, arXiv:2205.14135, algorithms 0 and 1, theorem 2; the order of Dao 2023, arXiv:2307.08691, algorithm 1.
The paper gives the orders of growth; here every word counts, those of the statistics, too. For n queries and m keys of width d
(values alike) and M words of fast memory:

    standard = 2 (n + m) d + 4 n m                           (1)
    outer = ceil(M / 4 d), inner = min(outer, d)             (2)
    flash1 = 2 m d + n d + 2 n + ceil(m / outer) (3 n d + 4 n)   (3)
    flash2 = 2 n d + n + ceil(n / outer) 2 m d               (4)

(1) writes scores, reads them, writes weights, reads them; it is taken to read each factor of its two products once. (3) has keys
in the outer loop, and a block of queries comes back with its output and two statistics for every tile of keys; (4) has queries in
the outer loop. Blocks of (2) are the paper's: with the scores of a tile they fill five quarters of M at most, and rounding.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, invalid, procedure

Count = Annotated[int, at_least(1)]


class Traffic(NamedTuple):
    """Words that are moved: with the scores in slow memory, and in tiles with the keys or with the queries in the outer loop."""

    standard: int
    flash1: int
    flash2: int


@procedure(
    title="Memory traffic of attention",
    source="Dao et al. 2022, arXiv:2205.14135, algorithms 0 and 1, theorem 2",
    example=lambda rng: example(7, 11, d_head=3, fast_memory=30),
    rejects=[bad(fast_memory=11)],
)
def memory_traffic(queries: Count, keys: Count | None = None, *, d_head: Count, fast_memory: Count) -> Traffic:
    """Words between slow and fast memory, by formula. keys defaults to queries; fast_memory is in words.

    Raises ValueError where fast memory does not hold a row each of query, key, value and output.
    """
    n, m, d = queries, keys or queries, d_head
    outer, _ = _blocks(d_head, fast_memory)
    standard = 2 * (n + m) * d + 4 * n * m                   # (1)
    flash1 = 2 * m * d + n * d + 2 * n + _ceil(m, outer) * (3 * n * d + 4 * n)  # (3)
    flash2 = 2 * n * d + n + _ceil(n, outer) * 2 * m * d     # (4)
    return Traffic(standard, flash1, flash2)


@procedure(
    title="Attention with its memory traffic counted",
    source="Dao et al. 2022, arXiv:2205.14135, algorithms 0 and 1",
    example=lambda rng: example(*(rng.normal(size=s) for s in ((5, 3), (7, 3), (7, 3))), fast_memory=30, order="flash1"),
    rejects=[bad(fast_memory=11)],
)
def attention_with_traffic(
    query: Float[Array, "queries d_head"], key: Float[Array, "keys d_head"], value: Float[Array, "keys d_head"], *,
    fast_memory: Count, order: Literal["standard", "flash1", "flash2"],
) -> tuple[Array, int]:  # fmt: skip
    """Softmax attention in one of the three orders, and the words that this run has moved.

    Returns out (queries, d_head), and the number. Raises ValueError where fast memory does not hold a row of each array.
    """
    blocks = _blocks(query.shape[-1], fast_memory)
    run: Callable = {"standard": _standard, "flash1": _keys_outside, "flash2": _queries_outside}[order]
    memory = _SlowMemory(query=query * query.shape[-1] ** -0.5, key=key, value=value, out=np.empty_like(query))
    run(memory, len(query), len(key), *blocks)
    return memory.arrays["out"], memory.words


class _SlowMemory:
    """Arrays that are loaded and stored some rows at a time, and how many words that was."""

    def __init__(self, **arrays: Array) -> None:
        self.arrays, self.words = arrays, 0

    def load(self, name: str, rows: slice = slice(None)) -> Array:
        self.words += self.arrays[name][rows].size
        return self.arrays[name][rows].copy()

    def store(self, name: str, block: Array, rows: slice = slice(None)) -> None:
        self.words += block.size
        self.arrays[name][rows] = block


def _standard(memory: _SlowMemory, n: int, m: int, outer: int, inner: int) -> None:
    """Three passes, each from slow memory and back."""
    memory.arrays |= {name: np.empty((n, m), memory.arrays["key"].dtype) for name in ("scores", "weights")}
    memory.store("scores", memory.load("query") @ memory.load("key").T)
    scores = memory.load("scores")
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    memory.store("weights", powers / powers.sum(-1, keepdims=True))
    memory.store("out", memory.load("weights") @ memory.load("value"))


def _keys_outside(memory: _SlowMemory, n: int, m: int, outer: int, inner: int) -> None:
    """FlashAttention: a tile of keys stays, and all queries pass by, with what they have read so far."""
    dtype = memory.arrays["key"].dtype
    memory.arrays |= {"largest": np.empty(n, dtype), "total": np.empty(n, dtype)}
    for name, start in (("out", 0), ("largest", -np.inf), ("total", 0)):
        memory.store(name, np.full_like(memory.arrays[name], start))
    for j in _cut(m, outer):
        key, value = memory.load("key", j), memory.load("value", j)
        for i in _cut(n, inner):
            scores = memory.load("query", i) @ key.T
            out, before, total = (memory.load(name, i) for name in ("out", "largest", "total"))
            largest = np.maximum(before, scores.max(-1))
            powers, fade = np.exp(scores - largest[:, None]), np.exp(before - largest)
            after = fade * total + powers.sum(-1)
            out = ((fade * total)[:, None] * out + powers @ value) / after[:, None]  # a mean again after each tile
            for name, block in (("out", out), ("largest", largest), ("total", after)):
                memory.store(name, block, i)


def _queries_outside(memory: _SlowMemory, n: int, m: int, outer: int, inner: int) -> None:
    """FlashAttention-2: a block of queries stays until it has seen all keys, and leaves its output and one number each."""
    memory.arrays["log_total"] = np.empty(n, memory.arrays["key"].dtype)
    for i in _cut(n, outer):
        query = memory.load("query", i)
        largest, total, mixed = np.full(len(query), -np.inf, query.dtype), np.zeros(len(query), query.dtype), np.zeros_like(query)
        for j in _cut(m, inner):
            scores = query @ memory.load("key", j).T
            before, largest = largest, np.maximum(largest, scores.max(-1))
            powers, fade = np.exp(scores - largest[:, None]), np.exp(before - largest)
            total = fade * total + powers.sum(-1)
            mixed = fade[:, None] * mixed + powers @ memory.load("value", j)
        memory.store("out", mixed / total[:, None], i)
        memory.store("log_total", largest + np.log(total), i)


def _blocks(d_head: int, fast_memory: int) -> tuple[int, int]:
    """Rows of a block of the outer loop and of the inner one."""
    if fast_memory < 4 * d_head:
        raise invalid("fast_memory", got=fast_memory, wants=f"at least {4 * d_head} words, a row each of query, key, value and output")
    outer = _ceil(fast_memory, 4 * d_head)
    return outer, min(outer, d_head)                         # (2)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _cut(length: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, length)) for start in range(0, length, block)]
