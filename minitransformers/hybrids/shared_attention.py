"""Shared attention: one Transformer block that a stack of recurrences calls again and again, each time a little differently.

Attention's parameters are paid once however often it is called; its time and its cache are paid at every call. It reads the
stream beside the embeddings, so a late call still knows the words themselves. What is a call's own is a linear map of its
result and, in Zamba2, a low-rank change A B of the shared weights. Sources: Glorioso et al. 2024 (Zamba), arXiv:2405.16712,
section 2, eq. 6; Glorioso et al. 2024 (Zamba2), arXiv:2411.15242, section 2; the scale and the order of the parts are those
of the published code. RMS is rms_norm, a star the backward of what it stands on.

    joined = [x, embedded]                                   (1)
    normed = RMS(joined)                                     (2)
    W_c = W + A_c B_c, for query, key and value and for [gate, up]   (3)
    mixed = attention of normed through W_c, scores scaled by (d_head / 2)^(-1/2)   (4)
    inner = RMS(mixed)                                       (5)
    worked = gated feed-forward of inner through W_c         (6)
    out = worked W_call                                      (7)
    dworked = dout W_call^T, and dW_call                     (8)
    dmixed = RMS*(feed-forward*(dworked))                    (9)
    djoined = RMS*(attention*(dmixed))                       (10)
    dW = dW_c, dA_c = dW_c B_c^T, dB_c = A_c^T dW_c          (11)
    dx, dembedded = the two halves of djoined                (12)

There is no residual inside: the output reaches the stream through the mixer that reads it (see zamba).
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.cache import KeyValueCache
from minitransformers.attention.core import causal_attention
from minitransformers.attention.heads import check_heads
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention, multi_head_attention_step
from minitransformers.attention.prepare import unprepared
from minitransformers.basics.gated_feed_forward import GatedFeedForward, gated_feed_forward
from minitransformers.basics.gelu import gelu_exact
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, slot, trusted
from minitransformers.norms.rms_norm import RmsNorm, init_rms_norm, rms_norm


class SharedAttention(NamedTuple):
    """What all calls share: attention from twice the model's width down to its width, and a gated feed-forward network.

    prepare is what the slot of that name learns, None for nothing.
    """

    attention_norm: Annotated[RmsNorm, "d_joined"]
    query: Annotated[Linear, "d_joined d_heads"]
    key: Annotated[Linear, "d_joined d_heads"]
    value: Annotated[Linear, "d_joined d_heads"]
    mixed: Annotated[Linear, "d_heads d_model"]
    channel_norm: Annotated[RmsNorm, "d_model"]
    gate: Annotated[Linear, "d_model d_hidden"]
    up: Annotated[Linear, "d_model d_hidden"]
    down: Annotated[Linear, "d_hidden d_model"]
    prepare: Any = None


class LowRank(NamedTuple):
    """A change of a weight: the product of a map down to ``rank`` features and one up again."""

    down: Float[Array, "d_in rank"]
    up: Float[Array, "rank d_out"]


class SharedCall(NamedTuple):
    """What is one call's own: the map of its result, and changes of the shared weights or None (Zamba has none)."""

    output: Annotated[Linear, "d_model d_model"]
    query: Annotated[LowRank, "d_joined rank_query d_heads"] | None = None
    key: Annotated[LowRank, "d_joined rank_key d_heads"] | None = None
    value: Annotated[LowRank, "d_joined rank_value d_heads"] | None = None
    gate_up: Annotated[LowRank, "d_model rank_gate_up d_gate_up"] | None = None


@checked
def init_shared_attention(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    d_hidden: Annotated[int, at_least(1)] | None = None, std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> SharedAttention:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt(d_in)); d_hidden is 4 d_model unless given."""
    check_heads("num_heads", num_heads, 2 * d_model)
    hidden = 4 * d_model if d_hidden is None else d_hidden

    def fresh(d_in: int, d_out: int) -> Linear:
        return init_linear(rng, d_in, d_out, std=std, bias=False, dtype=dtype)

    return SharedAttention(
        attention_norm=init_rms_norm(rng, 2 * d_model, dtype=dtype), query=fresh(2 * d_model, 2 * d_model),
        key=fresh(2 * d_model, 2 * d_model), value=fresh(2 * d_model, 2 * d_model), mixed=fresh(2 * d_model, d_model),
        channel_norm=init_rms_norm(rng, d_model, dtype=dtype), gate=fresh(d_model, hidden), up=fresh(d_model, hidden), down=fresh(hidden, d_model),
    )  # fmt: skip


@checked
def init_shared_call(
    rng: np.random.Generator, params: SharedAttention, *, rank: Annotated[int, at_least(1)] | None = None,
    attention_rank: Annotated[int, at_least(1)] | None = None, std: Annotated[float, at_least(0)] | None = None,
) -> SharedCall:  # fmt: skip
    """A call's own map, and low-rank changes that are zero at first (up is zero) where ranks are given."""
    d_model, d_hidden = params.gate.weight.shape
    d_joined, dtype = 2 * d_model, params.gate.weight.dtype.type

    def change(d_in: int, d_out: int, rank: int | None) -> LowRank | None:
        if rank is None:
            return None
        return LowRank(init_linear(rng, d_in, rank, bias=False, dtype=dtype).weight, np.zeros((rank, d_out), dtype))

    query, key, value = (change(d_joined, d_joined, attention_rank) for _ in range(3))
    return SharedCall(init_linear(rng, d_model, d_model, std=std, bias=False, dtype=dtype), query, key, value, change(d_model, 2 * d_hidden, rank))


@concept(
    title="Shared attention (Zamba)",
    source="Glorioso et al. 2024, arXiv:2405.16712, section 2; arXiv:2411.15242, section 2",
    example=lambda rng: _example(rng),
    rejects=[
        bad(num_heads=4),
        bad("call.gate_up", call=SharedCall(Linear(np.ones((3, 3)), None), gate_up=LowRank(np.ones((3, 2)), np.ones((2, 9))))),
    ],
)  # fmt: skip
def shared_attention(
    params: SharedAttention, call: SharedCall, x: Float[Array, "*batch positions d_model"], embedded: Float[Array, "*batch positions d_model"],
    *, num_heads: Annotated[int, at_least(1)], prepare: Callable = unprepared,
) -> tuple[Array, Backward]:  # fmt: skip
    """The output of the shared block at one call, from the stream x and the embeddings that the stack began with; causal.

    prepare is that of multi_head_attention.
    Returns out, shaped like x, and backward: dout -> SharedAttention, SharedCall, dx, dembedded. Where a block is called
    several times, its gradient is the sum of the calls', and so is that of the embeddings.
    Raises ValueError when num_heads does not divide twice the features, or a change does not fit its weight.
    """
    _check_widths(params, call, x.shape[-1])
    joined = np.concatenate([x, embedded], axis=-1)          # (..., positions, 2 d_model)  (1)
    normed, attention_norm_backward = rms_norm(params.attention_norm, joined)  # (2)
    attention, channel = _for_call(params, call)             # (3)
    core = _core(x.shape[-1], num_heads)
    mixed, attention_backward = multi_head_attention(attention, normed, num_heads=num_heads, prepare=prepare, core=core)  # (4)
    inner, channel_norm_backward = rms_norm(params.channel_norm, mixed)  # (..., positions, d_model)  (5)
    worked, channel_backward = gated_feed_forward(channel, inner, activation=slot(gelu_exact))  # (6)
    out, output_backward = linear(call.output, worked)       # (7)

    def backward(dout):
        doutput, dworked = output_backward(dout)             # (8)
        dchannel, dinner = channel_backward(dworked)
        dchannel_norm, dmixed = channel_norm_backward(dinner)  # (9)
        dattention, dnormed, _ = attention_backward(dmixed)
        dattention_norm, djoined = attention_norm_backward(dnormed)  # (10)
        dquery, dkey, dvalue, dmixed_map, dprepare, _ = dattention
        dgate_up = np.concatenate([dchannel.gate.weight, dchannel.up.weight], axis=-1)
        dcall = SharedCall(
            doutput, _dchange(dquery.weight, call.query), _dchange(dkey.weight, call.key), _dchange(dvalue.weight, call.value),
            _dchange(dgate_up, call.gate_up),
        )  # fmt: skip
        dx, dembedded = np.split(djoined, 2, axis=-1)        # (12)
        dparams = SharedAttention(
            dattention_norm, dquery, dkey, dvalue, dmixed_map, dchannel_norm, dchannel.gate, dchannel.up, dchannel.down, dprepare
        )
        return dparams, dcall, dx, dembedded

    return out, backward


@trusted
def shared_attention_step(
    params: SharedAttention, call: SharedCall, x: Array, embedded: Array, state: KeyValueCache | None, *, num_heads: int,
    prepare: Callable = unprepared,
) -> tuple[Array, KeyValueCache]:  # fmt: skip
    """The output of one call at a few new positions, given the call's own cache of those before; None at the start."""
    attention, channel = _for_call(params, call)
    normed, _ = rms_norm(params.attention_norm, np.concatenate([x, embedded], axis=-1))
    core = _core(x.shape[-1], num_heads)
    mixed, state = multi_head_attention_step(attention, normed, state, num_heads=num_heads, prepare=prepare, core=core)
    worked, _ = gated_feed_forward(channel, rms_norm(params.channel_norm, mixed)[0], activation=slot(gelu_exact))
    return linear(call.output, worked)[0], state


def _core(d_model: int, num_heads: int) -> Callable:
    """Heads are 2 d_model / num_heads wide, and scores are scaled as if they were half as wide."""
    return partial(causal_attention, scale=(d_model / num_heads) ** -0.5)


def _for_call(params: SharedAttention, call: SharedCall) -> tuple[MultiHeadAttention, GatedFeedForward]:
    """The shared weights with the call's changes: of the size of the weights, whatever the length of the text."""
    query, key, value = (
        shared._replace(weight=_changed(shared.weight, change))
        for shared, change in ((params.query, call.query), (params.key, call.key), (params.value, call.value))
    )
    gate, up = np.split(_changed(np.concatenate([params.gate.weight, params.up.weight], axis=-1), call.gate_up), 2, axis=-1)
    channel = GatedFeedForward(params.gate._replace(weight=gate), params.up._replace(weight=up), params.down)
    return MultiHeadAttention(query, key, value, params.mixed, params.prepare), channel


def _changed(weight: Array, change: LowRank | None) -> Array:
    return weight if change is None else weight + change.down @ change.up  # (3)


def _dchange(dweight: Array, change: LowRank | None) -> LowRank | None:
    return None if change is None else LowRank(dweight @ change.up.T, change.down.T @ dweight)  # (11)


def _check_widths(params: SharedAttention, call: SharedCall, d_model: int) -> None:
    """What the signature cannot say: a width that is twice another."""
    if params.query.weight.shape[0] != 2 * d_model:
        raise invalid("params.query.weight", got=f"{params.query.weight.shape[0]} rows", wants=f"twice the model's {d_model} features")
    if call.gate_up is not None and call.gate_up.up.shape[1] != 2 * params.gate.weight.shape[1]:
        wants = f"those of gate and up, {2 * params.gate.weight.shape[1]}"
        raise invalid("call.gate_up.up", got=f"{call.gate_up.up.shape[1]} columns", wants=wants)


def _example(rng: np.random.Generator):
    params = init_shared_attention(rng, 3, num_heads=2, d_hidden=5, dtype=np.float64)
    call = init_shared_call(rng, params, rank=2, attention_rank=1)
    changes = {name: change._replace(up=rng.normal(size=change.up.shape)) for name, change in call._asdict().items() if name != "output"}
    return example(params, call._replace(**changes), rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 3)), num_heads=2)
