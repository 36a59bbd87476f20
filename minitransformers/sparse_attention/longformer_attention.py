"""Longformer's layer: local projections for the window, and global ones for the tokens that see the whole text.

A global token asks with a query map of its own, and the tokens that it reads answer with key and value maps of their own: what a
summary needs of a text is not what a neighbour needs. The local maps serve everybody else, global columns included.
Source: Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1. The global maps start as copies of the local ones, as
there. An encoder's layer: its global rows see the future. For a decoder see causal_longformer_attention.

    query, key, value = split(x W_q + b_q), split(x W_k + b_k), split(x W_v + b_v)
    global_query = split(x_G W_gq + b_gq) for the global positions G, global_key and global_value of all positions alike
    heads = longformer of these, the equations of longformer
    out = merge(heads) W_o + b_o

Time O(positions d_model^2) for the projections and O(positions (window + globals) d_model) for the heads.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads, check_scores, merge_heads, split_heads
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, trees
from minitransformers.sparse_attention.longformer import Positions, check_positions
from minitransformers.sparse_attention.longformer_blocks import longformer_blocks


class LongformerAttention(NamedTuple):
    """Projections to queries, keys and values of all heads side by side, those of the global rows, and back."""

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_heads"]
    value: Annotated[Linear, "d_model d_values"]
    global_query: Annotated[Linear, "d_model d_heads"]
    global_key: Annotated[Linear, "d_model d_heads"]
    global_value: Annotated[Linear, "d_model d_values"]
    output: Annotated[Linear, "d_values d_model"]


@checked
def init_longformer_attention(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    std: Annotated[float, at_least(0)] | None = None, residual_std: Annotated[float, at_least(0)] | None = None, bias: bool = True,
    dtype: type = np.float32,
) -> LongformerAttention:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt(d_model)), the output's of ``residual_std`` (default std).

    The global projections are copies of the local ones: training tells them apart.
    """
    check_heads("num_heads", num_heads, d_model)
    stds = (std, std, std, std if residual_std is None else residual_std)
    query, key, value, output = (init_linear(rng, d_model, d_model, std=s, bias=bias, dtype=dtype) for s in stds)
    global_query, global_key, global_value = (trees.map(np.copy, part) for part in (query, key, value))
    return LongformerAttention(query, key, value, global_query, global_key, global_value, output)


@concept(
    title="Longformer attention",
    source="Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1",
    example=lambda rng: _example(rng),
    rejects=[bad(num_heads=3), bad(global_positions=(0, 7)), bad(global_positions=(2, 2)), bad(mask=np.ones((5, 2, 1, 7), bool))],
    form_of="longformer",
)
def longformer_attention(
    params: LongformerAttention,
    x: Float[Array, "... positions d_model"],
    *,
    num_heads: Annotated[int, at_least(1)],
    window: Annotated[int, at_least(1)],
    global_positions: Positions,
    dilation: Annotated[int, at_least(1)] = 1,
    mask: Bool[Array, "*#scores #positions #positions"] | None = None,
) -> tuple[Array, Backward]:
    """Each position gathers from ``window`` positions on each side and from the global ones; those gather from all.

    The texts of a batch share global_positions, of which there may be none. mask is True where a query may see a key, and
    broadcasts to (..., heads, queries, keys); padding_mask, one row for all queries, keeps the cost linear.
    Returns out, shaped like x, and backward: dout -> LongformerAttention, dx.
    Raises ValueError when num_heads does not divide the projections, the mask does not fit the scores, or a global position is
    beyond the text or named twice.
    """
    for projection in (params.query, params.value):
        check_heads("num_heads", num_heads, projection.weight.shape[1])
    positions = x.shape[-2]
    check_scores("mask", mask, (*x.shape[:-2], num_heads, positions, positions))
    check_positions(global_positions, positions)
    chosen = list(global_positions)
    inputs = [x, x, x, *([x[..., chosen, :], x, x] if chosen else [])]
    projected = [linear(part, own) for part, own in zip(params, inputs, strict=False)]
    streams = [split_heads(stream, num_heads) for stream, _ in projected]  # (..., heads, positions, d), of the third last: globals
    heads, heads_backward = longformer_blocks(*streams, window=window, global_positions=chosen, dilation=dilation, mask=mask)
    out, output_backward = linear(params.output, merge_heads(heads))

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dparams, dx = trees.zeros_like(params)._replace(output=doutput), np.zeros_like(x)
        dstreams = heads_backward(split_heads(dmerged, num_heads))
        for name, (_, back), dstream in zip(params._fields, projected, dstreams, strict=False):
            dpart, dinput = back(merge_heads(dstream))
            dparams = dparams._replace(**{name: dpart})
            if name == "global_query":
                dx[..., chosen, :] += dinput                 # no position is named twice
            else:
                dx += dinput
        return dparams, dx

    return out, backward


def _example(rng: np.random.Generator):
    shapes = (6, 4), (6, 4), (6, 2), (6, 4), (6, 4), (6, 2), (2, 6)
    params = LongformerAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes))
    return example(params, rng.normal(size=(2, 7, 6)), num_heads=2, window=1, global_positions=(4, 0), dilation=2, mask=rng.random((2, 1, 1, 7)) < 0.8)
