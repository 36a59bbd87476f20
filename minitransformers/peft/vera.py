"""VeRA: the thin matrices are random, frozen and the same for every weight; two vectors a weight say how much of each is used.

LoRA's factors have r (d_in + d_out) numbers a matrix. Here one pair serves the whole model and is never stored: a seed makes it
again. Trained are one number a row of the middle, and one an output, r + d_out in all. The latter start at zero, so the start is
the frozen weight. A weight that is smaller than the shared pair takes its first rows and columns.

Source: Kopiczko, Blankevoort and Asano 2023, arXiv:2310.11454, eq. 2. down and up are the paper's frozen A and B, inner and outer
its vectors d and b; each matrix is transposed, as x stands on the left here.

    product = down diag(inner) up                            (1)
    weight = W + product diag(outer)                         (2)
    douter_j = sum_i dweight_ij product_ij                   (3)
    dproduct = dweight diag(outer)                           (4)
    dinner_k = sum_i down_ik (dproduct up^T)_ik              (5)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, finite, invalid
from minitransformers.peft.lora_linear import Lora


class Vera(NamedTuple):
    """What is trained of one weight: a number for each of the shared directions, and one for each output."""

    inner: Float[Array, "rank"]
    outer: Float[Array, "d_out"]


@checked
def init_vera(
    d_out: Annotated[int, at_least(1)], *, rank: Annotated[int, at_least(1)], start: Annotated[float, finite] = 0.1, dtype: type = np.float32
) -> Vera:  # fmt: skip
    """inner at ``start``, outer at zero: only outer moves at the first step."""
    return Vera(np.full(rank, start, dtype), np.zeros(d_out, dtype))


@checked
def vera_projections(
    rng: np.random.Generator, d_in: Annotated[int, at_least(1)], d_out: Annotated[int, at_least(1)], *, rank: Annotated[int, at_least(1)],
    dtype: type = np.float32,
) -> Lora:  # fmt: skip
    """The pair that all weights share, of the sizes of the largest: uniform, of variance 2 / d_in and 2 / rank."""
    down = rng.uniform(-1, 1, size=(d_in, rank)) * (6 / d_in) ** 0.5
    up = rng.uniform(-1, 1, size=(rank, d_out)) * (6 / rank) ** 0.5
    return Lora(down.astype(dtype), up.astype(dtype))


@concept(
    title="VeRA",
    source="Kopiczko, Blankevoort and Asano 2023, arXiv:2310.11454, eq. 2",
    example=lambda rng: example(
        Vera(rng.normal(size=2), rng.normal(size=4)), base=rng.normal(size=(5, 4)), projections=Lora(rng.normal(size=(6, 2)), rng.normal(size=(2, 7)))
    ),
    rejects=[
        bad("projections", projections=Lora(np.ones((4, 2)), np.ones((2, 4)))), bad("projections", projections=Lora(np.ones((5, 2)), np.ones((2, 3)))),
        bad("projections", projections=Lora(np.ones((5, 3)), np.ones((3, 4)))), bad("params", params=Vera(np.ones(2), np.ones(3))),
    ],
)  # fmt: skip
def vera(
    params: Annotated[Vera, "rank d_out"], *, base: Float[Array, "d_in d_out"], projections: Annotated[Lora, "largest_in rank largest_out"]
) -> tuple[Array, Backward]:  # fmt: skip
    """The frozen matrix base plus the shared pair, scaled in the middle and at the output: a change for ``reparameterize``.

    projections are frozen, at least as large as base; the rank may be above base's sides, as it is that of the largest weight.
    Returns weight, shaped like base, and backward: dweight -> Vera(dinner, douter).
    Raises ValueError when base is larger than the projections, or params are not those of such a weight.
    """
    inner, outer = params
    rows, columns = base.shape
    if len(projections.down) < rows or projections.up.shape[1] < columns or projections.down.shape[1] != len(inner):
        got = f"{len(projections.down)} by {projections.down.shape[1]} by {projections.up.shape[1]}"
        raise invalid("projections", got=got, wants=f"at least {rows} by exactly {len(inner)} by at least {columns}")
    if len(outer) != columns:
        raise invalid("params", got=f"{len(outer)} numbers in outer", wants=f"{columns}, one a column of base")
    down, up = projections.down[:rows], projections.up[:, :columns]
    product = (down * inner) @ up                            # (1)
    weight = base + product * outer                          # (2)

    def backward(dweight):
        douter = np.sum(dweight * product, axis=0)           # (3)
        dproduct = dweight * outer                           # (4)
        dinner = np.sum(down * (dproduct @ up.T), axis=0)    # (5)
        return Vera(dinner, douter)

    return weight, backward
