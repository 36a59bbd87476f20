"""Recurrent attention: the projections of multi-head attention around a recurrence, so that decoding needs no cache.

Queries, keys and values of several heads are made as ever; what moves the values is a recurrence, which carries what a head has
read in a state of fixed size. A step of decoding costs the same however long the text is. Source: Katharopoulos, Vyas, Pappas and
Fleuret 2020, arXiv:2006.16236, section 3.4; projections after Vaswani et al. 2017, arXiv:1706.03762. What is done to queries and
keys first (``prepare``) and what moves the values (``recurrence``: linear attention in chunks, unless another is put in) are slots.
split and merge are those of multi_head_attention. P is the prepare, R the recurrence, a star the backward of what it stands on.

    query, key, value = split(x W_q + b_q), split(x W_k + b_k), split(x W_v + b_v)   (1)
    query, key = P(query, key)                                                       (2)
    heads, state = R(query, key, value)                                              (3)
    out = merge(heads) W_o + b_o                                                     (4)
    dheads = split(dout W_o^T), dW_o = merge(heads)^T dout, db_o = sum of dout        (5)
    dquery, dkey, dvalue = R*(dheads)                                                (6)
    dquery, dkey = P*(dquery, dkey)                                                  (7)
    dW_i = x^T merge(di), db_i = sum of merge(di), for i = query, key, value          (8)
    dx = merge(dquery) W_q^T + merge(dkey) W_k^T + merge(dvalue) W_v^T               (9)

A text starts from no state, and the last state is used by nobody: a step does (3) with the state of the step before. A recurrence
is called ``recurrence(params, query, key, value, state=None) -> (heads, state), backward`` with ``backward((dheads, dstate)) ->
dparams, dquery, dkey, dvalue, dstate`` on (..., heads, positions, d_head). It looks back only, by its nature, and takes no mask.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads, check_per_head, merge_heads, split_heads
from minitransformers.attention.multi_head_attention import init_multi_head_attention
from minitransformers.attention.prepare import unprepared
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, trusted
from minitransformers.linear_attention.linear_attention_chunked import linear_attention_chunked


class RecurrentAttention(NamedTuple):
    """Projections to queries, keys and values of all heads side by side, and back; what the slots learn, None for nothing."""

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_heads"]
    value: Annotated[Linear, "d_model d_values"]
    output: Annotated[Linear, "d_values d_model"]
    prepare: Any = None
    recurrence: Any = None


class RecurrentAttentionState(NamedTuple):
    """What is kept of the past: the recurrence's state, and how many positions it has read."""

    state: Any
    length: int


@checked
def init_recurrent_attention(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    std: Annotated[float, at_least(0)] | None = None, residual_std: Annotated[float, at_least(0)] | None = None, bias: bool = True,
    dtype: type = np.float32,
) -> RecurrentAttention:  # fmt: skip
    """The projections of init_multi_head_attention. What a slot learns is put in by ``_replace(recurrence=...)``."""
    drawn = init_multi_head_attention(rng, d_model, num_heads=num_heads, std=std, residual_std=residual_std, bias=bias, dtype=dtype)
    return RecurrentAttention(drawn.query, drawn.key, drawn.value, drawn.output)


@trusted
def recurrent_attention_step(
    params: RecurrentAttention, x: Float[Array, "... new d_model"], state: RecurrentAttentionState | None, *, num_heads: int,
    prepare: Callable = unprepared, recurrence: Callable = linear_attention_chunked,
) -> tuple[Array, RecurrentAttentionState]:  # fmt: skip
    """The outputs of a few new positions, given the state after those before; ``state`` is None at the start.

    Returns out, shaped like x, and the state after them, of the same size; nothing is written to. Forward only.
    """
    query, key, value = (split_heads(linear(part, x)[0], num_heads) for part in params[:3])
    read, before = (0, None) if state is None else (state.length, state.state)
    length = read + x.shape[-2]
    query, key = prepare(params.prepare, query, key, positions=np.arange(read, length))[0]
    heads, after = recurrence(params.recurrence, query, key, value, before)[0]
    return linear(params.output, merge_heads(heads))[0], RecurrentAttentionState(after, length)


@concept(
    title="Recurrent attention",
    source="Katharopoulos, Vyas, Pappas and Fleuret 2020, arXiv:2006.16236, section 3.4",
    example=lambda rng: _example(rng),
    roles=("mixer",),
    rejects=[bad(num_heads=3)],
    step=recurrent_attention_step,
)
def recurrent_attention(
    params: RecurrentAttention,
    x: Float[Array, "... positions d_model"],
    *,
    num_heads: Annotated[int, at_least(1)],
    prepare: Callable = unprepared,
    recurrence: Callable = linear_attention_chunked,
) -> tuple[Array, Backward]:
    """Every position gathers from those before it, through a state of fixed size, in num_heads ways.

    prepare(params.prepare, query, key, positions=...) -> (query, key), backward (see attention/prepare) and
    recurrence(params.recurrence, query, key, value) -> (heads, state), backward work on (..., heads, positions, d_head).
    Returns out, shaped like x, and backward: dout -> RecurrentAttention, dx.
    Raises ValueError when num_heads does not divide the projections.
    """
    for projection in (params.query, params.value):
        check_heads("num_heads", num_heads, projection.weight.shape[1])
    check_per_head("params.recurrence", params.recurrence, num_heads)

    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, x)
    value, value_backward = linear(params.value, x)
    query, key, value = (split_heads(part, num_heads) for part in (query, key, value))  # (..., heads, positions, d)  (1)
    (query, key), prepare_backward = prepare(params.prepare, query, key, positions=None)  # (2)
    (heads, _), recurrence_backward = recurrence(params.recurrence, query, key, value)  # (3)
    out, output_backward = linear(params.output, merge_heads(heads))  # (4)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dheads = split_heads(dmerged, num_heads)             # (5)
        drecurrence, dquery, dkey, dvalue, _ = recurrence_backward((dheads, None))  # (6)
        dprepare, dquery, dkey = prepare_backward((dquery, dkey))  # (7)
        dparams_query, dx_query = query_backward(merge_heads(dquery))
        dparams_key, dx_key = key_backward(merge_heads(dkey))
        dparams_value, dx_value = value_backward(merge_heads(dvalue))
        dparams = RecurrentAttention(dparams_query, dparams_key, dparams_value, doutput, dprepare, drecurrence)  # (8)
        dx = dx_query + dx_key + dx_value                    # x is read three times: three terms  (9)
        return dparams, dx

    return out, backward


def _example(rng: np.random.Generator):
    shapes = (6, 4), (6, 4), (6, 2), (2, 6)
    params = RecurrentAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes))
    return example(params, rng.normal(size=(2, 3, 6)), num_heads=2)
