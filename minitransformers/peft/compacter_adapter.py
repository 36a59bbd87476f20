"""Compacter: a bottleneck adapter whose two maps are low-rank PHM layers with the same rules.

An adapter's two maps have 2 d m numbers. Here they have 2 r (d + m), and the rules, n^3 numbers for a whole model, say what all
adapters have in common. The map up starts at zero, so an adapter starts as the identity.
Source: Karimi Mahabadi et al. 2021, arXiv:2106.04647, section 3.3; n = 4, r = 1 and GELU are theirs. Differs from the paper's code:
the start of the map up and the sizes of the others' (a product of three small numbers has hardly a gradient in float32).
P(params, A, x) is a low-rank PHM layer, phi the activation.

    hidden = P(down, A, x)                                   (1)
    active = phi(hidden)                                     (2)
    out = x + s P(up, A, active), s = 1                      (3)
    dup, dA_up, dactive = P*(s dout)                         (4)
    dhidden = dactive phi'(hidden)                           (5)
    ddown, dA_down, dthrough = P*(dhidden)                   (6)
    dA = dA_down + dA_up                                     (7)
    dx = dout + dthrough                                     (8)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.gelu import gelu
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, finite, invalid, slot
from minitransformers.peft.bottleneck_adapter import _steep_tanh, _Steepness
from minitransformers.peft.low_rank_phm_linear import LowRankPhmLinear, init_low_rank_phm_linear, low_rank_phm_linear


class CompacterAdapter(NamedTuple):
    """The map down to the few features, the map up again, and what the activation learns (None for nothing)."""

    down: LowRankPhmLinear
    up: LowRankPhmLinear
    activation: Any = None


@checked
def init_compacter_adapter(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, d_bottleneck: Annotated[int, at_least(1)],
    n: Annotated[int, at_least(1)] = 4, rank: Annotated[int, at_least(1)] = 1, dtype: type = np.float32,
) -> CompacterAdapter:  # fmt: skip
    """Normal sides for the map down, nothing in the map up: the identity. The rules are init_phm_rules(rng, n), once for a model.

    Raises ValueError where n does not divide d_model and d_bottleneck, or rank is above one of the quotients.
    """
    settings: dict[str, Any] = {"n": n, "rank": rank, "dtype": dtype}
    return CompacterAdapter(
        init_low_rank_phm_linear(rng, d_model, d_bottleneck, **settings), init_low_rank_phm_linear(rng, d_bottleneck, d_model, std=0.0, **settings)
    )


@concept(
    title="Compacter",
    source="Karimi Mahabadi et al. 2021, arXiv:2106.04647, section 3.3",
    example=lambda rng: _example(rng),
    rejects=[bad(x=np.ones((2, 4, 5)))],
)
def compacter_adapter(
    params: CompacterAdapter, rules: Float[Array, "n n n"], x: Float[Array, "... d_model"], *, activation: Callable = slot(gelu),
    scale: Annotated[float, finite] = 1.0,
) -> tuple[Array, Backward]:  # fmt: skip
    """x plus scale times what two low-rank PHM layers, an activation between them, make of it.

    rules (n, n, n) are those of all adapters of a model: add up the gradients that they get from each.
    Returns out, shaped like x, and backward: dout -> CompacterAdapter of gradients, drules, dx.
    Raises ValueError when the shapes do not fit.
    """
    hidden, down_backward = low_rank_phm_linear(params.down, rules, x)  # (1)
    active, activation_backward = activation(params.activation, hidden)  # (2)
    added, up_backward = low_rank_phm_linear(params.up, rules, active)
    if added.shape != x.shape:
        raise invalid("params.up", got=f"{added.shape[-1]} features", wants=f"{x.shape[-1]}, those of x")
    out = x + scale * added                                  # (3)

    def backward(dout):
        dup, drules_up, dactive = up_backward(scale * dout)  # (4)
        dactivation, dhidden = activation_backward(dactive)  # (5)
        ddown, drules_down, dthrough = down_backward(dhidden)  # (6)
        drules = drules_down + drules_up                     # two uses: two gradients  (7)
        dx = dout + dthrough                                 # (8)
        return CompacterAdapter(ddown, dup, dactivation), drules, dx

    return out, backward


def _example(rng: np.random.Generator):
    down = LowRankPhmLinear(rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 2, 2)), rng.normal(size=4))
    up = LowRankPhmLinear(rng.normal(size=(2, 2, 2)), rng.normal(size=(2, 2, 3)), rng.normal(size=6))
    params, rules = CompacterAdapter(down, up, _Steepness(np.array(0.7))), rng.normal(size=(2, 2, 2)) / 2
    return example(params, rules, rng.normal(size=(2, 5, 6)) / 2, activation=_steep_tanh, scale=0.7)
