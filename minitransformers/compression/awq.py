"""AWQ: stretch the rows of a weight that read large features before rounding, and shrink the features to match.

A rounding error of a weight counts as much as the feature it is multiplied with. If the row of a large feature is made s times
larger, its step stays about the same, since the largest weight of the column decides it, and the error in the output shrinks to
1/s. Rows of small features pay for it. How strongly to stretch is found by trying: a power of each feature's mean magnitude, twenty
exponents, and the output error of each. Nothing is trained, and the gain of the norm in front takes over the division.

Source: Lin et al. 2023, arXiv:2306.00978, eq. 4 and 5; the clamp and the normalising (2) are those of the authors' code. Differs
from it: the error is that of the maps' own output, where the code may take a whole block's, and comes from the gram matrix of the
inputs; no search for clips, which is a matter of Q. x holds the inputs, Q stores, R restores.

    s_i = (mean |x_i|)^beta, at least 1e-4                   (1)
    s = s / (max(s) min(s))^(1/2)                            (2)
    stored = Q(diag(s) W)                                    (3)
    apart = R(stored) / s - W                                (4)
    |x apart|^2 = sum of apart o (x^T x apart)               (5)
    beta = 0, 1/n .. 1 - 1/n, the one of least |x apart|^2   (6)
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.compression.input_statistics import input_gram, mean_magnitudes
from minitransformers.compression.quantize import dequantize_symmetric, quantize_symmetric
from minitransformers.foundation import at_least, bad, example, finite, invalid, procedure

SMALLEST = 1e-4  # no factor is below it


class Awq(NamedTuple):
    """The stretched weight as it is stored, the factors of its rows, and the exponent that they come from."""

    weight: Any
    factors: Float[Array, "d_in"]
    exponent: float


@procedure(
    title="AWQ",
    source="Lin et al. 2023, arXiv:2306.00978, eq. 4 and 5",
    example=lambda rng: _example(rng),
    rejects=[
        bad(magnitudes=np.zeros(6)), bad(gram=np.ones((5, 5))), bad("quantize.bits", quantize=partial(quantize_symmetric, bits=1)),
        bad("dequantize", dequantize=lambda stored: np.ones((3, 3))),
    ],
)  # fmt: skip
def awq(
    weight: Annotated[Float[Array, "d_in d_out"], finite], *, magnitudes: Annotated[Float[Array, "d_in"], at_least(0)],
    gram: Annotated[Float[Array, "d_in d_in"], finite], quantize: Callable, dequantize: Callable = dequantize_symmetric,
    candidates: Annotated[int, at_least(1)] = 20,
) -> Awq:  # fmt: skip
    """The weight, stretched and stored, whose output differs least from weight's on inputs of these mean magnitudes and this gram.

    ``quantize(weight) -> stored`` and ``dequantize(stored) -> weight``, or groups of it. magnitudes and gram are those of
    mean_magnitudes and input_gram, of the same inputs. Several maps that read them share factors: lay their weights side by side.
    What is stored wants inputs divided by the factors: fold_into_norm does it for the norm in front.
    Never worse on these inputs than quantize alone, which is the exponent 0.
    Raises ValueError where all magnitudes are 0, or dequantize gives no such matrix.
    """
    if not magnitudes.any():
        raise invalid("magnitudes", got="zeros", wants="those of inputs some of which are not zero")
    best, least = None, np.inf
    for candidate in range(candidates):
        exponent = candidate / candidates
        factors = np.maximum(magnitudes**exponent, SMALLEST)  # (1)
        factors /= np.sqrt(factors.max() * factors.min())    # (2)
        stored = quantize(factors[:, None] * weight)         # (3)
        restored = dequantize(stored)
        if restored.size != weight.size or restored.shape[-1] != weight.shape[1] or restored.dtype != weight.dtype:
            raise invalid("dequantize", got=f"{restored.dtype} of shape {restored.shape}", wants=f"{weight.dtype} of shape {weight.shape}, or groups of it")
        apart = restored.reshape(weight.shape) / factors[:, None] - weight  # (4)
        error = float(np.vdot(apart, gram @ apart))          # (5)
        if best is None or error < least:
            best, least = Awq(stored, factors, exponent), error  # (6)
    assert best is not None
    return best


def _example(rng: np.random.Generator):
    x = rng.normal(size=(9, 6)) * [1, 9, 1, 0.3, 2, 1]
    return example(
        rng.normal(size=(6, 4)), magnitudes=mean_magnitudes([x]), gram=input_gram([x]), quantize=partial(quantize_symmetric, bits=3), candidates=5
    )
