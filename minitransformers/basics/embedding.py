"""Embedding: look up one row of a table for each token id.

Source: Bengio, Ducharme, Vincent and Jauvin 2003, JMLR 3:1137, section 2 (the matrix C).
The scale sqrt(d_model) of Vaswani et al. 2017 (section 3.4) is left to the model: most later models have none.

    out[n] = weight[ids[n]]                                  (1)
    onehot[v, n] = 1 where ids[n] = v, else 0                (2)
    dweight = onehot dout                                    (3)

A lookup is the product of a one-hot matrix with the table, so its backward is the product with the transpose: an id
that occurs twice receives both gradients. The matrix has one entry a token, so the product is done sparsely.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid


class Embedding(NamedTuple):
    """One row a token of the vocabulary."""

    weight: Float[Array, "vocabulary d_model"]


@checked
def init_embedding(
    rng: np.random.Generator, vocabulary: Annotated[int, at_least(1)], d_model: Annotated[int, at_least(1)], *,
    std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> Embedding:  # fmt: skip
    """Normal rows of standard deviation ``std`` (default that of GPT-2 and BERT)."""
    return Embedding((std * rng.standard_normal((vocabulary, d_model))).astype(dtype))


@concept(
    title="Embedding",
    source="Bengio, Ducharme, Vincent and Jauvin 2003, JMLR 3:1137, section 2",
    example=lambda rng: example(Embedding(rng.normal(size=(7, 3))), ids=rng.integers(7, size=(2, 5))),
    rejects=[bad(ids=np.array([[0, 7]])), bad(ids=np.array([[0, -1]]))],
)
def embedding(params: Embedding, *, ids: Int[Array, "*batch"]) -> tuple[Array, Backward]:
    """The table's row of every id: whole numbers from 0 to vocabulary - 1, in any shape.

    Returns out (*batch, d_model), and backward: dout -> Embedding(dweight).
    Raises ValueError when an id is not in the table; a negative id does not count from its end.
    """
    weight = params.weight
    vocabulary, d_model = weight.shape
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise invalid("ids", got=f"ids from {ids.min()} to {ids.max()}", wants=f"0 to {vocabulary - 1}, the rows of params.weight")
    out = weight[ids]                                        # (*batch, d_model)  (1)

    def backward(dout):
        from scipy.sparse import csc_array  # takes a tenth of a second to import, and only training needs it

        # Column n holds a single one, in row ids[n]. np.add.at says the same and is many times slower.
        ones, starts = np.ones(ids.size, dout.dtype), np.arange(ids.size + 1)
        onehot = csc_array((ones, ids.reshape(-1), starts), shape=(vocabulary, ids.size))  # (vocabulary, tokens)  (2)
        dweight = onehot @ dout.reshape(-1, d_model)         # (vocabulary, d_model)  (3)
        return Embedding(dweight)

    return out, backward
