"""Sentence vectors: what a text's hidden states have in common, as one vector of length 1.

Source: Reimers and Gurevych 2019, arXiv:1908.10084, section 3 (the mean as pooling, found the best of three); the division by the length
is the published code's, in the models that compare by dot products. It makes the mean of the sum: a factor for the number of positions
falls out. Padding is left out of the sum. The dot product of two such vectors is their cosine: 1 for the same direction, 0 for none in
common. m is 1 at the positions that count and 0 at the others.

    total = sum over t of m_t hidden_t                       (1)
    out = total / |total|                                    (2)
    dtotal = (dout - out (out . dout)) / |total|             (3)
    dhidden_t = m_t dtotal                                   (4)
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, invalid


@concept(
    title="Sentence vectors",
    source="Reimers and Gurevych 2019, arXiv:1908.10084, section 3",
    example=lambda rng: example(rng.normal(size=(2, 4, 3)), mask=np.array([[1, 1, 1, 1], [0, 1, 1, 0]], bool)),
    rejects=[bad(mask=np.zeros((2, 4), bool)), bad(mask=np.ones((2, 3), bool)), bad(hidden=np.zeros((2, 4, 3)))],
)
def sentence_vectors(
    hidden: Float[Array, "*batch positions d_model"], *, mask: Bool[Array, "*batch positions"] | None = None
) -> tuple[Array, Backward]:
    """The mean of the hidden states where mask is True (None: everywhere), divided by its length.

    Returns out (*batch, d_model), every row of length 1, and backward: dout -> dhidden.
    Raises ValueError for a text without a position that counts, and where the mean is 0, which has no direction.
    """
    counts = np.ones(hidden.shape[:-1], bool) if mask is None else mask
    if not counts.any(axis=-1).all():
        raise invalid("mask", got="a text of which no position counts", wants="at least one in each")
    total = np.where(counts[..., None], hidden, 0).sum(axis=-2)  # (*batch, d_model)  (1)
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    if not length.all():
        raise invalid("hidden", got="a text whose mean is 0", wants="a mean that points somewhere")
    out = total / length                                     # (2)

    def backward(dout):
        along = (out * dout).sum(axis=-1, keepdims=True)
        dtotal = (dout - out * along) / length               # what would only make it longer is lost  (3)
        return np.where(counts[..., None], dtotal[..., None, :], 0)  # (4)

    return out, backward
