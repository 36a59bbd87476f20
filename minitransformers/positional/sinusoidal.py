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

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import bad, concept, example, invalid, positive_number


@concept(
    title="Sinusoidal positions",
    source="Vaswani et al. 2017, arXiv:1706.03762, section 3.5",
    example=lambda rng: example(rng.normal(size=(2, 5, 6)), positions=np.array([0, 1, 2, 40, 7])),
    roles=("position/input",),
    rejects=[
        bad(base=0.0),
        bad(base=float("inf")),
        bad("x", x=np.ones((2, 5, 7))),
        bad(positions=np.arange(4)),
        bad(positions=np.array([0, 1, 2, 3, -1])),
        bad(positions=np.arange(5.0)),
    ],
)
def sinusoidal(x: Float[Array, "... length d_model"], *, positions: Int[Array, "length"] | None = None, base: float = 10_000.0):
    """Add to every position of x the sines and cosines of its angles.

    positions count tokens from the start (default 0, 1, ...); the slowest wave takes
    nearly 2 pi base positions for one period.
    Returns out, shaped like x, and backward: dout -> dx.
    Raises ValueError when d_model is odd, a position is negative or base is not a finite number above 0.
    """
    length, d_model = x.shape[-2:]
    if d_model % 2:
        raise invalid("x", got=f"d_model = {d_model}", wants="an even d_model: sines and cosines come in pairs")
    base = positive_number("base", base)
    if positions is None:
        positions = np.arange(length)
    elif positions.min() < 0:
        raise invalid("positions", got=positions.min(), wants="none below 0")
    # In float64 whatever x is: a float32 angle is off by 0.002 radians at position 100,000.
    frequency = base ** (-2 * np.arange(d_model // 2) / d_model)           # (1)
    angle = np.outer(positions, frequency)                   # (length, d_model/2)  (2)
    table = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, d_model)  # (3)
    out = x + table.astype(x.dtype)                          # (4)

    def backward(dout):
        dx = dout                                            # (5)
        return dx

    return out, backward
