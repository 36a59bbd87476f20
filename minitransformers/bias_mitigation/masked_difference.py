"""Masked difference: a fine-tuned weight is the frozen one plus a change that is exactly zero nearly everywhere.

What a model has to unlearn is trained as a difference from the model, each number of it behind a gate of its own. A penalty closes
the gates; what stays open is a small module, stored apart, put on and taken off. Unlike a mask made afterwards, the difference is
trained knowing that most of it will be gone.

Source: Guo, Rush and Kim 2021 (diff pruning), arXiv:2012.07463, section 3; for removing attributes Hauzenberger et al. 2023 (ModDiffy),
arXiv:2205.15171. Differs from the second: constants of the gates are those of hard_concrete; the authors stretch from -1.5 to 1.5 at
temperature 1. z are the gates of hard_concrete with noise, or its settled ones without; o is the product of elements; z* the gates' backward.

    z = the gates of alpha                                   (1)
    weight = base + z o difference                           (2)
    ddifference = z o dweight                                (3)
    dz = difference o dweight                                (4)
    dalpha = z*(dz)                                          (5)
"""

from functools import partial
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.bias_mitigation.hard_concrete import hard_concrete, settled_gates
from minitransformers.foundation import Backward, above, bad, checked, concept, example, finite, invalid, negative, positive

NOISE_MARGIN = 1e-6  # how near the noise comes to 0 and 1, where its logarithms end


class MaskedDifference(NamedTuple):
    """A change for each number of a weight, and the logit of its gate."""

    difference: Annotated[Float[Array, "*shape"], finite]
    alpha: Annotated[Float[Array, "*shape"], finite]


@checked
def init_masked_difference(base: Float[Array, "..."], *, alpha: Annotated[float, finite] = 1.0) -> MaskedDifference:
    """A difference of zero, all gates at the same logit: with it the weight is base, to the last bit."""
    return MaskedDifference(np.zeros_like(base), np.full_like(base, alpha))


@concept(
    title="Masked difference",
    source="Guo, Rush and Kim 2021, arXiv:2012.07463, section 3; Hauzenberger et al. 2023, arXiv:2205.15171",
    example=lambda rng: example(MaskedDifference(*rng.normal(size=(2, 5, 4))), base=rng.normal(size=(5, 4)), rng=rng),
    rejects=[bad(base=np.ones((5, 3))), bad("params", params=MaskedDifference(np.ones((5, 4)), np.ones((4, 4))))],
)
def masked_difference(
    params: MaskedDifference, *, base: Float[Array, "..."], rng: np.random.Generator | None = None,
    temperature: Annotated[float, positive] = 2 / 3, low: Annotated[float, negative] = -0.1, high: Annotated[float, above(1)] = 1.1,
) -> tuple[Array, Backward]:  # fmt: skip
    """The weight base with what the gates let through of the difference: a change for ``reparameterize``.

    rng draws the noise of the gates, for a step of training; without it they are the settled ones. Settings as in hard_concrete.
    Returns weight, shaped like base, and backward: dweight -> MaskedDifference(ddifference, dalpha).
    Raises ValueError where difference and alpha have not the shape of base.
    """
    difference, alpha = params
    for name, part in zip(("difference", "alpha"), params, strict=True):
        if part.shape != base.shape:                         # inside reparameterize no annotation is checked
            raise invalid(f"params.{name}", got=f"shape {part.shape}", wants=f"{base.shape}, that of base")
    if rng is None:
        gates_of = settled_gates
    else:
        noise = np.clip(rng.random(base.shape), NOISE_MARGIN, 1 - NOISE_MARGIN).astype(base.dtype)
        gates_of = partial(hard_concrete, noise=noise, temperature=temperature)
    gates, gates_backward = gates_of(alpha, low=low, high=high)  # (1)
    weight = base + gates * difference                       # (2)

    def backward(dweight):
        ddifference = gates * dweight                        # (3)
        dgates = difference * dweight                        # (4)
        return MaskedDifference(ddifference, gates_backward(dgates))  # (5)

    return weight, backward
