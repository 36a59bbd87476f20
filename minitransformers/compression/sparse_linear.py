"""A linear map whose zeros are not stored: rows of numbers, each with the column that it stands in.

A pruned weight multiplies no faster than a full one while its zeros are in memory. Without them an input meets only the numbers that
it has. Each number then brings its address along, and a product by addresses is slower, number by number, than one by blocks: it
pays when nearly all is zero. Gradients are made for what is stored, so what is not there cannot grow back.

Source: Saad 2003, Iterative Methods for Sparse Linear Systems, section 3.4 (compressed sparse rows); Han et al. 2015, arXiv:1506.02626.
The products are SciPy's. The numbers of input i are those from starts_i to below starts_(i+1); v_k is the k-th, and stands in column
c_k and row r_k.

    W_ic = v_k where r_k = i and c_k = c, 0 elsewhere        (1)
    out = x W + b                                            (2)
    dv_k = sum over positions of x_(r_k) dout_(c_k)          (3)
    dx = dout W^T                                            (4)
    db = sum over positions of dout                          (5)
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, finite, invalid, procedure
from minitransformers.foundation.trees import decays


class SparseLinear(NamedTuple):
    """The numbers that are stored, row by row, and a bias or None."""

    values: Annotated[Float[Array, "stored"], decays]
    bias: Float[Array, "d_out"] | None


@dataclass(frozen=True, eq=False)
class SparsePattern:
    """Where the numbers stand: the column of each, where each of the d_in rows starts and the last ends, and how many columns there are.

    Raises ValueError where the starts do not ascend from 0 to the number of numbers, or a column is not below d_out.
    """

    columns: Array
    starts: Array
    d_out: int

    def __post_init__(self) -> None:
        columns, starts = self.columns, self.starts
        for name, array in (("columns", columns), ("starts", starts)):
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim != 1:
                raise invalid(name, got=type(array).__name__ if not hasattr(array, "dtype") else array.dtype, wants="an array of whole numbers, of one axis")
        if len(starts) < 2 or starts[0] != 0 or starts[-1] != len(columns) or np.any(starts[1:] < starts[:-1]):
            raise invalid("starts", got=f"{len(starts)} that do not fit", wants=f"one a row, and one more, ascending from 0 to {len(columns)}")
        if np.any(columns < 0) or np.any(columns >= self.d_out):
            raise invalid("columns", got=f"numbers from {columns.min()} to {columns.max()}", wants=f"numbers from 0 to below {self.d_out}")


@procedure(
    title="Sparse linear map: from a dense weight",
    source="Saad 2003, Iterative Methods for Sparse Linear Systems, section 3.4",
    example=lambda rng: example(np.where(rng.random((7, 5)) < 0.4, rng.normal(size=(7, 5)), 0), bias=rng.normal(size=5)),
    rejects=[bad(weight=np.zeros((7, 5))), bad("bias", bias=np.ones(7)), bad("mask", mask=np.ones((5, 7), bool)), bad("mask", mask=np.zeros((7, 5), bool))],
)
def sparse_from_dense(
    weight: Annotated[Float[Array, "d_in d_out"], finite], *, bias: Float[Array, "d_out"] | None = None, mask: Bool[Array, "d_in d_out"] | None = None
) -> tuple[SparseLinear, SparsePattern]:
    """What sparse_linear takes: the numbers of weight where mask is true, by default those that are not 0, and where they stand.

    Raises ValueError when nothing would be stored.
    """
    rows, columns = np.nonzero(weight if mask is None else mask)
    if not len(rows):
        raise invalid("weight" if mask is None else "mask", got="nothing but zeros", wants="at least one number to store")
    starts = np.searchsorted(rows, np.arange(len(weight) + 1)).astype(np.int32)
    return SparseLinear(weight[rows, columns], bias), SparsePattern(columns.astype(np.int32), starts, weight.shape[1])


@concept(
    title="Sparse linear map",
    source="Saad 2003, Iterative Methods for Sparse Linear Systems, section 3.5",
    example=lambda rng: _example(rng),
    rejects=[
        bad("x", x=np.ones((2, 4, 6))), bad("params.values", params=SparseLinear(np.ones(9), None)), bad("params.bias", params=SparseLinear(np.ones(16), np.ones(4))),
    ],
)  # fmt: skip
def sparse_linear(params: SparseLinear, x: Float[Array, "... d_in"], *, pattern: SparsePattern) -> tuple[Array, Backward]:
    """Map the last axis of x from d_in to d_out features, with the numbers of params where pattern says that they stand.

    Returns out (..., d_out), and backward: dout -> SparseLinear(dvalues, dbias), dx. A number that is not stored has no gradient.
    Raises ValueError when the axes do not fit, or the numbers are not as many as the pattern has places.
    """
    from scipy.sparse import csr_array  # takes a while to import

    (values, bias), d_in, d_out = params, len(pattern.starts) - 1, pattern.d_out
    if len(values) != len(pattern.columns):
        raise invalid("params.values", got=f"{len(values)} numbers", wants=f"{len(pattern.columns)}, as many as pattern has")
    if bias is not None and len(bias) != d_out:
        raise invalid("params.bias", got=f"shape {bias.shape}", wants=f"{(d_out,)}, as pattern has columns")
    if x.shape[-1] != d_in:
        raise invalid("x", got=f"shape {x.shape}", wants=f"(..., d_in) with d_in = {d_in}, as pattern has rows")
    weight = csr_array((values, pattern.columns, pattern.starts), shape=(d_in, d_out))  # (1)
    rows = x.reshape(-1, d_in)
    flat = rows @ weight
    out = (flat if bias is None else flat + bias).reshape(*x.shape[:-1], d_out)  # (2)

    def backward(dout):
        drows = dout.reshape(-1, d_out)
        inputs, gradients = np.ascontiguousarray(rows.T), np.ascontiguousarray(drows.T)
        ends = pairwise(pattern.starts)
        parts = [gradients[pattern.columns[first:end]] @ inputs[i] for i, (first, end) in enumerate(ends)]
        dvalues = np.concatenate(parts)                      # x^T dout, but only where numbers stand  (3)
        dx = (weight @ gradients).T.reshape(x.shape)         # (4)
        dbias = None if bias is None else drows.sum(axis=0)  # (5)
        return SparseLinear(dvalues, dbias), dx

    return out, backward


def _example(rng: np.random.Generator):
    weight = rng.normal(size=(7, 5))
    mask = np.arange(35).reshape(7, 5) % 5 % 2 == np.arange(7)[:, None] % 2
    mask[3] = False                                          # an input that no output reads
    params, pattern = sparse_from_dense(weight, bias=rng.normal(size=5), mask=mask)
    return example(params, rng.normal(size=(2, 4, 7)), pattern=pattern)
