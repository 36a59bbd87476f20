"""Samba: Mamba and sliding-window attention in turn, so that what is far is summed up and what is near is exact.

A recurrence carries the whole past in a state of fixed size and cannot look anything up in it; a window looks up exactly and
sees nothing beyond its edge. Layer after layer, each makes good what the other lacks, at a cost that grows with the length.
Source: Ren et al. 2024, arXiv:2406.07522, section 2.1; the authors' code for the order of the parts. A layer is a mixer and a
feed-forward network; the mixer is Mamba in layers 0, 2, ... and attention through a window in layers 1, 3, ...

    normed = RMS(x)                                          (1)
    middle = x + mixer(normed)                               (2)
    inner = RMS(middle)                                      (3)
    x = middle + SwiGLU(inner), which the next layer reads   (4)
    dmiddle = dx + RMS*(SwiGLU*(dx))                         (5)
    dx = dmiddle + RMS*(mixer*(dmiddle))                     (6)

A star is the backward of what it stands on. Differs from the authors' code: everything has one dtype, where theirs adds
Mamba's output in float32. The order of their window is kept: position i sees i - window < j <= i.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.grouped_query_attention import GroupedQueryAttention
from minitransformers.attention.sliding_window_attention import (
    init_sliding_window_attention,
    sliding_window_attention,
    sliding_window_attention_step,
)
from minitransformers.basics.gated_feed_forward import GatedFeedForward, gated_feed_forward, init_gated_feed_forward
from minitransformers.foundation import bad, concept, example, invalid, trees, trusted, whole_number
from minitransformers.norms.rms_norm import RmsNorm, init_rms_norm, rms_norm
from minitransformers.state_space.mamba import Mamba, init_mamba, mamba, mamba_step


class SambaLayer(NamedTuple):
    """A mixer, Mamba or attention, and a feed-forward network, each behind its norm."""

    mixer_norm: Annotated[RmsNorm, "d_model"]
    mixer: Mamba | GroupedQueryAttention
    channel_norm: Annotated[RmsNorm, "d_model"]
    channel: GatedFeedForward


def init_samba(
    rng: np.random.Generator, d_model: int, *, num_layers: int, num_heads: int, num_kv_heads: int | None = None, d_state: int = 16,
    d_hidden: int | None = None, std: float | None = None, residual_std: float | None = None, dtype: type = np.float32,
) -> list[SambaLayer]:  # fmt: skip
    """num_layers layers, at least 1, Mamba in the first; each part as its own init makes it."""
    whole_number("num_layers", num_layers, least=1)
    scales: dict[str, Any] = {"std": std, "residual_std": residual_std, "dtype": dtype}

    def mixer(layer: int) -> Mamba | GroupedQueryAttention:
        if layer % 2 == 0:
            return init_mamba(rng, d_model, d_state=d_state, **scales)
        return init_sliding_window_attention(rng, d_model, num_heads=num_heads, num_kv_heads=num_kv_heads, **scales)

    def norm() -> RmsNorm:
        return init_rms_norm(rng, d_model, dtype=dtype)

    return [SambaLayer(norm(), mixer(i), norm(), init_gated_feed_forward(rng, d_model, d_hidden=d_hidden, **scales)) for i in range(num_layers)]


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


@trusted
def samba_step(
    params: list[SambaLayer], x: Float[Array, "... new d_model"], state: list[Any] | None, *, num_heads: int, window: int,
    num_kv_heads: int | None = None, rotate: Callable | None = None,
):  # fmt: skip
    """The outputs of a few new positions; a state is Mamba's or a cache of ``window`` positions, of fixed size both.

    Raises ValueError where x or the number of states does not fit the layers.
    """
    _check(params, x, state)
    attend: Callable = partial(sliding_window_attention_step, num_heads=num_heads, num_kv_heads=num_kv_heads, window=window, rotate=rotate)
    states = []
    for i, layer in enumerate(params):
        mix: Callable = mamba_step if isinstance(layer.mixer, Mamba) else attend
        mixed, layer_state = mix(layer.mixer, rms_norm(layer.mixer_norm, x)[0], state[i] if state else None)
        middle = x + mixed
        x = middle + gated_feed_forward(layer.channel, rms_norm(layer.channel_norm, middle)[0])[0]
        states.append(layer_state)
    return x, states


def _example(rng: np.random.Generator) -> Any:
    params = init_samba(rng, 4, num_layers=2, num_heads=2, d_state=3, d_hidden=5, dtype=np.float64)
    # Small: a check makes every parameter a thousand times larger, and in Mamba many of them meet in one product.
    layers = [
        SambaLayer(*(trees.map(lambda leaf: rng.normal(size=leaf.shape) * size, part) for part, size in zip(layer, own, strict=True)))
        for layer, own in zip(params, ((0.1, 1 / 600, 0.1, 0.1), (0.1, 0.1, 0.1, 0.1)), strict=True)
    ]
    return example(layers, rng.normal(size=(2, 5, 4)), num_heads=2, window=3)


@concept(
    title="Samba",
    source="Ren et al. 2024, arXiv:2406.07522, section 2.1",
    example=_example,
    roles=("stack",),
    rejects=[bad(window=0), bad(num_heads=3), bad(x=np.ones((2, 5, 3))), bad(x=np.ones((2, 0, 4)))],
    step=samba_step,
)
def samba(
    params: list[SambaLayer],
    x: Float[Array, "... positions d_model"],
    *,
    num_heads: int,
    window: int,
    num_kv_heads: int | None = None,
    rotate: Callable | None = None,
):
    """A stack of layers whose mixers are Mamba and sliding-window attention in turn; causal.

    window counts the positions that attention sees, its own among them. rotate(x) -> out, backward turns queries and keys
    (the paper uses RoPE); Mamba needs no positions.
    Returns out, shaped like x and not normalised, and backward: dout -> list of SambaLayer, dx.
    Raises ValueError when window is below 1, num_heads does not divide the features, or there is no layer, or one that is
    not as wide as x.
    """
    _check(params, x)
    attend: Callable = partial(sliding_window_attention, num_heads=num_heads, num_kv_heads=num_kv_heads, window=window, rotate=rotate)
    backwards = []
    for layer in params:
        normed, mixer_norm_backward = rms_norm(layer.mixer_norm, x)  # (1)
        mix: Callable = mamba if isinstance(layer.mixer, Mamba) else attend
        mixed, mixer_backward = mix(layer.mixer, normed)
        middle = x + mixed                                   # (2)
        inner, channel_norm_backward = rms_norm(layer.channel_norm, middle)  # (3)
        worked, channel_backward = gated_feed_forward(layer.channel, inner)
        x = middle + worked                                  # (4)
        backwards.append((mixer_norm_backward, mixer_backward, channel_norm_backward, channel_backward))

    def backward(dout):
        dlayers, dx = [], dout
        for mixer_norm_backward, mixer_backward, channel_norm_backward, channel_backward in reversed(backwards):
            dchannel, dinner = channel_backward(dx)
            dchannel_norm, dthrough = channel_norm_backward(dinner)
            dmiddle = dx + dthrough                          # (5)
            dmixer, dnormed = mixer_backward(dmiddle)
            dmixer_norm, dthrough = mixer_norm_backward(dnormed)
            dx = dmiddle + dthrough                          # (6)
            dlayers.append(SambaLayer(dmixer_norm, dmixer, dchannel_norm, dchannel))
        return dlayers[::-1], dx

    return x, backward
