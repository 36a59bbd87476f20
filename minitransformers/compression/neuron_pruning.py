"""Neuron pruning: which hidden units of a feed-forward network matter least, and the network without them.

A hidden unit is a column of the map up, its bias, and a row of the map down, and nothing else reads them. Taken out, the arrays
are smaller and as dense as before. How much a unit matters is the slope of the loss by its gate (``gated_neurons``), and for a
batch that stands in the gradient that training makes anyway: a unit acts through its row of the map down alone, so to multiply the
unit by a gate is to multiply that row.

Source: Molchanov et al. 2017, arXiv:1611.06440, section 2.2, where units are channels of a convolution. J are the units kept.

    score_j = |sum_k W_down_jk dW_down_jk|                   (1)
    W_up = W_up[:, J], b_up = b_up[J]                        (2)
    W_gate, b_gate likewise, where there is a gate           (3)
    W_down = W_down[J, :]; b_down stays                      (4)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.feed_forward import FeedForward, init_feed_forward
from minitransformers.basics.gated_feed_forward import GatedFeedForward, init_gated_feed_forward
from minitransformers.basics.linear import Linear
from minitransformers.compression.kept import cut_axes, kept_places
from minitransformers.foundation import bad, example, invalid, procedure


@procedure(
    title="Neuron importance",
    source="Molchanov et al. 2017, arXiv:1611.06440, section 2.2",
    example=lambda rng: example(*(init_feed_forward(rng, 3, d_hidden=5, dtype=np.float64) for _ in range(2))),
    rejects=[bad(gradient=init_feed_forward(np.random.default_rng(0), 3, d_hidden=6, dtype=np.float64)),
             bad(gradient=init_gated_feed_forward(np.random.default_rng(0), 3, d_hidden=5, dtype=np.float64))],
)  # fmt: skip
def neuron_importance(params: FeedForward | GatedFeedForward, gradient: FeedForward | GatedFeedForward) -> Float[Array, "d_hidden"]:
    """How much each hidden unit matters to the loss whose gradient is given: the size of the slope by the unit's gate.

    gradient is what backward returns for params. Of a batch's loss it is the score of the batch, in which slopes of examples
    have cancelled; for the score of each example take a batch of one, or gated_neurons with a gate for each.
    Raises ValueError where gradient is not one of these parameters.
    """
    if type(gradient) is not type(params):
        raise invalid("gradient", got=type(gradient).__name__, wants=f"{type(params).__name__}, as params are")
    return np.abs(np.vecdot(params.down.weight, gradient.down.weight))  # (1)


@procedure(
    title="A feed-forward network without some neurons",
    source="Molchanov et al. 2017, arXiv:1611.06440, section 2",
    example=lambda rng: example(init_gated_feed_forward(rng, 3, d_hidden=5, bias=True, dtype=np.float64), kept=[0, 2, 3]),
    rejects=[bad(kept=[]), bad(kept=[0, 5]), bad(kept=[-1]), bad(kept=[2, 2])],
)
def without_neurons(params: FeedForward | GatedFeedForward, *, kept: Sequence[int]) -> Any:
    """Parameters of the same network with the hidden units kept alone, in the order in which they stood.

    kept are numbers of units, from 0, in any order. What the activation learned for each unit (an axis d_hidden) is cut as well.
    Raises ValueError where no unit is kept, or one is named twice or does not exist.
    """
    places = kept_places(kept, len(params.down.weight), units="neurons")
    up = _columns(params.up, places)                         # (2)
    down = Linear(params.down.weight[places], params.down.bias)  # (4)
    smaller = params._replace(up=up, down=down, activation=cut_axes(params.activation, "d_hidden", places))
    return smaller._replace(gate=_columns(smaller.gate, places)) if isinstance(smaller, GatedFeedForward) else smaller  # (3)


def _columns(part: Linear, places: list[int]) -> Linear:
    return Linear(part.weight[:, places], None if part.bias is None else part.bias[places])
