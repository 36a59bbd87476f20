"""Sliding-window attention: each position reads the last ``window`` positions only; depth restores the reach.

Time and memory grow with positions times window, and the cache stops growing at ``window`` entries. After k layers a
position has heard of k (window - 1) + 1 positions, itself included: each layer passes on what the one below gathered.
Source: Jiang et al. 2023 (Mistral), arXiv:2310.06825, section 2. Position i sees i - window < j <= i: exactly ``window``
keys with its own, as Hugging Face counts; the report rounds the reach to k window.

    out = grouped-query attention of x, whose heads attend through banded_attention   (1)
    dparams, dx = its backward(dout)                                                  (2)
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.banded_attention import banded_attention
from minitransformers.attention.cache import KeyValueCache
from minitransformers.attention.grouped_query_attention import (
    GroupedQueryAttention,
    grouped_query_attention,
    grouped_query_attention_step,
    init_grouped_query_attention,
)
from minitransformers.attention.heads import as_weighting
from minitransformers.foundation import bad, concept, example, trusted


def init_sliding_window_attention(
    rng: np.random.Generator, d_model: int, *, num_heads: int, num_kv_heads: int | None = None, std: float | None = None,
    residual_std: float | None = None, bias: bool = False, normalize: str | None = None, dtype: type = np.float32,
) -> GroupedQueryAttention:  # fmt: skip
    """Those of grouped-query attention: a window has no parameters. num_kv_heads defaults to num_heads."""
    return init_grouped_query_attention(
        rng, d_model, num_heads=num_heads, num_kv_heads=num_kv_heads or num_heads,
        std=std, residual_std=residual_std, bias=bias, normalize=normalize, dtype=dtype,
    )  # fmt: skip


@trusted
def sliding_window_attention_step(
    params: GroupedQueryAttention, x: Float[Array, "... new d_model"], state: KeyValueCache | None, *, num_heads: int, window: int,
    num_kv_heads: int | None = None, causal: bool = True, scale: float | None = None, rotate: Callable | None = None,
    normalize: str | Callable | None = None,
    weighting: str | Callable | None = None,
):  # fmt: skip
    """The outputs of a few new positions, given those before, from a rolling cache of ``window`` positions.

    Returns out, shaped like x, and the state, None at the start. Forward only.
    """
    return grouped_query_attention_step(
        params, x, state, num_heads=num_heads, num_kv_heads=num_kv_heads or num_heads,
        causal=causal, scale=scale, rotate=rotate, window=window, normalize=normalize,
        weighting=weighting,
    )  # fmt: skip


@concept(
    title="Sliding-window attention",
    source="Jiang et al. 2023, arXiv:2310.06825, section 2",
    example=lambda rng: example(
        init_sliding_window_attention(rng, 8, num_heads=4, num_kv_heads=2, dtype=np.float64),
        rng.normal(size=(2, 7, 8)), num_heads=4, num_kv_heads=2, window=3,
    ),
    roles=("mixer",),
    rejects=[bad(window=0), bad(window=1.5), bad(num_heads=3), bad(num_kv_heads=3), bad(x=np.ones((2, 7, 6)))],
    step=sliding_window_attention_step,
)  # fmt: skip
def sliding_window_attention(
    params: GroupedQueryAttention,
    x: Float[Array, "... positions d_model"],
    *,
    num_heads: int,
    window: int,
    num_kv_heads: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    rotate: Callable | None = None,
    normalize: str | Callable | None = None,
    weighting: str | Callable | None = None,
):
    """Grouped-query attention (multi-head where num_kv_heads is None) in which a position sees ``window`` positions.

    Where causal is false it sees as far ahead as back, 2 window - 1 positions. scale, rotate
    and normalize as in grouped_query_attention.
    weighting, a function or its name, takes the place of the softmax; one that learns stays as it starts.
    Returns out, shaped like x, and backward: dout -> GroupedQueryAttention, dx.
    Raises ValueError when window is not a whole number of at least 1, or heads and features do not divide.
    """
    attend = partial(banded_attention, window=window, causal=causal, scale=scale, weighting=as_weighting(weighting))
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    out, attention_backward = grouped_query_attention(
        params, x, num_heads=num_heads, num_kv_heads=kv_heads, rotate=rotate, normalize=normalize, attend=attend
    )  # (1)

    def backward(dout):
        dparams, dx, _ = attention_backward(dout)            # (2)
        return dparams, dx

    return out, backward
