"""Debiasing adapter: one adapter that was trained on text with the groups exchanged, and a task adapter on top of it.

The base model is frozen. The first adapter learns to model language in which every sentence about one group stands beside its
counterfactual. Then it is frozen as well, and a second one learns the task above it, so that a task cannot undo what the first has
learned by overwriting it. Each can be taken out: where there is None, the layer hands on what it was given, bit for bit.

Source: Lauscher, Lüken and Glavaš 2021 (ADELE), arXiv:2109.03646; the stack is that of Pfeiffer et al. 2020 (MAD-X),
arXiv:2005.00052. Differs from the paper: the adapters are any functions of a slot, bottlenecks unless told; where they stand in a
block is said by adapted or pfeiffer_adapter. Costs what the two cost. D is the debiasing adapter, T the task's; a star is the backward.

    middle = D(x)                                            (1)
    out = T(middle)                                          (2)
    dT, dmiddle = T*(dout)                                   (3)
    dD, dx = D*(dmiddle)                                     (4)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, example
from minitransformers.peft.bottleneck_adapter import adapter_example, bottleneck_adapter


class StackedAdapters(NamedTuple):
    """What the debiasing adapter and the task's adapter hold; None for one that is not there."""

    debiasing: Any
    task: Any = None


@concept(
    title="Debiasing adapter",
    source="Lauscher, Lüken and Glavaš 2021 (ADELE), arXiv:2109.03646",
    example=lambda rng: _example(rng),
)
def debiasing_adapter(
    params: StackedAdapters, x: Float[Array, "... d_model"], *, debiasing: Callable = bottleneck_adapter, task: Callable = bottleneck_adapter
) -> tuple[Array, Backward]:
    """The debiasing adapter, then the task's adapter on what it makes: an adapter itself, for the slots of ``adapted``.

    debiasing and task are called ``adapter(its params, x) -> out, backward`` and keep the shape. Where params has None, that
    adapter is not called; without both, the result is x itself. A stack may stand in a stack.
    Returns out, shaped like x, and backward: dout -> StackedAdapters of gradients (None where there was none), dx.
    Raises ValueError when the shapes do not fit.
    """
    middle, debiasing_backward = _if_there(debiasing, params.debiasing, x)  # (1)
    out, task_backward = _if_there(task, params.task, middle)  # (2)

    def backward(dout):
        dtask, dmiddle = task_backward(dout)                 # (3)
        ddebiasing, dx = debiasing_backward(dmiddle)         # (4)
        return StackedAdapters(ddebiasing, dtask), dx

    return out, backward


def _if_there(adapter: Callable, params: Any, x: Array) -> tuple[Array, Backward]:
    """What the adapter makes of x, or x where there is no adapter."""
    return (x, lambda dout: (None, dout)) if params is None else adapter(params, x)


def _example(rng: np.random.Generator):
    """A stack in a stack, one of whose places is empty."""
    lower = StackedAdapters(None, adapter_example(rng, 5, 2))
    return example(StackedAdapters(lower, adapter_example(rng, 5, 3)), rng.normal(size=(2, 4, 5)), debiasing=debiasing_adapter)
