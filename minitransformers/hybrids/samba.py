"""Samba: Mamba and sliding-window attention in alternate layers, so that what is far is summed up and what is near is exact.

A recurrence carries the whole past in a state of fixed size and cannot look anything up in it; a window looks up exactly and
sees nothing beyond its edge. Where the two alternate, each makes good what the other lacks, at a cost that grows with the length.
Source: Ren et al. 2024, arXiv:2406.07522, section 2.1; the authors' code for the order of the parts. A layer is a mixer M and a
SwiGLU feed-forward network F behind their RMS norms N1 and N2; M is Mamba in layers 0, 2, ... and attention through a window in
layers 1, 3, ... A star is the backward of what it stands on.

    middle = x + M(N1(x))                                    (1)
    out = middle + F(N2(middle))                             (2)
    dmiddle = dout + N2*(F*(dout))                           (3)
    dx = dmiddle + N1*(M*(dmiddle))                          (4)
    x = layer_l(x), l = 0 .. num_layers - 1                  (5)
    dx = layer_l*(dx), l = num_layers - 1 .. 0               (6)

Differs from the authors' code: everything has one dtype, where theirs adds Mamba's output in float32. The order of their
window is kept: position i sees i - window < j <= i.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.grouped_query_attention import GroupedQueryAttention
from minitransformers.attention.prepare import unprepared
from minitransformers.attention.sliding_window_attention import (
    init_sliding_window_attention,
    sliding_window_attention,
    sliding_window_attention_step,
)
from minitransformers.basics.chain import chain
from minitransformers.basics.gated_feed_forward import GatedFeedForward, gated_feed_forward, init_gated_feed_forward
from minitransformers.basics.residual import residual
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, trees, trusted
from minitransformers.norms.rms_norm import RmsNorm, init_rms_norm, rms_norm
from minitransformers.state_space.mamba import Mamba, init_mamba, mamba, mamba_step


class SambaLayer(NamedTuple):
    """A mixer, Mamba or attention, and a feed-forward network, each behind its norm."""

    mixer_norm: Annotated[RmsNorm, "d_model"]
    mixer: Mamba | GroupedQueryAttention
    channel_norm: Annotated[RmsNorm, "d_model"]
    channel: GatedFeedForward


@checked
def init_samba(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_layers: Annotated[int, at_least(1)],
    num_heads: Annotated[int, at_least(1)], num_kv_heads: Annotated[int, at_least(1)] | None = None,
    d_state: Annotated[int, at_least(1)] = 16, d_hidden: Annotated[int, at_least(1)] | None = None,
    std: Annotated[float, at_least(0)] | None = None, residual_std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> list[SambaLayer]:  # fmt: skip
    """num_layers layers, Mamba in the first; each part as its own init makes it.

    What a slot of the attention learns is put into its fields prepare and core, in each layer that has one.
    """
    scales: dict[str, Any] = {"std": std, "residual_std": residual_std, "dtype": dtype}

    def mixer(layer: int) -> Mamba | GroupedQueryAttention:
        if layer % 2 == 0:
            return init_mamba(rng, d_model, d_state=d_state, **scales)
        return init_sliding_window_attention(rng, d_model, num_heads=num_heads, num_kv_heads=num_kv_heads, **scales)

    def norm() -> RmsNorm:
        return init_rms_norm(rng, d_model, dtype=dtype)

    return [SambaLayer(norm(), mixer(i), norm(), init_gated_feed_forward(rng, d_model, d_hidden=d_hidden, **scales)) for i in range(num_layers)]


def samba_layer(params: SambaLayer, x: Float[Array, "... positions d_model"], *, attend: Callable):
    """One layer; attend is sliding_window_attention with its settings. Returns out and backward: dout -> SambaLayer, dx."""
    mixer: Callable = mamba if isinstance(params.mixer, Mamba) else attend
    middle, mix_backward = residual(params[:2], x, part=partial(chain, parts=(rms_norm, mixer)))  # (1)
    out, work_backward = residual(params[2:], middle, part=partial(chain, parts=(rms_norm, gated_feed_forward)))  # (2)

    def backward(dout):
        dwork, dmiddle = work_backward(dout)                 # (3)
        dmix, dx = mix_backward(dmiddle)                     # (4)
        return SambaLayer(*dmix, *dwork), dx

    return out, backward


@trusted
def samba_step(
    params: list[SambaLayer], x: Float[Array, "... new d_model"], state: list[Any] | None, *, num_heads: int, window: int,
    prepare: Callable = unprepared, core: Callable = softmax_attention,
) -> tuple[Array, list[Any]]:  # fmt: skip
    """The outputs of a few new positions; a state is Mamba's or a cache of ``window`` positions, of fixed size both.

    Raises ValueError where x or the number of states does not fit the layers.
    """
    _check(params, x, state)
    attend: Callable = partial(sliding_window_attention_step, num_heads=num_heads, window=window, prepare=prepare, core=core)
    states = []
    for i, layer in enumerate(params):
        step: Callable = mamba_step if isinstance(layer.mixer, Mamba) else attend
        mixed, layer_state = step(layer.mixer, rms_norm(layer.mixer_norm, x)[0], state[i] if state else None)
        middle = x + mixed
        x = middle + gated_feed_forward(layer.channel, rms_norm(layer.channel_norm, middle)[0])[0]
        states.append(layer_state)
    return x, states


@concept(
    title="Samba",
    source="Ren et al. 2024, arXiv:2406.07522, section 2.1",
    example=lambda rng: _example(rng, 0.5, 0.5),
    large=lambda rng: _example(rng, 1 / 600, 0.1),            # Mamba's parameters meet in products of many
    roles=("stack",),
    rejects=[bad(num_heads=3), bad(x=np.ones((2, 5, 3)))],
    step=samba_step,
)
def samba(
    params: list[SambaLayer], x: Float[Array, "... positions d_model"], *, num_heads: Annotated[int, at_least(1)],
    window: Annotated[int, at_least(1)], prepare: Callable = unprepared, core: Callable = softmax_attention,
) -> tuple[Array, Backward]:  # fmt: skip
    """A stack of layers whose mixers are Mamba and sliding-window attention, alternating; causal.

    The settings are those of sliding_window_attention, the same in every layer that has one: window counts the positions that
    attention sees, its own among them; prepare turns queries and keys (the paper uses RoPE). Mamba needs no positions.
    Returns out, shaped like x and not normalised, and backward: dout -> list of SambaLayer, dx.
    Raises ValueError when num_heads does not divide the features, or there is no layer, or one that is not as wide as x.
    """
    _check(params, x)
    attend = partial(sliding_window_attention, num_heads=num_heads, window=window, prepare=prepare, core=core)
    backwards = []
    for layer in params:
        x, layer_backward = samba_layer(layer, x, attend=attend)  # (5)
        backwards.append(layer_backward)

    def backward(dout):
        dlayers, dx = [], dout
        for layer_backward in reversed(backwards):
            dlayer, dx = layer_backward(dx)                  # (6)
            dlayers.append(dlayer)
        return dlayers[::-1], dx

    return x, backward


def check_stack(norms: dict[str, RmsNorm], x: Array, state: list[Any] | None = None) -> None:
    """Raise ValueError unless there is a layer, x is as wide as the norm of each, and state has a part for each or is None."""
    if not norms:
        raise invalid("params", got="no layers", wants="at least 1 layer")
    (d_model,) = next(iter(norms.values())).gain.shape
    if x.shape[-1] != d_model or x.shape[-2] < 1:
        raise invalid("x", got=f"shape {x.shape}", wants=f"at least 1 position of {d_model} features, as the layers have")
    for name, norm in norms.items():
        if norm.gain.shape != (d_model,):
            raise invalid(f"params.{name}.gain", got=f"shape {norm.gain.shape}", wants=f"{(d_model,)}, as the first layer has")
    if state is not None and len(state) != len(norms):
        raise invalid("state", got=f"{len(state)} layers", wants=f"{len(norms)}, as params has")


def _check(params: list[SambaLayer], x: Array, state: list[Any] | None = None) -> None:
    check_stack({f"{i}.mixer_norm": layer.mixer_norm for i, layer in enumerate(params)}, x, state)


def _example(rng: np.random.Generator, mamba_std: float, std: float):
    params = init_samba(rng, 4, num_layers=2, num_heads=2, d_state=1, d_hidden=3, dtype=np.float64)
    layers = [
        SambaLayer(*(trees.map(lambda leaf: rng.normal(size=leaf.shape) * size, part) for part, size in zip(layer, own, strict=True)))
        for layer, own in zip(params, ((std, mamba_std, std, std), (std, std, std, std)), strict=True)
    ]
    return example(layers, rng.normal(size=(2, 5, 4)), num_heads=2, window=3)
