"""GELU: x times the probability that a standard normal number is below x.

Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2. ``gelu`` is its approximation by tanh, used by GPT-2, T5
v1.1 and Gemma 2; ``gelu_exact`` is the function itself, used by BERT. They differ by up to 4.7e-4: a model needs the one
it was trained with.

    gelu        gate = (1 + tanh(k x (1 + c x^2))) / 2 with k = sqrt(2 / pi), c = 0.044715   (1)
    gelu_exact  gate = Phi(x) = (1 + erf(x / sqrt(2))) / 2   (2)
    out = x * gate                                           (3)
    gelu        dgate = 2 gate (1 - gate) k (1 + 3 c x^2)    (4)
    gelu_exact  dgate = exp(-x^2 / 2) / sqrt(2 pi)           (5)
    slope = gate + x * dgate                                 (6)
    dx = dout * slope                                        (7)

The slope is made in the forward, while x is in the cache: the backward is one product, and keeps one array.
Phi of a negative number is exp(-x^2 / 2) times a ratio of polynomials (Hart et al. 1968, Computer Approximations, as
given by West 2005, "Better approximations to cumulative normal functions", Wilmott), within 2e-16 of Phi, absolutely:
NumPy has no erf, SciPy's is slower, and the exponential is wanted for (5) in any case.
"""

from math import pi, sqrt

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, example

_K, _C = sqrt(2 / pi), 0.044715
_CHUNK = 32_768  # elements worked on at a time, so that the dozen steps between x and slope stay in the cache


@concept(
    title="Gaussian error linear unit (GELU)",
    source="Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
    roles=("activation",),
)
def gelu(x: Float[Array, "..."]) -> tuple[Array, Backward]:
    """x times its gate, a tanh that is nearly the normal distribution function, element by element.

    Returns out, shaped like x, and backward: dout -> dx.
    """
    return _gated(x, _tanh_gate)


@concept(
    title="Gaussian error linear unit, exact",
    source="Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
    roles=("activation",),
    form_of="gelu",
)
def gelu_exact(x: Float[Array, "..."]) -> tuple[Array, Backward]:
    """x times the normal distribution function of x, element by element.

    Returns out, shaped like x, and backward: dout -> dx.
    """
    return _gated(x, _normal_gate)


def _gated(x, gate_of):
    flat = x.reshape(-1)
    out, slope = np.empty(x.size, x.dtype), np.empty(x.size, x.dtype)
    for start in range(0, x.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        limited = flat[part].clip(-40, 40)                   # beyond, the gate is 0 or 1 to the last bit, and x * x cannot overflow
        gate, dgate = gate_of(limited)
        np.multiply(flat[part], gate, out=out[part])         # (3)
        dgate *= limited
        np.add(gate, dgate, out=slope[part])                 # (6)
    out, slope = out.reshape(x.shape), slope.reshape(x.shape)

    def backward(dout):
        return dout * slope                                  # (7)

    return out, backward


def _tanh_gate(x):
    """The approximate gate and its derivative."""
    square = x * x                                           # never x**3: np.power is tens of times slower
    gate = square * (_K * _C)
    gate += _K
    gate *= x
    np.tanh(gate, out=gate)
    gate *= 0.5
    gate += 0.5                                              # (1)
    dgate = square
    dgate *= 6 * _K * _C
    dgate += 2 * _K
    dgate *= gate
    dgate *= 1 - gate                                        # (4)
    return gate, dgate


def _normal_gate(x):
    """The exact gate, the normal distribution function, and its derivative, the normal density."""
    density = x * x
    density *= -0.5
    np.exp(density, out=density)
    tail = np.abs(x)
    tail = density * _polynomial(tail, _NUMERATOR) / _polynomial(tail, _DENOMINATOR)  # Phi(-|x|)
    positive = (x > 0).astype(x.dtype)
    gate = positive + (1 - 2 * positive) * tail              # Phi(x) = 1 - Phi(-x)  (2)
    density *= 1 / sqrt(2 * pi)                              # (5)
    return gate, density


def _polynomial(x, coefficients):
    """Horner's rule, highest power first."""
    total = x * coefficients[0]
    for coefficient in coefficients[1:-1]:
        total += coefficient
        total *= x
    total += coefficients[-1]
    return total


_NUMERATOR = (
    3.52624965998911e-02, 0.700383064443688, 6.37396220353165, 33.912866078383, 112.079291497871, 221.213596169931, 220.206867912376,
)  # fmt: skip
_DENOMINATOR = (
    8.83883476483184e-02, 1.75566716318264, 16.064177579207, 86.7807322029461, 296.564248779674, 637.333633378831, 793.826512519948,
    440.413735824752,
)  # fmt: skip
