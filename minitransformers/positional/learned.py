"""Learned positions: a table with one vector for each position, added to the embeddings and trained like them.

It can hold any pattern over positions, and it ends: position max_positions does not exist. A row is trained only by
sequences that reach it.

Source: Gehring et al. 2017, arXiv:1705.03122, section 3.1; Vaswani et al. 2017, arXiv:1706.03762, table 3 row E.
BERT and GPT-2 use it. Its rows start with a standard deviation of 0.02 in BERT and in Hugging Face's GPT-2, and of 0.01 in
GPT-2's published code, where tokens start with 0.02.

    row_i = table[position_i]                                (1)
    out = x + row                                            (2)
    dx = dout                                                (3)
    drow_i = sum over leading axes of dout_i                 (4)
    dtable_p = sum over all i with position_i = p of drow_i  (5)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.foundation import bad, concept, example, invalid, whole_number


class Learned(NamedTuple):
    """A row for each position."""

    table: Float[Array, "max_positions d_model"]


def init_learned(rng: np.random.Generator, d_model: int, *, max_positions: int, std: float = 0.02, dtype: type = np.float32) -> Learned:
    """Normal rows of standard deviation ``std`` (0.02 in BERT, 0.01 in GPT-2's published code).

    Raises ValueError unless both sizes are whole numbers from 1.
    """
    d_model, max_positions = whole_number("d_model", d_model, least=1), whole_number("max_positions", max_positions, least=1)
    return Learned((std * rng.standard_normal((max_positions, d_model))).astype(dtype))


@concept(
    title="Learned positions",
    source="Gehring et al. 2017, arXiv:1705.03122, section 3.1",
    example=lambda rng: example(
        Learned(rng.normal(size=(7, 3))), rng.normal(size=(2, 5, 3)), positions=np.array([0, 1, 6, 1, 4])
    ),
    roles=("position/input",),
    rejects=[
        bad("params.table", params=Learned(np.ones(7))),
        bad(x=np.ones((2, 5, 4))),
        bad(positions=np.arange(4)),
        bad(positions=np.arange(5) + 3),
        bad(positions=np.arange(5) - 1),
        bad(positions=np.arange(5.0)),
        bad("positions", positions=None, x=np.ones((2, 8, 3))),
    ],
)
def learned(params: Learned, x: Float[Array, "... length d_model"], *, positions: Int[Array, "length"] | None = None):
    """Add to every position of x the table's row for it.

    positions count tokens from the start (default 0, 1, ...); they may repeat.
    Returns out, shaped like x, and backward: dout -> Learned(dtable), dx. Rows that no position names get exactly 0.
    Raises ValueError when a position is not a row of the table.
    """
    length, d_model = x.shape[-2:]
    if positions is None:
        positions = np.arange(length)
    max_positions = len(params.table)
    if positions.min() < 0 or positions.max() >= max_positions:
        wants = f"0 to {max_positions - 1}, the rows of params.table"
        raise invalid("positions", got=f"{positions.min()} to {positions.max()}", wants=wants)
    row, row_backward = embedding(Embedding(params.table), ids=positions)  # (length, d_model); a position may repeat  (1)
    out = x + row                                            # (2)

    def backward(dout):
        dx = dout                                            # (3)
        drow = dout.reshape(-1, length, d_model).sum(axis=0)  # (length, d_model)  (4)
        dtable = row_backward(drow).weight                   # rows of one position add up  (5)
        return Learned(dtable), dx

    return out, backward
