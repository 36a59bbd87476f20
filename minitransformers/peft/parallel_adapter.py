"""Parallel adapter: it reads what the sub-layer reads, and stands beside it, not behind it.

What it makes is added to what the sub-layer makes; there is no way around it of its own. Beside a feed-forward network with
the same activation it is the same function as more hidden features in that network: such an adapter is a wider network whose
first features stand still (widened_feed_forward). Source: He et al. 2021, arXiv:2110.04366, table 1 and section 3.3; s = 4 is
theirs for the feed-forward network. F is the part, phi the activation; a star is the backward of what it stands on.

    change = phi(x W_down + b_down) W_up + b_up              (1)
    out = F(x) + s change, s = 4                             (2)
    dpart, dthrough = F*(dout)                               (3)
    dbeside = gradient of x in (1) at s dout, and dW_up, db_up, dW_down, db_down   (4)
    dx = dthrough + dbeside                                  (5)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.feed_forward import FeedForward
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear
from minitransformers.foundation import Backward, bad, checked, concept, example, finite, invalid, slot
from minitransformers.peft.bottleneck_adapter import BottleneckAdapter, adapter_example, bottleneck


class ParallelAdapter(NamedTuple):
    """What the part holds, and the adapter beside it."""

    part: Any
    adapter: BottleneckAdapter


@concept(
    title="Parallel adapter",
    source="He et al. 2021, arXiv:2110.04366, section 3.3 and table 1",
    example=lambda rng: _example(rng),
    rejects=[bad("part", part=lambda params, x, bias, num_heads: (x[..., :1], None))],
)
def parallel_adapter(
    params: ParallelAdapter, x: Float[Array, "... d_model"], *more: Any, part: Callable, activation: Callable = slot(gelu),
    scale: Annotated[float, finite] = 4.0, **config: Any,
) -> tuple[Array, Backward]:  # fmt: skip
    """What the part, ``part(params.part, x, *more, **config) -> made, backward``, makes of x, plus scale times what the bottleneck does.

    more and config are the part's alone; activation is the bottleneck's. scale is dimensionless.
    Returns out, shaped like x, and backward: dout -> ParallelAdapter of gradients, dx, and what the part returns for more.
    Raises ValueError when the part returns another shape than that of x, or other shapes do not fit.
    """
    made, part_backward = part(params.part, x, *more, **config)
    if made.shape != x.shape:
        raise invalid("part", got=f"an output of shape {made.shape}", wants=f"{x.shape}, the shape of x")
    change, beside_backward = bottleneck(params.adapter, x, activation=activation)  # (1)
    out = made + scale * change                              # (2)

    def backward(dout):
        dpart, dthrough, *dmore = part_backward(dout)        # (3)
        dadapter, dbeside = beside_backward(scale * dout)    # (4)
        dx = dthrough + dbeside                              # both read x: two gradients  (5)
        return ParallelAdapter(dpart, dadapter), dx, *dmore[: len(more)]

    return out, backward


@checked
def widened_feed_forward(params: FeedForward, adapter: BottleneckAdapter, *, scale: Annotated[float, finite] = 4.0) -> FeedForward:
    """The feed-forward network that computes what params and the adapter beside them do: with d_bottleneck hidden features more.

    Both must have one activation, and one that learns nothing. The result shares no memory with the arguments.
    Raises ValueError where an activation learns.
    """
    for name, own in (("params", params.activation), ("adapter", adapter.activation)):
        if own is not None:
            raise invalid(f"{name}.activation", got=type(own).__name__, wants="None: the features of one network have one activation")
    (up, down, _), (inside, outside, _) = params, adapter
    return FeedForward(
        Linear(np.concatenate([up.weight, inside.weight], axis=1), np.concatenate([_bias(up), _bias(inside)])),
        Linear(np.concatenate([down.weight, scale * outside.weight]), _bias(down) + scale * _bias(outside)),
    )


def _bias(part: Linear) -> Array:
    return np.zeros(part.weight.shape[1], part.weight.dtype) if part.bias is None else part.bias


def _example(rng: np.random.Generator):
    params = ParallelAdapter(init_multi_head_attention(rng, 6, num_heads=2, dtype=np.float64), adapter_example(rng, 6, 4))
    return example(params, rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 3)), part=multi_head_attention, scale=0.7, num_heads=2)
