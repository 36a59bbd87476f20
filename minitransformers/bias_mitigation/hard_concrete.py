"""Hard concrete: gates that are exactly 0 or exactly 1 most of the time, and whose chance to be open can be trained.

A gate that is 0 or 1 has no slope. A logistic function of a learned number plus noise has one, but is never 0. So it is stretched a
little beyond 0 and 1 and cut off there: much of its mass then lies on the two ends, and between them it is smooth. How many gates
are not 0, on average over the noise, has a formula: with it as a penalty, what is not needed closes.

Source: Louizos, Welling and Kingma 2018, arXiv:1712.01312, section 2.2, whose log alpha is alpha here. sigma is the logistic function,
beta a temperature, low and high the ends of the stretch, u the noise, uniform between 0 and 1. Costs a logarithm and an exponential a gate.

    s = sigma((log u - log(1 - u) + alpha) / beta)           (1)
    stretched = s (high - low) + low                         (2)
    gate = stretched, cut off below 0 and above 1            (3)
    dalpha = dgate (high - low) s (1 - s) / beta where 0 < stretched < 1, else 0   (4)

Without noise, for evaluation:

    gate = sigma(alpha) (high - low) + low, cut off below 0 and above 1   (5)
    dalpha = dgate (high - low) sigma'(alpha) where it is not cut off, else 0   (6)

How many gates are not 0, on average over the noise:

    open = sigma(alpha - beta log(-low / high))              (7)
    out = sum of open                                        (8)
    dalpha = dout open (1 - open)                            (9)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.sigmoid import sigmoid
from minitransformers.compression.movement_pruning import open_unit
from minitransformers.foundation import Backward, above, concept, example, finite, negative, positive


@concept(
    title="Hard concrete gates",
    source="Louizos, Welling and Kingma 2018, arXiv:1712.01312, section 2.2",
    example=lambda rng: example(rng.normal(size=(5, 4)), noise=rng.uniform(0.05, 0.95, size=(5, 4))),
)
def hard_concrete(
    alpha: Annotated[Float[Array, "*shape"], finite], *, noise: Annotated[Float[Array, "*shape"], open_unit],
    temperature: Annotated[float, positive] = 2 / 3, low: Annotated[float, negative] = -0.1, high: Annotated[float, above(1)] = 1.1,
) -> tuple[Array, Backward]:  # fmt: skip
    """Gates from 0 to 1, both included, for one draw of the noise.

    alpha are logits: above 0 a gate is more often open than closed. noise holds numbers between 0 and 1, both excluded, drawn
    uniformly, one a gate; it is data. temperature is beta: the smaller, the fewer gates lie between 0 and 1.
    Returns gates, shaped like alpha, and backward: dgates -> dalpha, for this draw.
    Raises ValueError where low is not below 0, high not above 1, or noise not between 0 and 1.
    """
    s, sigmoid_backward = sigmoid((np.log(noise) - np.log1p(-noise) + alpha) / temperature)  # (1)
    stretched = s * (high - low) + low                       # (2)
    gates = np.clip(stretched, 0, 1)                         # (3)

    def backward(dgates):
        between = (stretched > 0) & (stretched < 1)
        return sigmoid_backward(between * dgates * (high - low)) / temperature  # (4)

    return gates, backward


@concept(
    title="Hard concrete gates without noise",
    source="Louizos, Welling and Kingma 2018, arXiv:1712.01312, eq. 13",
    example=lambda rng: example(4 * rng.normal(size=(5, 4))),
    form_of="hard_concrete",
)
def settled_gates(
    alpha: Annotated[Float[Array, "..."], finite], *, low: Annotated[float, negative] = -0.1, high: Annotated[float, above(1)] = 1.1
) -> tuple[Array, Backward]:
    """Gates from 0 to 1 that hang on alpha alone: those to evaluate and to store with.

    Without the temperature, as published. Returns gates, shaped like alpha, and backward: dgates -> dalpha.
    Raises ValueError where low is not below 0 or high not above 1.
    """
    s, sigmoid_backward = sigmoid(alpha)
    stretched = s * (high - low) + low
    gates = np.clip(stretched, 0, 1)                         # (5)

    def backward(dgates):
        between = (stretched > 0) & (stretched < 1)
        return sigmoid_backward(between * dgates * (high - low))  # (6)

    return gates, backward


@concept(
    title="Expected number of open gates",
    source="Louizos, Welling and Kingma 2018, arXiv:1712.01312, eq. 12",
    example=lambda rng: example(rng.normal(size=(5, 4))),
    form_of="hard_concrete",
)
def expected_l0(
    alpha: Annotated[Float[Array, "..."], finite], *, temperature: Annotated[float, positive] = 2 / 3,
    low: Annotated[float, negative] = -0.1, high: Annotated[float, above(1)] = 1.1,
) -> tuple[np.floating, Backward]:  # fmt: skip
    """How many gates of hard_concrete are not 0, on average over the noise: the penalty that closes them.

    Settings as there. Returns out, from 0 to the number of gates, and backward: dout -> dalpha.
    Raises ValueError where low is not below 0 or high not above 1.
    """
    chances, sigmoid_backward = sigmoid(alpha - temperature * np.log(-low / high).astype(alpha.dtype))  # (7)
    out = np.sum(chances)                                    # (8)

    def backward(dout):
        return sigmoid_backward(np.full_like(chances, dout))  # (9)

    return out, backward
