"""Cross-attention: the positions of one sequence gather from those of another, the memory.

The queries come from x (a decoder), keys and values from the memory (what an encoder made, an image, retrieved text),
which may be longer and of another width. Nothing is causal between two sequences; a mask hides padding of the memory.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3. P is the prepare, A the core, as in multi_head_attention, a star
the backward of what it stands on.

    query = split(x W_q + b_q)                               (1)
    key, value = split(memory W_k + b_k), split(memory W_v + b_v)   (2)
    query, key = P(query, key)                               (3)
    heads = A(query, key, value, bias), under the mask       (4)
    out = merge(heads) W_o + b_o                             (5)
    dheads = split(dout W_o^T), dW_o = merge(heads)^T dout, db_o = sum of dout   (6)
    dquery, dkey, dvalue, dbias = A*(dheads)                 (7)
    dquery, dkey = P*(dquery, dkey)                          (8)
    dx = merge(dquery) W_q^T, dW_q = x^T merge(dquery), db_q = sum of merge(dquery)   (9)
    dW_i = memory^T merge(di), db_i = sum of merge(di), for i = key, value   (10)
    dmemory = merge(dkey) W_k^T + merge(dvalue) W_v^T        (11)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.heads import check_heads, check_per_head, check_scores, merge_heads, split_heads
from minitransformers.attention.prepare import unprepared
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, trusted


class CrossAttention(NamedTuple):
    """Projections of x to queries, of the memory to keys and values, and back to x's width; what the slots learn."""

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_memory d_heads"]
    value: Annotated[Linear, "d_memory d_values"]
    output: Annotated[Linear, "d_values d_model"]
    prepare: Any = None
    core: Any = None


@checked
def init_cross_attention(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    d_memory: Annotated[int, at_least(1)] | None = None, std: Annotated[float, at_least(0)] | None = None,
    residual_std: Annotated[float, at_least(0)] | None = None, bias: bool = True, dtype: type = np.float32,
) -> CrossAttention:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt of the width they read), the output's of ``residual_std``.

    d_memory is the memory's width (default d_model).
    """
    check_heads("num_heads", num_heads, d_model)
    d_memory = d_model if d_memory is None else d_memory
    widths = ((d_model, std), (d_memory, std), (d_memory, std), (d_model, std if residual_std is None else residual_std))
    return CrossAttention(*(init_linear(rng, d, d_model, std=s, bias=bias, dtype=dtype) for d, s in widths))


class CrossAttentionState(NamedTuple):
    """The memory's keys and values, made once, and how many positions have read them."""

    key: Float[Array, "... heads keys d_head"]
    value: Float[Array, "... heads keys d_value"]
    length: int


@trusted
def cross_attention_step(
    params: CrossAttention, x: Float[Array, "... new d_model"], state: CrossAttentionState | None, *, num_heads: int,
    memory: Float[Array, "... keys d_memory"] | None = None, mask: Bool[Array, "... new keys"] | None = None,
    prepare: Callable = unprepared, core: Callable = softmax_attention,
) -> tuple[Array, CrossAttentionState]:  # fmt: skip
    """The outputs of a few new positions; ``state`` is None at the start, and then the memory is needed.

    Returns out, shaped like x, and the state: read at every step, never grown. Forward only.
    """
    if state is None:
        if memory is None:
            raise invalid("memory", got=None, wants="what the queries read, at the first step")
        key, value = (split_heads(linear(part, memory)[0], num_heads) for part in (params.key, params.value))
        state = CrossAttentionState(prepare(params.prepare, key, key, positions=None)[0][1], value, 0)
    query = split_heads(linear(params.query, x)[0], num_heads)
    positions = np.arange(state.length, state.length + x.shape[-2])
    query = prepare(params.prepare, query, query, positions=positions)[0][0]  # the keys have had theirs
    heads, _ = core(params.core, query, state.key, state.value, mask=mask)
    return linear(params.output, merge_heads(heads))[0], state._replace(length=state.length + x.shape[-2])


@concept(
    title="Cross-attention",
    source="Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3",
    example=lambda rng: _example(rng),
    rejects=[bad(num_heads=3), bad(mask=np.ones((3, 1, 1, 4), bool)), bad(bias=np.ones((1, 2, 4, 3)))],
    step=cross_attention_step,
)
def cross_attention(
    params: CrossAttention,
    x: Float[Array, "*batch queries d_model"],
    memory: Float[Array, "*batch keys d_memory"],
    bias: Float[Array, "*#scores #queries #keys"] | None = None,
    *,
    num_heads: Annotated[int, at_least(1)],
    mask: Bool[Array, "*#scores #queries #keys"] | None = None,
    prepare: Callable = unprepared,
    core: Callable = softmax_attention,
) -> tuple[Array, Backward]:
    """Every position of x gathers from the positions of the memory, in num_heads ways.

    bias is added to the scores, mask is True where a query may see a key (False on padding of the memory): both
    broadcast to (..., heads, queries, keys). prepare and core are those of multi_head_attention.
    Returns out, shaped like x, and backward: dout -> CrossAttention, dx, dmemory, dbias (None without a bias).
    Where several layers read one memory, its gradient is the sum of theirs.
    Raises ValueError when num_heads does not divide the projections, or mask or bias do not fit the scores.
    """
    for projection in (params.query, params.value):
        check_heads("num_heads", num_heads, projection.weight.shape[1])
    check_per_head("params.core", params.core, num_heads)
    for argument, array in (("bias", bias), ("mask", mask)):
        check_scores(argument, array, (*x.shape[:-2], num_heads, x.shape[-2], memory.shape[-2]))

    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, memory)
    value, value_backward = linear(params.value, memory)
    query = split_heads(query, num_heads)                    # (..., heads, queries, d_head)  (1)
    key, value = split_heads(key, num_heads), split_heads(value, num_heads)  # (..., heads, keys, d)  (2)
    (query, key), prepare_backward = prepare(params.prepare, query, key, positions=None)  # (3)
    heads, core_backward = core(params.core, query, key, value, bias, mask=mask)  # (4)
    out, output_backward = linear(params.output, merge_heads(heads))  # (5)

    def backward(dout):
        doutput, dmerged = output_backward(dout)
        dheads = split_heads(dmerged, num_heads)             # (6)
        dcore, dquery, dkey, dvalue, dbias = core_backward(dheads)  # (7)
        dprepare, dquery, dkey = prepare_backward((dquery, dkey))  # (8)
        dparams_query, dx = query_backward(merge_heads(dquery))  # (9)
        dparams_key, dmemory_key = key_backward(merge_heads(dkey))
        dparams_value, dmemory_value = value_backward(merge_heads(dvalue))  # (10)
        dmemory = dmemory_key + dmemory_value                # the memory is read twice: two terms  (11)
        return CrossAttention(dparams_query, dparams_key, dparams_value, doutput, dprepare, dcore), dx, dmemory, dbias

    return out, backward


def _example(rng: np.random.Generator):
    shapes = (6, 4), (5, 4), (5, 2), (2, 6)
    params = CrossAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes))
    arrays = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 5)), rng.normal(size=(1, 2, 3, 4))
    return example(params, *arrays, num_heads=2, mask=rng.random((2, 1, 1, 4)) < 0.8)
