"""Dropout: silence a random part of the features while training, so that none can rely on another.

The survivors are scaled up by 1/(1 - rate), which keeps the expectation: without a generator nothing happens at all.
Costs one random number and one product an element; keeps the scaled mask.

Source: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov 2014, JMLR 15, section 4. Differs from the paper:
it scales the weights down when the network is used; this "inverted" form scales the survivors up when it is trained.

    mask = 1/(1 - rate) with probability 1 - rate, else 0    (1)
    out = x mask                                             (2)
    dx = dout mask                                           (3)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, from_to_below, invalid


@concept(
    title="Dropout",
    source="Srivastava et al. 2014, Dropout: a simple way to prevent neural networks from overfitting, JMLR 15",
    example=lambda rng: example(rng.normal(size=(2, 3, 5)), rate=0.3, rng=np.random.default_rng(1)),
    rejects=[bad(rate=1 - 1e-9)],
)
def dropout(
    x: Float[Array, "..."], *, rate: Annotated[float, from_to_below(0, 1)], rng: np.random.Generator | None
) -> tuple[Array, Backward]:
    """Set each element to zero with probability ``rate`` and scale the others by 1/(1 - rate).

    rng draws the mask, one number an element, the same for every dtype; with rng None (the network is in use, not in
    training) or rate 0 the result is x itself.
    Returns out, shaped like x, and backward: dout -> dx.
    Raises ValueError when rate is outside [0, 1) or rng is neither a generator nor None.
    """
    if np.float32(rate) == 1:                                # the draws are float32's: such a rate would drop all
        raise invalid("rate", got=rate, wants="a rate that is below 1 in float32")
    if rng is None or rate == 0:
        return x, lambda dout: dout
    keep = rng.random(x.shape, dtype=np.float32) >= rate     # float32 draws: half the time, and one mask for every dtype
    mask = keep * x.dtype.type(1 / (1 - rate))               # (1)
    out = x * mask                                           # (2)

    def backward(dout):
        return dout * mask                                   # (3)

    return out, backward
