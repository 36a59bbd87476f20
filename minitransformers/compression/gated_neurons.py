"""Gated neurons: a number for each hidden unit of a feed-forward network, by which the unit's activation is multiplied.

At 1 a gate changes nothing, at 0 the unit is gone; the slope of the loss by a gate says how much the unit matters. It stands in
the slot ``activation`` of a feed-forward network, plain or gated: in a gated one the activation is multiplied by the value, and a
factor of one of the two is a factor of their product. One product a hidden number, and two in the backward. Source: Molchanov et
al. 2017, arXiv:1611.06440, section 2.2, where the units are channels of a convolution; Michel, Levy and Neubig 2019,
arXiv:1905.10650, for gates. phi is the activation inside, phi* its backward.

    active = phi(hidden)                                     (1)
    out_j = gate_j active_j                                  (2)
    dgate_j = sum over positions of active_j dout_j          (3)
    dactive_j = gate_j dout_j                                (4)
    dhidden = phi*(dactive)                                  (5)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_to
from minitransformers.basics.gelu import gelu
from minitransformers.foundation import Backward, bad, concept, example, finite, invalid, slot


class NeuronGates(NamedTuple):
    """A gate for each hidden unit, with axes in front that broadcast to those of the positions; and what the activation learns."""

    gates: Annotated[Float[Array, "... d_hidden"], finite]
    activation: Any = None


@concept(
    title="Gated neurons",
    source="Molchanov et al. 2017, arXiv:1611.06440, section 2.2",
    example=lambda rng: _example(rng),
    rejects=[bad("params.gates", params=NeuronGates(np.ones(6))), bad("params.gates", params=NeuronGates(np.ones((3, 1, 7))))],
)
def gated_neurons(
    params: NeuronGates, hidden: Float[Array, "... d_hidden"], *, activation: Callable = slot(gelu)
) -> tuple[Array, Backward]:
    """An activation whose units are turned up, down or off, each by its gate. An activation itself.

    activation(params.activation, hidden) -> active, backward is the one inside. Gates (d_hidden,) serve all positions; gates
    (examples, 1, d_hidden) are of each example of a batch (examples, positions, d_hidden).
    Returns out, shaped like hidden, and backward: dout -> NeuronGates, dhidden.
    Raises ValueError where there is not a gate for each unit, or gates do not broadcast to hidden.
    """
    gates, shape = params.gates, hidden.shape
    own = gates.shape[-1:] == shape[-1:] and gates.ndim <= hidden.ndim
    if not own or any(size not in (1, wanted) for size, wanted in zip(gates.shape[::-1], shape[::-1], strict=False)):
        raise invalid("params.gates", got=f"shape {gates.shape}", wants=f"{shape[-1]} gates, for hidden features of shape {shape}")
    active, activation_backward = activation(params.activation, hidden)  # (1)
    out = gates * active                                     # (2)

    def backward(dout):
        dgates = sum_to(active * dout, gates.shape)          # (3)
        dactive = gates * dout                               # (4)
        dactivation, dhidden = activation_backward(dactive)  # (5)
        return NeuronGates(dgates, dactivation), dhidden

    return out, backward


def _example(rng: np.random.Generator):
    """Gates of each example around gates of all, which are what the activation inside learns."""
    params = NeuronGates(rng.normal(size=(2, 1, 7)), NeuronGates(rng.normal(size=7)))
    return example(params, rng.normal(size=(2, 4, 7)), activation=gated_neurons)
