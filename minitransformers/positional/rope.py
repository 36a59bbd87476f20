"""Rotary position embedding (RoPE): turn each pair of features of q and k by an angle that grows with the position.

A query turned by p and a key turned by p' meet at the angle of p - p': their dot product knows how far apart they are
and not where. Values are not turned. Nothing is learned, and cached keys stay valid as the text grows.

Source: Su et al. 2021, arXiv:2104.09864, eq. 34. Differs from the paper: pair m is features m and m + d/2 (x_a and x_b), as
in Hugging Face's Llama and in GPT-NeoX, where the paper takes the neighbours 2m and 2m + 1 (rope_interleaved). One is the
other with the features in another order. Beside it stand rope_fast (tables that are kept), rope_linear and rope_ntk (texts
longer than those of training) and rope_partial (a part of the features).

    frequency_m = base^(-2m / d)  for m = 0 .. d/2 - 1       (1)
    angle_pm = position_p frequency_m                        (2)
    out_a = x_a cos(angle) - x_b sin(angle)                  (3)
    out_b = x_a sin(angle) + x_b cos(angle)                  (4)
    dx_a = dout_a cos(angle) + dout_b sin(angle)             (5)
    dx_b = -dout_a sin(angle) + dout_b cos(angle)            (6)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float, Real
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, finite, invalid, positive

Positions = Annotated[Real[Array, "*#batch positions"], finite]


@concept(
    title="Rotary position embedding (RoPE)",
    source="Su et al. 2021, arXiv:2104.09864, eq. 34",
    example=lambda rng: example(rng.normal(size=(2, 3, 5, 8)), positions=rng.integers(-2, 9, size=(2, 1, 5)), base=100.0),
    roles=("position/rotation",),
    rejects=[bad(x=np.ones((2, 3, 5, 7)))],
)
def rope(
    x: Float[Array, "*batch positions d_head"], *, positions: Positions | None = None, base: Annotated[float, positive] = 10_000.0
) -> tuple[Array, Backward]:
    """Turn the feature pairs of queries or keys by the angles of their positions.

    positions count tokens from the start (default 0, 1, ...); they may be negative or real, as when a long text is
    squeezed into a short range. Texts that start at different places have a row each, (texts, 1, positions) for x (texts, heads,
    positions, d_head). base is about the number of positions that turn the slowest pair by one radian.
    Returns out, shaped like x, and backward: dout -> dx.
    Raises ValueError when d_head is odd, or positions have axes that x has not.
    """
    places, d_head = places_of(x, positions), x.shape[-1]
    if d_head % 2:
        raise invalid("x", got=f"d_head = {d_head}", wants="an even d_head: features are turned in pairs")
    # In float64 whatever x is: a float32 angle is off by 0.002 radians at position 100,000.
    frequency = base ** (-2 * np.arange(d_head // 2) / d_head)  # (1)
    angle = places[..., None] * frequency                    # (positions, d_head / 2)  (2)
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    x_a, x_b = np.split(x, 2, axis=-1)
    out_a = x_a * cos - x_b * sin                            # (3)
    out_b = x_a * sin + x_b * cos                            # (4)
    out = np.concatenate([out_a, out_b], axis=-1)

    def backward(dout):
        dout_a, dout_b = np.split(dout, 2, axis=-1)
        dx_a = dout_a * cos + dout_b * sin                   # the same turn the other way: a rotation's transpose  (5)
        dx_b = dout_b * cos - dout_a * sin                   # (6)
        return np.concatenate([dx_a, dx_b], axis=-1)

    return out, backward


def places_of(x: Array, positions: Array | None) -> Array:
    """The positions as they are given, or 0, 1, ...; in float64. Raises ValueError unless they broadcast to the axes of x."""
    if positions is None:
        return np.arange(x.shape[-2], dtype=np.float64)
    if np.broadcast_shapes(positions.shape, x.shape[:-1]) != x.shape[:-1]:
        raise invalid("positions", got=f"shape {positions.shape}", wants=f"one that broadcasts to {x.shape[:-1]}, the axes of x")
    return positions.astype(np.float64)
