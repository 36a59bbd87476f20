"""Gradient reversal: forward it does nothing, backward it turns the gradient round.

Behind it stands an adversary that tries to read the group of a person from a hidden state. The adversary learns from its own
gradient as usual. What goes on to the encoder has the other sign: the encoder learns to hide what the adversary looks for.
One backward pass trains both, and there is no inner loop. No function has this gradient: it is that of -strength x.

Source: Ganin et al. 2015, arXiv:1505.07818, section 4.2; how its strength grows is there in section 5.2. Costs one product a number.

    out = x                                                  (1)
    dx = - strength dout                                     (2)

With progress from 0 at the start of training to 1 at its end:

    strength = 2 / (1 + exp(-steepness progress)) - 1        (3)
"""

import math
from typing import Annotated

from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, between, concept, example, positive, procedure


@concept(
    title="Gradient reversal",
    source="Ganin et al. 2015, arXiv:1505.07818, section 4.2",
    example=lambda rng: example(rng.normal(size=(2, 3, 5)), strength=0.7),
    gradient_of=lambda x, *, strength: lambda new: -strength * new,
)
def gradient_reversal(x: Float[Array, "..."], *, strength: Annotated[float, at_least(0)]) -> tuple[Array, Backward]:
    """x itself, whose gradient is turned round and multiplied by strength.

    strength is dimensionless; at 0 nothing gets past.
    Returns out, x itself, and backward: dout -> dx = -strength dout. It is no gradient of out, but of -strength x.
    Raises ValueError where strength is below 0.
    """
    out = x                                                  # (1)

    def backward(dout):
        return -strength * dout                              # (2)

    return out, backward


@procedure(
    title="Strength of a gradient reversal",
    source="Ganin et al. 2015, arXiv:1505.07818, section 5.2",
    example=lambda rng: example(0.3),
)
def reversal_strength(progress: Annotated[float, between(0, 1)], *, steepness: Annotated[float, positive] = 10.0) -> float:
    """A strength that grows from 0 to nearly 1: at first the adversary only learns, then it is listened to.

    progress is the share of training that is done.
    """
    return 2 / (1 + math.exp(-steepness * progress)) - 1     # (3)
