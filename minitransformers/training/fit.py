"""Fit: a model, a loss, some steps of AdamW. The small sibling of loop.py, for measurements that need no run to resume.

What it is fitted to is the caller's: any function that gives a loss and its gradients at given parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.foundation import invalid, trees
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.optimizer import AdamW, decays
from minitransformers.training.schedule import warmup_cosine

Loss = Callable[[trees.Tree], tuple[float, trees.Tree]]
Model = Callable[..., tuple[Array, Callable]]


def fit(
    params: trees.Tree,
    loss: Loss,
    *,
    steps: int,
    peak: float,
    warmup: float = 0.1,
    floor: float = 0.0,
    clip: float | None = 1.0,
    weight_decay: float = 0.0,
    watch: Callable[[int, float, trees.Tree], None] | None = None,
    progress: Callable[[range], Iterable[int]] = iter,
) -> trees.Tree:
    """Parameters after some steps of AdamW on ``loss(params) -> value, gradients``; params stay as they are.

    The rate climbs to peak during warmup (a part of the steps, from 0 to 1) and falls along a cosine to floor (a part of
    peak); clip limits the norm of the gradient; weight_decay is the optimiser's, on what ``decays``.
    ``watch(step, value, params)`` is called after each step, with the value before it, and may measure but not keep the
    parameters: the next step changes them. progress goes around the steps.
    Raises ValueError for fewer than one step and a warmup that is no part, and TrainingDiverged where a gradient is not finite.
    """
    if steps < 1:
        raise invalid("steps", got=steps, wants="at least 1")
    if not 0 <= warmup <= 1:
        raise invalid("warmup", got=warmup, wants="a part of the steps, from 0 to 1")
    flat = FlatTree.pack(params, in_front=decays)
    optimizer, gradient = AdamW(flat, weight_decay=weight_decay), flat.zeros_like()
    for step in progress(range(1, steps + 1)):
        value, gradients = loss(flat.tree)
        gradient.set_sum(gradients)
        rate = warmup_cosine(step, peak=peak, steps=steps, warmup=round(warmup * steps), floor=floor)
        optimizer.step(gradient, learning_rate=rate, clip=clip)
        if watch is not None:
            watch(step, float(value), flat.tree)
    return flat.tree


def loss_on(model: Model, draw: Callable[[], tuple[Array, Array]]) -> Loss:
    """The loss that fit wants: mean cross-entropy of ``model(params, ids=...)``, in nats, on batches that ``draw()`` makes.

    A batch is ids and targets; targets that are ignored count for nothing.
    """

    def loss(params: trees.Tree) -> tuple[float, trees.Tree]:
        ids, targets = draw()
        logits, backward = model(params, ids=ids)
        value, loss_backward = cross_entropy(logits, targets=targets)
        return float(value), backward(loss_backward(np.ones_like(value)))

    return loss


def accuracy(logits: Array, targets: Array, *, ignore_index: int = -100) -> float:
    """The part of the labelled positions at which the target has the largest logit.

    Raises ValueError when all targets are ignored.
    """
    labelled = targets != ignore_index
    if not labelled.any():
        raise invalid("targets", got=f"{ignore_index} everywhere", wants="at least one position that is not ignored")
    return float((logits.argmax(axis=-1) == targets)[labelled].mean())
