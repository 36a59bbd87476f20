"""Activation-aware SVD: the factors that change a layer's output least, not its weight.

Plain truncation counts every element of W alike. But an input feature that is always near zero may be wrong by much and nothing
happens, and one that is large must be right. So the error is measured where it arises, in X (W - W_r), over inputs X of a
calibration. With a Cholesky factor R of X^T X this error is that of R W - R W_r, and its best answer is a plain SVD, of R W.

Source: Yuan et al. 2023 (ASVD), arXiv:2312.05821, which scales each input feature by its size; Wang et al. 2024 (SVD-LLM),
arXiv:2403.07378, section 3.1, which takes the whole Cholesky factor, as is done here, and is exact with it. x stands on the left
here, so R is the papers' S transposed. Differs from the paper's code: the damping is a fraction of the mean diagonal, and always there.
The decomposition is computed in float64: X^T X has the square of X's condition.

    gram = X^T X + damping mean(diag(X^T X)) I               (1)
    R^T R = gram, R upper triangular                         (2)
    U, sigma, V^T = the singular value decomposition of R W  (3)
    down = R^-1 U_r sigma_r^(1/2), up = sigma_r^(1/2) V_r^T, of the r largest   (4)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.compression.low_rank_linear import LowRankFactors, check_rank, svd_factors
from minitransformers.foundation import at_least, bad, example, finite, invalid, procedure


@procedure(
    title="Activation-aware SVD",
    source="Wang et al. 2024 (SVD-LLM), arXiv:2403.07378, section 3.1; Yuan et al. 2023 (ASVD), arXiv:2312.05821",
    example=lambda rng: example(rng.normal(size=(5, 4)), rng.normal(size=(2, 7, 5)), rank=2),
    rejects=[bad(rank=5), bad("x", x=np.ones((1, 3, 5)), damping=0.0), bad(x=np.zeros((2, 7, 5)))],
)
def weighted_svd(
    weight: Annotated[Float[Array, "d_in d_out"], finite], x: Annotated[Float[Array, "... d_in"], finite], *,
    rank: Annotated[int, at_least(1)], damping: Annotated[float, at_least(0)] = 1e-6,
) -> LowRankFactors:  # fmt: skip
    """The two thin matrices whose map differs least from weight's on the inputs x, in the sum of squares over all their positions.

    damping is dimensionless, a fraction of the mean squared length of a feature; with 0 the answer is exact, and more positions
    than features are needed.
    Returns LowRankFactors with the dtype of weight. With damping 0 what is missing is the root of the sum of the squared singular values
    of R W that are left out.
    Raises ValueError for a rank above the smaller of d_in and d_out, and where X^T X, with its damping, is singular.
    """
    from scipy.linalg import solve_triangular  # takes a while to import

    check_rank(rank, weight)
    rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]), np.float64)  # sums in one order, whatever the layout
    gram = rows.T @ rows
    gram += damping * np.mean(np.diag(gram)) * np.eye(len(gram))  # (1)
    try:
        R = np.linalg.cholesky(gram).T                       # (2)
    except np.linalg.LinAlgError:
        raise invalid("x", got=f"{len(rows)} positions whose features depend on each other", wants="more positions, or more damping") from None
    left, up = svd_factors(R @ np.ascontiguousarray(weight), rank=rank)  # (3)
    down = solve_triangular(R, left)                         # (4)
    return LowRankFactors(down.astype(weight.dtype), up.astype(weight.dtype))
