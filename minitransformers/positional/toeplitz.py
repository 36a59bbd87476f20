"""Toeplitz bias: a learned number for every head and every offset of key from query, the most general relative bias.

A matrix that is constant along its diagonals is named after Toeplitz. Whatever adds to a score a number that depends on
key minus query alone is a case of it: ALiBi's lines, T5's buckets, Transformer-XL's position term. The price is a table
that ends.

Source: the relative bias in its plain form; as in Raffel et al. 2020, arXiv:1910.10683, section 2.1, without buckets, and
Liu et al. 2021, arXiv:2103.14030, eq. 4 (Swin, in two dimensions). A table has an odd number of columns, from
-(max_positions - 1) to max_positions - 1, so it serves sequences of any length up to max_positions.

    column_ij = j - (i + num_keys - num_queries) + max_positions - 1  (1)
    out_hij = table of h and column_ij                       (2)
    dtable_hc = sum over i, j with column_ij = c of dout_hij  (3)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid
from minitransformers.positional.offsets import offsets


class Toeplitz(NamedTuple):
    """What an offset adds to the score: a row for each head, the middle column for a key at the query's own position."""

    table: Float[Array, "heads offsets"]


@checked
def init_toeplitz(
    rng: np.random.Generator, *, num_heads: Annotated[int, at_least(1)], max_positions: Annotated[int, at_least(1)],
    std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> Toeplitz:  # fmt: skip
    """Normal numbers of deviation ``std``, for sequences of at most max_positions."""
    return Toeplitz((std * rng.standard_normal((num_heads, 2 * max_positions - 1))).astype(dtype))


@concept(
    title="Toeplitz bias",
    source="Raffel et al. 2020, arXiv:1910.10683, section 2.1, without its buckets",
    example=lambda rng: example(Toeplitz(rng.normal(size=(3, 11))), num_queries=2, num_keys=5),
    roles=("position/bias",),
    rejects=[bad("params.table", params=Toeplitz(np.ones((3, 10)))), bad(num_keys=7), bad(num_queries=6)],
)
def toeplitz(
    params: Toeplitz, *, num_queries: Annotated[int, at_least(1)], num_keys: Annotated[int, at_least(1)]
) -> tuple[Array, Backward]:
    """A bias (heads, num_queries, num_keys) for the scores, constant along diagonals.

    The queries are the last of the positions that the keys span, so a cache of earlier keys needs no offset.
    Returns out, and backward: dout -> Toeplitz(dtable). Offsets that do not occur get exactly 0.
    Raises ValueError unless num_queries <= num_keys <= max_positions, and where the table has no middle column.
    """
    columns = params.table.shape[1]
    if columns % 2 == 0:
        raise invalid("params.table", got=f"{columns} offsets", wants="an odd number, 2 max_positions - 1")
    max_positions = columns // 2 + 1
    if num_keys > max_positions:
        raise invalid("num_keys", got=num_keys, wants=f"at most {max_positions}, the positions that params.table has offsets for")
    column = offsets(num_queries, num_keys) + max_positions - 1  # (queries, keys)  (1)
    out = params.table[:, column]                            # (2)

    def backward(dout):
        dtable = np.zeros_like(params.table)
        for i, row in enumerate(column):                     # within a row no column repeats: += drops nothing
            dtable[:, row] += dout[:, i]                     # (3)
        return Toeplitz(dtable)

    return out, backward
