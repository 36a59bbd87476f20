"""Gated feed-forward network: one map decides how much of another map's features passes.

With SiLU it is SwiGLU (Llama, Mistral, SmolLM2), with GELU GeGLU (Gemma, T5 v1.1), with ReLU ReGLU. Three matrices
instead of two, so the hidden layer is two thirds as wide for the same number of parameters.

Source: Shazeer 2020, arXiv:2002.05202, eq. 6. Differs from the paper: biases may be had, and are off as there.

    gate = x W_gate                                          (1)
    value = x W_up                                           (2)
    active = phi(gate)                                       (3)
    hidden = active value                                    (4)
    out = hidden W_down                                      (5)
    dhidden = dout W_down^T, and dW_down                     (6)
    dvalue = dhidden active                                  (7)
    dgate = dhidden value phi'(gate)                         (8)
    dx = dgate W_gate^T + dvalue W_up^T, and dW_gate, dW_up  (9)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.silu import silu
from minitransformers.foundation import Backward, at_least, checked, concept, example, slot


class GatedFeedForward(NamedTuple):
    """The map to the gate, the map up to the values, the map down, and what the activation learns (None for nothing)."""

    gate: Annotated[Linear, "d_model d_hidden"]
    up: Annotated[Linear, "d_model d_hidden"]
    down: Annotated[Linear, "d_hidden d_model"]
    activation: Any = None


@checked
def init_gated_feed_forward(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, d_hidden: Annotated[int, at_least(1)] | None = None,
    std: Annotated[float, at_least(0)] | None = None, residual_std: Annotated[float, at_least(0)] | None = None,
    bias: bool = False, dtype: type = np.float32,
) -> GatedFeedForward:  # fmt: skip
    """Normal weights; d_hidden is 2/3 of 4 d_model, rounded up to a multiple of 8, unless given.

    Three maps of that width hold as many parameters as a feed_forward of 4 d_model, but for the rounding.
    std is the weights' standard deviation (default 1/sqrt(d_in) of each map), residual_std that of the map down, which
    writes into the residual stream (default std).
    """
    hidden = 8 * -(-d_model // 3) if d_hidden is None else d_hidden  # -(-a // b) rounds up
    gate = init_linear(rng, d_model, hidden, std=std, bias=bias, dtype=dtype)
    up = init_linear(rng, d_model, hidden, std=std, bias=bias, dtype=dtype)
    down = init_linear(rng, hidden, d_model, std=std if residual_std is None else residual_std, bias=bias, dtype=dtype)
    return GatedFeedForward(gate, up, down)


@concept(
    title="Gated feed-forward network (SwiGLU, GeGLU, ReGLU)",
    source="Shazeer 2020, arXiv:2002.05202, eq. 6",
    example=lambda rng: example(
        GatedFeedForward(
            Linear(rng.normal(size=(3, 7)), None), Linear(rng.normal(size=(3, 7)), None), Linear(rng.normal(size=(7, 3)), None)
        ),
        rng.normal(size=(2, 4, 3)),
    ),
    roles=("channel",),
)
def gated_feed_forward(
    params: GatedFeedForward, x: Float[Array, "... d_model"], *, activation: Callable = slot(silu)
) -> tuple[Array, Backward]:
    """Multiply the activated gate into the values, feature by feature, and map down.

    activation(params.activation, gate) -> active, backward makes the gate: slot(silu) for SwiGLU, slot(gelu) for GeGLU.
    Returns out, shaped like x, and backward: dout -> GatedFeedForward of gradients, dx.
    Raises ValueError when the shapes do not fit.
    """
    gate, gate_backward = linear(params.gate, x)             # (..., d_hidden)  (1)
    value, up_backward = linear(params.up, x)                # (..., d_hidden)  (2)
    active, activation_backward = activation(params.activation, gate)  # (3)
    hidden = active * value                                  # (4)
    out, down_backward = linear(params.down, hidden)         # (5)

    def backward(dout):
        ddown, dhidden = down_backward(dout)                 # (6)
        dvalue = dhidden * active                            # (7)
        dactivation, dgate = activation_backward(dhidden * value)  # (8)
        dgate_map, dx_gate = gate_backward(dgate)
        dup, dx_value = up_backward(dvalue)
        dx = dx_gate + dx_value                              # x feeds both maps: add  (9)
        return GatedFeedForward(dgate_map, dup, ddown, dactivation), dx

    return out, backward
