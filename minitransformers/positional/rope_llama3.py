"""RoPE for longer texts, as Llama 3.1 and later have it: slow pairs are slowed by factor, fast ones not at all, those between in part.

A pair that turned often within the context of training knows distances well and is left alone; one that never came round would
meet angles that it has not seen, and is slowed so that it does not. What decides is how many turns a pair makes within context.
Source: the published code of Llama 3.1 (apply_scaling), of which Grattafiori et al. 2024, arXiv:2407.21783, section 3.2, states
the base alone; NTK by parts, Peng et al. 2023, arXiv:2309.00071, section 3.2, is the idea with another ramp. The turn is rope's.
"""

from math import pi
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid, positive
from minitransformers.positional.rope import Positions, places_of


@concept(
    title="RoPE, slowed by parts (Llama 3)",
    source="Grattafiori et al. 2024, arXiv:2407.21783, and its published code; Peng et al. 2023, arXiv:2309.00071, section 3.2",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 5, 12)), positions=rng.integers(-2, 9, size=(2, 1, 5)), base=100.0, factor=2.5, context=40
    ),
    roles=("position/rotation",),
    rejects=[bad(x=np.ones((2, 3, 5, 7))), bad(most=1.0)],
    form_of="rope",
)  # fmt: skip
def rope_llama3(
    x: Float[Array, "*batch positions d_head"], *, positions: Positions | None = None, base: Annotated[float, positive] = 500_000.0,
    factor: Annotated[float, at_least(1)] = 8.0, context: Annotated[int, at_least(1)] = 8192,
    least: Annotated[float, positive] = 1.0, most: Annotated[float, positive] = 4.0,
) -> tuple[Array, Backward]:  # fmt: skip
    """Turn as rope does, but pairs that make fewer than ``least`` turns in ``context`` positions are slowed by ``factor``.

    Those with more than ``most`` turns keep their pace; between, the pace is a mean of both, the faster one weighed by how far
    the turns are from least to most. context, in tokens, is what the model was trained on before texts grew longer. Defaults
    are Llama 3.1's; Llama 3.2 has a factor of 32. The rest as in rope.
    Raises ValueError when most is not above least.
    """
    if most <= least:
        raise invalid("most", got=most, wants=f"more than least = {least}")
    if x.shape[-1] % 2:
        raise invalid("x", got=f"d_head = {x.shape[-1]}", wants="an even d_head: features are turned in pairs")
    frequency = base ** (-2 * np.arange(x.shape[-1] // 2) / x.shape[-1])
    turns = context * frequency / (2 * pi)
    kept = np.clip((turns - least) / (most - least), 0, 1)   # how much of its pace a pair keeps
    frequency = frequency * (kept + (1 - kept) / factor)
    angle = places_of(x, positions)[..., None] * frequency
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)

    def turned(x: Array, sin: Array) -> Array:
        x_a, x_b = np.split(x, 2, axis=-1)
        return np.concatenate([x_a * cos - x_b * sin, x_a * sin + x_b * cos], axis=-1)

    def backward(dout):
        return turned(dout, -sin)                            # the same turn the other way

    return turned(x, sin), backward
