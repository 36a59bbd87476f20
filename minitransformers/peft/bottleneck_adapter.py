"""Bottleneck adapter: two small maps in a row, through few features, whose result is added to what they read.

A model that was trained once stands still; between its parts come such adapters, and they alone are trained, 2 d m numbers and
a few for a width of m features. Taken out again, they leave the model as it was. At the start an adapter changes next to
nothing. Source: Houlsby et al. 2019, arXiv:1902.00751, section 2.1; the start is that of their code: normal numbers, cut off at
two deviations. Differs from the paper: s may be other than 1 (He et al. 2021, arXiv:2110.04366), GELU is the usual activation phi.

    hidden = x W_down + b_down                               (1)
    active = phi(hidden)                                     (2)
    added = active W_up + b_up                               (3)
    out = x + s added, s = 1                                 (4)
    dadded = s dout                                          (5)
    dactive = dadded W_up^T, and dW_up, db_up                (6)
    dhidden = dactive phi'(hidden)                           (7)
    dx = dout + dhidden W_down^T, and dW_down, db_down       (8)
"""

import warnings
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear, linear
from minitransformers.foundation import Backward, at_least, checked, concept, example, finite, positive, slot


class BottleneckAdapter(NamedTuple):
    """The map down to the few features, the map up again, and what the activation learns (None for nothing)."""

    down: Annotated[Linear, "d_model d_bottleneck"]
    up: Annotated[Linear, "d_bottleneck d_model"]
    activation: Any = None


@checked
def init_bottleneck_adapter(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, d_bottleneck: Annotated[int, at_least(1)],
    std: Annotated[float, positive] = 0.01, residual_std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> BottleneckAdapter:  # fmt: skip
    """Normal weights of deviation ``std``, none beyond two of them, and zero biases: the adapter is nearly the identity.

    residual_std is the deviation of the map up (default std): with 0 the adapter is the identity to the last bit, and std may
    be 1/sqrt(d_model). The map down never starts at zero: with both there, neither would get a gradient.
    Warns (UserWarning) where d_bottleneck is not below d_model.
    """
    if d_bottleneck >= d_model:
        warnings.warn(f"d_bottleneck: got {d_bottleneck}, which is no bottleneck beside d_model = {d_model}", stacklevel=5)
    up_std = std if residual_std is None else residual_std
    down = Linear(_truncated(rng, d_model, d_bottleneck, std, dtype), np.zeros(d_bottleneck, dtype))
    return BottleneckAdapter(down, Linear(_truncated(rng, d_bottleneck, d_model, up_std, dtype), np.zeros(d_model, dtype)))


def _truncated(rng: np.random.Generator, d_in: int, d_out: int, std: float, dtype: type) -> Array:
    """Normal numbers of deviation std, drawn again where they lie beyond two of it."""
    drawn = rng.standard_normal((d_in, d_out))
    while (far := np.abs(drawn) > 2).any():
        drawn[far] = rng.standard_normal(np.count_nonzero(far))
    return (std * drawn).astype(dtype)


@concept(
    title="Bottleneck adapter",
    source="Houlsby et al. 2019, arXiv:1902.00751, section 2.1",
    example=lambda rng: _example(rng),
)
def bottleneck_adapter(
    params: BottleneckAdapter, x: Float[Array, "... d_model"], *, activation: Callable = slot(gelu), scale: Annotated[float, finite] = 1.0
) -> tuple[Array, Backward]:
    """x plus scale times what the bottleneck makes of it.

    activation(params.activation, hidden) -> active, backward bends each hidden feature; scale is dimensionless.
    Returns out, shaped like x, and backward: dout -> BottleneckAdapter of gradients, dx.
    Raises ValueError when the shapes do not fit.
    """
    added, through_backward = bottleneck(params, x, activation=activation)
    out = x + scale * added                                  # (4)

    def backward(dout):
        dadded = scale * dout                                # (5)
        dparams, dthrough = through_backward(dadded)
        dx = dout + dthrough                                 # x is added on and read: two gradients  (8)
        return dparams, dx

    return out, backward


def bottleneck(params: BottleneckAdapter, x: Array, *, activation: Callable) -> tuple[Array, Backward]:
    """The two maps without the way around them: added, and backward: dadded -> BottleneckAdapter of gradients, dthrough."""
    hidden, down_backward = linear(params.down, x)           # (..., d_bottleneck)  (1)
    active, activation_backward = activation(params.activation, hidden)  # (2)
    added, up_backward = linear(params.up, active)           # (3)

    def backward(dadded):
        dup, dactive = up_backward(dadded)                   # (6)
        dactivation, dhidden = activation_backward(dactive)  # (7)
        ddown, dthrough = down_backward(dhidden)             # (8)
        return BottleneckAdapter(ddown, dup, dactivation), dthrough

    return added, backward


def adapter_example(rng: np.random.Generator, d_model: int, d_bottleneck: int) -> BottleneckAdapter:
    """An adapter whose every number counts, for the examples of labels."""
    down, up = rng.normal(size=(d_model, d_bottleneck)) / 2, rng.normal(size=(d_bottleneck, d_model)) / 2
    return BottleneckAdapter(Linear(down, rng.normal(size=d_bottleneck)), Linear(up, rng.normal(size=d_model)))


class _Steepness(NamedTuple):
    slope: Float[Array, ""]


def _steep_tanh(params: _Steepness, hidden: Array):
    """An activation that learns, for the example: tanh with a slope."""
    active = np.tanh(params.slope * hidden)

    def backward(dactive):
        dangle = dactive * (1 - active * active)
        return _Steepness(np.sum(dangle * hidden)), dangle * params.slope

    return active, backward


def _example(rng: np.random.Generator):
    params = adapter_example(rng, 5, 3)._replace(activation=_Steepness(np.array(0.7)))
    return example(params, rng.normal(size=(2, 4, 5)), activation=_steep_tanh, scale=0.7)
