"""A masked weight: what lies under the mask is used and trained, the rest is zero and stays zero.

It is the weight of every pruned model that trains on, whoever made the mask. The optimiser may do to the numbers behind the mask
what it will, decay them or push them by an old momentum: the model never sees them, and their gradient is zero.

Source: Han et al. 2015, arXiv:1506.02626, section 3. o is the product of elements, W the numbers that are trained, M the mask.
Differs from zeroing a weight once: there every step of the optimiser has to be followed by zeroing again.

    weight = W o M                                           (1)
    dW = dweight o M                                         (2)

In a linear map dweight is x^T dout, made in full and then masked; dx is dout weight^T.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, invalid
from minitransformers.foundation.trees import decays


class MaskedWeight(NamedTuple):
    """The numbers that are trained, those behind the mask included, which nobody reads."""

    weight: Annotated[Float[Array, "*shape"], decays]


@concept(
    title="Masked weight",
    source="Han et al. 2015, arXiv:1506.02626",
    example=lambda rng: example(MaskedWeight(rng.normal(size=(5, 4))), mask=rng.random((5, 4)) < 0.6),
    rejects=[
        bad("mask", mask=None), bad("mask", mask=np.ones((5, 3), bool)), bad("mask", mask=np.zeros((5, 4), bool)),
        bad("base", base=np.ones((4, 5)), mask=None), bad("mask", base=np.zeros((5, 4)), mask=None),
    ],
)  # fmt: skip
def masked_weight(
    params: MaskedWeight, *, mask: Bool[Array, "*shape"] | None = None, base: Float[Array, "*shape"] | None = None
) -> tuple[Array, Backward]:
    """The numbers of params where mask is true, and 0 elsewhere: a change for ``reparameterize``.

    Without a mask it is where base is not 0, and reparameterize gives the leaf as base: so it serves every pruned weight of a
    model, each with its own mask. Of base only the zeros are read.
    Returns weight, shaped like params.weight, and backward: dweight -> MaskedWeight(dweight).
    Raises ValueError where neither mask nor base is given, the shapes differ, or the mask is true nowhere.
    """
    values = params.weight
    if mask is None:
        if base is None:
            raise invalid("mask", got=None, wants="a mask, or a base whose zeros are it")
        mask = base != 0
    if not mask.any():
        raise invalid("mask", got="false everywhere", wants="at least one number that stays")
    weight = np.where(mask, values, 0)                       # a product would make -0 of -1 and NaN of infinity  (1)

    def backward(dweight):
        return MaskedWeight(np.where(mask, dweight, 0))      # (2)

    return weight, backward
