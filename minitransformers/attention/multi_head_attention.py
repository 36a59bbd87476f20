"""Multi-head attention: several attentions side by side, each in its own small projection of the features.

One softmax can look in one way at a time; num_heads of them, each d_model / num_heads wide, look in several for the
price of one. Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2. Differs from the paper: projections may have
biases; what is done to queries and keys first (``prepare``: QK-norm, RoPE) and what moves the values (``core``: softmax
attention that looks back, unless another is put in) are slots. split cuts the last axis into heads, (..., positions, heads * d)
to (..., heads, positions, d); merge undoes it. P is the prepare, A the core, a star the backward of what it stands on.

    query, key, value = split(x W_q + b_q), split(x W_k + b_k), split(x W_v + b_v)   (1)
    query, key = P(query, key)                                                       (2)
    heads = A(query, key, value, bias), under the mask                               (3)
    out = merge(heads) W_o + b_o                                                     (4)
    dheads = split(dout W_o^T), dW_o = merge(heads)^T dout, db_o = sum of dout        (5)
    dquery, dkey, dvalue, dbias = A*(dheads)                                         (6)
    dquery, dkey = P*(dquery, dkey)                                                  (7)
    dW_i = x^T merge(di), db_i = sum of merge(di), for i = query, key, value          (8)
    dx = merge(dquery) W_q^T + merge(dkey) W_k^T + merge(dvalue) W_v^T               (9)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.cache import KeyValueCache, key_value_cache, positions_before
from minitransformers.attention.core import causal_attention
from minitransformers.attention.heads import check_heads, check_per_head, check_scores, merge_heads, split_heads
from minitransformers.attention.prepare import unprepared
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, trusted


class MultiHeadAttention(NamedTuple):
    """Projections to queries, keys and values of all heads side by side, and back; what the slots learn, None for nothing."""

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_heads"]
    value: Annotated[Linear, "d_model d_values"]
    output: Annotated[Linear, "d_values d_model"]
    prepare: Any = None
    core: Any = None


@checked
def init_multi_head_attention(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    std: Annotated[float, at_least(0)] | None = None, residual_std: Annotated[float, at_least(0)] | None = None, bias: bool = True,
    dtype: type = np.float32,
) -> MultiHeadAttention:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt(d_model)), the output's of ``residual_std`` (default std).

    What a slot learns is put in by ``_replace(core=...)``.
    """
    check_heads("num_heads", num_heads, d_model)
    stds = (std, std, std, std if residual_std is None else residual_std)
    return MultiHeadAttention(*(init_linear(rng, d_model, d_model, std=s, bias=bias, dtype=dtype) for s in stds))


@trusted
def multi_head_attention_step(
    params: MultiHeadAttention, x: Float[Array, "... new d_model"], state: KeyValueCache | None, *, num_heads: int,
    bias: Float[Array, "... new seen"] | None = None, mask: Bool[Array, "... new seen"] | None = None,
    prepare: Callable = unprepared, core: Callable = causal_attention,
) -> tuple[Array, KeyValueCache]:  # fmt: skip
    """The outputs of a few new positions, given those before; ``state`` is None at the start.

    bias and mask, broadcastable to (..., heads, new, seen), are about the new positions and all seen so far.
    Returns out, shaped like x, and the state after them. Forward only.
    """
    query, key, value = (split_heads(linear(part, x)[0], num_heads) for part in params[:3])
    seen = positions_before(state)
    query, key = prepare(params.prepare, query, key, positions=np.arange(seen, seen + x.shape[-2]))[0]
    state = key_value_cache(state, key, value)
    heads, _ = core(params.core, query, state.keys, state.values, bias, mask=mask)
    return linear(params.output, merge_heads(heads))[0], state


@concept(
    title="Multi-head attention",
    source="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2",
    example=lambda rng: _example(rng),
    roles=("mixer",),
    rejects=[bad(num_heads=3), bad(mask=np.ones((5, 2, 3, 3), bool)), bad(bias=np.ones((3, 4)))],
    step=multi_head_attention_step,
)
def multi_head_attention(
    params: MultiHeadAttention,
    x: Float[Array, "... positions d_model"],
    bias: Float[Array, "*#scores #positions #positions"] | None = None,
    *,
    num_heads: Annotated[int, at_least(1)],
    mask: Bool[Array, "*#scores #positions #positions"] | None = None,
    prepare: Callable = unprepared,
    core: Callable = causal_attention,
) -> tuple[Array, Backward]:
    """Every position gathers from the positions that it may see, in num_heads ways.

    bias is added to the scores, mask is True where a query may see a key: both broadcast to (..., heads, queries, keys).
    prepare(params.prepare, query, key, positions=...) -> (query, key), backward (see attention/prepare) and
    core(params.core, query, key, value, bias, mask=mask) -> heads, backward (see attention/core) work on
    (..., heads, positions, d_head).
    Returns out, shaped like x, and backward: dout -> MultiHeadAttention, dx, dbias (None without a bias).
    Raises ValueError when num_heads does not divide the projections, or mask or bias do not fit the scores.
    """
    for projection in (params.query, params.value):
        check_heads("num_heads", num_heads, projection.weight.shape[1])
    check_per_head("params.core", params.core, num_heads)
    for argument, array in (("bias", bias), ("mask", mask)):
        check_scores(argument, array, (*x.shape[:-2], num_heads, x.shape[-2], x.shape[-2]))

    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, x)
    value, value_backward = linear(params.value, x)
    query, key, value = (split_heads(part, num_heads) for part in (query, key, value))  # (..., heads, positions, d)  (1)
    (query, key), prepare_backward = prepare(params.prepare, query, key, positions=None)  # (2)
    heads, core_backward = core(params.core, query, key, value, bias, mask=mask)  # (3)
    out, output_backward = linear(params.output, merge_heads(heads))  # (4)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dheads = split_heads(dmerged, num_heads)             # (5)
        dcore, dquery, dkey, dvalue, dbias = core_backward(dheads)  # (6)
        dprepare, dquery, dkey = prepare_backward((dquery, dkey))  # (7)
        dparams_query, dx_query = query_backward(merge_heads(dquery))
        dparams_key, dx_key = key_backward(merge_heads(dkey))
        dparams_value, dx_value = value_backward(merge_heads(dvalue))
        dparams = MultiHeadAttention(dparams_query, dparams_key, dparams_value, doutput, dprepare, dcore)  # (8)
        dx = dx_query + dx_key + dx_value                    # x is read three times: three terms  (9)
        return dparams, dx, dbias

    return out, backward


def _example(rng: np.random.Generator):
    shapes = (6, 4), (6, 4), (6, 2), (2, 6)
    params = MultiHeadAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes))
    return example(params, rng.normal(size=(2, 3, 6)), rng.normal(size=(1, 2, 3, 3)), num_heads=2, mask=rng.random((2, 1, 3, 3)) < 0.8)
