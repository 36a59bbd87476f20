"""The layer that encoders of words, sentences and segments are stacked from: attention to both sides, then a feed-forward network.

Nothing is new in it: two sub-layers, each behind its norm and inside a residual connection, with attention that hides padding.
Whatever is called ``layer(params, x, num_heads=..., mask=...)`` can stand in its place. A is multi-head attention, F the
feed-forward network, N1 and N2 are layer norms (Xiong et al. 2020, arXiv:2002.04745, for norms that stand first).

    middle = x + A(N1(x))
    out = middle + F(N2(middle))
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.residual import residual
from minitransformers.foundation import Backward, at_least, checked
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm


class EncoderBlock(NamedTuple):
    """Two sub-layers, each behind its norm."""

    attention_norm: Annotated[LayerNorm, "d_model"]
    attention: Any                                           # MultiHeadAttention
    feed_forward_norm: Annotated[LayerNorm, "d_model"]
    feed_forward: Any                                        # FeedForward


@checked
def init_encoder_block(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    d_hidden: Annotated[int, at_least(1)] | None = None, std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> EncoderBlock:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt(fan-in)), gains of 1; d_hidden is 4 d_model unless given."""
    return EncoderBlock(
        init_layer_norm(rng, d_model, dtype=dtype), init_multi_head_attention(rng, d_model, num_heads=num_heads, std=std, dtype=dtype),
        init_layer_norm(rng, d_model, dtype=dtype), init_feed_forward(rng, d_model, d_hidden=d_hidden, std=std, dtype=dtype),
    )  # fmt: skip


def encoder_block(
    params: EncoderBlock, x: Float[Array, "*batch positions d_model"], *, num_heads: int, mask: Bool[Array, "*batch positions"] | None = None,
    eps: float = 1e-5, core: Callable = softmax_attention,
) -> tuple[Array, Backward]:  # fmt: skip
    """One layer. mask is True where a position is real: the others are read by nobody, and what stands at them means nothing.

    eps is that of the norms; core is that of multi_head_attention.
    Returns out, shaped like x, and backward: dout -> EncoderBlock of gradients, dx.
    """
    norm = partial(layer_norm, eps=eps)
    pairs = None if mask is None else mask[..., None, None, :]  # (*batch, heads, queries, keys)
    attention = partial(multi_head_attention, num_heads=num_heads, mask=pairs, core=core)
    attend = partial(residual, part=partial(chain, parts=(norm, attention)))
    work = partial(residual, part=partial(chain, parts=(norm, feed_forward)))
    (attention_norm, attend_params, work_norm, work_params) = params
    middle, attend_backward = attend((attention_norm, attend_params), x)
    out, work_backward = work((work_norm, work_params), middle)

    def backward(dout):
        (dwork_norm, dwork), dmiddle = work_backward(dout)
        (dattention_norm, dattend), dx = attend_backward(dmiddle)
        return EncoderBlock(dattention_norm, dattend, dwork_norm, dwork), dx

    return out, backward
