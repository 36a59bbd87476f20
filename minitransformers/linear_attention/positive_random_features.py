"""Positive random features (FAVOR+): random numbers whose products are, on average, the softmax's exp(q . k / sqrt(d)).

For a Gaussian w the mean of exp(w . x - |x|^2 / 2) exp(w . y - |y|^2 / 2) is exp(x . y). So m draws of w make m features whose
inner product estimates the exponential without bias; and since each is positive, so is every weight. Source: Choromanski et al.
2021, arXiv:2009.14794, lemmas 1 and 2, section 2.4 (orthogonal draws). Differs from the paper's code: nothing is added to the
features, and no maximum is subtracted in the exponent. That of the keys would be taken over the whole text, and so tell a causal
model of what is still to come; and a state would bear a scale of its own. None is needed: the exponent is at most |w|^2 / 2.

    W = num_features rows w, orthogonal in blocks of d_head, each as long as a Gaussian vector          (1)
    scaled = x / d_head^(1/4)                                (2)
    features_i = exp(w_i . scaled - |scaled|^2 / 2) / sqrt(num_features)          (3)
    dexponents = dfeatures o features                        (4)
    dscaled = dexponents W - (sum of dexponents) scaled      (5)
    dx = dscaled / d_head^(1/4)                              (6)

W is not trained: it is drawn once from the seed and kept, or given. o is the product of elements. Time positions num_features
d_head.
"""

import functools
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, concept, example, procedure


@procedure(
    title="Orthogonal Gaussian projection",
    source="Choromanski et al. 2021, arXiv:2009.14794, section 2.4; Yu et al. 2016, arXiv:1610.09072",
    example=lambda rng: example(rng=rng, num_features=7, d_head=3),
)
def orthogonal_projection(
    *, num_features: Annotated[int, at_least(1)], d_head: Annotated[int, at_least(1)], rng: np.random.Generator
) -> Float[Array, "num_features d_head"]:
    """Rows that are each a Gaussian vector, and in every block of d_head of them orthogonal to each other; in float64.

    Blocks are uniformly random rotations, independent of each other, and lengths are those of Gaussian vectors drawn besides.
    """
    blocks = -(-num_features // d_head)
    q, r = np.linalg.qr(rng.normal(size=(blocks, d_head, d_head)))
    signs = np.sign(np.diagonal(r, axis1=-2, axis2=-1))      # without them the rotation is not uniform
    directions = (q * signs[:, None]).reshape(-1, d_head)[:num_features]
    lengths = np.linalg.norm(rng.normal(size=(num_features, d_head)), axis=-1, keepdims=True)
    return lengths * directions                              # (1)


@functools.lru_cache(maxsize=64)
def _drawn(num_features: int, d_head: int, seed: int, dtype: np.dtype) -> Array:
    """The projection of a seed; read-only, as all calls share it."""
    projection = orthogonal_projection(num_features=num_features, d_head=d_head, rng=np.random.default_rng(seed)).astype(dtype)
    projection.setflags(write=False)
    return projection


@concept(
    title="Positive random features (FAVOR+)",
    source="Choromanski et al. 2021, arXiv:2009.14794, lemmas 1 and 2 and section 2.4",
    example=lambda rng: example(rng.normal(size=(2, 3, 5, 4)), num_features=7, seed=3),
    roles=("feature_map",),
)
def positive_random_features(
    x: Float[Array, "*batch positions d_head"],
    *,
    num_features: Annotated[int, at_least(1)] = 256,
    seed: Annotated[int, at_least(0)] = 0,
    projection: Float[Array, "num_features d_head"] | None = None,
) -> tuple[Float[Array, "*batch positions num_features"], Backward]:
    """The features of queries or keys: phi(q) . phi(k) is exp(q . k / sqrt(d_head)) on average over the draws of the projection.

    The projection is orthogonal_projection's from that seed, the same in every call; one that is given takes its place, and its
    rows that of num_features.
    Returns features, and backward: dfeatures -> dx.
    """
    *_, d_head = x.shape
    W = _drawn(num_features, d_head, seed, x.dtype) if projection is None else projection  # (1)
    scale = d_head**-0.25
    scaled = scale * x                                       # (2)
    exponents = scaled @ W.T
    exponents -= np.vecdot(scaled, scaled)[..., None] / 2
    features = np.exp(exponents, out=exponents)
    features *= len(W) ** -0.5                               # (..., positions, num_features)  (3)

    def backward(dfeatures):
        dexponents = dfeatures * features                    # (4)
        dscaled = dexponents @ W - dexponents.sum(-1, keepdims=True) * scaled  # (5)
        return scale * dscaled                               # (6)

    return features, backward
