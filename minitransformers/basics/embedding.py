"""Embedding: look up one row of a table for each token id.

Source: Bengio, Ducharme, Vincent and Jauvin 2003, JMLR 3:1137, section 2 (the matrix C).
The scale sqrt(d_model) of Vaswani et al. 2017 (section 3.4) is left to the model: most later models have none.

    out[n] = weight[ids[n]], or 0 where n is padding         (1)
    onehot[v, n] = 1 where ids[n] = v and n is no padding, else 0   (2)
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
    example=lambda rng: example(Embedding(rng.normal(size=(7, 3))), ids=np.array([[4, 0, 4, 2, 1], [2, 6, 0, 1, 4]]), padding_idx=2),
    rejects=[bad(ids=np.array([[0, 7]])), bad(ids=np.array([[0, -1]]))],
)
def embedding(params: Embedding, *, ids: Int[Array, "*batch"], padding_idx: int | None = None) -> tuple[Array, Backward]:
    """The table's row of every id: whole numbers from 0 to vocabulary - 1, in any shape.

    padding_idx is an id that stands for nothing: its positions get zeros and teach nothing. It may lie outside the table.
    (PyTorch reads its row, which starts at zero, and keeps it from learning.)
    Returns out (*batch, d_model), and backward: dout -> Embedding(dweight).
    Raises ValueError when an id is not in the table; a negative id does not count from its end.
    """
    weight = params.weight
    vocabulary, d_model = weight.shape
    real = slice(None) if padding_idx is None else ids.reshape(-1) != padding_idx
    rows = ids.reshape(-1)[real]                             # (tokens), padding left out
    check_ids("ids", rows, params)
    out = np.zeros((*ids.shape, d_model), weight.dtype)
    out.reshape(-1, d_model)[real] = weight[rows]            # (*batch, d_model)  (1)

    def backward(dout):
        from scipy.sparse import csc_array  # takes a tenth of a second to import, and only training needs it

        # Column n holds a single one, in row rows[n]. np.add.at says the same and is many times slower.
        ones, starts = np.ones(rows.size, dout.dtype), np.arange(rows.size + 1)
        onehot = csc_array((ones, rows, starts), shape=(vocabulary, rows.size))  # (vocabulary, tokens)  (2)
        dweight = onehot @ dout.reshape(-1, d_model)[real]   # (vocabulary, d_model)  (3)
        return Embedding(dweight)

    return out, backward


def check_ids(name: str, ids: Array, params: Embedding) -> None:
    """Raise ValueError that names the argument where an id is not one of the table's rows: a negative one would count from its end."""
    vocabulary = len(params.weight)
    if ids.size and (ids.min() < 0 or ids.max() >= vocabulary):
        raise invalid(name, got=f"ids from {ids.min()} to {ids.max()}", wants=f"0 to {vocabulary - 1}, the rows of the table")
