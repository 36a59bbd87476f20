"""Embedding regulariser: vectors of neutral words shall have no part in the directions along which words of groups differ.

The directions are found beforehand and are frozen. The loss is the squared length of what neutral words have along them, added to the
loss of the model. Unlike a projection afterwards it leaves the rest of the model the time to make up for it, and it is soft: what
helps to predict words may stay, at a price.

Source: Bordia and Bowman 2019, arXiv:1904.03035, section 3.3, where it is multiplied by a weight and added to the loss. Differs from the
paper: the directions are an argument, where theirs are singular vectors of differences of defining pairs. Costs two products of
(words, d_model) with (d_model, k). N are the rows of neutral words, B the directions as columns.

    along = N B                                              (1)
    out = sum of along^2                                     (2)
    dalong = 2 dout along                                    (3)
    dN = dalong B^T                                          (4)
"""

from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, finite, invalid


@concept(
    title="Embedding regulariser",
    source="Bordia and Bowman 2019, arXiv:1904.03035, section 3.3",
    example=lambda rng: example(rng.normal(size=(5, 4)), subspace=rng.normal(size=(4, 2)), neutral=np.array([1, 0, 1, 1, 0], bool)),
    rejects=[bad(neutral=np.zeros(5, bool)), bad(subspace=np.ones((4, 2)) * [1, 0])],
)
def embedding_regularizer(
    embedding: Annotated[Float[Array, "vocabulary d_model"], finite], *, subspace: Annotated[Float[Array, "d_model k"], finite],
    neutral: Bool[Array, "vocabulary"] | None = None,
) -> tuple[Any, Backward]:  # fmt: skip
    """The squared length of what the vectors of neutral words have along some directions.

    subspace holds the directions as columns, orthonormal as a rule: a longer one counts more. neutral is True for the words that
    shall have nothing along them (None: all); the others get no gradient.
    Returns out, a scalar of the embedding's dtype, in its units squared, and backward: dout -> dembedding.
    Raises ValueError where no word is neutral, or a direction has the length 0.
    """
    chosen = np.full(len(embedding), True) if neutral is None else neutral
    if not chosen.any():
        raise invalid("neutral", got="False everywhere", wants="at least one neutral word")
    if not (lengths := np.linalg.norm(subspace, axis=0)).all():
        raise invalid("subspace", got=f"column {lengths.argmin()} of length 0", wants="columns that point somewhere")
    along = embedding[chosen] @ subspace                   # (neutral words, k)  (1)
    out = (along * along).sum()                              # (2)

    def backward(dout):
        dalong = 2 * dout * along                            # (3)
        dembedding = np.zeros_like(embedding)
        dembedding[chosen] = dalong @ subspace.T           # (4)
        return dembedding

    return out, backward
