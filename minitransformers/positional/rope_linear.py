"""RoPE for longer texts, positions interpolated: for texts factor times as long, all positions are squeezed into the old range.

A model that was trained on N positions has never seen angles beyond N frequency_m. With position / factor in the place of
position no angle is new, and every pair is slowed by factor, the fastest too.
Source: Chen et al. 2023, arXiv:2306.15595, eq. 4. What turns is rope_fast, unless another layout is put in.
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, concept, example, positive
from minitransformers.positional.rope import Positions
from minitransformers.positional.rope_fast import rope_fast


@concept(
    title="RoPE, positions interpolated",
    source="Chen et al. 2023, arXiv:2306.15595, eq. 4",
    example=lambda rng: example(rng.normal(size=(2, 3, 5, 8)), positions=rng.integers(-2, 9, size=(2, 1, 5)), base=100.0, factor=2.5),
    roles=("position/rotation",),
    form_of="rope",
)
def rope_linear(
    x: Float[Array, "*batch positions d_head"], *, factor: Annotated[float, at_least(1)], positions: Positions | None = None,
    base: Annotated[float, positive] = 10_000.0, turn: Callable = rope_fast,
) -> tuple[Array, Backward]:  # fmt: skip
    """Turn as if position p were p / factor: every pair is slowed by factor. The rest as in rope."""
    places = np.arange(x.shape[-2]) if positions is None else positions
    return turn(x, positions=places.astype(np.float64) / factor, base=base)
