"""SmoothQuant: what is hard to quantise in the activations is moved into the weights, which are easy, and nothing else changes.

A few features of the activations are far larger than the others, and no single step serves both. Weights have no such rows. A
feature divided by s while the row of the weight that reads it is multiplied by s gives the same output. So choose s so that both
sides are about equally uneven. The division costs nothing: the norm in front has a gain for each feature, and takes it over. All
maps that read that norm's output get the same factors.

Source: Xiao et al. 2022, arXiv:2211.10438, eq. 3 and 4; the two clamps are those of the authors' code. Differs from it: where gains
are measured from an offset (Gemma), what is divided is gain + offset. i numbers input features, k the maps behind the norm.

    largest_i = max over k and j of |W_kij|                  (1)
    s_i = max_i^alpha / max(largest_i, 1e-5)^(1 - alpha), at least 1e-5   (2)
    gain = (gain + offset) / s - offset, bias = bias / s     (3)
    W_kij = s_i W_kij                                        (4)
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear
from minitransformers.foundation import at_least, bad, between, example, finite, invalid, positive, procedure
from minitransformers.norms.layer_norm import LayerNorm
from minitransformers.norms.rms_norm import RmsNorm

SMALLEST = 1e-5  # below it neither a row of weights nor a factor is taken for what it is


class Smoothed(NamedTuple):
    """A norm, and the maps that read it."""

    norm: LayerNorm | RmsNorm
    maps: tuple[Linear, ...]


@procedure(
    title="SmoothQuant: factors",
    source="Xiao et al. 2022, arXiv:2211.10438, eq. 4",
    example=lambda rng: example(rng.uniform(0, 9, size=5), [rng.normal(size=(5, 3)), rng.normal(size=(5, 2))], alpha=0.6),
    rejects=[bad(weights=[]), bad("weights", weights=[np.ones((4, 3))])],
)
def smooth_factors(
    bounds: Annotated[Float[Array, "d_in"], at_least(0)], weights: Sequence[Annotated[Float[Array, "d_in _"], finite]], *,
    alpha: Annotated[float, between(0, 1)] = 0.5,
) -> Float[Array, "d_in"]:  # fmt: skip
    """By how much each feature is to be divided, given the largest magnitudes that it had in a calibration (activation_bounds).

    weights are those of all maps that read the features. alpha says how much of the difficulty goes over: with 1 all features end
    up equally large, with 0 all rows of the weights do.
    Raises ValueError where there are no weights, or they do not read so many features.
    """
    if not weights:
        raise invalid("weights", got="none", wants="those of at least one map")
    largest = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)  # (1)
    factors = bounds**alpha / np.maximum(largest, SMALLEST) ** (1 - alpha)
    return np.maximum(factors, SMALLEST)                     # (2)


@procedure(
    title="SmoothQuant: fold into the norm",
    source="Xiao et al. 2022, arXiv:2211.10438, eq. 3",
    example=lambda rng: example(
        RmsNorm(rng.normal(size=5)), [Linear(rng.normal(size=(5, 3)), rng.normal(size=3)), Linear(rng.normal(size=(5, 2)), None)],
        factors=rng.uniform(0.5, 2, size=5), offset=1.0,
    ),
    rejects=[bad("maps", maps=[Linear(np.ones((4, 3)), None)]), bad("offset", norm=LayerNorm(np.ones(5), np.ones(5)))],
)  # fmt: skip
def fold_into_norm(
    norm: LayerNorm | RmsNorm, maps: Sequence[Linear], *, factors: Annotated[Float[Array, "d_model"], positive], offset: float = 0.0
) -> Smoothed:
    """The norm with its output divided by the factors, and the maps with their rows multiplied by them: the same function.

    maps must be all that reads the norm's output. offset is what the norm's gain is measured from, as in rms_norm.
    Raises ValueError where a map does not read so many features, or a layer norm is given an offset.
    """
    for k, each in enumerate(maps):
        if len(each.weight) != len(factors):
            raise invalid(f"maps.{k}.weight", got=f"shape {each.weight.shape}", wants=f"{len(factors)} rows, one for each factor")
    gain = (norm.gain + offset) / factors - offset           # (3)
    folded: LayerNorm | RmsNorm = RmsNorm(gain)
    if isinstance(norm, LayerNorm):
        if offset:
            raise invalid("offset", got=offset, wants="0: a layer norm's gain has none")
        folded = LayerNorm(gain, norm.bias / factors)
    return Smoothed(folded, tuple(each._replace(weight=factors[:, None] * each.weight) for each in maps))  # (4)
