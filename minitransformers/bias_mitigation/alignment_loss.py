"""Alignment loss: the vectors of a sentence and of its counterfactual shall point the same way.

Each pair is pulled together, and nothing pushes different sentences apart: alone, the loss is smallest where all vectors are one. So it
goes with a loss that keeps them apart, that of a task or contrastive_loss.

Source: Wang and Isola 2020, arXiv:2005.10242, section 4.1 (alignment, with the exponent 2); between sentences and counterfactuals: He et
al. 2022 (MABEL), arXiv:2210.14975. Differs from the code of the latter: directions are compared, as in the former, not vectors of any
length. It is twice the cosine loss of a student and its teacher, with the difference that both sides learn. Costs a few operations a
number. u, v are the vectors of a pair.

    a = u / |u|, b = v / |v|                                 (1)
    out = (1/n) sum over pairs of |a - b|^2                  (2)
    da = dout 2/n (a - b), db = -da                          (3)
    du = (da - a (a . da)) / |u|, dv likewise                (4)
"""

from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.compression.cosine_loss import cosine_loss
from minitransformers.foundation import Backward, bad, concept, example, finite, invalid


@concept(
    title="Alignment loss",
    source="Wang and Isola 2020, arXiv:2005.10242, section 4.1; He et al. 2022 (MABEL), arXiv:2210.14975",
    example=lambda rng: example(*rng.normal(size=(2, 3, 5))),
    rejects=[bad(sentences=np.eye(3, 5) * [[1], [0], [1]]), bad(counterfactuals=np.zeros((3, 5)))],
)
def alignment_loss(
    sentences: Annotated[Float[Array, "pairs d_model"], finite], counterfactuals: Annotated[Float[Array, "pairs d_model"], finite]
) -> tuple[Any, Backward]:
    """Mean squared distance of the directions of two vectors: 0 where each pair points the same way, 4 where opposite ways.

    sentences and counterfactuals hold the two vectors of a pair in the same row.
    Returns out, a scalar of their dtype, and backward: dout -> dsentences, dcounterfactuals.
    Raises ValueError, naming the pair, for a vector of length 0.
    """
    check_directions(sentences=sentences, counterfactuals=counterfactuals)
    half, sentences_backward = cosine_loss(sentences, teacher=counterfactuals)  # (1)
    _, counterfactuals_backward = cosine_loss(counterfactuals, teacher=sentences)  # either side as the one that learns
    out = 2 * half                                           # 1 - cos is half the squared distance  (2)

    def backward(dout):
        dhalf = 2 * dout                                     # (3)
        return sentences_backward(dhalf), counterfactuals_backward(dhalf)  # (4)

    return out, backward


def check_directions(**sides: Array) -> None:
    """Raise ValueError, naming the argument and the row, for a vector of length 0."""
    for name, rows in sides.items():
        if not (lengths := np.linalg.norm(rows, axis=-1)).all():
            raise invalid(name, got=f"a vector of length 0 in pair {lengths.argmin()}", wants="vectors that point somewhere")
