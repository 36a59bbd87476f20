"""The Transformer block: move information between positions, then work on each position, both on a residual stream.

Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1 (norm after the sum); Xiong et al. 2020, arXiv:2002.04745
(norm before the sub-layer, which GPT-2 and nearly all later models use); Wang et al. 2022, arXiv:2203.00555 (DeepNorm:
alpha above 1). M is the mixer, C the channel part, N1 and N2 are their norms; R(N, F) is a residual sub-layer, pre-norm or
post-norm. A star is the backward of what it stands on: N*(dout) is the gradient of N's input.

    middle = R(N1, M)(x)                                     (1)
    out = R(N2, C)(middle)                                   (2)
    dmiddle = R(N2, C)*(dout)                                (3)
    dx = R(N1, M)*(dmiddle)                                  (4)
    pre-norm    R(N, F)(x) = x + F(N(x))                     (5)
                dx = dout + N*(F*(dout))                     (6)
    post-norm   R(N, F)(x) = N(alpha x + F(x)), alpha = 1    (7)
                dsum = N*(dout), dx = alpha dsum + F*(dsum)  (8)
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.foundation import Backward, checked, concept, example, positive
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm


class TransformerBlock(NamedTuple):
    """The parameters of the four parts, each as its own concept defines them."""

    mixer_norm: Any
    mixer: Any
    channel_norm: Any
    channel: Any


def pre_norm(norm: Callable, part: Callable, x: Array):
    """x + part(norm(x)); backward: dout -> what norm and part learn from it, dx, and what else the part returns."""
    normed, norm_backward = norm(x)
    added, part_backward = part(normed)
    out = x + added                                          # (5)

    def backward(dout):
        dpart, dnormed, *more = part_backward(dout)
        dnorm, dthrough = norm_backward(dnormed)
        return dnorm, dpart, dout + dthrough, *more          # x is added on and fed to the norm: two gradients  (6)

    return out, backward


@checked
def post_norm(norm: Callable, part: Callable, x: Array, *, alpha: Annotated[float, positive] = 1.0):
    """norm(alpha x + part(x)); results as in pre_norm. alpha scales the stream against what is added (deep_norm_constants)."""
    added, part_backward = part(x)
    out, norm_backward = norm((x if alpha == 1 else alpha * x) + added)  # (7)

    def backward(dout):
        dnorm, dsum = norm_backward(dout)
        dpart, dthrough, *more = part_backward(dsum)
        return dnorm, dpart, (dsum if alpha == 1 else alpha * dsum) + dthrough, *more  # (8)

    return out, backward


@concept(
    title="Transformer block",
    source="Vaswani et al. 2017, arXiv:1706.03762, section 3.1; Xiong et al. 2020, arXiv:2002.04745",
    example=lambda rng: _example(rng),
)
def transformer_block(
    params: TransformerBlock,
    x: Float[Array, "... positions d_model"],
    bias: Float[Array, "#heads #positions #positions"] | None = None,
    *,
    mixer: Callable,
    channel: Callable,
    norm: Callable,
    placement: Callable = pre_norm,
    mask: Bool[Array, "*#scores #positions #positions"] | None = None,
    drop: Callable | None = None,
) -> tuple[Array, Backward]:
    """One block of parts: ``mixer(params, x, bias, mask=mask)``, ``channel(params, x)`` and ``norm(params, x)``.

    placement is pre_norm, post_norm, or partial(post_norm, alpha=...). drop, if any, is a parameter-free concept (dropout)
    that acts on what each sub-layer adds to the residual stream.
    Returns out, shaped like x, and backward: dout -> TransformerBlock of gradients, dx, dbias (None without a bias).
    """
    def mix(h):
        return _dropped(mixer(params.mixer, h, bias, mask=mask), drop)

    def work(h):
        return _dropped(channel(params.channel, h), drop)

    middle, mix_backward = placement(partial(norm, params.mixer_norm), mix, x)  # (1)
    out, work_backward = placement(partial(norm, params.channel_norm), work, middle)  # (2)

    def backward(dout):
        dchannel_norm, dchannel, dmiddle = work_backward(dout)  # (3)
        dmixer_norm, dmixer, dx, dbias = mix_backward(dmiddle)  # (4)
        return TransformerBlock(dmixer_norm, dmixer, dchannel_norm, dchannel), dx, dbias

    return out, backward


def transformer_block_step(
    params: TransformerBlock, x: Array, state: Any, *, mixer_step: Callable, channel: Callable, norm: Callable, placement: Callable = pre_norm
) -> tuple[Array, Any]:
    """The same block over a few new positions, the mixer's state carried: returns out and the new state."""
    def mix(h):
        nonlocal state
        added, state = mixer_step(params.mixer, h, state)
        return added, None

    middle = placement(partial(norm, params.mixer_norm), mix, x)[0]
    return placement(partial(norm, params.channel_norm), partial(channel, params.channel), middle)[0], state


def _dropped(returned, drop):
    """What a part returns, (added, backward), after dropout where there is any."""
    if drop is None:
        return returned
    added, backward = returned
    kept, drop_backward = drop(added)
    return kept, lambda dkept: backward(drop_backward(dkept))


def _example(rng: np.random.Generator, **config: Any):
    params = TransformerBlock(
        init_layer_norm(rng, 6, dtype=np.float64),
        init_multi_head_attention(rng, 6, num_heads=2, std=0.5, residual_std=0.5, dtype=np.float64),
        init_layer_norm(rng, 6, dtype=np.float64),
        init_feed_forward(rng, 6, d_hidden=5, std=0.5, residual_std=0.5, dtype=np.float64),
    )
    parts: dict[str, Any] = {"mixer": partial(multi_head_attention, num_heads=2), "channel": feed_forward, "norm": layer_norm}
    mask = rng.random((2, 1, 1, 3)) < 0.8
    return example(params, rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 3)), mask=mask, **parts, **config)
