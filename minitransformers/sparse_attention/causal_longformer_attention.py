"""Longformer for a text that is written: each position reads a window behind it and the global positions before it.

A global row would see the future, so there is none: the global positions are columns only, and nothing needs projections of its
own. This is multi-head attention around the core local_global_attention. Its cache stops growing: of the keys and values it
keeps those of the last window dilation positions, and those of the global ones, however long the text becomes. A few first
positions that all may see are also what keeps a windowed model steady (Xiao et al. 2023, arXiv:2309.17453, attention sinks).
Source: Beltagy, Peters and Cohan 2020, arXiv:2004.05150, sections 3.1 and 4.1 (windows and dilation for language modelling).
Differs from there: one dilation for all heads; with global columns, which the paper has for encoders.

    out = multi-head attention of x, its core local_global_attention, causal (in blocks)
    dparams, dx, dbias = its backward(dout)
"""

from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.cache import KeyValueCache, key_value_cache
from minitransformers.attention.core import softmax_attention
from minitransformers.attention.heads import merge_heads, split_heads
from minitransformers.attention.multi_head_attention import MultiHeadAttention, init_multi_head_attention, multi_head_attention
from minitransformers.basics.linear import linear
from minitransformers.foundation import Backward, at_least, bad, concept, example, trusted
from minitransformers.sparse_attention.local_global_attention_blocks import local_global_attention_blocks
from minitransformers.sparse_attention.longformer import Positions


def init_causal_longformer_attention(
    rng: np.random.Generator, d_model: int, *, num_heads: int, std: float | None = None, residual_std: float | None = None,
    bias: bool = True, dtype: type = np.float32,
) -> MultiHeadAttention:  # fmt: skip
    """Those of multi-head attention: a pattern has no parameters."""
    return init_multi_head_attention(rng, d_model, num_heads=num_heads, std=std, residual_std=residual_std, bias=bias, dtype=dtype)


class LongformerCache(NamedTuple):
    """Keys and values that later positions may look at: of the last positions, and of the global ones that have come."""

    recent: KeyValueCache
    global_keys: Float[Array, "... heads globals d_head"]
    global_values: Float[Array, "... heads globals d_value"]

    @property
    def length(self) -> int:
        """How many positions were seen in all."""
        return self.recent.length

    @property
    def bytes(self) -> int:
        """The size of what the last position may look at."""
        return self.recent.bytes + self.global_keys.nbytes + self.global_values.nbytes


@trusted
def causal_longformer_attention_step(
    params: MultiHeadAttention, x: Float[Array, "... new d_model"], state: LongformerCache | None, *, num_heads: int, window: int,
    global_positions: Positions = (), dilation: int = 1, bias: Float[Array, "... new seen"] | None = None,
    mask: Bool[Array, "... new seen"] | None = None,
) -> tuple[Array, LongformerCache]:  # fmt: skip
    """The outputs of a few new positions, given those before; ``state`` is None at the start.

    bias and mask, broadcastable to (..., heads, new, seen), are about the new positions and all seen so far.
    Returns out, shaped like x, and the state after them: window dilation + 1 positions and the global ones. Forward only.
    """
    query, key, value = (split_heads(linear(part, x)[0], num_heads) for part in params[:3])
    seen, new = 0 if state is None else state.length, x.shape[-2]
    recent = key_value_cache(None if state is None else state.recent, key, value, window=dilation * window + 1)
    arrived = np.array(sorted(g for g in global_positions if g < seen + new), int)
    held = (key[..., :0, :], value[..., :0, :]) if state is None else state[1:]
    come = arrived[arrived >= seen] - seen                   # among the new positions
    global_keys, global_values = (np.concatenate([old, a[..., come, :]], axis=-2) for old, a in zip(held, (key, value), strict=True))

    i, j = np.arange(seen, seen + new)[:, None], recent.positions
    near = (j <= i) & (i - j <= dilation * window) & ((i - j) % dilation == 0) & ~np.isin(j, arrived)
    sees = np.concatenate([arrived <= i, near], axis=-1)
    places = np.concatenate([arrived, j])
    bias, mask = (a if a is None or a.shape[-1] == 1 else a[..., places] for a in (bias, mask))
    keys, values = (np.concatenate(pair, axis=-2) for pair in ((global_keys, recent.keys), (global_values, recent.values)))
    heads, _ = softmax_attention(None, query, keys, values, bias, mask=sees if mask is None else sees & mask)
    return linear(params.output, merge_heads(heads))[0], LongformerCache(recent, global_keys, global_values)


@concept(
    title="Causal Longformer attention",
    source="Beltagy, Peters and Cohan 2020, arXiv:2004.05150, sections 3.1 and 4.1",
    example=lambda rng: example(
        init_causal_longformer_attention(rng, 6, num_heads=2, dtype=np.float64),
        rng.normal(size=(2, 7, 6)), rng.normal(size=(1, 2, 7, 7)), num_heads=2, window=1, global_positions=(3, 1), dilation=2,
        mask=rng.random((2, 1, 1, 7)) < 0.8,
    ),
    roles=("mixer",),
    rejects=[bad(num_heads=5), bad(global_positions=(2, 2)), bad(mask=np.ones((5, 2, 7, 7), bool)), bad(bias=np.ones((1, 3, 7, 7)))],
    form_of="longformer",
    step=causal_longformer_attention_step,
)  # fmt: skip
def causal_longformer_attention(
    params: MultiHeadAttention,
    x: Float[Array, "... positions d_model"],
    bias: Float[Array, "*#scores #positions #positions"] | None = None,
    *,
    num_heads: Annotated[int, at_least(1)],
    window: Annotated[int, at_least(1)],
    global_positions: Positions = (),
    dilation: Annotated[int, at_least(1)] = 1,
    mask: Bool[Array, "*#scores #positions #positions"] | None = None,
) -> tuple[Array, Backward]:
    """Multi-head attention in which a position sees itself, ``window`` positions before it and the global ones before it.

    The window's positions are dilation apart. A global position beyond the text is no error: it has not come yet. bias and
    mask broadcast to (..., heads, queries, keys). For rotations or another softmax take multi_head_attention, with the core.
    Returns out, shaped like x, and backward: dout -> MultiHeadAttention, dx, dbias (None without a bias).
    Raises ValueError when num_heads does not divide the projections, mask or bias do not fit the scores, or a global position
    is named twice.
    """
    core = partial(local_global_attention_blocks, window=window, global_positions=global_positions, dilation=dilation, causal=True)
    return multi_head_attention(params, x, bias, num_heads=num_heads, mask=mask, core=core)
