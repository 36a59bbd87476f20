"""Gated linear attention: linear attention that learns what to forget, feature by feature, from the input.

Queries, keys and values as in attention; beside them a gate for each feature of the keys, which says how much of that row of the
state is left. The gate comes through a thin map, and as a root of a sigmoid it starts near 1: most is kept, until training says
otherwise. A norm for each head and a second gate, on what comes out, are RetNet's. Source: Yang, Wang, Shen, Panda and Kim 2023,
arXiv:2312.06635, section 4.4. Differs from the authors' later code, which takes RMSNorm for the paper's layer norm; gain and bias are
shared by the heads. What moves the values (``mix``: the gated recurrence in chunks) is a slot. split cuts the last axis into heads, merge
undoes it. R is the mix, N the norm over the features of a head, a star the backward of what it stands on.

    query, key, value = split(x W_q), split(x W_k), split(x W_v)         (1)
    logits = (x W_low) W_decay + b_decay                                 (2)
    log_decay = split(-softplus(-logits) / temperature), the logarithm of sigmoid(logits)^(1 / temperature)   (3)
    heads, state = R(query, key, value, log_decay)                       (4)
    normed = N(heads)                                                    (5)
    gate = silu(x W_g + b_g)                                             (6)
    out = (gate o merge(normed)) W_o                                     (7)
    dmixed = dout W_o^T                                                  (8)
    dheads = N*(split(dmixed o gate))                                    (9)
    dquery, dkey, dvalue, dlog_decay = R*(dheads)                        (10)
    dlogits = merge(dlog_decay) sigmoid(-logits) / temperature           (11)
    dlow = dlogits W_decay^T                                             (12)
    dgate = silu*(dmixed o merge(normed))                                (13)
    dx = merge(dquery) W_q^T + merge(dkey) W_k^T + merge(dvalue) W_v^T + dlow W_low^T + dgate W_g^T   (14)

Each map gives its weights their gradients on the way, as in ``linear``. A text starts from no state, and the last state is used by
nobody: a step does (4) with the state of the step before. No positions are added or turned: order is in the decays.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads, merge_heads, split_heads
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.silu import silu
from minitransformers.basics.softplus import softplus
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive, trusted
from minitransformers.linear_attention.gated_recurrence_chunked import gated_recurrence_chunked
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm


class GatedLinearAttention(NamedTuple):
    """Maps to queries, keys and values of all heads side by side, through low to the decays, to the gate, and back; the norm of a head."""

    query: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_heads"]
    value: Annotated[Linear, "d_model d_values"]
    low: Annotated[Linear, "d_model rank"]
    decay: Annotated[Linear, "rank d_heads"]
    gate: Annotated[Linear, "d_model d_values"]
    norm: Annotated[LayerNorm, "d_value"]
    output: Annotated[Linear, "d_values d_model"]


@checked
def init_gated_linear_attention(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    d_keys: Annotated[int, at_least(1)] | None = None, rank: Annotated[int, at_least(1)] = 16,
    std: Annotated[float, at_least(0)] | None = None, residual_std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> GatedLinearAttention:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt(d_in)), the output's of ``residual_std`` (default std), and zero biases.

    Keys of all heads together are d_keys wide (default half of d_model), values as wide as the model. Decays start near
    sigmoid(0)^(1 / temperature): 0.96 for a temperature of 16. Only decays and gate have a bias.
    Raises ValueError when num_heads does not divide d_keys or d_model.
    """
    d_keys = max(d_model // 2, 1) if d_keys is None else d_keys
    for width in (d_keys, d_model):
        check_heads("num_heads", num_heads, width)
    plain, biased = (partial(init_linear, rng, std=std, bias=bias, dtype=dtype) for bias in (False, True))
    return GatedLinearAttention(
        query=plain(d_model, d_keys), key=plain(d_model, d_keys), value=plain(d_model, d_model), low=plain(d_model, rank),
        decay=biased(rank, d_keys), gate=biased(d_model, d_model), norm=init_layer_norm(rng, d_model // num_heads, dtype=dtype),
        output=init_linear(rng, d_model, d_model, std=std if residual_std is None else residual_std, bias=False, dtype=dtype),
    )  # fmt: skip


@trusted
def gated_linear_attention_step(
    params: GatedLinearAttention, x: Float[Array, "... new d_model"], state: Any, *, num_heads: int,
    temperature: float = 16.0, mix: Callable = gated_recurrence_chunked, eps: float = 1e-5,
) -> tuple[Array, Any]:  # fmt: skip
    """The outputs of a few new positions, given the state after those before; ``state`` is None at the start.

    Returns out, shaped like x, and the state after them, (..., heads, d_head, d_value) always; nothing is written to. Forward only.
    Raises ValueError where the state is that of another model or batch.
    """
    out, state, _ = _forward(params, x, state, num_heads=num_heads, temperature=temperature, mix=mix, eps=eps)
    return out, state


@concept(
    title="Gated linear attention",
    source="Yang, Wang, Shen, Panda and Kim 2023, arXiv:2312.06635, section 4.4",
    example=lambda rng: _example(rng),
    roles=("mixer",),
    rejects=[bad(num_heads=3), bad(num_heads=4)],
    step=gated_linear_attention_step,
)
def gated_linear_attention(
    params: GatedLinearAttention,
    x: Float[Array, "... positions d_model"],
    *,
    num_heads: Annotated[int, at_least(1)],
    temperature: Annotated[float, positive] = 16.0,
    mix: Callable = gated_recurrence_chunked,
    eps: Annotated[float, positive] = 1e-5,
) -> tuple[Array, Backward]:
    """Every position gathers from those before it, through a state of which the input says what is kept.

    temperature is the root that is taken of the sigmoid: the larger, the slower a gate that is half open lets a row fade.
    mix(query, key, value, log_decay, state) -> (heads, state), backward is the recurrence, in either form; eps is the norm's.
    Returns out, shaped like x, and backward: dout -> GatedLinearAttention, dx.
    Raises ValueError when num_heads does not divide the projections, or leaves a head a single value feature.
    """
    out, _, backward = _forward(params, x, None, num_heads=num_heads, temperature=temperature, mix=mix, eps=eps)
    return out, backward


def _forward(
    params: GatedLinearAttention, x: Array, before: Any, *, num_heads: int, temperature: float, mix: Callable, eps: float
):  # fmt: skip
    """One forward for both: the whole text starts from nothing, a step from the state that the past left.

    Returns out, the last state, and backward.
    """
    for projection in (params.query, params.value):
        check_heads("num_heads", num_heads, projection.weight.shape[1])
    if params.value.weight.shape[1] == num_heads:
        raise invalid("num_heads", got=num_heads, wants="two value features a head or more: one alone equals its mean, and nothing is left")

    query, query_backward = linear(params.query, x)
    key, key_backward = linear(params.key, x)
    value, value_backward = linear(params.value, x)          # (1)
    low, low_backward = linear(params.low, x)
    logits, decay_backward = linear(params.decay, low)       # (2)
    shut, softplus_backward = softplus(-logits)
    log_decay = shut / -temperature                          # (3)
    inputs = (split_heads(part, num_heads) for part in (query, key, value, log_decay))  # (..., heads, positions, d)
    (heads, after), mix_backward = mix(*inputs, before)      # (4)
    normed, norm_backward = layer_norm(params.norm, heads, eps=eps)  # (5)
    merged = merge_heads(normed)
    linear_gate, gate_backward = linear(params.gate, x)
    gate, silu_backward = silu(linear_gate)                  # (6)
    out, output_backward = linear(params.output, gate * merged)  # (7)

    def backward(dout):
        doutput, dmixed = output_backward(dout)              # (8)
        dnorm, dheads = norm_backward(split_heads(dmixed * gate, num_heads))  # (9)
        *dinputs, _ = mix_backward((dheads, None))           # (10)
        dquery, dkey, dvalue, dlog_decay = (merge_heads(part) for part in dinputs)
        dlogits = softplus_backward(dlog_decay / temperature)  # both signs of (3) cancel  (11)
        ddecay, dlow = decay_backward(dlogits)               # (12)
        dgate, dx = gate_backward(silu_backward(dmixed * merged))  # (13)
        dparams_query, dx_query = query_backward(dquery)
        dparams_key, dx_key = key_backward(dkey)
        dparams_value, dx_value = value_backward(dvalue)
        dparams_low, dx_low = low_backward(dlow)
        dx = dx + dx_query + dx_key + dx_value + dx_low      # x is read five times: five terms  (14)
        dparams = GatedLinearAttention(dparams_query, dparams_key, dparams_value, dparams_low, ddecay, dgate, dnorm, doutput)
        return dparams, dx

    return out, after, backward


def _example(rng: np.random.Generator):
    """Two heads of 2 key and 3 value features, two chunks and a rest."""

    def map_of(*shape):
        return Linear(rng.normal(size=shape) / 2, rng.normal(size=shape[1]))

    query, key, value, low, decay, gate = (map_of(*shape) for shape in ((5, 4), (5, 4), (5, 6), (5, 3), (3, 4), (5, 6)))
    params = GatedLinearAttention(query, key, value, low, decay, gate, LayerNorm(*rng.normal(size=(2, 3))), map_of(6, 5))
    mix = partial(gated_recurrence_chunked, chunk=2)
    return example(params, rng.normal(size=(2, 5, 5)), num_heads=2, temperature=2.0, mix=mix, eps=0.1)
