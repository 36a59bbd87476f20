"""elu(x) + 1: a positive feature map, with which attention becomes a recurrence.

Source: Katharopoulos, Vyas, Pappas and Fleuret 2020, arXiv:2006.16236, eq. 7. Positive, so that weights made of it are; unlike the
ReLU it has a slope where x is negative, and it never stops to learn. As many features as x has, one from each.

    features = x + 1 where x > 0, else e^x                   (1)
    dx = dfeatures min(features, 1)                          (2)

The slope is 1 above zero and e^x below, which is what the feature itself is there: x need not be kept.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, example


@concept(
    title="The feature map elu(x) + 1",
    source="Katharopoulos, Vyas, Pappas and Fleuret 2020, arXiv:2006.16236, eq. 7",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
    roles=("feature_map",),
)
def elu_plus_one(x: Float[Array, "..."]) -> tuple[Array, Backward]:
    """The features of queries or keys, element by element: above zero, until e^x is too small for the dtype.

    Returns features, shaped like x, and backward: dfeatures -> dx.
    """
    features = np.exp(np.minimum(x, 0)) + np.maximum(x, 0)   # each term is constant where the other acts  (1)

    def backward(dfeatures):
        return dfeatures * np.minimum(features, 1)           # (2)

    return features, backward
