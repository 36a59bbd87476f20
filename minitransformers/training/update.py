"""One update: the gradient of a batch, in parts where it must be, and a step of the optimiser. The loop and fit share it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitransformers.foundation import invalid, trees
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.optimizer import AdamW, TrainingDiverged
from minitransformers.training.task import Task
from minitransformers.training.threads import side_by_side


class Learner:
    """Parameters that learn, in one flat array, with their gradient and the optimiser's state.

    Weight decay acts on what is marked as such: the weights of linear maps and convolutions (trees.decayed).
    """

    def __init__(self, params: trees.Tree, **settings: Any) -> None:
        self.params = FlatTree.pack(params, in_front=set(trees.decayed(params)))
        self.gradient = self.params.zeros_like()
        self.optimizer = AdamW(self.params, **settings)

    def update(
        self, task: Task, *, batch: trees.Tree, rng: np.random.Generator, learning_rate: float, clip: float | None, micro_batches: int = 1,
        threads: int = 1,
    ) -> tuple[float, float, int]:  # fmt: skip
        """Learn from one batch; returns its mean loss before that, the norm of its gradient before clipping, and how many counted.

        Raises TrainingDiverged, and changes no parameter, where the loss or the norm is not finite.
        """
        total, count = accumulate_gradient(
            task, self.params.tree, self.gradient, batch, rng=rng, micro_batches=micro_batches, threads=threads
        )
        if count == 0:
            raise invalid("batch", got="nothing that counts", wants="at least one label")
        if not math.isfinite(total):
            raise TrainingDiverged(f"the loss is {total / count} at step {self.optimizer.steps + 1}")
        norm = self.optimizer.step(self.gradient, learning_rate=learning_rate, clip=clip, weight=1 / count)
        return total / count, norm, count


def accumulate_gradient(
    task: Task, params: trees.Tree, gradient: FlatTree, batch: trees.Tree, *, rng: np.random.Generator, micro_batches: int = 1, threads: int = 1
) -> tuple[float, int]:
    """Put the gradient of the summed loss over a batch into ``gradient``; return the sum and how many counted.

    The arrays of the batch are cut into micro_batches equal parts along their first axis, which must divide: the
    activations of ``threads`` parts are in memory at a time. Sums add, so a part counts for what is in it. Parts are added in
    their order, whichever is done first, and each has a generator of its own: the same call gives the same bits.
    """

    def forward_and_backward(part: trees.Tree, part_rng: np.random.Generator) -> tuple[float, int, trees.Tree]:
        (loss, count), backward = task.loss(params, part, rng=part_rng)
        return float(loss), count, backward((np.asarray(loss).dtype.type(1), None))

    parts = _cut(batch, micro_batches)
    rngs = [rng] if micro_batches == 1 else [np.random.default_rng(seed) for seed in rng.integers(2**63, size=micro_batches)]
    total, count = 0.0, 0
    for first in range(0, micro_batches, threads):
        now = slice(first, first + threads)
        for i, (loss, number, dparams) in enumerate(side_by_side(parts[now], rngs[now], function=forward_and_backward)):
            (gradient.add_sum if first + i else gradient.set_sum)(dparams)
            total, count = total + loss, count + number
    return total, count


def _cut(batch: trees.Tree, parts: int) -> list[trees.Tree]:
    """The batch in equal parts along the first axis of its arrays."""
    if parts == 1:
        return [batch]
    for path, leaf in trees.leaves(batch):
        if len(leaf) % parts:
            raise invalid("micro_batches", got=parts, wants=f"a divisor of the {len(leaf)} examples in batch{'.' + path if path else ''}")
    return [trees.map(lambda leaf, i=i: np.split(leaf, parts)[i], batch) for i in range(parts)]
