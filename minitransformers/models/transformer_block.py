"""The Transformer block: move information between positions, then work on each position, both on a residual stream.

Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1 (norm after the sum); Xiong et al. 2020, arXiv:2002.04745
(norm before the sub-layer, which GPT-2 and nearly all later models use); Wang et al. 2022, arXiv:2203.00555 (DeepNorm:
alpha above 1). N is the norm, M the mixer, C the channel part; a star is the backward of what it stands on: N*(dout) is the
gradient of N's input.

    pre-norm    middle = x + M(N1(x))                        (1)
                out = middle + C(N2(middle))                 (2)
                dmiddle = dout + N2*(C*(dout))               (3)
                dx = dmiddle + N1*(M*(dmiddle))              (4)
    post-norm   middle = N1(alpha x + M(x)), alpha = 1       (5)
                out = N2(alpha middle + C(middle))           (6)
                dsum = N2*(dout), dmiddle = alpha dsum + C*(dsum)   (7)
                dsum = N1*(dmiddle), dx = alpha dsum + M*(dsum)     (8)
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.foundation import bad, concept, example, invalid
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm


class TransformerBlock(NamedTuple):
    """The parameters of the four parts, each as its own concept defines them."""

    mixer_norm: Any
    mixer: Any
    channel_norm: Any
    channel: Any


def _example(rng, **config):
    parts = {"mixer": partial(multi_head_attention, num_heads=2), "channel": feed_forward, "norm": layer_norm}
    params = TransformerBlock(
        init_layer_norm(rng, 6, dtype=np.float64),
        init_multi_head_attention(rng, 6, num_heads=2, std=0.5, residual_std=0.5, dtype=np.float64),
        init_layer_norm(rng, 6, dtype=np.float64),
        init_feed_forward(rng, 6, d_hidden=5, std=0.5, residual_std=0.5, dtype=np.float64),
    )
    return example(params, rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 3)), **parts, **config)


@concept(
    title="Transformer block",
    source="Vaswani et al. 2017, arXiv:1706.03762, section 3.1; Xiong et al. 2020, arXiv:2002.04745",
    example=_example,
    rejects=[
        bad(placement="middle"),
        bad("alpha", placement="post", alpha=0.0),
        bad("alpha", placement="post", alpha=float("inf")),
        bad("alpha", placement="pre", alpha=2.0),
    ],
)
def transformer_block(
    params: TransformerBlock,
    x: Float[Array, "... length d_model"],
    bias: Float[Array, "#heads #length #length"] | None = None,
    *,
    mixer: Callable,
    channel: Callable,
    norm: Callable,
    placement: str = "pre",
    alpha: float = 1.0,
    drop: Callable | None = None,
):
    """One block of parts: ``mixer(params, x[, bias])``, ``channel(params, x)`` and ``norm(params, x)``.

    bias, if any, goes on to the mixer as its additive score bias. placement is "pre" or "post". alpha, for
    post-norm, weighs the stream against what is added to it (deep_norm_constants has it for a depth). drop, if any, is a
    parameter-free concept (dropout) that acts on what each sub-layer adds to the residual stream.
    Returns out, shaped like x, and backward: dout -> TransformerBlock of gradients, dx, dbias.
    Raises ValueError for an unknown placement, and for an alpha that is not a finite number above 0, or not 1 with pre-norm.
    """
    if placement not in ("pre", "post"):
        raise invalid("placement", got=repr(placement), wants='"pre" or "post"')
    if not 0 < alpha < math.inf or (placement == "pre" and alpha != 1):
        raise invalid("alpha", got=alpha, wants="a finite number above 0, and 1 with pre-norm")
    alpha = float(alpha)

    def mix(h):
        added, backward = mixer(params.mixer, h) if bias is None else mixer(params.mixer, h, bias)
        return _dropped(added, backward, drop)

    def work(h):
        added, backward = channel(params.channel, h)
        return _dropped(added, backward, drop)

    if placement == "pre":
        normed, mixer_norm_backward = norm(params.mixer_norm, x)
        mixed, mixer_backward = mix(normed)
        middle = x + mixed                                   # (1)
        normed, channel_norm_backward = norm(params.channel_norm, middle)
        worked, channel_backward = work(normed)
        out = middle + worked                                # (2)
    else:
        mixed, mixer_backward = mix(x)
        middle, mixer_norm_backward = norm(params.mixer_norm, alpha * x + mixed)  # (5)
        worked, channel_backward = work(middle)
        out, channel_norm_backward = norm(params.channel_norm, alpha * middle + worked)  # (6)

    def backward(dout):
        # Every array that is both added on and fed to a sub-layer has two uses: its gradient is a sum.
        if placement == "pre":
            dchannel, dnormed = channel_backward(dout)
            dchannel_norm, dmiddle = channel_norm_backward(dnormed)
            dmiddle = dout + dmiddle                         # (3)
            dmixer, dnormed, *dbias = mixer_backward(dmiddle)
            dmixer_norm, dx = mixer_norm_backward(dnormed)
            dx = dmiddle + dx                                # (4)
        else:
            dchannel_norm, dsum = channel_norm_backward(dout)
            dchannel, dmiddle = channel_backward(dsum)
            dmiddle = alpha * dsum + dmiddle                 # (7)
            dmixer_norm, dsum = mixer_norm_backward(dmiddle)
            dmixer, dx, *dbias = mixer_backward(dsum)
            dx = alpha * dsum + dx                           # (8)
        grads = TransformerBlock(dmixer_norm, dmixer, dchannel_norm, dchannel)
        return grads, dx, (dbias[0] if bias is not None else None)

    return out, backward


def _dropped(added, backward, drop):
    """What a sub-layer adds, after dropout where there is any."""
    if drop is None:
        return added, backward
    kept, drop_backward = drop(added)
    return kept, lambda dkept: backward(drop_backward(dkept))


def transformer_block_step(
    params: TransformerBlock, x: Array, state: Any, *, mixer_step: Callable, channel: Callable, norm: Callable, placement: str, alpha: float = 1.0
):
    """The same block over a few new positions, the mixer's state carried: returns out and the new state."""
    if placement == "pre":
        mixed, state = mixer_step(params.mixer, norm(params.mixer_norm, x)[0], state)
        middle = x + mixed
        return middle + channel(params.channel, norm(params.channel_norm, middle)[0])[0], state
    mixed, state = mixer_step(params.mixer, x, state)
    middle = norm(params.mixer_norm, alpha * x + mixed)[0]
    return norm(params.channel_norm, alpha * middle + channel(params.channel, middle)[0])[0], state
