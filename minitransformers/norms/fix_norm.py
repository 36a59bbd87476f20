"""FixNorm: words as directions. Every row of the embedding table is used at length one.

In a plain model frequent words grow long vectors, and a long vector wins logits whatever it points to. FixNorm divides
each row by its length before it is used, at the input and, tied, at the output: what is left to learn is where it points.

Source: Nguyen and Chiang 2018, arXiv:1710.01329 (words and hidden states of one length at the output); Nguyen and Salazar
2019, arXiv:1910.05895, section 2.3 (unit word embeddings). eps is a floor under the length, as in the latter's code. The
table that comes out is used as any table: embedding reads its rows, linear multiplies by its transpose.

    length_v = |E_v|, for every word v                       (1)
    size_v = max(length_v, eps)                              (2)
    unit_v = E_v / size_v                                    (3)
    along_v = unit_v . dunit_v where length_v > eps, otherwise 0   (4)
    dE_v = (dunit_v - along_v unit_v) / size_v               (5)

dunit is the sum of what comes back from both uses of the table.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, example, positive


@concept(
    title="FixNorm",
    source="Nguyen and Chiang 2018, arXiv:1710.01329; Nguyen and Salazar 2019, arXiv:1910.05895, section 2.3",
    example=lambda rng: _example(rng),
)
def fix_norm(weight: Float[Array, "vocabulary d_model"], *, eps: Annotated[float, positive] = 1e-12) -> tuple[Array, Backward]:
    """Divide every row of a table by its length.

    eps is the least length that a row is divided by, in the units of the table. A row of zeros stays zero, and its
    gradient is dout / eps, which is very large.
    Returns out, the table of unit rows, shaped like weight, and backward: dout -> dweight.
    Raises ValueError when weight is not a table or eps is not above 0 in its dtype.
    """
    length = np.sqrt(np.vecdot(weight, weight))[:, None]     # (vocabulary, 1)  (1)
    size = np.maximum(length, eps)                           # (2)
    out = weight / size                                      # (3)

    def backward(dout):
        along = np.vecdot(out, dout)[:, None] * (length > eps)  # (vocabulary, 1)  (4)
        dweight = (dout - along * out) / size                # (5)
        return dweight

    return out, backward


def _example(rng):
    weight = rng.normal(size=(5, 4))
    weight[2] *= 1e-2                                        # 0.02 long: under the floor
    return example(weight, eps=0.2)
