"""Fake quantisation: a model learns while it computes with rounded weights.

A weight is rounded in the forward pass, and what is trained is the weight that stands behind it, with all its bits. Rounding has
no slope that would be of use, so backward goes straight through it, as though nothing had been rounded. Where a value was cut off
by the bound, moving it changes nothing, and its gradient is 0. So the model feels what its codes will do to it and learns to
bear it; afterwards the weights are quantised once and for all.

Source: Bengio, Léonard and Courville 2013, arXiv:1308.3432 (straight-through); Jacob et al. 2018, arXiv:1712.05877, section 3. The
step is computed from the values at each call and is a constant for backward. Values exactly at the bound count as inside:
otherwise the largest weight of each column, which is at it, could never learn.

    step = clip(values) / (2^(b-1) - 1)                      (1)
    out = step round(values / step), within the bound        (2)
    inside = |values| <= bound                               (3)
    dvalues = dout inside                                    (4)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.compression.quantize import BITS, dequantize_symmetric, largest_magnitude, quantize_symmetric, shared_bound
from minitransformers.foundation import Backward, bad, concept, example, finite
from minitransformers.foundation.trees import decays


class Latent(NamedTuple):
    """The weight behind the one that a model computes with: what is trained where ``change_by`` makes the other of it."""

    weight: Annotated[Float[Array, "d_in d_out"], decays]


@concept(
    title="Fake quantisation (straight-through)",
    source="Bengio, Léonard and Courville 2013, arXiv:1308.3432",
    example=lambda rng: example(rng.normal(size=(5, 3)), bits=3, clip=_three_quarters),
    rejects=[bad(bits=1), bad(axis=2)],
    gradient_of=lambda values, **settings: _straight(values, **settings),
)
def fake_quantize(
    values: Annotated[Float[Array, "*shape"], finite], *, bits: Annotated[int, BITS], axis: int | None = -2, clip: Callable = largest_magnitude
) -> tuple[Array, Backward]:
    """The values, quantised and restored; bits, axis and clip are those of quantize_symmetric.

    Returns out, shaped like values, and backward: dout -> dvalues, dout where nothing was cut off and 0 elsewhere.
    Raises ValueError as quantize_symmetric does.
    """
    bound = shared_bound(values, axis=axis, bits=bits, clip=clip)
    stored = quantize_symmetric(values, bits=bits, axis=axis, clip=lambda *_, **__: bound)  # (1)
    out = dequantize_symmetric(stored)                       # (2)
    inside = np.abs(values) <= bound                         # (3)

    def backward(dout):
        return dout * inside                                 # (4)

    return out, backward


def change_by(concept: Callable) -> Callable:
    """A concept of one array or several as a ``change`` for reparameterize: what is trained is a NamedTuple of its arguments.

    ``reparameterize(trained, base=tree, change=change_by(partial(fake_quantize, bits=3)))``, with Latent(weight) in trained for
    each weight that is to be quantised.
    """

    def change(own: Any, *, base: Array) -> tuple[Array, Backward]:
        out, backward = concept(*own)

        def back(dout):
            gradients = backward(dout)
            return type(own)(*(gradients if len(own) > 1 else (gradients,)))

        return out, back

    return change


def _straight(values: Array, **settings: Any) -> Callable:
    """The function whose gradient this is: what was rounded off at values, and what was cut off, stay as they are."""
    out, _ = fake_quantize(values, **settings)
    inside = np.abs(values) <= settings.get("clip", largest_magnitude)(values, axis=settings.get("axis", -2), bits=settings["bits"])
    return lambda new: out + (new - values) * inside


def _three_quarters(values: Array, *, axis: int | None, bits: int) -> Array:
    """A bound that cuts something off."""
    return (0.75 * largest_magnitude(values, axis=axis, bits=bits)).astype(values.dtype)
