"""LoRA on one linear map: a frozen weight, and beside it a product of two thin matrices, which is all that is trained.

What fine-tuning changes in a weight has low rank, or nearly. So the change is written as a product down up of rank r, and
r (d_in + d_out) numbers are trained in the place of d_in d_out. W and b stand still: their gradient, as large as W, is never
made, and the change itself, as large, neither: x down comes first. up starts at zero, so the map starts as the frozen one.

Source: Hu et al. 2021, arXiv:2106.09685, eq. 3; Kalajdzievski 2023, arXiv:2312.03732, for a scale of alpha / sqrt(r). down is
the paper's A and up its B, each transposed, as x stands on the left here. Differs from the paper: down is uniform, as in the
authors' code, not normal. drop is dropout, or the identity; D is its backward.

    kept = drop(x)                                           (1)
    hidden = scale kept down                                 (2)
    out = x W + b + hidden up                                (3)
    dup = sum over positions of hidden^T dout                (4)
    dhidden = scale dout up^T                                (5)
    ddown = sum over positions of kept^T dhidden             (6)
    dx = dout W^T + D(dhidden down^T)                        (7)
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.dropout import dropout
from minitransformers.basics.linear import Linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive


class Lora(NamedTuple):
    """Two thin matrices: the one that x meets, and the one that makes the output."""

    down: Float[Array, "d_in rank"]
    up: Float[Array, "rank d_out"]


@checked
def init_lora(
    rng: np.random.Generator, d_in: Annotated[int, at_least(1)], d_out: Annotated[int, at_least(1)], *, rank: Annotated[int, at_least(1)],
    dtype: type = np.float32,
) -> Lora:  # fmt: skip
    """down uniform within 1/sqrt(d_in) of zero, up zero: their product is zero, and only up moves at the first step.

    Raises ValueError for a rank above the smaller of d_in and d_out.
    """
    check_rank(rank, d_in, d_out)
    return Lora(rng.uniform(-(d_in**-0.5), d_in**-0.5, size=(d_in, rank)).astype(dtype), np.zeros((rank, d_out), dtype))


def check_rank(rank: int, d_in: int, d_out: int) -> None:
    """Raise ValueError for a rank below 1, or above what a matrix of d_in by d_out can have."""
    if not 1 <= rank <= min(d_in, d_out):
        raise invalid("rank", got=rank, wants=f"1 to {min(d_in, d_out)}, the most that a weight of {d_in} by {d_out} can have")


@checked
def lora_scale(alpha: Annotated[float, positive], rank: Annotated[int, at_least(1)]) -> float:
    """alpha / rank: what the paper multiplies the product by."""
    return alpha / rank


@checked
def rank_stabilised_scale(alpha: Annotated[float, positive], rank: Annotated[int, at_least(1)]) -> float:
    """alpha / sqrt(rank), rsLoRA's: the size of the first steps then does not depend on the rank."""
    return alpha / rank**0.5


@concept(
    title="LoRA",
    source="Hu et al. 2021, arXiv:2106.09685, eq. 3",
    example=lambda rng: example(
        Lora(rng.normal(size=(5, 2)), rng.normal(size=(2, 4))), rng.normal(size=(2, 3, 5)),
        base=Linear(rng.normal(size=(5, 4)), rng.normal(size=4)), scale=0.7, drop=_without_one,
    ),
    rejects=[bad("rank", params=Lora(np.ones((5, 6)), np.ones((6, 4)))), bad("base", base=Linear(np.ones((5, 3)), None))],
)  # fmt: skip
def lora_linear(
    params: Lora, x: Float[Array, "... d_in"], *, base: Annotated[Linear, "d_in d_out"], scale: Annotated[float, positive],
    drop: Callable = partial(dropout, rate=0.0, rng=None),
) -> tuple[Array, Backward]:  # fmt: skip
    """The frozen map base, plus scale times x through the two thin matrices.

    scale is dimensionless: lora_scale(alpha, rank), or rank_stabilised_scale(alpha, rank). ``drop(x) -> kept, backward`` acts
    on what the thin matrices see, and on nothing else: ``partial(dropout, rate=0.1, rng=rng)`` while training.
    Returns out (..., d_out), and backward: dout -> Lora(ddown, dup), dx; base gets no gradient.
    Raises ValueError when the axes do not fit, or the rank is above the smaller of d_in and d_out.
    """
    (down, up), (weight, bias) = params, base
    check_rank(down.shape[1], *weight.shape)
    kept, drop_backward = drop(x)                            # (1)
    rows, kept_rows = x.reshape(-1, x.shape[-1]), kept.reshape(-1, x.shape[-1])
    hidden = scale * (kept_rows @ down)                      # (positions, rank)  (2)
    out = rows @ weight
    out += hidden @ up
    if bias is not None:
        out += bias                                          # (3)
    out = out.reshape(*x.shape[:-1], -1)

    def backward(dout):
        drows = dout.reshape(-1, dout.shape[-1])
        dup = hidden.T @ drows                               # (4)
        dhidden = scale * (drows @ up.T)                     # (5)
        ddown = kept_rows.T @ dhidden                        # (6)
        dthin = (dhidden @ down.T).reshape(x.shape)
        dx = (drows @ weight.T).reshape(x.shape) + drop_backward(dthin)  # no dW, no db  (7)
        return Lora(ddown, dup), dx

    return out, backward


def _without_one(x: Array) -> tuple[Array, Backward]:
    """What dropout does, but always to the second feature."""
    mask = np.where(np.arange(x.shape[-1]) == 1, 0, 1.25).astype(x.dtype)
    return x * mask, lambda dout: dout * mask
