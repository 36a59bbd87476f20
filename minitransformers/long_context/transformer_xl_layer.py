"""Transformer-XL's layer: attention with memory, then a feed-forward network, each added to the stream and followed by a norm.

What a layer keeps for the next segment are its inputs, as they come: whatever is done to x before attention is done to memory as
well, or a row would mean one thing while it is new and another when it is old. Source: Dai et al. 2019 (Transformer-XL),
arXiv:1901.02860, section 3.3, for the norm after the sum; the authors' code (pre_lnorm) for the norm before it, which is the second
form. A is attention_with_memory, F the feed-forward network, N1 and N2 are layer norms, m is the memory, a star the backward of
what it stands on; A*_x and A*_m are the parts of A* for x and for the memory.

    middle = N1(x + A(x, m))                                 (1)
    out = N2(middle + F(middle))                             (2)
    dmiddle = dsum + F*(dsum), dsum = N2*(dout)              (3)
    dx = dsum + A*_x(dsum), dm = A*_m(dsum), dsum = N1*(dmiddle)   (4)

The norm first:

    middle = x + A(N1(x), N1(m))                             (5)
    out = middle + F(N2(middle))                             (6)
    dmiddle = dout + N2*(F*(dout))                           (7)
    dx = dmiddle + N1*(A*_x(dmiddle)), dm = N1*(A*_m(dmiddle))   (8)

In (8) N1 gets its parameters' gradient from the rows of both.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import init_multi_head_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.relu import relu
from minitransformers.basics.residual import residual
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, slot, trees
from minitransformers.long_context.attention_with_memory import attention_with_memory, below
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm
from minitransformers.positional.transformer_xl_relative import init_transformer_xl_relative

relu_network = partial(feed_forward, activation=slot(relu))


class XlLayer(NamedTuple):
    """Two sub-layers and the norm of each."""

    attention: Any                                           # MultiHeadAttention, or what stands in that slot
    attention_norm: Annotated[LayerNorm, "d_model"]
    feed_forward: Any                                        # FeedForward, or what stands in that slot
    feed_forward_norm: Annotated[LayerNorm, "d_model"]


@checked
def init_transformer_xl_layer(
    rng: np.random.Generator, d_model: Annotated[int, at_least(2)], *, num_heads: Annotated[int, at_least(1)],
    d_hidden: Annotated[int, at_least(1)] | None = None, std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> XlLayer:  # fmt: skip
    """Maps of deviation ``std`` (default 1/sqrt(d_in)), those of attention without biases; d_hidden is 4 d_model unless given.

    Raises ValueError unless d_model is even and num_heads divides it.
    """
    core = init_transformer_xl_relative(rng, d_model, num_heads=num_heads, dtype=dtype)
    attention = init_multi_head_attention(rng, d_model, num_heads=num_heads, std=std, bias=False, dtype=dtype)
    work = init_feed_forward(rng, d_model, d_hidden=d_hidden, std=std, dtype=dtype)
    norms = (init_layer_norm(rng, d_model, dtype=dtype) for _ in range(2))
    return XlLayer(attention._replace(core=core), next(norms), work, next(norms))


@concept(
    title="Transformer-XL's layer",
    source="Dai et al. 2019, arXiv:1901.02860, section 3.3",
    example=lambda rng: _example(rng),
    rejects=[bad(num_heads=4), bad(memory=np.ones((3, 4, 6))), bad(memory=np.ones((2, 4, 5)))],
)
def transformer_xl_layer(
    params: XlLayer, x: Float[Array, "*batch positions d_model"], memory: Float[Array, "*batch kept d_model"] | None = None, *,
    num_heads: Annotated[int, at_least(1)], attention: Callable = attention_with_memory, feed_forward: Callable = relu_network,
    eps: Annotated[float, at_least(0)] = 1e-5,
) -> tuple[Array, Backward]:  # fmt: skip
    """One layer over a segment x and the inputs that it had before; its norms after the sums.

    attention(params.attention, x, memory, num_heads=...) -> added, backward: ..., dx, dmemory, and
    feed_forward(params.feed_forward, x) are slots. eps is that of the norms.
    Returns out, shaped like x, and backward: dout -> XlLayer, dx, dmemory (None without a memory).
    Raises ValueError when num_heads does not divide the projections, or memory has another batch or width than x.
    """
    norm = partial(layer_norm, eps=eps)
    attend, work = (partial(residual, part=part) for part in (partial(attention, num_heads=num_heads), feed_forward))
    middle, attend_backward = chain(params[:2], x, memory, parts=(attend, norm))  # (1)
    out, work_backward = chain(params[2:], middle, parts=(work, norm))  # (2)

    def backward(dout):
        dwork, dmiddle = work_backward(dout)                 # (3)
        dattend, dx, dmemory = attend_backward(dmiddle)      # (4)
        return XlLayer(*dattend, *dwork), dx, dmemory

    return out, backward


@concept(
    title="Transformer-XL's layer, the norms first",
    source="Dai et al. 2019, arXiv:1901.02860, the authors' code (pre_lnorm)",
    example=lambda rng: _example(rng),
    rejects=[bad(num_heads=4), bad(memory=np.ones((3, 4, 6)))],
    form_of="transformer_xl_layer",
)
def transformer_xl_pre_norm_layer(
    params: XlLayer, x: Float[Array, "*batch positions d_model"], memory: Float[Array, "*batch kept d_model"] | None = None, *,
    num_heads: Annotated[int, at_least(1)], attention: Callable = attention_with_memory, feed_forward: Callable = relu_network,
    eps: Annotated[float, at_least(0)] = 1e-5,
) -> tuple[Array, Backward]:  # fmt: skip
    """The same layer, its norms before the sub-layers. Arguments, results and errors are those of transformer_xl_layer."""
    norm, norm_of_both = partial(layer_norm, eps=eps), partial(_norm_of_both, eps=eps)
    attend = partial(chain, parts=(norm_of_both, partial(attention, num_heads=num_heads)))
    middle, attend_backward = residual(params[1::-1], x, memory, part=attend)  # (5)
    out, work_backward = residual(params[:1:-1], middle, part=partial(chain, parts=(norm, feed_forward)))  # (6)

    def backward(dout):
        dwork, dmiddle = work_backward(dout)                 # (7)
        dattend, dx, dmemory = attend_backward(dmiddle)      # (8)
        return XlLayer(*dattend[::-1], *dwork[::-1]), dx, dmemory

    return out, backward


def _norm_of_both(params: LayerNorm, x: Array, memory: Array | None, *, eps: float):
    """Layer norm of the rows of x and of memory, as one; and backward: (dx, dmemory) -> LayerNorm, dx, dmemory."""
    kept = 0 if memory is None else memory.shape[-2]
    normed, norm_backward = layer_norm(params, below(memory, x), eps=eps)

    def backward(dboth):
        dparams, drows = norm_backward(below(dboth[1], dboth[0]))
        return dparams, drows[..., kept:, :], None if memory is None else drows[..., :kept, :]

    return (normed[..., kept:, :], None if memory is None else normed[..., :kept, :]), backward


def _example(rng: np.random.Generator):
    params = init_transformer_xl_layer(rng, 6, num_heads=3, d_hidden=5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape), params)
    return example(params, rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 6)), num_heads=3)
