"""Attention-reconstruction loss: compressed rows shall give attention what the rows that they stand for would have given it.

A compression that is trained by the task learns too late: what it makes is read segments afterwards, when the pass that made it is
over. So it has a loss of its own, at once: let the segment attend to the old rows, and to their compression; the two answers shall
agree. What attention never looks at need not be kept. Only the compression learns. Segment, old rows and the maps of attention come
by keyword and get nothing: they would else be made easy to compress, and the model would pay for it. Source: Rae et al. 2019
(Compressive Transformer), arXiv:1911.05507, section 3 and algorithm 2, where the loss is a squared norm; here it is the mean
over elements, so that no size of a batch is in it. Attention is by content alone, without mask, distances or an output map. h is the segment as the layer gets
it, f the compression, f* its backward.

    small = f(old)                                           (1)
    query = split(h W_q)                                     (2)
    target = softmax(query split(old W_k)^T / sqrt(d_head)) split(old W_v)   (3)
    read = softmax(query split(small W_k)^T / sqrt(d_head)) split(small W_v)   (4)
    loss = mean of (read - target)^2                         (5)
    dread = (2 / size) (read - target) dloss                 (6)
    dkey, dvalue = those of attention at dread; the query's is dropped   (7)
    dsmall = merge(dkey) W_k^T + merge(dvalue) W_v^T, and dparams = f*(dsmall)   (8)

The other loss of the paper wants all of the rows back, whether attention looks at them or not. A decoder makes c rows of each one:

    again = small W_d + b_d, with each row cut into c        (9)
    loss = mean of (again - old)^2                           (10)
    dagain = (2 / size) (again - old) dloss                  (11)
    dsmall = dagain W_d^T, dW_d = small^T dagain, db_d = sum of dagain, with c rows side by side; dparams = f*(dsmall)   (12)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads, merge_heads, split_heads
from minitransformers.attention.multi_head_attention import MultiHeadAttention
from minitransformers.attention.scaled_dot_product_attention_fast import scaled_dot_product_attention_fast
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid
from minitransformers.long_context.convolution_compression import Rate, convolution_compression
from minitransformers.long_context.transformer_xl_layer import XlLayer
from minitransformers.norms.layer_norm import LayerNorm, layer_norm


class AutoEncoding(NamedTuple):
    """What the compression learns, and the map of a compressed row to those that it stands for, side by side."""

    compress: Any
    decoder: Annotated[Linear, "d_model d_window"]


@checked
def init_auto_encoding(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, rate: Rate, compress: Any, std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32
) -> AutoEncoding:  # fmt: skip
    """Parameters of a compression, and a decoder that repeats each row ``rate`` times, but for normal numbers of deviation ``std``."""
    decoder = init_linear(rng, d_model, rate * d_model, std=std, dtype=dtype)
    return AutoEncoding(compress, decoder._replace(weight=decoder.weight + np.tile(np.eye(d_model, dtype=dtype), rate)))


@concept(
    title="Attention-reconstruction loss",
    source="Rae et al. 2019, arXiv:1911.05507, section 3",
    example=lambda rng: _example(rng),
    rejects=[bad(num_heads=3), bad(rate=3), bad(segment=np.ones((3, 5, 6))), bad(old=np.ones((2, 8, 5)))],
)
def attention_reconstruction_loss(
    params: Any, *, old: Float[Array, "*batch rows d_model"], segment: Float[Array, "*batch positions d_model"],
    layer: XlLayer, num_heads: Annotated[int, at_least(1)], rate: Rate, compress: Callable = convolution_compression,
    norm: Callable | None = None,
) -> tuple[np.floating, Backward]:  # fmt: skip
    """How far attention to the compressed rows is from attention to the rows, a mean of squares.

    old are the rows that leave the memory, segment what attends to them, layer the parameters of the layer, of which the maps of
    attention are used; none of them gets a gradient. Slots: compress(params, old, rate=...) -> small, backward; and where the layer
    norms first, norm(layer.attention_norm, rows) -> normed, backward.
    Returns out, a scalar in squared values, and backward: dout -> dparams (None where the compression learns nothing).
    Raises ValueError when num_heads does not divide the maps, or rate does not divide the rows.
    """
    for projection in (layer.attention.query, layer.attention.value):
        check_heads("num_heads", num_heads, projection.weight.shape[1])
    if old.shape[-2] % rate:
        raise invalid("rate", got=rate, wants=f"a number that divides the {old.shape[-2]} rows of old")
    small, compress_backward = compress(params, old, rate=rate)  # (1)

    normed = segment if norm is None else norm(layer.attention_norm, segment)[0]
    query = split_heads(linear(layer.attention.query, normed)[0], num_heads)  # (2)
    target, _ = _read(layer, query, old, num_heads, norm)    # (3)
    read, read_backward = _read(layer, query, small, num_heads, norm)  # (4)
    apart = read - target
    out = np.mean(apart * apart)                             # (5)

    def backward(dout):
        dread = (2 / apart.size) * dout * apart              # (6)
        dsmall = read_backward(dread)
        return compress_backward(dsmall)[0]                  # that of old is dropped  (8)

    return out, backward


@concept(
    title="Auto-encoding loss",
    source="Rae et al. 2019, arXiv:1911.05507, section 3",
    example=lambda rng: example(
        AutoEncoding(*(Linear(rng.normal(size=s), rng.normal(size=s[1])) for s in ((6, 3), (3, 6)))), old=rng.normal(size=(2, 8, 3)), rate=2
    ),
    rejects=[bad(rate=3), bad("params.decoder", params=AutoEncoding(Linear(np.ones((6, 3)), None), Linear(np.ones((3, 9)), None)))],
    form_of="attention_reconstruction_loss",
)
def auto_encoding_loss(
    params: AutoEncoding, *, old: Float[Array, "*batch rows d_model"], rate: Rate, compress: Callable = convolution_compression
) -> tuple[np.floating, Backward]:
    """How far the rows are from what a linear decoder makes of their compression, a mean of squares.

    Returns out, a scalar in squared values, and backward: dout -> AutoEncoding; old gets nothing.
    Raises ValueError where rate does not divide the rows, or the decoder is one of another rate.
    """
    if old.shape[-2] % rate:
        raise invalid("rate", got=rate, wants=f"a number that divides the {old.shape[-2]} rows of old")
    if params.decoder.weight.shape != (old.shape[-1], rate * old.shape[-1]):
        raise invalid("params.decoder.weight", got=f"shape {params.decoder.weight.shape}", wants=f"{(old.shape[-1], rate * old.shape[-1])}")
    small, compress_backward = compress(params.compress, old, rate=rate)
    joined, decoder_backward = linear(params.decoder, small)
    again = joined.reshape(old.shape)                        # (9)
    apart = again - old
    out = np.mean(apart * apart)                             # (10)

    def backward(dout):
        dagain = (2 / apart.size) * dout * apart             # (11)
        ddecoder, dsmall = decoder_backward(dagain.reshape(joined.shape))
        return AutoEncoding(compress_backward(dsmall)[0], ddecoder)  # (12)

    return out, backward


def _read(layer: XlLayer, query: Array, rows: Array, num_heads: int, norm: Callable | None):
    """What the queries read in these rows, by content alone; and backward: dread -> drows, no more."""
    normed, norm_backward = (rows, None) if norm is None else norm(layer.attention_norm, rows)
    key, key_backward = linear(layer.attention.key, normed)
    value, value_backward = linear(layer.attention.value, normed)
    heads, heads_backward = scaled_dot_product_attention_fast(query, split_heads(key, num_heads), split_heads(value, num_heads))

    def backward(dread):
        _, dkey, dvalue, _ = heads_backward(dread)           # (7)
        dnormed = key_backward(merge_heads(dkey))[1] + value_backward(merge_heads(dvalue))[1]  # read twice: two terms  (8)
        return dnormed if norm_backward is None else norm_backward(dnormed)[-1]

    return heads, backward


def _example(rng: np.random.Generator):
    attention = MultiHeadAttention(*(Linear(rng.normal(size=s), rng.normal(size=s[1])) for s in ((6, 4), (6, 4), (6, 8), (8, 6))))
    params, old, segment = Linear(rng.normal(size=(12, 6)) / 3, rng.normal(size=6)), rng.normal(size=(2, 8, 6)), rng.normal(size=(2, 5, 6))
    layer = XlLayer(attention, LayerNorm(*rng.normal(size=(2, 6))), None, LayerNorm(*np.ones((2, 6))))
    return example(params, old=old, segment=segment, layer=layer, num_heads=2, rate=2, norm=layer_norm)
