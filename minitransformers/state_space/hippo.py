"""HiPPO-LegS: the matrix of a state that holds the Legendre coefficients of everything it has read.

Source: Gu, Dao, Ermon, Rudra and Re 2020 (HiPPO), arXiv:2008.07669, theorem 2; the sign and the use as the start of a
trained system, Gu, Goel and Re 2021 (S4), arXiv:2111.00396, eq. 2.

    A_nk = -sqrt((2n + 1)(2k + 1)) for n > k, -(n + 1) for n = k, 0 for n < k
    B_n = sqrt(2n + 1)
"""

from typing import Annotated

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import at_least, checked


@checked
def hippo_legs(d_state: Annotated[int, at_least(1)], *, dtype: type = np.float64) -> tuple[Array, Array]:
    """A (d_state, d_state) and B (d_state,) of HiPPO-LegS, rates for each unit of time.

    A is stable, with the eigenvalues -1 .. -d_state, and far from normal; A + p p^T + I/2 with p = B / sqrt(2) is
    skew-symmetric, so that A is a normal matrix less one of rank one.
    Raises ValueError when d_state is below 1.
    """
    n = np.arange(d_state)
    B = np.sqrt(2 * n + 1.0)
    A = -np.tril(np.outer(B, B), -1) - np.diag(n + 1.0)
    return A.astype(dtype), B.astype(dtype)
