"""Semiseparable matrices: the matrix that a linear recurrence with a state of d_state numbers is.

A recurrence h_i = a_i h_{i-1} + B_i x_i, y_i = C_i . h_i sends x to y by a lower triangular matrix. All that y knows of the past
passes through h, so every block below the diagonal has rank d_state at most, however long the sequence.
Source: Dao and Gu 2024, arXiv:2405.21060, definitions 3.1 and 3.2, theorem 3.5, section 4.3 (structured masked attention).
Here the decay a_i = exp(log_decay_i) is one number a position, in (0, 1]; the paper's A_i may be any matrix.

    sums_ij = log_decay_{j+1} + ... + log_decay_i for j <= i (0 for j = i), -inf above the diagonal   (1)
    L = exp(sums)                                            (2)
    scores = C B^T                                           (3)
    M = L o scores                                           (4)
    dscores = dM o L                                         (5)
    dC = dscores B, dB = dscores^T C                         (6)
    dlog_decay_k = sum of (dM o M)_ij over j < k <= i        (7)

o is the product of elements. Dense: positions^2 numbers. ssd_chunked multiplies by the same matrix and never holds it.
"""

import functools
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_most, concept, example

_SHORT = 128  # positions up to which a product with a triangle of ones is quicker than a running sum


@functools.lru_cache(maxsize=8)
def _ones_below(positions: int, dtype: np.dtype, diagonal: int) -> Array:
    """Ones on the diagonal (0) or the one under it (-1), and below."""
    return np.tril(np.ones((positions, positions), dtype), diagonal)


@functools.lru_cache(maxsize=8)
def _never_above(positions: int, dtype: np.dtype) -> Array:
    """-inf above the diagonal, zeros elsewhere."""
    return np.triu(np.full((positions, positions), -np.inf, dtype), 1)


def segsum(log_decay: Float[Array, "*batch positions"]) -> Float[Array, "*batch positions positions"]:
    """Sums over segments: entry i, j adds log_decay over j + 1 .. i; 0 on the diagonal, -inf above it.

    Each entry is a sum of its own terms. The difference of two running sums would be the same on paper; in float32 it
    loses what follows a large term.
    """
    positions, dtype = log_decay.shape[-1], log_decay.dtype
    rows = _ones_below(positions, dtype, -1) * log_decay[..., :, None]  # row i adds log_decay_i to all columns before i
    sums = _ones_below(positions, dtype, 0) @ rows if positions <= _SHORT else np.cumsum(rows, axis=-2)
    sums += _never_above(positions, dtype)                   # before exp: nothing can overflow above the diagonal
    return sums


def sum_over_crossings(entries: Float[Array, "*batch positions positions"]) -> Float[Array, "*batch positions"]:
    """For each step k the sum of the entries i, j that cross it, j < k <= i: segsum's backward."""
    positions, dtype = entries.shape[-1], entries.dtype
    if positions <= _SHORT:
        later = _ones_below(positions, dtype, 0).T @ entries
    else:
        later = np.cumsum(entries[..., ::-1, :], axis=-2)[..., ::-1, :]
    return np.vecdot(later, _ones_below(positions, dtype, -1))  # of the rows k and below what stands left of k


def off_diagonal_ranks(matrix: Float[Array, "*batch positions positions"]) -> Array:
    """The ranks of the blocks matrix[i:, :i], for each cut i from 1 on: what the future can know of the past."""
    cuts = range(1, matrix.shape[-1])
    return np.stack([np.linalg.matrix_rank(matrix[..., i:, :i]) for i in cuts], axis=-1)


@concept(
    title="Semiseparable matrix",
    source="Dao and Gu 2024, arXiv:2405.21060, definition 3.2",
    example=lambda rng: example(-rng.uniform(0.1, 1.0, size=(2, 5)), rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 3))),
)
def semiseparable(
    log_decay: Annotated[Float[Array, "*batch positions"], at_most(0)],
    B: Float[Array, "*batch positions d_state"],
    C: Float[Array, "*batch positions d_state"],
) -> tuple[Array, Backward]:
    """The matrix M of the recurrence: row i is what output i takes from each input.

    log_decay is the logarithm of the decay at each position, 0 or less (dimensionless); log_decay[0] has no part in M.
    Returns M (..., positions, positions), lower triangular, and backward: dM -> dlog_decay, dB, dC.
    Raises ValueError when a log_decay is positive or not finite, or when the axes do not fit.
    """
    sums = segsum(log_decay)                                 # (..., positions, positions)  (1)
    L = np.exp(sums)                                         # (2)
    scores = C @ B.swapaxes(-1, -2)                          # (3)
    M = L * scores                                           # (4)

    def backward(dM):
        dscores = dM * L                                     # zero above the diagonal, whatever dM is there  (5)
        dC, dB = dscores @ B, dscores.swapaxes(-1, -2) @ C   # (6)
        dlog_decay = sum_over_crossings(dscores * scores)    # dM o M, without the M that was given away  (7)
        return dlog_decay, dB, dC

    return M, backward
