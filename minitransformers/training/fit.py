"""Fit: parameters, a task, some steps of AdamW. The small sibling of loop.py, for measurements that need no run to resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import numpy as np

from minitransformers.foundation import at_least, between, checked, positive, trees
from minitransformers.training.schedule import warmup_cosine
from minitransformers.training.task import Task
from minitransformers.training.update import Learner


@checked
def fit(
    params: object,
    task: Task,
    *,
    steps: Annotated[int, at_least(1)],
    peak: Annotated[float, at_least(0)],
    rng: np.random.Generator | None = None,
    warmup: Annotated[float, between(0, 1)] = 0.1,
    floor: Annotated[float, between(0, 1)] = 0.0,
    clip: Annotated[float, positive] | None = 1.0,
    weight_decay: Annotated[float, at_least(0)] = 0.0,
    watch: Callable | None = None,
    progress: Callable[[range], Iterable[int]] = iter,
) -> trees.Tree:
    """Parameters after some steps of AdamW on the task's loss; params stay as they are.

    params is any tree of arrays that the task knows: a model's, or what reparameterize takes in its place.

    rng draws the batches (default: seed 0). The rate climbs to peak during warmup (a part of the steps, from 0 to 1) and falls
    along a cosine to floor (a part of peak); clip limits the norm of the gradient; weight_decay is the optimiser's, on the
    weights of linear maps and convolutions. ``watch(step, loss, params)`` is called after each step, with the mean loss
    before it, and may measure but not keep the parameters: the next step changes them. progress goes around the steps.
    Raises TrainingDiverged where a loss or a gradient is not finite.
    """
    learner, rng = Learner(params, weight_decay=weight_decay), np.random.default_rng(0) if rng is None else rng
    for step in progress(range(1, steps + 1)):
        rate = warmup_cosine(step, peak=peak, steps=steps, warmup=round(warmup * steps), floor=floor)
        loss, _, _ = learner.update(task, batch=task.batch(rng), rng=rng, learning_rate=rate, clip=clip)
        if watch is not None:
            watch(step, loss, learner.params.tree)
    return learner.params.tree
