"""RWKV-4 time mixing: attention without queries, whose past is a handful of numbers a channel however long the text.

Keys weigh values, the past fades, and in the place of a query stands a gate, the receptance: a position cannot choose whom it
reads, it can only open or close each channel. That is the price of a state that never grows. Time O(positions d_model^2), all of
it in the projections. Source: Peng et al. 2023, arXiv:2305.13048, section 3.1, eq. 11 to 17. T is token_shift, a star the backward
of what it stands on; rates are stored as logarithms, so that they stay above 0.

    r_in, k_in, v_in = T(mix_r, x), T(mix_k, x), T(mix_v, x) (1)
    receptance = sigmoid(r_in W_r)                           (2)
    key, value = k_in W_k, v_in W_v                          (3)
    decay = exp(log_decay)                                   (4)
    mean = WKV(decay, bonus, key, value)                     (5)
    out = (receptance mean) W_o                              (6)
    dgated, dW_o = (6)*(dout)                                (7)
    dmean = receptance dgated, dreceptance = mean dgated     (8)
    ddecay, dbonus, dkey, dvalue = WKV*(dmean)               (9)
    dlog_decay = decay ddecay                                (10)
    dr_in, dk_in, dv_in and the gradients of W_r, W_k, W_v = (2)* and (3)*   (11)
    dx = sum of T*(dr_in), T*(dk_in), T*(dv_in), which give the gradients of the mixes too   (12)
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.sigmoid import sigmoid
from minitransformers.foundation import Backward, at_least, checked, concept, example, invalid, trusted
from minitransformers.foundation.ranges import log_rate
from minitransformers.linear_attention.token_shift import token_shift
from minitransformers.linear_attention.wkv import WkvState, empty_past
from minitransformers.linear_attention.wkv_chunked import wkv_chunked


class Rwkv(NamedTuple):
    """What each of the three reads of the position before, their projections, the rates and bonuses of the channels, and back."""

    receptance_mix: Float[Array, "d_model"]
    key_mix: Float[Array, "d_model"]
    value_mix: Float[Array, "d_model"]
    receptance: Annotated[Linear, "d_model channels"]
    key: Annotated[Linear, "d_model channels"]
    value: Annotated[Linear, "d_model channels"]
    log_decay: Annotated[Float[Array, "channels"], log_rate]
    bonus: Float[Array, "channels"]
    output: Annotated[Linear, "channels d_model"]


class RwkvState(NamedTuple):
    """What is kept of the past: the last position, and the state of WKV."""

    past: Float[Array, "*batch d_model"]
    wkv: WkvState


@checked
def init_rwkv(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, std: Annotated[float, at_least(0)] | None = None,
    residual_std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> Rwkv:  # fmt: skip
    """Maps without bias of deviation ``std`` (default 1/sqrt(d_model)), the output's of ``residual_std`` (default std).

    Rates from exp(-5) to exp(3), bonuses about log 0.3 and mixes spread over the channels: as the authors start a first layer. Theirs
    of later layers differ by their depth, which a layer here does not know.
    """
    place = np.arange(d_model) / max(d_model - 1, 1)
    mix = np.arange(d_model) / d_model
    zigzag = ((np.arange(d_model) + 1) % 3 - 1) * 0.5
    stds = (std, std, std, std if residual_std is None else residual_std)
    receptance, key, value, output = (init_linear(rng, d_model, d_model, std=s, bias=False, dtype=dtype) for s in stds)
    return Rwkv(
        receptance_mix=(mix**0.5).astype(dtype), key_mix=mix.astype(dtype), value_mix=mix.astype(dtype),
        receptance=receptance, key=key, value=value,
        log_decay=(8 * place**0.7 - 5).astype(dtype), bonus=(np.log(0.3) + zigzag).astype(dtype), output=output,
    )  # fmt: skip


def _forward(params: Rwkv, x: Array, state: RwkvState | None, *, core: Callable):
    """One forward for both: the whole text starts from nothing, a step from what the past left. Returns out, WKV's state, backward."""
    past, before = (None, None) if state is None else state
    r_in, r_shift = token_shift(params.receptance_mix, x, past)
    k_in, k_shift = token_shift(params.key_mix, x, past)
    v_in, v_shift = token_shift(params.value_mix, x, past)   # (1)
    gate, gate_backward = linear(params.receptance, r_in)
    receptance, sigmoid_backward = sigmoid(gate)             # (2)
    key, key_backward = linear(params.key, k_in)
    value, value_backward = linear(params.value, v_in)       # (3)
    decay = np.exp(params.log_decay)                         # (4)
    (mean, last), core_backward = core(decay, params.bonus, key, value, before)  # (5)
    out, out_backward = linear(params.output, receptance * mean)  # (6)

    def backward(dout):
        doutput, dgated = out_backward(dout)                 # (7)
        dmean, dreceptance = receptance * dgated, mean * dgated  # (8)
        ddecay, dbonus, dkey, dvalue, _ = core_backward((dmean, None))  # (9)
        dlog_decay = decay * ddecay                          # (10)
        dW_r, dr_in = gate_backward(sigmoid_backward(dreceptance))
        dW_k, dk_in = key_backward(dkey)
        dW_v, dv_in = value_backward(dvalue)                 # (11)
        dmix_r, dx_r, _ = r_shift(dr_in)
        dmix_k, dx_k, _ = k_shift(dk_in)
        dmix_v, dx_v, _ = v_shift(dv_in)
        dx = dx_r + dx_k + dx_v                              # x is shifted three times: three terms  (12)
        return Rwkv(dmix_r, dmix_k, dmix_v, dW_r, dW_k, dW_v, dlog_decay, dbonus, doutput), dx

    return out, last, backward


@trusted
def rwkv_step(
    params: Rwkv, x: Float[Array, "*batch new d_model"], state: RwkvState | None, *, core: Callable = wkv_chunked
) -> tuple[Array, RwkvState]:
    """The outputs at a few new positions, given those before; ``state`` is None at the start, and of the same size ever after.

    Returns out, shaped like x, and the state after them. Forward only.
    Raises ValueError where the state is another model's or another batch's.
    """
    batch, channels = x.shape[:-2], params.bonus.shape[0]
    if state is None:
        state = RwkvState(np.zeros((*batch, x.shape[-1]), x.dtype), empty_past(np.empty((*batch, 1, channels), x.dtype)))
    for name, held, width in (("past", state.past, x.shape[-1]), ("wkv.mean", state.wkv.mean, channels)):
        if held.shape != (*batch, width):
            raise invalid(f"state.{name}", got=f"shape {held.shape}", wants=f"{(*batch, width)}, as the model and x have it")
    out, last, _ = _forward(params, x, state, core=core)
    return out, RwkvState(x[..., -1, :].copy(), last)


@concept(
    title="RWKV-4 time mixing",
    source="Peng et al. 2023, arXiv:2305.13048, section 3.1",
    example=lambda rng: _example(rng),
    roles=("mixer",),
    step=rwkv_step,
)
def rwkv(params: Rwkv, x: Float[Array, "... positions d_model"], *, core: Callable = wkv_chunked) -> tuple[Array, Backward]:
    """Mix positions by fading means of values; no position sees a later one.

    core(decay, bonus, key, value, state) -> (mean, state), backward is the recurrence, wkv or wkv_chunked: both give the same.
    Returns out, shaped like x, and backward: dout -> Rwkv of gradients, dx.
    """
    out, _, backward = _forward(params, x, None, core=core)
    return out, backward


def _example(rng: np.random.Generator):
    def normal(*shape):
        return rng.normal(size=shape) / 20                   # small: a check takes each a thousand times larger

    mix_r, mix_k, mix_v = rng.uniform(size=(3, 3))
    W_r, W_k, W_v = (Linear(normal(3, 4), None) for _ in range(3))
    log_decay = rng.uniform(-0.01, 0.01, size=4)
    params = Rwkv(mix_r, mix_k, mix_v, W_r, W_k, W_v, log_decay, normal(4), Linear(normal(4, 3), None))
    return example(params, rng.normal(size=(2, 5, 3)))
