"""Learned positions: a table with one vector for each position, added to the embeddings and trained like them.

It can hold any pattern over positions, and it ends: position max_positions does not exist. A row is trained only by
sequences that reach it.

Source: Gehring et al. 2017, arXiv:1705.03122, section 3.1; Vaswani et al. 2017, arXiv:1706.03762, table 3 row E.
BERT and GPT-2 use it. Its rows start with a standard deviation of 0.02 in BERT and in Hugging Face's GPT-2, and of 0.01 in
GPT-2's published code, where tokens start with 0.02.

    row_i = table[position_i]                                (1)
    out = x + row                                            (2)
    dx = dout                                                (3)
    drow_i = sum over the texts that share it of dout_i      (4)
    dtable_p = sum over all i with position_i = p of drow_i  (5)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_to
from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid


class Learned(NamedTuple):
    """A row for each position."""

    table: Float[Array, "max_positions d_model"]


@checked
def init_learned(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, max_positions: Annotated[int, at_least(1)],
    std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> Learned:  # fmt: skip
    """Normal rows of standard deviation ``std`` (0.02 in BERT, 0.01 in GPT-2's published code)."""
    return Learned((std * rng.standard_normal((max_positions, d_model))).astype(dtype))


@concept(
    title="Learned positions",
    source="Gehring et al. 2017, arXiv:1705.03122, section 3.1",
    example=lambda rng: example(Learned(rng.normal(size=(7, 3))), rng.normal(size=(2, 5, 3)), positions=np.array([0, 1, 6, 1, 4])),
    roles=("position/input",),
    rejects=[bad(positions=np.arange(5) + 3), bad("positions", positions=None, x=np.ones((2, 8, 3)))],
)
def learned(
    params: Learned, x: Float[Array, "*batch positions d_model"], *, positions: Annotated[Int[Array, "*#batch positions"], at_least(0)] | None = None
) -> tuple[Array, Backward]:
    """Add to every position of x the table's row for it.

    positions count tokens from the start (default 0, 1, ...); they may repeat, and differ between the texts of a batch.
    Returns out, shaped like x, and backward: dout -> Learned(dtable), dx. Rows that no position names get exactly 0.
    Raises ValueError when a position is not a row of the table.
    """
    positions = np.arange(x.shape[-2]) if positions is None else positions
    if positions.max() >= len(params.table):
        wants = f"0 to {len(params.table) - 1}, the rows of params.table"
        raise invalid("positions", got=f"{positions.min()} to {positions.max()}", wants=wants)
    row, row_backward = embedding(Embedding(params.table), ids=positions)  # (..., positions, d_model); a position may repeat  (1)
    out = x + row                                            # (2)

    def backward(dout):
        dx = dout                                            # (3)
        drow = sum_to(dout, row.shape)                       # (..., positions, d_model)  (4)
        dtable = row_backward(drow).weight                   # rows of one position add up  (5)
        return Learned(dtable), dx

    return out, backward
