"""Scatter-add: the sum of all rows that go to one place, the adjoint of a gather.

Attention over chosen pairs picks keys by index, forward: ``picked = key[index]``. A key that was picked several times receives
several gradients, backward: ``dkey = scatter_add_rows(index, dpicked, len(key))``. That is the product with a matrix that
holds a single one in each column, done sparsely; np.add.at says the same and is many times slower. Where the index is a
permutation, ``dkey[index] = dpicked`` needs no sum at all.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import invalid


def scatter_add_rows(index: Int[Array, "*#batch rows"], rows: Float[Array, "*batch rows features"], n: int) -> Array:
    """out[..., i, :] is the sum of the rows whose index is i, and zero where there is none: (*batch, n, features).

    Leading axes of the index broadcast to those of the rows; each text of a batch has its own n places.
    Raises ValueError, in any call, where an index is no whole number from 0 to n - 1, or there are not as many as rows.
    """
    from scipy.sparse import csc_array  # takes a tenth of a second to import, and only a backward needs it

    *batch, count, features = rows.shape
    if index.dtype.kind not in "iu":
        raise invalid("index", got=f"numbers of {index.dtype}", wants="whole numbers")
    if index.shape[-1:] != (count,) or index.ndim >= rows.ndim or any(
        size not in (1, wanted) for size, wanted in zip(index.shape[-2::-1], batch[::-1], strict=False)
    ):
        raise invalid("index", got=f"shape {index.shape}", wants=f"one for each row: a shape that broadcasts to {rows.shape[:-1]}")
    if index.size and (index.min() < 0 or index.max() >= n):
        raise invalid("index", got=f"{index.min()} to {index.max()}", wants=f"0 to {n - 1}: there are {n} places")
    texts = int(np.prod(batch))
    place = index.astype(np.int64) + n * np.arange(texts).reshape(*batch, 1)  # all texts' places, one text after the other
    ones, starts = np.ones(texts * count, rows.dtype), np.arange(texts * count + 1)
    onehot = csc_array((ones, place.reshape(-1), starts), shape=(texts * n, texts * count))  # a single one in each column
    return (onehot @ rows.reshape(-1, features)).reshape(*batch, n, features)
