"""Where to clip before quantising: all that is cut off is lost, and all that is kept makes the step larger.

The largest magnitude loses nothing and lets one outlier decide the step of a thousand others. A percentile is chosen for the many
and gives the few up. Trying bounds and keeping the one with the least squared error weighs both, for the number of bits at hand:
with eight bits it keeps the outliers, with four it cuts them off. Each of them is a ``clip`` of ``quantize_symmetric``. A bound
for activations, which are not known beforehand, is the largest of what calibration texts had.

Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1 (min-max, MSE); Wu et al. 2020, arXiv:2004.09602, section 3.4 (percentile).
c runs over a grid of candidates, q(v; c) is v quantised and restored with the bound c.

    bound = max |v|                                          (1)
    bound = the p-th percentile of |v|                       (2)
    error(c) = sum (q(v; c) - v)^2                           (3)
    bound = the c of least error                             (4)
"""

from collections.abc import Iterable
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.compression.quantize import BITS, check_axis, dequantize_symmetric, largest_magnitude, quantize_symmetric
from minitransformers.foundation import at_least, bad, between, example, finite, invalid, procedure


@procedure(
    title="Clip by percentile",
    source="Wu et al. 2020, arXiv:2004.09602, section 3.4",
    example=lambda rng: example(rng.normal(size=(7, 3))),
    rejects=[bad(axis=2)],
)
def percentile_magnitude(
    values: Annotated[Float[Array, "*shape"], finite], *, axis: int | None = -2, bits: Annotated[int, BITS] = 8, percent: Annotated[float, between(0, 100)] = 99.9
) -> Float[Array, "*steps"]:
    """The magnitude that so many percent of those along axis do not exceed, with the axis kept; bits change nothing.

    percent runs from 0 to 100, where it is the largest magnitude. Raises ValueError for an axis that values do not have.
    """
    check_axis(values, axis)
    return np.percentile(np.abs(values), percent, axis=axis, keepdims=True).astype(values.dtype)  # (2)


@procedure(
    title="Clip by squared error",
    source="Nagel et al. 2021, arXiv:2106.08295, section 3.1",
    example=lambda rng: example(rng.normal(size=(7, 3)), axis=-2, bits=3),
    rejects=[bad(axis=2)],
)
def least_error_magnitude(
    values: Annotated[Float[Array, "*shape"], finite], *, axis: int | None = -2, bits: Annotated[int, BITS], candidates: Annotated[int, at_least(1)] = 50
) -> Float[Array, "*steps"]:
    """Of evenly spaced shares of the largest magnitude, itself among them, the bound of least squared error with so many bits.

    With the axis kept. So it is never worse than no clip. Costs as many quantisations as there are candidates.
    Raises ValueError for an axis that values do not have.
    """
    check_axis(values, axis)
    largest = largest_magnitude(values, axis=axis, bits=bits)  # (1)
    best, least = largest, np.full(largest.shape, np.inf, largest.dtype)
    for share in np.linspace(1, 0, candidates, endpoint=False):
        bound = (share * largest).astype(largest.dtype)
        restored = dequantize_symmetric(quantize_symmetric(values, bits=bits, axis=axis, clip=lambda *_, bound=bound, **__: bound))
        error = np.sum((restored - values) ** 2, axis=axis, keepdims=True)  # (3)
        best, least = np.where(error < least, bound, best), np.minimum(error, least)  # (4)
    return best


@procedure(
    title="Bound of activations",
    source="Nagel et al. 2021, arXiv:2106.08295, section 3.1",
    example=lambda rng: example([rng.normal(size=(2, 5, 3)), rng.normal(size=(4, 3))]),
    rejects=[bad(batches=[]), bad(batches=[np.ones((0, 3))]), bad(batches=[np.ones((2, 3)), np.ones((2, 4))]), bad(batches=[np.full((2, 3), np.nan)])],
)
def activation_bounds(batches: Iterable[Float[Array, "... features"]]) -> Float[Array, "features"]:
    """The largest magnitude of each feature over all batches, of which there must be one: what static quantisation of inputs goes by.

    Raises ValueError where there are no batches, one has no positions, features differ in number, or one is not finite.
    """
    bounds = None
    for batch in batches:
        if np.ndim(batch) == 0 or np.size(batch) == 0:
            raise invalid("batches", got=f"one of shape {np.shape(batch)}", wants="at least one position in each")
        most = np.abs(batch).reshape(-1, batch.shape[-1]).max(axis=0)
        if not np.isfinite(most).all():
            raise invalid("batches", got="a feature that is not finite", wants="finite numbers")
        if bounds is not None and most.shape != bounds.shape:
            raise invalid("batches", got=f"{len(bounds)} and {len(most)} features", wants="the same number in each")
        bounds = most if bounds is None else np.maximum(bounds, most)
    if bounds is None:
        raise invalid("batches", got="none", wants="at least one batch of activations")
    return bounds
