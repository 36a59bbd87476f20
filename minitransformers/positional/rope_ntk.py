"""RoPE for longer texts, NTK-aware: the base is raised so that the slowest pair is slowed by factor and the fastest not at all.

The exponent of the slowest pair is -(d - 2) / d, so base factor^(d / (d - 2)) slows it exactly by factor; pairs between are
slowed by a power of factor that grows evenly from 0 to 1. Neighbours stay apart as they were in training.
Source: bloc97 2023; Peng et al. 2023, arXiv:2309.00071, section 3.1. What turns is rope_fast, unless another layout is put in.
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid, positive
from minitransformers.positional.rope import Positions
from minitransformers.positional.rope_fast import rope_fast


@concept(
    title="RoPE, NTK-aware",
    source="bloc97 2023; Peng et al. 2023, arXiv:2309.00071, section 3.1",
    example=lambda rng: example(rng.normal(size=(2, 3, 5, 8)), positions=rng.integers(-2, 9, size=(2, 1, 5)), base=100.0, factor=2.5),
    roles=("position/rotation",),
    rejects=[bad(x=np.ones((2, 3, 5, 2))), bad(factor=1e308)],
    form_of="rope",
)
def rope_ntk(
    x: Float[Array, "*batch positions d_head"], *, factor: Annotated[float, at_least(1)], positions: Positions | None = None,
    base: Annotated[float, positive] = 10_000.0, turn: Callable = rope_fast,
) -> tuple[Array, Backward]:  # fmt: skip
    """Turn with the base factor^(d / (d - 2)) times as large. The rest as in rope.

    Raises ValueError where there is one pair only, which would be the slowest and the fastest, and where the base overflows.
    """
    d_head = x.shape[-1]
    if d_head == 2:
        raise invalid("x", got="d_head = 2", wants="at least 4: the slowest pair must not be the fastest, too")
    with np.errstate(over="ignore"):
        raised = base * float(np.float64(factor) ** (d_head / (d_head - 2)))
    if raised == np.inf:
        raise invalid("factor", got=factor, wants="a number with which the base does not overflow")
    return turn(x, positions=positions, base=raised)
