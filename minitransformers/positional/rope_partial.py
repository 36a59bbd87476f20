"""RoPE on a part of the features: the first rotary_dim of each head are turned, the others pass. As in GPT-NeoX and GPT-J."""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid
from minitransformers.positional.rope import Positions
from minitransformers.positional.rope_fast import rope_fast


@concept(
    title="RoPE, on a part of the features",
    source="Black et al. 2022 (GPT-NeoX-20B), arXiv:2204.06745, section 2.1.1",
    example=lambda rng: example(rng.normal(size=(2, 3, 5, 8)), positions=rng.integers(-2, 9, size=(2, 1, 5)), rotary_dim=6),
    roles=("position/rotation",),
    rejects=[bad(rotary_dim=3), bad(rotary_dim=10)],
    form_of="rope",
)
def rope_partial(
    x: Float[Array, "*batch positions d_head"], *, rotary_dim: Annotated[int, at_least(2)], positions: Positions | None = None,
    turn: Callable = rope_fast,
) -> tuple[Array, Backward]:  # fmt: skip
    """``turn(x, positions=positions)`` on the first rotary_dim features; rotary_dim stands for d_head in its equations.

    Returns out, shaped like x, and backward: dout -> dx.
    Raises ValueError when rotary_dim is odd or exceeds d_head.
    """
    if rotary_dim % 2 or rotary_dim > x.shape[-1]:
        raise invalid("rotary_dim", got=rotary_dim, wants=f"an even number up to d_head = {x.shape[-1]}")
    turned, turn_backward = turn(x[..., :rotary_dim], positions=positions)

    def backward(dout):
        return np.concatenate([turn_backward(dout[..., :rotary_dim]), dout[..., rotary_dim:]], axis=-1)

    return np.concatenate([turned, x[..., rotary_dim:]], axis=-1), backward
