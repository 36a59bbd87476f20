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
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.relu import relu
from minitransformers.basics.silu import silu
from minitransformers.foundation import bad, concept, example, invalid

# "gelu" is the tanh form of GPT-2 and T5 v1.1, "gelu_exact" the erf form of BERT: they differ by up to 5e-4.
ACTIVATIONS: dict[str, Callable] = {"relu": relu, "gelu": gelu, "gelu_exact": partial(gelu, approximate="none"), "silu": silu}


class FeedForward(NamedTuple):
    """The map up to the hidden features and the map down again."""

    up: Annotated[Linear, "d_model d_hidden"]
    down: Annotated[Linear, "d_hidden d_model"]


def init_feed_forward(
    rng: np.random.Generator,
    d_model: int,
    *,
    d_hidden: int | None = None,
    std: float | None = None,
    residual_std: float | None = None,
    bias: bool = True,
    dtype: type = np.float32,
) -> FeedForward:
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
    rejects=[
        bad(activation="tanh"),
        bad(x=np.ones((2, 4, 5))),
        bad("params.down.weight", params=FeedForward(Linear(np.ones((3, 7)), None), Linear(np.ones((6, 3)), None))),
    ],
)
def feed_forward(params: FeedForward, x: Float[Array, "... d_model"], *, activation: str = "gelu"):
    """Map each position up, through the activation, and down again.

    activation is "relu", "gelu" (tanh form), "gelu_exact" (erf form) or "silu".
    Returns out, shaped like x, and backward: dout -> FeedForward(dup, ddown), dx.
    Raises ValueError when the shapes do not fit or the activation is unknown.
    """
    if activation not in ACTIVATIONS:
        raise invalid("activation", got=repr(activation), wants=f"one of {', '.join(ACTIVATIONS)}")
    hidden, up_backward = linear(params.up, x)               # (..., d_hidden)  (1)
    active, activation_backward = ACTIVATIONS[activation](hidden)  # (2)
    out, down_backward = linear(params.down, active)         # (3)

    def backward(dout):
        ddown, dactive = down_backward(dout)                 # (4)
        dhidden = activation_backward(dactive)               # (5)
        dup, dx = up_backward(dhidden)                       # (6)
        return FeedForward(dup, ddown), dx

    return out, backward
