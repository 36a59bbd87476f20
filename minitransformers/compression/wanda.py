"""Wanda: a weight matters as much as it is large and as its input is.

Zero a number w_ij, and output j changes by w_ij x_i. Over a few texts that change has the length |w_ij| ||x_i||. So the score of a
weight is its magnitude times the norm of its input feature, and no gradient is needed, and no training after it. The scores are
compared within an output, not within the whole weight. A model has features that are a hundred times as large as others; magnitudes
alone do not see them.

Source: Sun et al. 2023, arXiv:2306.11695, eq. 1, and the authors' code, lib/prune.py. Differs from the code: the norm is that of all
positions, where the code divides its square by the number of texts, which changes no order; round((1 - sparsity) d_in) stay, half to
even, where the code removes sparsity d_in, rounded down; of equal scores the first stays, where there it goes first.

    norm_i = sqrt(sum over positions of x_i^2)               (1)
    score_ij = |w_ij| norm_i                                 (2)
    mask_ij = 1 where score_ij is among the kept largest of column j, 0 elsewhere   (3)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.compression.magnitude_pruning import kept_of, largest
from minitransformers.foundation import at_least, bad, example, finite, from_to_below, procedure

Norms = Annotated[Float[Array, "d_in"], at_least(0)]


@procedure(
    title="Norms of input features",
    source="Sun et al. 2023, arXiv:2306.11695, section 3",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
)
def input_norms(x: Annotated[Float[Array, "... d_in"], finite]) -> Float[Array, "d_in"]:
    """The length of each feature of x over all positions: what a linear map reads while a few texts run through the model.

    Of texts that come one after the other, the norms of all are the root of the sum of squares of each one's.
    """
    rows = x.reshape(-1, x.shape[-1])
    return np.sqrt(np.sum(rows * rows, axis=0))              # (1)


@procedure(
    title="Wanda: scores",
    source="Sun et al. 2023, arXiv:2306.11695, eq. 1",
    example=lambda rng: example(rng.normal(size=(5, 3)), norms=np.abs(rng.normal(size=5))),
    rejects=[bad("norms", norms=np.ones(3))],
)
def wanda_scores(weight: Annotated[Float[Array, "d_in d_out"], finite], *, norms: Norms) -> Float[Array, "d_in d_out"]:
    """How much each weight matters: by how much its output changes without it, in length over the positions that made the norms.

    norms are those of input_norms. Compare the scores within a column; n_m_mask does it in groups of a column.
    Raises ValueError when there is not one norm for each row of weight.
    """
    return np.abs(weight) * norms[:, None]                   # (2)


@procedure(
    title="Wanda: mask",
    source="Sun et al. 2023, arXiv:2306.11695, section 3",
    example=lambda rng: example(rng.normal(size=(7, 3)), norms=np.abs(rng.normal(size=7)), sparsity=0.4),
    rejects=[bad("norms", norms=np.ones(3)), bad(sparsity=0.97)],
)
def wanda_mask(
    weight: Annotated[Float[Array, "d_in d_out"], finite], *, norms: Norms, sparsity: Annotated[float, from_to_below(0, 1)]
) -> Bool[Array, "d_in d_out"]:
    """True at the largest scores of each column: every output keeps as many inputs as every other.

    sparsity is the share that is false in a column. Of equal scores the first stays.
    Raises ValueError when there is not one norm for each row of weight, or nothing would stay.
    """
    return largest(wanda_scores(weight, norms=norms), kept_of(len(weight), sparsity), axis=0)  # (3)
