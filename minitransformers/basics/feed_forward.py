"""Feed-forward network: what a Transformer block does at every position on its own.

Two linear maps with an activation between them: the first opens d_model features out to d_hidden, the second folds
them back. Without the activation the two would be one map. About two thirds of a block's parameters live here.

Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 2. Differs from the paper: it has ReLU; the default here is GPT-2's GELU.

    hidden = x W_up + b_up                                   (1)
    active = phi(hidden)                                     (2)
    out = active W_down + b_down                             (3)
    dactive = dout W_down^T, and dW_down, db_down            (4)
    dhidden = dactive phi'(hidden)                           (5)
    dx = dhidden W_up^T, and dW_up, db_up                    (6)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, checked, concept, example, slot


class FeedForward(NamedTuple):
    """The map up to the hidden features, the map down again, and what the activation learns (None for nothing)."""

    up: Annotated[Linear, "d_model d_hidden"]
    down: Annotated[Linear, "d_hidden d_model"]
    activation: Any = None


@checked
def init_feed_forward(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, d_hidden: Annotated[int, at_least(1)] | None = None,
    std: Annotated[float, at_least(0)] | None = None, residual_std: Annotated[float, at_least(0)] | None = None,
    bias: bool = True, dtype: type = np.float32,
) -> FeedForward:  # fmt: skip
    """Normal weights, zero biases; d_hidden is 4 d_model unless given.

    std is the weights' standard deviation (default 1/sqrt(d_in) of each map), residual_std that of the map down, which
    writes into the residual stream (default std; GPT-2 takes std/sqrt(2 num_layers), so that depth does not add up).
    """
    hidden = 4 * d_model if d_hidden is None else d_hidden
    up = init_linear(rng, d_model, hidden, std=std, bias=bias, dtype=dtype)
    down = init_linear(rng, hidden, d_model, std=std if residual_std is None else residual_std, bias=bias, dtype=dtype)
    return FeedForward(up, down)


@concept(
    title="Feed-forward network",
    source="Vaswani et al. 2017, arXiv:1706.03762, eq. 2",
    example=lambda rng: example(
        FeedForward(Linear(rng.normal(size=(3, 7)), rng.normal(size=7)), Linear(rng.normal(size=(7, 3)), rng.normal(size=3))),
        rng.normal(size=(2, 4, 3)),
    ),
    roles=("channel",),
)
def feed_forward(
    params: FeedForward, x: Float[Array, "... d_model"], *, activation: Callable = slot(gelu)
) -> tuple[Array, Backward]:
    """Map each position up, through the activation, and down again.

    activation(params.activation, hidden) -> active, backward bends each hidden feature: slot(gelu), slot(relu), ...
    Returns out, shaped like x, and backward: dout -> FeedForward of gradients, dx.
    Raises ValueError when the shapes do not fit.
    """
    hidden, up_backward = linear(params.up, x)               # (..., d_hidden)  (1)
    active, activation_backward = activation(params.activation, hidden)  # (2)
    out, down_backward = linear(params.down, active)         # (3)

    def backward(dout):
        ddown, dactive = down_backward(dout)                 # (4)
        dactivation, dhidden = activation_backward(dactive)  # (5)
        dup, dx = up_backward(dhidden)                       # (6)
        return FeedForward(dup, ddown, dactivation), dx

    return out, backward
