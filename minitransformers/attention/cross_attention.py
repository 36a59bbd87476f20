"""Cross-attention: the positions of one sequence gather from those of another, the memory.

The queries come from x (a decoder), keys and values from the memory (what an encoder made, an image, retrieved text),
which may be longer and of another width. Nothing is causal between two sequences; a mask hides padding of the memory.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3.

    query = split(x W_q + b_q)                               (1)
    key, value = split(memory W_k + b_k), split(memory W_v + b_v)   (2)
    heads = attention(query, key, value)                     (3)
    out = merge(heads) W_o + b_o                             (4)
    dheads = split(dout W_o^T), dW_o = merge(heads)^T dout, db_o = sum of dout   (5)
    dquery, dkey, dvalue = gradients of attention at dheads  (6)
    dx = merge(dquery) W_q^T, dW_q = x^T merge(dquery), db_q = sum of merge(dquery)   (7)
    dW_i = memory^T merge(di), db_i = sum of merge(di), for i = key, value   (8)
    dmemory = merge(dkey) W_k^T + merge(dvalue) W_v^T        (9)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import as_weighting, check_heads, check_scores, merge_heads, split_heads
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import bad, concept, example, invalid, trusted


class CrossAttention(NamedTuple):
    """Projections of x to queries, of the memory to keys and values, and of the heads' values back to x's width."""

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_memory d_heads"]
    value: Annotated[Linear, "d_memory d_values"]
    output: Annotated[Linear, "d_values d_model"]


def init_cross_attention(
    rng: np.random.Generator, d_model: int, *, num_heads: int, d_memory: int | None = None, std: float | None = None,
    residual_std: float | None = None, bias: bool = True, dtype: type = np.float32,
) -> CrossAttention:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt of the width they read), the output's of ``residual_std``.

    d_memory is the memory's width (default d_model).
    """
    check_heads("num_heads", num_heads, d_model)
    d_memory = d_model if d_memory is None else d_memory
    widths = ((d_model, std), (d_memory, std), (d_memory, std), (d_model, std if residual_std is None else residual_std))
    return CrossAttention(*(init_linear(rng, d, d_model, std=s, bias=bias, dtype=dtype) for d, s in widths))


@trusted
def cross_attention_step(
    params: CrossAttention, x: Float[Array, "... new d_model"], state: tuple[Array, Array] | None, *, num_heads: int,
    memory: Float[Array, "... keys d_memory"] | None = None, mask: Bool[Array, "... new keys"] | None = None, scale: float | None = None,
    weighting: str | Callable | None = None,
) -> tuple[Array, Any]:  # fmt: skip
    """The outputs of a few new positions; ``state`` is None at the start, and then the memory is needed.

    The state is the memory's keys and values: made once, read at every step, never grown. Forward only.
    """
    if state is None:
        if memory is None:
            raise invalid("memory", got=None, wants="what the queries read, at the first step")
        key, value = (split_heads(linear(part, memory)[0], num_heads) for part in (params.key, params.value))
        state = key, value
    query = split_heads(linear(params.query, x)[0], num_heads)
    heads, _ = scaled_dot_product_attention(query, *state, mask=mask, scale=scale, weighting=as_weighting(weighting))
    return linear(params.output, merge_heads(heads))[0], state


def _example_params(rng: np.random.Generator) -> CrossAttention:
    return CrossAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in ((6, 4), (5, 4), (5, 2), (2, 6))))


@concept(
    title="Cross-attention",
    source="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3",
    example=lambda rng: example(
        _example_params(rng), rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 5)), rng.normal(size=(1, 2, 3, 4)),
        num_heads=2, mask=rng.random((2, 1, 1, 4)) < 0.8,
    ),
    rejects=[
        bad(num_heads=3),
        bad(memory=np.ones((2, 4, 6))),
        bad(memory=np.ones((3, 4, 5))),
        bad(memory=np.ones((2, 0, 5))),
        bad(x=np.ones((2, 3, 5))),
        bad(mask=np.ones((2, 1, 1, 3), bool)),
        bad(mask=np.ones((2, 1, 1, 4))),
        bad(mask=np.ones((3, 1, 1, 4), bool)),
        bad(bias=np.ones((1, 2, 4, 3))),
    ],
    step=cross_attention_step,
)  # fmt: skip
def cross_attention(
    params: CrossAttention,
    x: Float[Array, "*batch queries d_model"],
    memory: Float[Array, "*batch keys d_memory"],
    bias: Float[Array, "*#scores #queries #keys"] | None = None,
    *,
    num_heads: int,
    mask: Bool[Array, "*#scores #queries #keys"] | None = None,
    scale: float | None = None,
    weighting: str | Callable | None = None,
):
    """Every position of x gathers from the positions of the memory, in num_heads ways.

    bias is added to the scores, mask says True where a query may see a key (False on padding of the memory): both
    broadcast to (..., heads, queries, keys). scale multiplies the scores (default 1/sqrt(d_head)). weighting, a function
    or its name, takes the place of the softmax; one that learns stays as it starts.
    Returns out, shaped like x, and backward: dout -> CrossAttention, dx, dmemory, dbias (None without a bias).
    Where several layers read one memory, its gradient is the sum of theirs.
    Raises ValueError when num_heads does not divide the projections, or mask or bias do not fit the scores.
    """
    check_heads("num_heads", num_heads, params.query.weight.shape[1])
    check_heads("num_heads", num_heads, params.value.weight.shape[1])
    for argument, array in (("bias", bias), ("mask", mask)):
        check_scores(argument, array, (*x.shape[:-2], num_heads, x.shape[-2], memory.shape[-2]))

    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, memory)
    value, value_backward = linear(params.value, memory)
    query = split_heads(query, num_heads)                    # (..., heads, queries, d_head)  (1)
    key, value = split_heads(key, num_heads), split_heads(value, num_heads)  # (..., heads, keys, d)  (2)
    heads, attend_backward = scaled_dot_product_attention(
        query, key, value, bias, mask=mask, scale=scale, weighting=as_weighting(weighting)
    )  # (3)
    out, output_backward = linear(params.output, merge_heads(heads))  # (4)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dheads = split_heads(dmerged, num_heads)             # (5)
        dquery, dkey, dvalue, dbias = attend_backward(dheads)  # (6)
        dparams_query, dx = query_backward(merge_heads(dquery))  # (7)
        dparams_key, dmemory_key = key_backward(merge_heads(dkey))
        dparams_value, dmemory_value = value_backward(merge_heads(dvalue))  # (8)
        dmemory = dmemory_key + dmemory_value                # the memory is read twice: two terms  (9)
        return CrossAttention(dparams_query, dparams_key, dparams_value, doutput), dx, dmemory, dbias

    return out, backward
