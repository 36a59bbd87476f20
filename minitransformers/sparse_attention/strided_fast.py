"""Strided attention by reshaping: the far keys of a residue class of positions are that class, and nothing else.

The positions r, r + stride, r + 2 stride, ... see each other and no other far key: laid out as (stride, positions / stride), far
attention is dense causal attention of each row of that table. The near keys are a window. So there are two pieces for
gathered_attention, which share one softmax. Time O(positions (stride + positions / stride) d_head), least for a stride of
sqrt(positions), and memory alike. The equations are those of strided, and so are the numbers on the lines.
Source: Child, Gray, Radford and Sutskever 2019, arXiv:1904.10509, section 4 (its kernels compute blocks of the scores).
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept
from minitransformers.sparse_attention.gathered_attention import Piece, gathered_attention, last_queries
from minitransformers.sparse_attention.local_global_attention_blocks import window_piece
from minitransformers.sparse_attention.strided import check_core, example_call, strided_pattern


@concept(
    title="Strided attention by reshaping",
    source="Child, Gray, Radford and Sutskever 2019, arXiv:1904.10509, section 4",
    example=lambda rng: example_call(rng),
    roles=("core",),
    rejects=[bad("query", query=np.ones((2, 2, 9, 3)), bias=None)],
    form_of="strided",
)
def strided_fast(
    params: None,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    stride: Annotated[int, at_least(1)],
    local: bool = True,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """What strided gives, in time and memory of O(positions sqrt(positions)); arguments, results and errors are its own."""
    check_core(params, query, key)
    queries, keys = query.shape[-2], key.shape[-2]
    if queries < keys:
        pieces = [last_queries(strided_pattern(queries, keys, stride=stride, local=local))]
    else:
        pieces = [window_piece(keys, window=stride - 1, causal=True)] if local else []  # (1)
        length = -(-keys // stride)                          # of the longest class
        table = np.arange(min(stride, keys))[:, None] + stride * np.arange(length)  # (classes, length)
        table = np.where(table < keys, table, -1)
        earlier = np.tri(length, k=-1 if local else 0, dtype=bool)  # a position itself is near already
        pieces.append(Piece(table, table, earlier[None]))    # (2)
    return gathered_attention(params, query, key, value, bias, pieces=pieces, mask=mask)  # (5) (6)
