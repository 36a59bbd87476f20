"""LEACE: the smallest change of vectors after which no linear classifier can tell the concept from them.

A linear classifier, whatever its convex loss, learns nothing exactly when every feature has zero covariance with the labels. Many
linear maps make it so; this is the one that moves the vectors least, on the average of squared distances. In coordinates in which
the features are uncorrelated and of variance 1 it is an orthogonal projection; back in the vectors' own it is an oblique one.

Source: Belrose et al. 2023, arXiv:2306.03819, section 4. Differs from the authors' code with its defaults: no shrinkage, no bound on the trace,
and singular values are cut at rounding alone, so the covariance is zero whatever the units of z. Costs n d^2 for the covariance
and some 10 d^3 for its eigenvectors, once; then 2 d k multiplications a vector. mean is that of x, over n rows in all.

    Sxx = (x - mean)^T (x - mean) / n, Sxz = (x - mean)^T (z - mean z) / n   (1)
    Sxx = V diag(lambda) V^T, whiten = V diag(lambda^-1/2) V^T, color = V diag(lambda^1/2) V^T, over lambda > 0   (2)
    U = left singular vectors of whiten Sxz whose singular value is not 0   (3)
    read = whiten U, write = color U                         (4)
    out = x - ((x - mean) read) write^T                      (5)
    dx = dout - (dout write) read^T                          (6)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, finite, invalid, procedure

_UNCORRELATED = 1e-10                                        # of a correlation, what rounding leaves of 0


class LeaceEraser(NamedTuple):
    """What is read from a vector, relative to the mean, and along which directions it is taken out again."""

    mean: Float[Array, "d_model"]
    read: Float[Array, "d_model k"]
    write: Float[Array, "d_model k"]


def _classes(rng: np.random.Generator, count: int = 3) -> tuple[Array, Array]:
    z = np.eye(count)[np.array([[0, 1, 2, 0, 2], [1, 0, 2, 1, 1]]) % count]
    return rng.normal(size=(2, 5, 4)) + z @ rng.normal(size=(count, 4)), z


@procedure(
    title="LEACE: fit",
    source="Belrose et al. 2023, arXiv:2306.03819, section 4",
    example=lambda rng: example(*_classes(rng)),
    rejects=[bad(z=np.ones((2, 5, 3))), bad("x", x=np.ones((1, 4)), z=np.ones((1, 3))), bad(x=np.ones((2, 5, 4)))],
)
def leace(x: Annotated[Float[Array, "*batch d_model"], finite], z: Annotated[Float[Array, "*batch concepts"], finite]) -> LeaceEraser:
    """What erase needs so that x has no covariance with any column of z.

    z has a row for each of x: one-hot for classes (np.eye(classes)[labels]), or any numbers; leading axes are samples. Computed in float64, returned in the
    dtype of x. As many directions are taken out as z has independent ones that x knows of: classes - 1 at most. Where x knows nothing
    of z, read and write are one column of zeros.
    Raises ValueError for fewer than two rows, x that is the same in all, and z that is.
    """
    dtype, x, z = x.dtype, x.reshape(-1, x.shape[-1]), z.reshape(-1, z.shape[-1])
    if len(x) < 2:
        raise invalid("x", got="one row", wants="at least two")
    for name, values in (("x", x), ("z", z)):
        if not np.ptp(values, axis=0).any():
            raise invalid(name, got="the same in all rows", wants="rows that differ")
    mean = x.mean(axis=0, dtype=np.float64)
    centred, labels = x - mean, z - z.mean(axis=0, dtype=np.float64)
    covariance, shared = centred.T @ centred / len(x), centred.T @ labels / len(x)  # (1)
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    values, vectors = values[kept], vectors[:, kept]
    whiten, color = (vectors * values**-0.5) @ vectors.T, (vectors * values**0.5) @ vectors.T  # (2)

    left, singular, _ = np.linalg.svd(whiten @ shared, full_matrices=False)
    known = singular > _UNCORRELATED * np.linalg.norm(labels, axis=0).max() / np.sqrt(len(x))
    u = left[:, known] if known.any() else np.zeros((x.shape[1], 1))  # (3)
    return LeaceEraser(*(part.astype(dtype) for part in (mean, whiten @ u, color @ u)))  # (4)


def _eraser(rng: np.random.Generator) -> LeaceEraser:
    return leace(*_classes(rng))


@concept(
    title="LEACE: erase",
    source="Belrose et al. 2023, arXiv:2306.03819, section 4",
    example=lambda rng: example(rng.normal(size=(2, 3, 4)), eraser=_eraser(rng)),
    rejects=[bad("eraser", eraser=LeaceEraser(np.zeros(4), np.ones((4, 2)), np.ones((4, 1)))), bad("eraser", eraser=LeaceEraser(np.zeros(5), *np.ones((2, 5, 1))))],
    form_of="leace",
)  # fmt: skip
def erase(x: Float[Array, "... d_model"], *, eraser: LeaceEraser) -> tuple[Array, Backward]:
    """x without what a linear classifier could read of the concept, as leace has fitted it; the eraser is frozen.

    Returns out, shaped like x, and backward: dout -> dx.
    """
    mean, read, write = eraser
    out = x - ((x - mean) @ read) @ write.T                  # (5)

    def backward(dout):
        return dout - (dout @ write) @ read.T                # oblique: read and write change places  (6)

    return out, backward
