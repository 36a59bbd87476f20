"""Sliding-window attention: each position reads the last ``window`` positions only; depth restores the reach.

Time and memory grow with positions times window, and the cache stops growing at ``window`` entries. After k layers an
output depends on k (window - 1) + 1 positions, its own included: each layer passes on what the one below gathered.
Source: Jiang et al. 2023 (Mistral), arXiv:2310.06825, section 2. Position i sees i - window < j <= i: exactly ``window``
keys with its own, as Hugging Face counts; the report rounds the reach to k window.

    out = grouped-query attention of x, its core banded_attention (in blocks)   (1)
    dparams, dx, dbias = its backward(dout)                         (2)
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.attention.cache import KeyValueCache
from minitransformers.attention.core import softmax_attention
from minitransformers.attention.grouped_query_attention import (
    GroupedQueryAttention,
    grouped_query_attention,
    grouped_query_attention_step,
    init_grouped_query_attention,
)
from minitransformers.attention.prepare import unprepared
from minitransformers.foundation import Backward, at_least, bad, concept, example, trusted


def init_sliding_window_attention(
    rng: np.random.Generator, d_model: int, *, num_heads: int, num_kv_heads: int | None = None, std: float | None = None,
    residual_std: float | None = None, bias: bool = False, dtype: type = np.float32,
) -> GroupedQueryAttention:  # fmt: skip
    """Those of grouped-query attention: a window has no parameters. num_kv_heads defaults to num_heads."""
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    return init_grouped_query_attention(
        rng, d_model, num_heads=num_heads, num_kv_heads=kv_heads, std=std, residual_std=residual_std, bias=bias, dtype=dtype
    )


@trusted
def sliding_window_attention_step(
    params: GroupedQueryAttention, x: Float[Array, "... new d_model"], state: KeyValueCache | None, *, num_heads: int, window: int,
    bias: Float[Array, "... new seen"] | None = None, mask: Bool[Array, "... new seen"] | None = None,
    prepare: Callable = unprepared, core: Callable = softmax_attention,
) -> tuple[Array, KeyValueCache]:  # fmt: skip
    """The outputs of a few new positions, given those before, from a cache of ``window`` positions.

    Returns out, shaped like x, and the state, None at the start. Forward only.
    """
    return grouped_query_attention_step(
        params, x, state, num_heads=num_heads, num_kv_heads=_kv_heads(params, num_heads), bias=bias, mask=mask, prepare=prepare,
        core=partial(banded_attention_blocks, window=window, core=core), window=window,
    )  # fmt: skip


@concept(
    title="Sliding-window attention",
    source="Jiang et al. 2023, arXiv:2310.06825, section 2",
    example=lambda rng: example(
        init_sliding_window_attention(rng, 8, num_heads=4, num_kv_heads=2, dtype=np.float64),
        rng.normal(size=(2, 7, 8)), num_heads=4, window=3,
    ),
    roles=("mixer",),
    rejects=[bad(num_heads=3)],
    step=sliding_window_attention_step,
)  # fmt: skip
def sliding_window_attention(
    params: GroupedQueryAttention,
    x: Float[Array, "... positions d_model"],
    bias: Float[Array, "*#scores #positions #positions"] | None = None,
    *,
    num_heads: Annotated[int, at_least(1)],
    window: Annotated[int, at_least(1)],
    mask: Bool[Array, "*#scores #positions #positions"] | None = None,
    prepare: Callable = unprepared,
    core: Callable = softmax_attention,
) -> tuple[Array, Backward]:
    """Grouped-query attention in which a position sees the last ``window`` positions.

    There are as many heads of keys as params.key holds, each as wide as a query head. core, inside the window, is any that
    takes a mask; the other settings are those of grouped_query_attention.
    Returns out, shaped like x, and backward: dout -> GroupedQueryAttention, dx, dbias (None without a bias).
    Raises ValueError when heads and features do not divide.
    """
    banded = partial(banded_attention_blocks, window=window, core=core)
    out, attention_backward = grouped_query_attention(
        params, x, bias, num_heads=num_heads, num_kv_heads=_kv_heads(params, num_heads), mask=mask, prepare=prepare, core=banded
    )  # (1)

    def backward(dout):
        return attention_backward(dout)                      # (2)

    return out, backward


def _kv_heads(params: GroupedQueryAttention, num_heads: int) -> int:
    """How many heads params.key holds; at least 1, so that grouped-query attention names what does not divide."""
    return max(1, params.key.weight.shape[1] * num_heads // params.query.weight.shape[1])
