"""Fixed attention by reshaping: blocks beside themselves, and all queries beside the summaries.

Laid out as (positions / stride, stride), the near keys are dense causal attention of each row of that table. The summary columns
are the same for every query: they are gathered once. So there are two pieces for gathered_attention, which share one softmax.
Time O(positions (stride + summary positions / stride) d_head), and memory alike. The equations are those of strided, and so are the
numbers on the lines. Source: Child, Gray, Radford and Sutskever 2019, arXiv:1904.10509, section 4.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept
from minitransformers.sparse_attention.gathered_attention import Piece, gathered_attention, last_queries
from minitransformers.sparse_attention.strided import check_core, check_summary, example_call, fixed_pattern


@concept(
    title="Fixed attention by reshaping",
    source="Child, Gray, Radford and Sutskever 2019, arXiv:1904.10509, section 4",
    example=lambda rng: example_call(rng, summary=2),
    roles=("core",),
    rejects=[bad(summary=4), bad("summary", summary=0, local=False), bad("query", query=np.ones((2, 2, 9, 3)), bias=None)],
    form_of="strided",
)
def fixed_attention_fast(
    params: None,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    stride: Annotated[int, at_least(1)],
    summary: Annotated[int, at_least(0)] = 1,
    local: bool = True,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
) -> tuple[Array, Backward]:
    """What fixed_attention gives, in time and memory of O(positions sqrt(positions)); arguments, results and errors are its own."""
    check_core(params, query, key)
    check_summary(stride, summary, local)
    queries, keys = query.shape[-2], key.shape[-2]
    if queries < keys:
        pieces = [last_queries(fixed_pattern(queries, keys, stride=stride, summary=summary, local=local))]
    else:
        place = np.arange(keys)
        length = min(stride, keys)
        table = length * np.arange(-(-keys // length))[:, None] + np.arange(length)  # (blocks, length)
        table = np.where(table < keys, table, -1)
        pieces = [Piece(table, table, np.tri(length, dtype=bool)[None])] if local else []  # (3)
        last = place[place % stride >= stride - summary]     # of every block
        last = last if len(last) else np.array([-1])         # nobody sees it
        earlier = last // stride < place[:, None] // stride if local else last <= place[:, None]  # its own block is near already
        pieces.append(Piece(place[None], last[None], earlier[None]))  # (4)
    return gathered_attention(params, query, key, value, bias, pieces=pieces, mask=mask)  # (5) (6)
