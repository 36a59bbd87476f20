"""RWKV-7 time mixing: a state whose rows fade as the input says, and from which each position takes what its key reads, feature by feature.

RWKV-4 keeps a mean for each channel; here a head keeps a matrix, and changes it by the rank-one recurrence. The direction that is taken away
(``removed``, from the key) and the key that is written (``kept``) are not the same, and the share that is taken away (``rate``) is a number
for each feature. Decays, rates and a gate on what comes out are made by thin maps. Every map reads its own mixture of the position and the one
before. Source: Peng et al. 2025, arXiv:2503.14456, time mixing. Differs from the paper: a layer knows nothing of the others, so that
values are not mixed with those of the first layer, as they are in all layers but that; directions shorter than 1e-6 stay short (1e-12
there). What moves the values (``mix``: the rank-one recurrence in chunks) is a slot. split cuts the last axis into heads, merge undoes it. T is
token_shift, U divides by the length of a head's features, R is the mix, N takes mean and deviation from a head's features, o multiplies
elements, a star is the backward of what it stands on.

    r_in, w_in, k_in, v_in, a_in, g_in = T(mix, x), with a mix for each              (1)
    receptance, key, value = r_in W_r, k_in W_k, v_in W_v                            (2)
    log_decay = -sigmoid(tanh(w_in A_w) B_w + b_w) / sqrt(e)                         (3)
    rate = sigmoid((a_in A_a) B_a + b_a)                                             (4)
    gate = sigmoid(g_in A_g) B_g                                                     (5)
    removed = U(split(removal o key))                                                (6)
    kept = key o (1 + blend o (rate - 1))                                            (7)
    heads, state = R(receptance, kept, value, log_decay, -removed, rate o removed)   (8)
    unit = N(heads), normed = gain o merge(unit) + bias                              (9)
    match = sum over a head's features of receptance o bonus o kept                  (10)
    mixed = normed + merge(match value)                                              (11)
    out = (gate o mixed) W_o                                                         (12)
    dmixed = gate o dout W_o^T, dgate = mixed o dout W_o^T                           (13)
    dheads = N*(gain o dmixed)                                                       (14)
    dmatch = sum over a head's features of dmixed o value                            (15)
    dreceptance, dkept, dvalue, dlog_decay, dread, dwrite = R*(dheads)               (16)
    dreceptance, dkept, dvalue += bonus o kept dmatch, bonus o receptance dmatch, match dmixed   (17)
    dscaled = U*(rate o dwrite - dread)                                              (18)
    drate = removed o dwrite + key o blend o dkept                                   (19)
    dkey = (1 + blend o (rate - 1)) o dkept + removal o dscaled                      (20)
    dlogits = -dlog_decay slope / sqrt(e), with the slope of the sigmoid; (4)* and (5)* likewise   (21)
    dr_in, ..., dg_in = what the maps hand back, dx = sum of T*(dr_in), ..., T*(dg_in)           (22)

Each map gives its weights their gradients on the way, as in ``linear``, and T* gives those of the mixes. A step does (1) with the last
position, and (8) with the state, that the step before has left.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.heads import check_heads, merge_heads, split_heads
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.sigmoid import sigmoid
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive, trusted
from minitransformers.foundation.trees import decays
from minitransformers.linear_attention.rank_one_recurrence_chunked import rank_one_recurrence_chunked
from minitransformers.linear_attention.token_shift import token_shift
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm
from minitransformers.norms.scale_norm import ScaleNorm, scale_norm

_READERS = ("receptance", "decay", "key", "value", "rate", "gate")
_FASTEST = float(np.exp(-0.5))                               # a row keeps exp(-0.61) = 0.545 of itself or more


class ThinMap(NamedTuple):
    """A map through few features: A, then B and a bias or None."""

    low: Annotated[Float[Array, "d_in rank"], decays]
    high: Annotated[Float[Array, "rank d_out"], decays]
    bias: Float[Array, "d_out"] | None


class Rwkv7(NamedTuple):
    """Six mixes with the position before, in the order r, w, k, v, a, g; the maps of (2) to (5) and back; what each channel learns.

    d_heads is the width of the keys of all heads side by side, d_values that of the values. norm has a gain and a bias for each channel.
    """

    mix: Float[Array, "six d_model"]
    receptance: Annotated[Linear, "d_model d_heads"]
    key: Annotated[Linear, "d_model d_heads"]
    value: Annotated[Linear, "d_model d_values"]
    decay: Annotated[ThinMap, "d_model decay_rank d_heads"]
    rate: Annotated[ThinMap, "d_model rate_rank d_heads"]
    gate: Annotated[ThinMap, "d_model gate_rank d_values"]
    removal: Float[Array, "d_heads"]
    blend: Float[Array, "d_heads"]
    bonus: Float[Array, "heads d_head"]
    norm: Annotated[LayerNorm, "d_values"]
    output: Annotated[Linear, "d_values d_model"]


class Rwkv7State(NamedTuple):
    """What is kept of the past: the last position, and the state of the recurrence."""

    past: Float[Array, "*batch d_model"]
    state: Float[Array, "*batch heads d_head d_value"]


@checked
def init_rwkv7(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    rank: Annotated[int, at_least(1)] | None = None, std: Annotated[float, at_least(0)] | None = None,
    residual_std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> Rwkv7:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt(d_model)), the key's of a tenth, the output's of ``residual_std`` (default std).

    rank is that of the maps to decays and rates, twice as much that to the gate (default 2.5 sqrt(d_model), at most d_model). Their first
    halves are zero, so that decays and rates start where their biases are; these, the mixes and what a channel learns are spread as
    the authors start a first layer. Raises ValueError when num_heads does not divide d_model.
    """
    check_heads("num_heads", num_heads, d_model)
    d_head = d_model // num_heads
    thin = min(d_model, round(2.5 * d_model**0.5)) if rank is None else rank
    place = np.arange(d_model) / max(d_model - 1, 1)
    within = np.tile(2 * np.arange(d_head) / max(d_head - 1, 1) - (d_head > 1), num_heads)  # from -1 to 1 in each head
    zigzag, share = within * np.abs(within), np.arange(d_model) / d_model
    std = d_model**-0.5 if std is None else std
    full = partial(init_linear, rng, d_model, d_model, std=std, bias=False, dtype=dtype)

    def through(rank, bias):
        high = 0.1 * d_model**-0.5 * rng.standard_normal((rank, d_model))
        return ThinMap(np.zeros((d_model, rank), dtype), high.astype(dtype), None if bias is None else bias.astype(dtype))

    return Rwkv7(
        mix=np.stack([share**power for power in (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)]).astype(dtype),
        receptance=full(), key=full(std=std / 10), value=full(), decay=through(thin, 6 * place - 5.5 + 2.5 * zigzag),
        rate=through(thin, 0.4 * place - 0.39 + 0.3 * zigzag), gate=through(2 * thin, None),
        removal=(0.76 - 0.1 * place).astype(dtype), blend=np.full(d_model, 1.02, dtype), bonus=np.full((num_heads, d_head), -0.04, dtype),
        norm=init_layer_norm(rng, d_model, dtype=dtype),
        output=full(std=std if residual_std is None else residual_std),
    )  # fmt: skip


@trusted
def rwkv7_step(
    params: Rwkv7, x: Float[Array, "*batch new d_model"], state: Rwkv7State | None, *, mix: Callable = rank_one_recurrence_chunked,
    eps: float = 64e-5,
) -> tuple[Array, Rwkv7State]:  # fmt: skip
    """The outputs at a few new positions, given those before; ``state`` is None at the start, and of the same size ever after.

    Returns out, shaped like x, and the state after them; nothing is written to. Forward only.
    Raises ValueError where the state is another model's or another batch's.
    """
    past, before = (None, None) if state is None else state
    if past is not None and past.shape != (wants := (*x.shape[:-2], x.shape[-1])):
        raise invalid("state.past", got=f"shape {past.shape}", wants=f"{wants}, as the model and x have it")
    out, after, _ = _forward(params, x, past, before, mix=mix, eps=eps)
    return out, Rwkv7State(x[..., -1, :].copy(), after)


def _params(rng: np.random.Generator) -> Rwkv7:
    """Two heads of 2 key and 3 value features. Small: many factors meet in out, and a check takes each a thousand times larger."""

    def map_of(d_in, d_out):
        return Linear(rng.normal(size=(d_in, d_out)) / 2, rng.normal(size=d_out) / 2)

    receptance, key, value, output = map_of(5, 4), map_of(5, 4), map_of(5, 6), map_of(6, 5)
    decay, rate, gate = (ThinMap(map_of(5, rank).weight, *map_of(rank, out)) for rank, out in ((2, 4), (3, 4), (2, 6)))
    removal, blend = rng.normal(size=4), rng.normal(size=4) / 20
    mix, bonus, norm = rng.uniform(size=(6, 5)) / 200, rng.normal(size=(2, 2)), LayerNorm(*rng.normal(size=(2, 6)))
    return Rwkv7(mix, receptance, key, value, decay, rate, gate, removal, blend, bonus, norm, output)


@concept(
    title="RWKV-7 time mixing",
    source="Peng et al. 2025, arXiv:2503.14456",
    example=lambda rng: example(_params(rng), rng.normal(size=(2, 5, 5)) / 20, mix=partial(rank_one_recurrence_chunked, chunk=2), eps=0.1),
    roles=("mixer",),
    rejects=[
        bad("params.mix", params=_params(np.random.default_rng(0))._replace(mix=np.ones((5, 5)))),
        bad("params.bonus", params=_params(np.random.default_rng(0))._replace(bonus=np.ones((2, 3)))),
        bad("params.bonus", params=_params(np.random.default_rng(0))._replace(bonus=np.ones((4, 1)))),
    ],
    step=rwkv7_step,
)
def rwkv7(
    params: Rwkv7, x: Float[Array, "... positions d_model"], *, mix: Callable = rank_one_recurrence_chunked,
    eps: Annotated[float, positive] = 64e-5,
) -> tuple[Array, Backward]:  # fmt: skip
    """Every position fades the state, takes from it what its key reads, writes its value, and reads with its receptance.

    mix(query, key, value, log_decay, read, write, state) -> (heads, state), backward is the recurrence, in either form. eps is added to
    the variance of a head's features, in the units of a value squared; the authors take 1e-5 for each of their 64 features.
    There are as many heads as params.bonus has rows.
    Returns out, shaped like x, and backward: dout -> Rwkv7 of gradients, dx.
    Raises ValueError where there are not six mixes, bonus does not cut keys and values into heads, or leaves a head a single value feature.
    """
    out, _, backward = _forward(params, x, None, None, mix=mix, eps=eps)
    return out, backward


def _forward(params: Rwkv7, x: Array, past: Array | None, before: Array | None, *, mix: Callable, eps: float):
    """One forward for both: the whole text starts from nothing, a step from what the past left. Returns out, the last state, backward."""
    (heads, d_head), d_heads, d_values = params.bonus.shape, len(params.removal), len(params.norm.gain)
    if len(params.mix) != len(_READERS):
        raise invalid("params.mix", got=f"{len(params.mix)} rows", wants=f"one each for {', '.join(_READERS)}")
    if heads * d_head != d_heads or d_values % heads or d_values == heads:
        wants = f"heads that have {d_heads} key features together, and two or more each of {d_values} value features"
        raise invalid("params.bonus", got=f"{heads} heads of {d_head} key features", wants=wants)
    split, d_value, ones = partial(split_heads, num_heads=heads), d_values // heads, partial(np.ones, dtype=x.dtype)

    ins, shifts_backward = zip(*(token_shift(own, x, past) for own in params.mix), strict=True)
    r_in, w_in, k_in, v_in, a_in, g_in = ins                 # (1)
    receptance, receptance_backward = linear(params.receptance, r_in)
    key, key_backward = linear(params.key, k_in)
    value, value_backward = linear(params.value, v_in)       # (2)
    logits, decay_backward = _through(params.decay, w_in, _tanh)
    speed, speed_backward = sigmoid(logits)
    log_decay = -_FASTEST * speed                            # (3)
    logits, rate_map_backward = _through(params.rate, a_in, lambda low: (low, lambda dlow: dlow))
    rate, rate_backward = sigmoid(logits)                    # (4)
    gate, gate_backward = _through(params.gate, g_in, sigmoid)  # (5)

    r, v, a = split(receptance), split(value), split(rate)   # (..., heads, positions, d)
    removed, length_backward = scale_norm(ScaleNorm(ones(())), split(params.removal * key), eps=1e-6)  # (6)
    part = 1 + params.blend * (rate - 1)
    kept = split(key * part)                                 # (7)
    (read_out, after), mix_backward = mix(r, kept, v, split(log_decay), -removed, a * removed, before)  # (8)
    plain = LayerNorm(ones(d_value), np.zeros(d_value, x.dtype))      # gain and bias are each channel's own
    unit, norm_backward = layer_norm(plain, read_out, eps=eps)
    unit = merge_heads(unit)
    normed = params.norm.gain * unit + params.norm.bias      # (9)
    bonus = params.bonus[:, None]                            # (heads, 1, d_head)
    match = np.vecdot(r * bonus, kept)[..., None]            # (..., heads, positions, 1)  (10)
    mixed = normed + merge_heads(match * v)                  # (11)
    out, output_backward = linear(params.output, gate * mixed)  # (12)

    def backward(dout):
        doutput, dgated = output_backward(dout)
        dmixed, dgate = gate * dgated, mixed * dgated        # (13)
        dnorm = LayerNorm(_over_positions(dmixed * unit), _over_positions(dmixed))
        _, dread_out = norm_backward(split(params.norm.gain * dmixed))  # (14)
        dspoken = split(dmixed)
        dmatch = np.vecdot(dspoken, v)[..., None]            # (15)
        dr, dkept, dv, dlog_decay, dread, dwrite, _ = mix_backward((dread_out, None))  # (16)
        dbonus = (dmatch * r * kept).reshape(-1, heads, r.shape[-2], d_head).sum((0, 2))
        dr, dkept, dv = dr + bonus * kept * dmatch, merge_heads(dkept + bonus * r * dmatch), dv + match * dspoken  # (17)
        _, dscaled = length_backward(a * dwrite - dread)
        dscaled = merge_heads(dscaled)                       # (18)
        drate = merge_heads(removed * dwrite) + key * params.blend * dkept  # (19)
        dkey = part * dkept + params.removal * dscaled       # (20)

        dparams_receptance, dr_in = receptance_backward(merge_heads(dr))
        dparams_decay, dw_in = decay_backward(speed_backward(-_FASTEST * merge_heads(dlog_decay)))
        dparams_key, dk_in = key_backward(dkey)
        dparams_value, dv_in = value_backward(merge_heads(dv))
        dparams_rate, da_in = rate_map_backward(rate_backward(drate))
        dparams_gate, dg_in = gate_backward(dgate)           # (21)
        dmix, dx = np.empty_like(params.mix), np.zeros_like(x)
        for i, dmap_in in enumerate((dr_in, dw_in, dk_in, dv_in, da_in, dg_in)):
            dmix[i], dx_i, _ = shifts_backward[i](dmap_in)
            dx += dx_i                                       # x is shifted six times: six terms  (22)
        dremoval, dblend = _over_positions(dscaled * key), _over_positions(dkept * key * (rate - 1))
        return Rwkv7(
            dmix, dparams_receptance, dparams_key, dparams_value, dparams_decay, dparams_rate, dparams_gate,
            dremoval, dblend, dbonus, dnorm, doutput,
        ), dx  # fmt: skip

    return out, after, backward


def _through(params: ThinMap, x: Array, squash: Callable) -> tuple[Array, Backward]:
    """Down to few features, through a function of each, and up again."""
    low, low_backward = linear(Linear(params.low, None), x)
    squashed, squash_backward = squash(low)
    out, high_backward = linear(Linear(params.high, params.bias), squashed)

    def backward(dout):
        dhigh, dsquashed = high_backward(dout)
        dlow, dx = low_backward(squash_backward(dsquashed))
        return ThinMap(dlow.weight, *dhigh), dx

    return out, backward


def _tanh(x: Array) -> tuple[Array, Backward]:
    out = np.tanh(x)
    return out, lambda dout: dout * (1 - out * out)


def _over_positions(a: Float[Array, "... d"]) -> Float[Array, "d"]:
    return a.reshape(-1, a.shape[-1]).sum(axis=0)
