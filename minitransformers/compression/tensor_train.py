"""Tensor train: a matrix as a chain of small cores, found by one singular value decomposition after another.

Row and column numbers of a matrix are written as digits, row = (i_1 .. i_m) and column = (j_1 .. j_m), the first digit the largest
step. So the matrix is a tensor of 2m axes, and a tensor train is a product of as many cores, each of which reads one digit:
an element is a product of 2m small matrices. TT-SVD cuts the tensor behind its first axis, keeps the left singular vectors as the
first core, carries the rest on, and cuts again. What each cut leaves out adds up, in squares, to at most what is missing in the end.

Source: Oseledets 2011, SIAM J. Sci. Comput. 33:2295, algorithm 1 and theorem 2.2; Novikov et al. 2015, arXiv:1509.06569, for weights.
The order of digits, rows before columns, is CoMERA's (Yang et al. 2024, arXiv:2405.14377). Signs are chosen as in svd_factors. n_k is
the number of values of digit k, d = 2m, carried_1 = W.

    unfolded_k = carried_k as a matrix of rank_(k-1) n_k rows   (1)
    unfolded_k = U diag(sigma) V^T, sigma falling            (2)
    rank_k: as given, or the least r with sum_(i>r) sigma_i^2 <= (tolerance |W|)^2 / (d - 1)   (3)
    core_k = the first rank_k columns of U, as (rank_(k-1), n_k, rank_k)   (4)
    carried_(k+1) = sigma V^T, its first rank_k rows; it is the last core, too   (5)

And back:

    L_k = L_(k-1) core_k, L_0 = 1, as (n_1 .. n_k, rank_k)   (6)
    S_k = core_k S_(k+1), S_(d+1) = 1, as (rank_(k-1), n_k .. n_d)   (7)
    W = L_m S_(m+1)                                          (8)
"""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, finite, invalid, procedure

Core = Float[Array, "left size right"]
Digits = Sequence[Annotated[int, at_least(1)]]


@procedure(
    title="TT-SVD",
    source="Oseledets 2011, SIAM J. Sci. Comput. 33:2295, algorithm 1",
    example=lambda rng: example(rng.normal(size=(6, 10)), rows=(2, 3), columns=(2, 5), ranks=(2, 4, 3)),
    rejects=[
        bad(rows=(2, 4)), bad("columns", columns=(10,)), bad("columns", columns=(5, 3)), bad(ranks=(2, 4)), bad(ranks=(2, 7, 3)), bad(ranks=(2, 0, 3)),
        bad("rows", rows=(), columns=()),
    ],
)  # fmt: skip
def tt_svd(
    weight: Annotated[Float[Array, "d_in d_out"], finite], *, rows: Digits, columns: Digits, ranks: Digits | None = None,
    tolerance: Annotated[float, at_least(0)] = 0.0,
) -> list[Core]:  # fmt: skip
    """The cores of weight, whose rows are numbered by the digits rows and whose columns by as many digits columns.

    ranks, one for each cut, are taken where they are given. Otherwise each is the smallest with which |weight - train| is at most
    tolerance |weight|, a number without unit, in the root of the sum of squares: with 0 the train is weight, up to rounding.
    Returns 2m cores (left, size, right), each as wide to the left as its neighbour is to the right, 1 at both ends.
    Raises ValueError where the digits do not number the rows or the columns, and for ranks that are not one a cut, or above what a
    cut can have.
    """
    check_digits(rows, columns, weight)
    sizes = (*rows, *columns)
    if ranks is not None and len(ranks) != len(sizes) - 1:
        raise invalid("ranks", got=f"{len(ranks)} of them", wants=f"{len(sizes) - 1}, one between each two of {len(sizes)} cores")
    carried, left, cores = weight, 1, []
    allowed = (tolerance * np.linalg.norm(weight)) ** 2 / max(len(sizes) - 1, 1)
    for k, size in enumerate(sizes[:-1]):
        unfolded = carried.reshape(left * size, -1)          # (1)
        U, sigma, V = np.linalg.svd(unfolded, full_matrices=False)  # V has the vectors as rows  (2)
        lost = np.append(np.cumsum(sigma[::-1] ** 2)[::-1], 0)  # by rank: the squares that it leaves out
        right = int(ranks[k]) if ranks is not None else max(1, int(np.argmax(lost <= allowed)))  # (3)
        if right > len(sigma):
            raise invalid("ranks", got=f"{right} behind core {k}", wants=f"at most {len(sigma)}, the sides of a cut that is {' by '.join(map(str, unfolded.shape))}")
        signs = np.sign(np.take_along_axis(U, np.abs(U).argmax(axis=0)[None], axis=0)[0])
        cores.append((U * signs)[:, :right].reshape(left, size, right))  # (4)
        carried, left = ((signs * sigma)[:, None] * V)[:right], right  # (5)
    return [*cores, carried.reshape(left, sizes[-1], 1)]


@procedure(
    title="Tensor train, its matrix",
    source="Oseledets 2011, SIAM J. Sci. Comput. 33:2295, eq. 1.3",
    example=lambda rng: example([rng.normal(size=shape) for shape in ((1, 2, 3), (3, 3, 4), (4, 2, 2), (2, 5, 1))]),
    rejects=[
        bad(cores=[np.ones((1, 2, 3)), np.ones((3, 2, 1)), np.ones((1, 2, 1))]), bad("cores.1", cores=[np.ones((1, 2, 3)), np.ones((2, 2, 1))]),
        bad("cores.0", cores=[np.ones((2, 2, 3)), np.ones((3, 2, 1))]), bad("cores.1", cores=[np.ones((1, 2, 3)), np.ones((3, 2, 2))]), bad(cores=[]),
    ],
)  # fmt: skip
def tt_matrix(cores: list[Core]) -> Float[Array, "d_in d_out"]:
    """The matrix that 2m cores make, of which the first m read the digits of its row and the others those of its column.

    Raises ValueError for an odd number of cores, for neighbours that do not fit, and where an end is not 1 wide.
    """
    check_train(cores)
    half = len(cores) // 2
    return prefixes(cores[:half])[-1] @ suffixes(cores[half:])[0]  # (8)


def prefixes(cores: Sequence[Array]) -> list[Array]:
    """L_0 to L_m: the product of the cores before each, (n_1 .. n_k, rank_k)."""
    found = [np.ones((1, 1), cores[0].dtype)]
    for core in cores:
        found.append((found[-1] @ core.reshape(len(core), -1)).reshape(-1, core.shape[2]))  # (6)
    return found


def suffixes(cores: Sequence[Array]) -> list[Array]:
    """S_(m+1) to S_(d+1): the product of each core and those behind it, (rank_(k-1), n_k .. n_d)."""
    found = [np.ones((1, 1), cores[0].dtype)]
    for core in reversed(cores):
        found.append((core.reshape(-1, core.shape[2]) @ found[-1]).reshape(len(core), -1))  # (7)
    return found[::-1]


def check_train(cores: Sequence[Array], name: str = "cores") -> None:
    """Raise ValueError where cores are not an even number that fit each other, 1 wide at both ends."""
    if not cores or len(cores) % 2:
        raise invalid(name, got=f"{len(cores)} of them", wants="an even number: as many for the rows as for the columns")
    right = 1
    for k, core in enumerate(cores):
        if len(core) != right:
            raise invalid(f"{name}.{k}", got=f"{len(core)} to the left", wants=f"{right}, {'as its neighbour is to the right' if k else 'at the end'}")
        right = core.shape[2]
    if right != 1:
        raise invalid(f"{name}.{len(cores) - 1}", got=f"{right} to the right", wants="1, at the end")


def check_digits(rows: Sequence[int], columns: Sequence[int], weight: Array) -> None:
    """Raise ValueError where the digits do not number what weight has, or are more on one side than on the other."""
    if not rows:
        raise invalid("rows", got="none", wants="at least one")
    if len(columns) != len(rows):
        raise invalid("columns", got=f"{len(columns)} of them", wants=f"{len(rows)}, as many as rows (a digit may have one value)")
    for name, digits, size in (("rows", rows, weight.shape[0]), ("columns", columns, weight.shape[1])):
        if math.prod(digits) != size:
            raise invalid(name, got=f"{tuple(digits)}, whose product is {math.prod(digits)}", wants=f"factors of {size}")
