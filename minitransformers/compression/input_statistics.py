"""Sums over inputs: what quantising a layer well has to know of its inputs, added up text by text.

How much an error in a weight matters depends on the inputs that it will be multiplied with. A calibration runs some texts through
the model and looks at what reaches the layer. The inputs themselves need not be kept. For squared errors of the output their gram
matrix is enough, since |X D|^2 = sum of D o (X^T X D) for every change D of the weight; it has the size of a weight, however many
texts there are. For the size of a feature it is a mean.

Source: Frantar et al. 2022, arXiv:2210.17323, section 3 (gram); Lin et al. 2023, arXiv:2306.00978, section 3.2 (mean magnitude). X_t
are the inputs of batch t, one position a row, N positions in all. The sums are in float64.

    gram = sum over t of X_t^T X_t                           (1)
    magnitude_i = sum over t and positions n of |X_tni| / N  (2)
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import bad, example, invalid, procedure

_LABEL: dict[str, Any] = {
    "example": lambda rng: example([rng.normal(size=(2, 7, 3)), rng.normal(size=(4, 3))]),
    "rejects": [bad(batches=[]), bad(batches=[np.ones((2, 3)), np.ones((2, 4))]), bad(batches=[np.full((2, 3), np.nan)]), bad(batches=[np.ones((0, 3))])],
}


@procedure(title="Gram matrix of inputs", source="Frantar et al. 2022, arXiv:2210.17323, section 3", **_LABEL)
def input_gram(batches: Iterable[Float[Array, "... d_in"]]) -> Float[Array, "d_in d_in"]:
    """X^T X over all positions of all batches, which may be a generator: what gptq and awq want. It has the dtype of the last batch.

    Raises ValueError where there are no inputs, features differ in number, or one is not finite.
    """
    gram: Any = 0
    dtype: Any = None
    for batch in _alike(batches):
        rows, dtype = batch.astype(np.float64), batch.dtype
        gram = gram + rows.T @ rows                          # (1)
    return np.asarray(gram, dtype)


@procedure(title="Mean magnitude of inputs", source="Lin et al. 2023, arXiv:2306.00978, section 3.2", **_LABEL)
def mean_magnitudes(batches: Iterable[Float[Array, "... d_in"]]) -> Float[Array, "d_in"]:
    """The mean of |x| of each feature over all positions of all batches: what awq wants besides. Dtype and errors as in input_gram."""
    total: Any = 0
    dtype: Any = None
    count = 0
    for batch in _alike(batches):
        total = total + np.abs(batch).sum(axis=0, dtype=np.float64)
        count, dtype = count + len(batch), batch.dtype
    return np.asarray(total / count, dtype)                  # (2)


def _alike(batches: Iterable[Array]) -> Iterator[Array]:
    """Each batch, one position a row. ValueError where there is none, or they do not fit together."""
    features = None
    for batch in batches:
        if not isinstance(batch, np.ndarray) or batch.ndim < 1:
            raise invalid("batches", got=type(batch).__name__, wants="arrays, features last")
        rows = batch.reshape(-1, batch.shape[-1])
        if not np.isfinite(rows).all():
            raise invalid("batches", got="a feature that is not finite", wants="finite numbers")
        if features not in (None, rows.shape[1]):
            raise invalid("batches", got=f"{features} and {rows.shape[1]} features", wants="the same number in each")
        if len(rows):
            features = rows.shape[1]
            yield rows
    if features is None:
        raise invalid("batches", got="no inputs", wants="those of at least one text")
