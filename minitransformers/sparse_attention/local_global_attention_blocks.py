"""Window and global columns in blocks: what the pattern forbids is hardly computed, and never stored.

Two pieces for gathered_attention. A block of queries stands beside the keys that its windows reach, and all queries beside the
keys of the global positions, which are left out of the first piece, so that nobody counts them twice. Under a dilation each
residue class of positions is a text of its own, with an ordinary window: the positions 0, d, 2d, ..., then 1, d + 1, ...
Time O(positions (window + block + globals) d_head), memory O(positions (window + block + globals)) a head. The equations are
those of longformer, and so are the numbers on the lines.
Source: Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1 and appendix A (overlapping chunks). Differs from there: a
block is shorter than the window where that is wide, which leaves fewer pairs to mask.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept
from minitransformers.sparse_attention.gathered_attention import Piece, gathered_attention, last_queries
from minitransformers.sparse_attention.longformer import Positions, check_core, core_example, pattern

_SIZES = 16, 128  # of a block of queries: with fewer the products are too small, with more the band is filled too poorly


@concept(
    title="Window and global columns in blocks",
    source="Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1 and appendix A",
    example=lambda rng: core_example(rng),
    roles=("core",),
    rejects=[bad(global_positions=(-1,)), bad(global_positions=(1, 1)), bad("query", query=np.ones((2, 2, 9, 3)), bias=None)],
    form_of="longformer",
)
def local_global_attention_blocks(
    params: None,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    window: Annotated[int, at_least(1)],
    global_positions: Positions = (),
    dilation: Annotated[int, at_least(1)] = 1,
    causal: bool = False,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """What local_global_attention gives, without the work that the pattern forbids; arguments, results and errors are its own."""
    check_core(params, query, key, global_positions)
    queries, keys = query.shape[-2], key.shape[-2]
    if queries < keys:
        sees = pattern(queries, keys, window=window, global_positions=global_positions, dilation=dilation, causal=causal)
        pieces = [last_queries(sees)]
    else:
        chosen = np.array([g for g in global_positions if g < keys], int)
        pieces = [window_piece(keys, window=window, dilation=dilation, without=chosen, causal=causal)]  # (1)
        if len(chosen):
            everyone = np.arange(keys)[None]
            seen = chosen <= everyone[..., None] if causal else np.ones((1, 1, 1), bool)
            pieces.append(Piece(everyone, chosen[None], seen))  # (2)
    return gathered_attention(params, query, key, value, bias, pieces=pieces, mask=mask)  # (3) (7)


def window_piece(positions: int, *, window: int, causal: bool, dilation: int = 1, without: Sequence[int] | Array = ()) -> Piece:
    """Each block of queries beside the keys that their windows reach, within its residue class, ``without`` some positions."""
    length = -(-positions // dilation)                       # of the longest class
    reach = min(window, length - 1)
    size = min(max(reach // 2, _SIZES[0]), _SIZES[1], length)
    first = size * np.arange(-(-length // size))[:, None]    # of each block, counted in its class
    place, near = np.arange(size), np.arange(-reach, size if causal else size + reach)
    distance = place[:, None] - near
    seen = (abs(distance) <= reach) & ((distance >= 0) | (not causal))

    def positions_of(counted):
        """The positions of all classes, one class after the other; -1 where there is none."""
        found = np.arange(dilation)[:, None, None] + dilation * counted  # (classes, blocks, size)
        return np.where((counted >= 0) & (found < positions), found, -1).reshape(-1, counted.shape[-1])

    columns = positions_of(first + near)
    return Piece(positions_of(first + place), np.where(np.isin(columns, without), -1, columns), seen[None])
