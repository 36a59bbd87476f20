"""Cosine loss: the hidden states of a student shall point where its teacher's point, however long they are.

Source: Sanh et al. 2019 (DistilBERT), arXiv:1910.01108, section 2. Differs from the published code: 1 - cos is computed as half
the squared distance of the two directions, the same number without its rounding where they almost agree; a row of length 0, which
has no direction, is refused, where the code adds 1e-12. Costs a few operations a number.
h is a row of the student's, t the teacher's of the same position.

    unit = h / |h|                                           (1)
    goal = t / |t|                                           (2)
    apart = unit - goal                                      (3)
    out = sum over rows of weight |apart|^2 / 2, each 1 - cos(h, t)   (4)
    dunit = dout weight apart                                (5)
    dh = (dunit - unit (unit . dunit)) / |h|                 (6)

over the rows that count; weight = 1 / how many they are, or 1 for a sum.
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.compression.counted import counted_by_mask
from minitransformers.foundation import Backward, bad, concept, example, invalid


@concept(
    title="Cosine loss",
    source="Sanh et al. 2019 (DistilBERT), arXiv:1910.01108, section 2",
    example=lambda rng: _example(rng),
    rejects=[
        bad(hidden=np.zeros((2, 3, 5))), bad(teacher=np.zeros((2, 3, 5))), bad(teacher=np.full((2, 3, 5), np.nan)),
        bad(hidden=np.full((2, 3, 5), np.inf)), bad(mask=np.zeros((2, 3), bool)),
    ],
)  # fmt: skip
def cosine_loss(
    hidden: Float[Array, "*batch d_model"], *, teacher: Float[Array, "*batch d_model"], mask: Bool[Array, "*batch"] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Any, Backward]:  # fmt: skip
    """1 - cos of the angle between each row of hidden and the teacher's: 0 where they point the same way, 2 where opposite ways.

    teacher gets no gradient. mask is True where a row counts (None: everywhere); the others may hold anything.
    Returns out, a scalar of the dtype of hidden: the mean over the rows that count, or their sum; and backward: dout -> dhidden.
    Raises ValueError where a row that counts has a length of 0 or one that is not finite, and where no row counts (of which there
    is a sum, 0, and no mean).
    """
    counts = counted_by_mask(hidden.shape[:-1], mask, reduction)
    h, t = hidden[counts], teacher[counts]                   # (rows, d_model)
    length, their_length = (np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (h, t))
    for name, lengths in (("hidden", length), ("teacher", their_length)):
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise invalid(name, got="a row whose length is 0 or not finite", wants="a direction wherever a row counts")
    weight = hidden.dtype.type(1 / len(h) if reduction == "mean" else 1)

    unit = h / length                                        # (1)
    goal = t / their_length                                  # (2)
    apart = unit - goal                                      # (3)
    out = weight * (apart * apart).sum() / 2                 # (4)

    def backward(dout):
        dunit = dout * weight * apart                        # (5)
        along = (unit * dunit).sum(axis=-1, keepdims=True)
        dhidden = np.zeros_like(hidden)
        dhidden[counts] = (dunit - unit * along) / length    # what would only make it longer is lost  (6)
        return dhidden

    return out, backward


def _example(rng: np.random.Generator):
    return example(rng.normal(size=(2, 3, 5)), teacher=rng.normal(size=(2, 3, 5)), mask=np.array([[1, 0, 1], [1, 1, 1]], bool))
