"""Filtering: which hidden units carry a gap between two answers, and the model with those switched off.

A gap is one number: the logit of one answer minus that of another. The slope of the gap by a unit says what a small change of the
unit would do, not what taking it away would: behind a unit that is saturated the slope is 0. Integrated gradients go the whole way,
from all units at 0 to where they are, and add up the slopes. What the units are given then sums to the gap itself.

Source: Sundararajan, Taly and Yan 2017, arXiv:1703.01365, section 3. Differs from the paper: the slopes are taken in the middle of each
step, which is far more exact than at its end; the units are those of a hidden layer, as in conductance. Costs one forward and one
backward of what lies behind the units, for m copies of them. h are the units, h' where the way begins, F the gap behind them.

    point_k = h' + ((k - 1/2) / m) (h - h'), k = 1 .. m      (1)
    IG_j = (h_j - h'_j) (1/m) sum over k of dF/dh_j at point_k   (2)
    missing = F(h) - F(h') - sum over j of IG_j, towards 0 as m grows   (3)

    score_j = mean over examples of |IG_j|                   (4)
    gate_j = 0 for the k largest scores, 1 for the others    (5)
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, finite, invalid, procedure


class Attributions(NamedTuple):
    """What each unit adds to the gap, shaped like the units; and what of the gap, one number for each, is not accounted for."""

    values: Array
    missing: Array


@procedure(
    title="Integrated gradients",
    source="Sundararajan, Taly and Yan 2017, arXiv:1703.01365, section 3",
    example=lambda rng: example(rng.normal(size=(2, 5)), gap=_saturating, baseline=rng.normal(size=5), steps=7),
    rejects=[
        bad(baseline=np.ones(4)), bad(baseline=np.ones((3, 2, 5))), bad(gap=lambda hidden: (np.float64(1), None)),
        bad(gap=lambda hidden: (hidden[..., 0], lambda dout: dout)),
    ],
)  # fmt: skip
def integrated_gradients(
    hidden: Annotated[Float[Array, "*examples units"], finite], *, gap: Callable,
    baseline: Annotated[Float[Array, "..."], finite] | None = None, steps: Annotated[int, at_least(1)] = 50,
) -> Attributions:  # fmt: skip
    """How much each unit of each example adds to the gap, compared with units at the baseline.

    gap(hidden) -> values, backward is what stands behind the units, with backward(dvalues) -> dhidden. It is called with the
    copies on a new first axis, and gives a number for each example, each from that example alone: values (copies, *some of the
    examples' axes), the axes that are missing at the end being positions of one example. baseline broadcasts to hidden, 0 where
    None. steps is m.
    Returns Attributions, of which missing has the shape of the gap.
    Raises ValueError where the baseline does not fit, or the gap is not a number for each example with a gradient for each unit.
    """
    start = np.zeros_like(hidden) if baseline is None else baseline
    if start.ndim > hidden.ndim or any(a not in (1, b) for a, b in zip(start.shape[::-1], hidden.shape[::-1], strict=False)):
        raise invalid("baseline", got=f"shape {start.shape}", wants=f"a shape that broadcasts to hidden, {hidden.shape}")
    way = hidden - start
    middles = ((np.arange(steps) + 0.5) / steps).astype(hidden.dtype).reshape(steps, *(1,) * hidden.ndim)
    values, backward = gap(start + middles * way)            # (m, *examples)  (1)
    lead = np.shape(values)[1:]
    if np.shape(values)[:1] != (steps,) or lead != hidden.shape[: len(lead)] or len(lead) == hidden.ndim:
        raise invalid("gap", got=f"values of shape {np.shape(values)}", wants=f"{steps} copies of a number for each example")
    slopes = backward(np.ones_like(values))
    if np.shape(slopes) != (steps, *hidden.shape):
        raise invalid("gap", got=f"a gradient of shape {np.shape(slopes)}", wants=f"{(steps, *hidden.shape)}, shaped like its argument")
    found = way * slopes.mean(axis=0)                        # (2)
    ends, _ = gap(np.stack([hidden, np.broadcast_to(start, hidden.shape)]))
    missing = ends[0] - ends[1] - found.reshape(*lead, -1).sum(axis=-1)  # (3)
    return Attributions(found, missing)


@procedure(
    title="Filter units",
    source="Sundararajan, Taly and Yan 2017, arXiv:1703.01365",
    example=lambda rng: example(rng.normal(size=(3, 2, 5)), count=2),
    rejects=[bad(count=6)],
)
def filter_units(attributions: Annotated[Float[Array, "*examples units"], finite], *, count: Annotated[int, at_least(0)]) -> Float[Array, "units"]:
    """Gates for the units: 0 for the so many that matter most, on average over the examples, and 1 for the others.

    They are what gated_neurons takes. Of units that matter equally the first is closed first.
    Raises ValueError where there are not so many units.
    """
    units = attributions.shape[-1]
    if count > units:
        raise invalid("count", got=count, wants=f"at most the number of units, {units}")
    scores = np.abs(attributions).reshape(-1, units).mean(axis=0)  # (4)
    gates = np.ones(units, attributions.dtype)
    gates[np.argsort(-scores, kind="stable")[:count]] = 0    # (5)
    return gates


def _saturating(hidden: Array):
    """A gap of five units that are first squashed."""
    weight = np.array([1.0, -2.0, 0.5, 0.0, 3.0], hidden.dtype)
    squashed = np.tanh(hidden)
    return squashed @ weight, lambda dvalues: dvalues[..., None] * weight * (1 - squashed**2)
