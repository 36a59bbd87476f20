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

length counts the token's own position: its key is written before it is read. kv_heads = heads is multi-head attention, 1 is
multi-query, anything between is grouped. The formulas are of what has to be kept; a growing room, a ring that is not full yet
or a last page that is partly empty (paged_attention) take more.
"""

from typing import Annotated, NamedTuple

from minitransformers.attention.heads import check_heads
from minitransformers.foundation import at_least, bad, example, procedure

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
