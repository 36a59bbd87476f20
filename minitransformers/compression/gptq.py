"""GPTQ: round a weight row by row, and let the rows that are not rounded yet make up for what rounding has done to the output.

Each input feature owns a row of the weight. Rounding a row moves the output; where features are correlated, other rows can move it
back. How far they must move follows from the inputs' gram matrix alone: among the rows still free the best answer is a step of
Newton's method. So take one row after the other, round it, and spread its error over the rows behind. The weight ends further
from where it was than by plain rounding, and the output nearer.

Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1; Frantar and Alistarh 2022, arXiv:2208.11580, for the step. The paper's
weight lies as (outputs, inputs), so its columns are the rows here. X holds calibration inputs, one a row. Differs from the paper:
the 2 of H = 2 X^T X is left out, as it cancels. Differs from the authors' code: inputs that were never used (an H_ii of 0) have their
rows zeroed before steps are chosen, not after, and do not count in the mean of (1); a group's steps are always those of the rows as
they are by then, where the code reads rows that lag behind as long as a block lasts. Q(group) chooses the steps of a group's columns.

    H = X^T X + damping mean(diag(X^T X)) I                  (1)
    H = M M^T, M upper triangular                            (2)
    U = M^-1, which makes H^-1 = U^T U                       (3)
    steps = Q(rows j .. j + group - 1), where a group begins (4)
    code_j = the nearest code to row_j on these steps        (5)
    error = (row_j - R(code_j)) / U_jj                       (6)
    row_k = row_k - U_jk error, for all k > j                (7)

In blocks, (7) is done at once within a block, and for all rows behind it when the block is through:

    rows behind = rows behind - U_(block, behind)^T errors   (8)
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.compression.input_statistics import input_gram
from minitransformers.compression.quantize import BITS, Affine, Symmetric, quantize_symmetric
from minitransformers.foundation import at_least, bad, example, finite, invalid, procedure

_LABEL: dict[str, Any] = {
    "source": "Frantar et al. 2022, arXiv:2210.17323, algorithm 1",
    "rejects": [
        bad(group=4), bad(group=0), bad("damping", gram=np.ones((6, 6)), damping=0.0), bad("damping", gram=-np.eye(6)), bad(gram=np.zeros((6, 6))),
        bad(gram=np.ones((5, 5))), bad(bits=1), bad(quantize=lambda values, **_: values),
    ],
}  # fmt: skip


@procedure(title="GPTQ", example=lambda rng: _example(rng, group=3), **_LABEL)
def gptq(
    weight: Annotated[Float[Array, "d_in d_out"], finite], *, gram: Annotated[Float[Array, "d_in d_in"], finite], bits: Annotated[int, BITS],
    group: int | None = None, damping: Annotated[float, at_least(0)] = 0.01, quantize: Callable = quantize_symmetric,
) -> Symmetric | Affine:  # fmt: skip
    """Codes and steps of weight that change the output least on inputs whose gram matrix (input_gram) is given.

    ``quantize(values, bits=bits, axis=-2)`` chooses the steps: quantize_symmetric with or without a clip of its own, or
    quantize_affine. They are those of a column, or of each group of so many rows of a column. damping is dimensionless.
    Returns Symmetric or Affine, as quantize does: codes (d_in, d_out), or (groups, group, d_out). Never used inputs get zero weights.
    Raises ValueError where group does not divide d_in, no input was used, or gram with its damping is not positive definite.
    """
    U, free, size = _prepared(weight, gram, damping, group)
    codes, grids = [], []
    for j in range(len(free)):
        if j % size == 0:
            grids.append(_steps(quantize, free[j : j + size], bits))  # (4)
        code, restored = _nearest(free[j], grids[-1], bits)  # (5)
        codes.append(code)
        error = (free[j] - restored) / U[j, j]               # (6)
        free[j + 1 :] -= np.outer(U[j, j + 1 :], error)      # (7)
    return _stored(codes, grids, group)


@procedure(
    title="GPTQ, in blocks",
    example=lambda rng: _example(rng, group=1, block=4),
    **{**_LABEL, "rejects": [*_LABEL["rejects"], bad("block", group=3)]},
)  # fmt: skip
def gptq_blocked(
    weight: Annotated[Float[Array, "d_in d_out"], finite], *, gram: Annotated[Float[Array, "d_in d_in"], finite], bits: Annotated[int, BITS],
    group: int | None = None, damping: Annotated[float, at_least(0)] = 0.01, quantize: Callable = quantize_symmetric,
    block: Annotated[int, at_least(1)] = 128,
) -> Symmetric | Affine:  # fmt: skip
    """The same codes, faster: the rows behind a block of so many are touched once, by one product of matrices.

    Raises ValueError as gptq does, and where of several groups and blocks neither size divides the other.
    """
    U, free, size = _prepared(weight, gram, damping, group)
    if max(block, size) < len(free) and size % block and block % size:
        raise invalid("block", got=block, wants=f"a multiple or a divisor of the {size} rows of a group, whose rows must all be up to date where it begins")
    codes, grids = [], []
    for start in range(0, len(free), block):
        behind = min(start + block, len(free))
        errors = []
        for j in range(start, behind):
            if j % size == 0:
                grids.append(_steps(quantize, free[j : j + size], bits))
            code, restored = _nearest(free[j], grids[-1], bits)
            codes.append(code)
            errors.append((free[j] - restored) / U[j, j])
            free[j + 1 : behind] -= np.outer(U[j, j + 1 : behind], errors[-1])
        free[behind:] -= U[start:behind, behind:].T @ errors  # (8)
    return _stored(codes, grids, group)


def _prepared(weight: Array, gram: Array, damping: float, group: int | None) -> tuple[Array, Array, int]:
    """U, the rows of the weight that are free to move, and how many of them share steps. The algebra is in float64."""
    size = len(weight) if group is None else group
    if size < 1 or len(weight) % size:
        raise invalid("group", got=group, wants=f"a number that divides the {len(weight)} inputs")
    squares = np.diag(gram).astype(np.float64)
    used = squares != 0
    if not used.any():
        raise invalid("gram", got="zeros", wants="that of inputs some of which are not zero")
    hessian = gram + np.diag(np.where(used, damping * squares[used].mean(), 1))  # (1)
    try:
        M = np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]  # (2)
    except np.linalg.LinAlgError:
        raise invalid("damping", got=damping, wants="more, such as 0.01 or 0.1, or more inputs: gram with it is not positive definite") from None
    return np.linalg.inv(M).astype(weight.dtype), weight * used[:, None], size  # (3)


def _steps(quantize: Callable, rows: Array, bits: int) -> Any:
    grid = quantize(rows, bits=bits, axis=-2)
    if not isinstance(grid, (Symmetric, Affine)) or grid.step.shape != (1, rows.shape[1]):
        raise invalid("quantize", got=f"{type(grid).__name__} of it", wants="Symmetric or Affine, with a step for each column")
    return grid


def _nearest(row: Array, grid: Any, bits: int) -> tuple[Array, Array]:
    """The codes nearest to a row on steps that are fixed, and what they are restored to."""
    if isinstance(grid, Affine):
        low, high, zero = 0, 2**bits - 1, grid.zero[0]
    else:
        low, high, zero = 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1, 0
    codes = np.clip(np.rint(row / grid.step[0]) + zero, low, high).astype(grid.codes.dtype)
    return codes, grid.step[0] * (codes.astype(np.int64) - zero).astype(row.dtype)


def _stored(codes: list, grids: list, group: int | None) -> Any:
    """Codes and steps as quantize makes them of a weight, or of one in_groups."""
    rows = np.stack(codes)
    rows = rows if group is None else rows.reshape(-1, group, rows.shape[1])
    parts = [part[0] if group is None else np.stack(part) for part in zip(*(grid[1:] for grid in grids), strict=True)]
    return type(grids[0])(rows, *parts)


def _example(rng: np.random.Generator, **sizes: int):
    """Features that move together, each less than the one before: no row of their gram matrix is far from any other's direction."""
    x = np.arange(6, 0, -1) * (1 + 0.1 * rng.normal(size=(9, 6)))
    return example(rng.normal(size=(6, 4)), gram=input_gram([x]), bits=3, **sizes)
