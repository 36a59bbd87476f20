"""Sinusoidal positions: add a fixed wave to every feature, fast waves first, slow waves last.

Feature pair m turns like the hand of a clock, by frequency_m radians a position. All the hands together tell the
position, for any position at all, and nothing is learned.

Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
The paper interleaves: sine at even, cosine at odd features, as here. Much code (tensor2tensor, Marian) concatenates
all sines and all cosines instead: the same numbers in another order. Scaling the embedding by sqrt(d_model) first
(section 3.4) is left to the caller.

    frequency_m = base^(-2m / d_model)  for m = 0 .. d_model/2 - 1     (1)
    angle_pm = position_p frequency_m                                 (2)
    table_p,2m = sin(angle_pm) and table_p,2m+1 = cos(angle_pm)       (3)
    out = x + table                                                  (4)
    dx = dout, since the table is a constant                         (5)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid, positive


@concept(
    title="Sinusoidal positions",
    source="Vaswani et al. 2017, arXiv:1706.03762, section 3.5",
    example=lambda rng: example(rng.normal(size=(2, 5, 6)), positions=np.array([0, 1, 2, 40, 7])),
    roles=("position/input",),
    rejects=[bad(x=np.ones((2, 5, 7)))],
)
def sinusoidal(
    x: Float[Array, "... positions d_model"], *, positions: Annotated[Int[Array, "positions"], at_least(0)] | None = None,
    base: Annotated[float, positive] = 10_000.0,
) -> tuple[Array, Backward]:  # fmt: skip
    """Add to every position of x the sines and cosines of its angles.

    positions count tokens from the start (default 0, 1, ...); the slowest wave takes nearly 2 pi base positions for one period.
    Returns out, shaped like x, and backward: dout -> dx.
    Raises ValueError when d_model is odd.
    """
    num_positions, d_model = x.shape[-2:]
    if d_model % 2:
        raise invalid("x", got=f"d_model = {d_model}", wants="an even d_model: sines and cosines come in pairs")
    # In float64 whatever x is: a float32 angle is off by 0.002 radians at position 100,000.
    frequency = base ** (-2 * np.arange(d_model // 2) / d_model)           # (1)
    angle = np.outer(np.arange(num_positions) if positions is None else positions, frequency)  # (positions, d_model/2)  (2)
    table = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(num_positions, d_model)  # (3)
    out = x + table.astype(x.dtype)                          # (4)

    def backward(dout):
        dx = dout                                            # (5)
        return dx

    return out, backward
