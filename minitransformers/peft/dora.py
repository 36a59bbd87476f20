"""DoRA: the length of each column of a weight is trained by itself, and LoRA turns its direction.

Full tuning changes lengths and directions rather apart from each other; LoRA's product changes both together. So a column, what
one output is a sum by, is written as its length times its direction. One number an output more is trained than in LoRA, and the
start is the frozen weight: up is zero, and the lengths are those of its columns.

Source: Liu et al. 2024, arXiv:2402.09353, eq. 5 and section 4.3. down is the paper's A and up its B, each transposed, and its
columns are ours. dora's gradient is the true one. dora_detached is what the paper trains with, and peft: the norm counts as a
constant, (5) is dV = magnitude dweight / norm, and less is kept. Its gradient is that of another function, which says so.

    V = W + scale down up                                    (1)
    norm_j = sqrt(sum_i V_ij^2)                              (2)
    weight = magnitude V / norm                              (3)
    dmagnitude_j = sum_i dweight_ij V_ij / norm_j            (4)
    dV = magnitude (dweight - V dmagnitude / norm) / norm    (5)
    ddown = scale dV up^T                                    (6)
    dup = scale down^T dV                                    (7)
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive
from minitransformers.peft.lora import lora
from minitransformers.peft.lora_linear import Lora, init_lora


class Dora(NamedTuple):
    """LoRA's thin matrices, and a length for each output."""

    down: Float[Array, "d_in rank"]
    up: Float[Array, "rank d_out"]
    magnitude: Float[Array, "d_out"]


@checked
def init_dora(rng: np.random.Generator, base: Float[Array, "d_in d_out"], *, rank: Annotated[int, at_least(1)]) -> Dora:
    """LoRA's start, and the lengths of base's columns: the weight is base itself. The dtype is base's.

    Raises ValueError for a rank above the smaller side of base, and for a column of zeros, which has no direction.
    """
    down, up = init_lora(rng, *base.shape, rank=rank, dtype=base.dtype.type)
    return Dora(down, up, column_norms(base))


def column_norms(weight: Array) -> Array:
    """The length of each column. Raises ValueError for one of zeros."""
    norm = np.sqrt(np.sum(weight * weight, axis=0))
    if not norm.all():
        raise invalid("base", got=f"a weight whose column {int(np.argmin(norm))} is zero", wants="columns that have a direction")
    return norm


@concept(
    title="DoRA",
    source="Liu et al. 2024, arXiv:2402.09353, eq. 5",
    example=lambda rng: _example(rng),
    rejects=[
        bad("rank", params=Dora(np.ones((5, 6)), np.ones((6, 4)), np.ones(4))), bad("params", base=np.ones((6, 4))),
        bad("base", base=np.zeros((5, 4)), params=Dora(np.ones((5, 2)), np.zeros((2, 4)), np.ones(4))),
    ],
)  # fmt: skip
def dora(params: Dora, *, base: Float[Array, "d_in d_out"], scale: Annotated[float, positive]) -> tuple[Array, Backward]:
    """Columns of the trained lengths, in the directions of base plus LoRA's change: a change for ``reparameterize``.

    scale is dimensionless, as in lora. magnitude has the unit of a weight.
    Returns weight, shaped like base, and backward: dweight -> Dora(ddown, dup, dmagnitude), the true gradient.
    Raises ValueError when the factors do not make such a matrix, the rank is above the smaller of its sides, or a column is zero.
    """
    weight, unit, norm, lora_backward = _by_columns(params, base, scale)

    def backward(dweight):
        dmagnitude = np.sum(dweight * unit, axis=0)          # (4)
        across = dweight - unit * dmagnitude                 # what would lengthen V is lost: the norm divides it away
        dV = across * (params.magnitude / norm)              # (5)
        ddown, dup = lora_backward(dV)                       # (6) (7)
        return Dora(ddown, dup, dmagnitude)

    return weight, backward


@concept(
    title="DoRA, norm held",
    source="Liu et al. 2024, arXiv:2402.09353, section 4.3",
    example=lambda rng: _example(rng),
    rejects=[bad("params", base=np.ones((6, 4)))],
    form_of="dora",
    gradient_of=lambda params, *, base, scale: _with_this_norm(params, base, scale),
)
def dora_detached(params: Dora, *, base: Float[Array, "d_in d_out"], scale: Annotated[float, positive]) -> tuple[Array, Backward]:
    """The same weight; its gradient takes the norm for a constant, as the paper and peft train.

    Arguments, results and errors are those of dora, but backward keeps what lies along a column in the gradient of its direction.
    """
    weight, unit, norm, lora_backward = _by_columns(params, base, scale)

    def backward(dweight):
        dmagnitude = np.sum(dweight * unit, axis=0)          # (4)
        dV = dweight * (params.magnitude / norm)             # (5)
        ddown, dup = lora_backward(dV)                       # (6) (7)
        return Dora(ddown, dup, dmagnitude)

    return weight, backward


def _by_columns(params: Dora, base: Array, scale: float) -> tuple[Array, Array, Array, Backward]:
    """The weight, its directions and their norm before, and what LoRA's backward is."""
    V, lora_backward = lora(Lora(params.down, params.up), base=base, scale=scale)  # (1)
    norm = column_norms(V)                                   # (2)
    unit = V / norm
    return V * (params.magnitude / norm), unit, norm, lora_backward  # magnitude = norm: base to the last bit  (3)


def _with_this_norm(params: Dora, base: Array, scale: float) -> Callable:
    """The function whose gradient dora_detached has: dora, but the norm stays what it is at params."""
    norm = column_norms(base + scale * params.down @ params.up)
    return lambda params: params.magnitude * (base + scale * params.down @ params.up) / norm


def _example(rng: np.random.Generator):
    params = Dora(rng.normal(size=(5, 2)), rng.normal(size=(2, 4)), rng.normal(size=4))
    return example(params, base=rng.normal(size=(5, 4)), scale=0.7)
