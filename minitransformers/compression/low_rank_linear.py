"""A linear map of low rank: two thin matrices in the place of one, and never their product.

A matrix that can be written as a product of d_in by r and r by d_out needs r (d_in + d_out) numbers in the place of d_in d_out,
and as many multiplications a position. The best such product for a given matrix is cut from its singular value decomposition:
nothing of rank r comes nearer, and what is missing is the singular values left out (Eckart and Young).

Source: Eckart and Young 1936, Psychometrika 1:211; as compression of networks Denton et al. 2014, arXiv:1404.0736. The root of the
singular values goes into both factors, so that neither is much larger than the other. Signs are chosen so that the largest
element of each column of U is positive.

    hidden = x down                                          (1)
    out = hidden up + bias                                   (2)
    dup = sum over positions of hidden^T dout                (3)
    dhidden = dout up^T                                      (4)
    ddown = sum over positions of x^T dhidden                (5)
    dx = dhidden down^T                                      (6)
    dbias = sum over positions of dout                       (7)

The same as an ordinary weight, for a model whose code is not touched:

    weight = down up                                         (8)
    ddown = dweight up^T, dup = down^T dweight               (9)

And where the factors of a weight W come from:

    W = U diag(sigma) V^T, sigma falling                     (10)
    down = U_r sigma_r^(1/2), up = sigma_r^(1/2) V_r^T, of the r largest   (11)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, finite, invalid, procedure
from minitransformers.foundation.trees import decays


class LowRankFactors(NamedTuple):
    """Two thin matrices: the one that x meets, and the one that makes the output."""

    down: Annotated[Float[Array, "d_in rank"], decays]
    up: Annotated[Float[Array, "rank d_out"], decays]


class LowRankLinear(NamedTuple):
    """Two thin matrices, and a bias or None."""

    down: Annotated[Float[Array, "d_in rank"], decays]
    up: Annotated[Float[Array, "rank d_out"], decays]
    bias: Float[Array, "d_out"] | None


@checked
def break_even_rank(d_in: Annotated[int, at_least(1)], d_out: Annotated[int, at_least(1)]) -> float:
    """The rank at which the factors have as many numbers as the matrix: a smaller one saves, seldom a whole number."""
    return d_in * d_out / (d_in + d_out)


@concept(
    title="Low-rank linear map",
    source="Denton et al. 2014, arXiv:1404.0736; Eckart and Young 1936, Psychometrika 1:211",
    example=lambda rng: example(LowRankLinear(rng.normal(size=(5, 2)), rng.normal(size=(2, 4)), rng.normal(size=4)), rng.normal(size=(2, 3, 5))),
)
def low_rank_linear(params: LowRankLinear, x: Float[Array, "... d_in"]) -> tuple[Array, Backward]:
    """Map the last axis of x through the thin matrices, from d_in to rank to d_out features.

    Returns out (..., d_out), and backward: dout -> LowRankLinear(ddown, dup, dbias), dx.
    Raises ValueError when the axes do not fit.
    """
    down, up, bias = params
    rows = x.reshape(-1, x.shape[-1])
    hidden = rows @ down                                     # (positions, rank)  (1)
    out = hidden @ up
    if bias is not None:
        out += bias                                          # (2)
    out = out.reshape(*x.shape[:-1], -1)

    def backward(dout):
        drows = dout.reshape(-1, dout.shape[-1])
        dup = hidden.T @ drows                               # (3)
        dhidden = drows @ up.T                               # (4)
        ddown = rows.T @ dhidden                             # (5)
        dx = (dhidden @ down.T).reshape(x.shape)             # (6)
        dbias = None if bias is None else np.ones(len(drows), drows.dtype) @ drows  # (7)
        return LowRankLinear(ddown, dup, dbias), dx

    return out, backward


@concept(
    title="Low-rank linear map, its weight",
    source="Denton et al. 2014, arXiv:1404.0736",
    example=lambda rng: example(LowRankFactors(rng.normal(size=(5, 2)), rng.normal(size=(2, 4))), base=rng.normal(size=(5, 4))),
    rejects=[bad(base=np.ones((5, 3)))],
    form_of="low_rank_linear",
)
def low_rank_weight(params: LowRankFactors, *, base: Float[Array, "d_in d_out"]) -> tuple[Array, Backward]:
    """The product of the thin matrices in the place of base: a change for ``reparameterize``. Of base only the shape is read.

    Returns weight, shaped like base, and backward: dweight -> LowRankFactors(ddown, dup).
    Raises ValueError when the factors make another matrix than base.
    """
    down, up = params
    if (len(down), up.shape[1]) != base.shape:               # inside reparameterize no annotation is checked
        raise invalid("base", got=f"shape {base.shape}", wants=f"{(len(down), up.shape[1])}, as the factors make")
    weight = down @ up                                       # (8)

    def backward(dweight):
        return LowRankFactors(dweight @ up.T, down.T @ dweight)     # (9)

    return weight, backward


@procedure(
    title="Factors of low rank",
    source="Eckart and Young 1936, Psychometrika 1:211",
    example=lambda rng: example(rng.normal(size=(5, 4)), rank=2),
    rejects=[bad(rank=5)],
)
def svd_factors(weight: Annotated[Float[Array, "d_in d_out"], finite], *, rank: Annotated[int, at_least(1)]) -> LowRankFactors:
    """The two thin matrices whose product is nearest to weight, in the sum of squares, of all that have this rank.

    Returns LowRankFactors. What is missing is the root of the sum of the squared singular values that are left out. Whether it saves
    anything, break_even_rank says.
    Raises ValueError for a rank above the smaller of d_in and d_out.
    """
    check_rank(rank, weight)
    U, sigma, V = np.linalg.svd(weight, full_matrices=False)  # V has the vectors as rows  (10)
    signs = np.sign(np.take_along_axis(U, np.abs(U).argmax(axis=0)[None], axis=0)[0])
    root = signs * np.sqrt(sigma)
    return LowRankFactors(U[:, :rank] * root[:rank], root[:rank, None] * V[:rank])  # (11)


def check_rank(rank: int, weight: Array) -> None:
    """Raise ValueError for a rank above what weight can have."""
    if rank > min(weight.shape):
        raise invalid("rank", got=rank, wants=f"1 to {min(weight.shape)}, the most that a weight of {' by '.join(map(str, weight.shape))} can have")
