"""Longformer in blocks: the band, the global columns and the global rows, and nothing besides.

Time O(positions (window + globals) d_head) and memory O(positions (window + globals)) a head: linear in the text.
The equations are those of longformer. What differs is the local part, local_global_attention_blocks, which gathers the keys that
a block of queries can reach.
Source: Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1 and appendix A.
"""

from typing import Annotated

from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept
from minitransformers.sparse_attention.local_global_attention_blocks import local_global_attention_blocks
from minitransformers.sparse_attention.longformer import Positions, kernel_example, longformer


@concept(
    title="Longformer in blocks",
    source="Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1 and appendix A",
    example=lambda rng: kernel_example(rng),
    rejects=[bad(global_positions=(1, 8)), bad(global_positions=(3, 3)), bad("global_query", global_positions=(1,))],
    form_of="longformer",
)
def longformer_blocks(
    query: Float[Array, "*#batch positions d_head"],
    key: Float[Array, "*#batch positions d_head"],
    value: Float[Array, "*#batch positions d_value"],
    global_query: Float[Array, "*#batch globals d_head"] | None = None,
    global_key: Float[Array, "*#batch positions d_head"] | None = None,
    global_value: Float[Array, "*#batch positions d_value"] | None = None,
    *,
    window: Annotated[int, at_least(1)],
    global_positions: Positions = (),
    dilation: Annotated[int, at_least(1)] = 1,
    mask: Bool[Array, "*#batch #positions #positions"] | None = None,
) -> tuple[Array, Backward]:
    """What longformer gives, in linear time and memory; arguments, results and errors are its own."""
    return longformer(
        query, key, value, global_query, global_key, global_value, window=window, global_positions=global_positions, dilation=dilation,
        mask=mask, core=local_global_attention_blocks,
    )  # fmt: skip
