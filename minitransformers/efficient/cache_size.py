"""What a cache costs: its bytes, and what one token reads of it, from the shapes alone.

Decoding reads every cached number once for each token, and uses it in as many products as query heads share it. So the size of
the cache is what a token costs in memory traffic; heads that share keys, and windows, are what makes it smaller. Sources: Shazeer
2019, arXiv:1911.02150, sections 2.4 and 3.1 (all heads share: multi-query); Ainslie et al. 2023, arXiv:2305.13245, section 2.2
(groups share); Jiang et al. 2023, arXiv:2310.06825, section 2 (windows).

    kept = min(length, window)                               (1)
    numbers = layers batch kv_heads kept (d_head + d_value)  (2)
    bytes = numbers * bytes a number                         (3)
    read for a token = numbers                               (4)
    multiply-adds of its scores and mixtures = layers batch heads kept (d_head + d_value)   (5)
    intensity = multiply-adds / numbers read = heads / kv_heads   (6)
    reserved = the longest, or the next power of two (buddy), or the next multiple of a block (paged)   (7)

length counts the token's own position: its key is written before it is read. kv_heads = heads is multi-head attention, 1 is
multi-query, anything between is grouped. (1) to (6) are about what has to be kept; (7) is what texts of unknown length are given
room for (Kwon et al. 2023, arXiv:2309.06180, section 3.1).
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads
from minitransformers.foundation import at_least, bad, example, invalid, procedure

Size = Annotated[int, at_least(1)]


class CacheSize(NamedTuple):
    """What is kept of a batch of texts, and what one more token of each costs: numbers read, and multiply-adds with them."""

    bytes: int
    read: int
    multiply_adds: int

    @property
    def intensity(self) -> float:
        """Multiply-adds for each number that is read."""
        return self.multiply_adds / self.read                # (6)


@procedure(
    title="Cache size",
    source="Shazeer 2019, arXiv:1911.02150, sections 2.4 and 3.1; Ainslie et al. 2023, arXiv:2305.13245, section 2.2",
    example=lambda rng: example(7, num_heads=4, num_kv_heads=2, d_head=3, d_value=5, num_layers=2, batch=3, window=6),
    rejects=[bad(num_kv_heads=3)],
)
def cache_size(
    length: Size, *, num_heads: Size, num_kv_heads: Size, d_head: Size, d_value: Size | None = None, num_layers: Size = 1, batch: Size = 1,
    window: Size | None = None, bytes_per_number: Size = 4,
) -> CacheSize:  # fmt: skip
    """The cache of attention layers after length positions, the last of which is the token that reads.

    window, in positions, is how far a token looks back, itself included; None for all. d_value is d_head where None.
    Raises ValueError where the key heads do not divide the query heads.
    """
    check_heads("num_kv_heads", num_kv_heads, num_heads)
    kept = length if window is None else min(length, window)  # (1)
    width = d_head + (d_head if d_value is None else d_value)
    numbers = num_layers * batch * num_kv_heads * kept * width  # (2) (4)
    multiply_adds = num_layers * batch * num_heads * kept * width  # (5)
    return CacheSize(numbers * bytes_per_number, numbers, multiply_adds)  # (3)


class ReservedSlots(NamedTuple):
    """How many positions each text has room for, under three ways to give room."""

    contiguous: Int[Array, "texts"]
    buddy: Int[Array, "texts"]
    paged: Int[Array, "texts"]


@procedure(
    title="Slots that are reserved",
    source="Kwon et al. 2023 (vLLM), arXiv:2309.06180, section 3.1",
    example=lambda rng: example(rng.integers(1, 30, size=7), longest=30, block_size=4),
    rejects=[bad("lengths", longest=2, lengths=np.array([1, 3]))],
)
def reserved_slots(lengths: Annotated[Int[Array, "texts"], at_least(1)], *, longest: Size, block_size: Size) -> ReservedSlots:
    """The room that texts of these lengths, in positions, are given: contiguous for the longest, by powers of two, in blocks.

    Raises ValueError where a length exceeds the longest.
    """
    if lengths.max() > longest:
        raise invalid("lengths", got=f"up to {lengths.max()}", wants=f"at most the longest, {longest}")
    lengths = lengths.astype(np.int64)
    powers = 2 ** np.frexp(lengths - 1.0)[1].astype(np.int64)  # as many bits as n - 1 has
    return ReservedSlots(np.full(len(lengths), longest), powers, -(-lengths // block_size) * block_size)  # (7)
