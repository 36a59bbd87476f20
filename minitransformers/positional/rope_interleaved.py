"""RoPE in the layout of the paper: a pair is two neighbours.

Features 2m and 2m + 1 are pair m, as in the paper, the first Llama code and GPT-J. Weights that were trained with one layout
must be permuted to run with the other. The equations are those of rope, and so are the numbers on the lines. Neighbours
x_a, x_b in memory are the complex number x_a + i x_b, and turning it is one product with cos + i sin: six times faster than slices.
"""

import functools
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, positive
from minitransformers.positional.rope import Positions, places_of
from minitransformers.positional.rope_fast import cos_and_sin


@concept(
    title="RoPE, interleaved",
    source="Su et al. 2021, arXiv:2104.09864, eq. 34",
    example=lambda rng: example(rng.normal(size=(2, 3, 5, 8)), positions=rng.integers(-2, 9, size=(2, 1, 5)), base=100.0),
    roles=("position/rotation",),
    rejects=[bad(x=np.ones((2, 3, 5, 7)))],
    form_of="rope",
)
def rope_interleaved(
    x: Float[Array, "*batch positions d_head"], *, positions: Positions | None = None, base: Annotated[float, positive] = 10_000.0
) -> tuple[Array, Backward]:  # fmt: skip
    """Turn neighbouring features as pairs. Arguments, results and errors are those of rope."""
    places = places_of(x, positions)
    turns = _turns(places.tobytes(), places.shape, x.shape[-1], base, x.dtype)
    out = _product(x, turns)                                 # (3) (4)

    def backward(dout):
        return _product(dout, turns.conj())                  # (5) (6)

    return out, backward


@functools.lru_cache(maxsize=8)
def _turns(positions: bytes, shape: tuple[int, ...], d_head: int, base: float, dtype: np.dtype) -> Array:
    """Read-only, as all calls with these positions share it."""
    cos, sin = cos_and_sin(np.frombuffer(positions).reshape(shape), d_head, base, dtype)  # (1) (2)
    turns = cos + 1j * sin
    turns.setflags(write=False)
    return turns


def _product(x: Array, turns: Array) -> Array:
    return (np.ascontiguousarray(x).view(turns.dtype) * turns).view(x.dtype)
