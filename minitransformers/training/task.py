"""Tasks: what is learned. The loop and fit know nothing else: not text, not labels, not rewards.

    task.batch(rng)                    -> a tree of arrays, their first axis the examples
    task.loss(params, batch, rng=rng)  -> (sum, count), backward;  backward((dsum, None)) -> gradients of params
    task.evaluate(params)              -> {name: number}, the first of them a loss, lower is better

A loss is a sum over what counts (labels, not positions) and how many there are, so that parts of a batch can be weighed
by what is in them: their sums add, their counts add, and the mean is taken once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.foundation import invalid, trees

IGNORED = -100  # the target that counts for nothing: cross_entropy's default

Loss = tuple[tuple[Any, int], Callable]


class Task:
    """What a task must have, and what it may leave as it is.

    per_nat is what a unit of the training loss, a mean over what counts, is in units of evaluate's first number.
    """

    per_nat: float = 1.0

    def batch(self, rng: np.random.Generator) -> trees.Tree:
        """A batch to learn from: arrays whose first axis is the examples, or None where a loss needs none."""
        return None

    def loss(self, params: trees.Tree, batch: trees.Tree, *, rng: np.random.Generator) -> Loss:
        """The sum of the losses, how many they are, and backward. rng is for what is random in training, such as dropout."""
        raise NotImplementedError

    def evaluate(self, params: trees.Tree) -> dict[str, float]:
        """How well the parameters do on what was not learned from; nothing where nothing is measured."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """What decides how a run of this task goes: a checkpoint of another is refused."""
        return {}

    def defaults(self) -> dict[str, Any]:
        """What to_json says where nothing was chosen: a checkpoint that is too old to know a setting had this."""
        return {}


class Labelled(Task):
    """Cross-entropy of ``model(params, inputs) -> logits, backward`` on batches of (inputs, targets) that ``draw(rng)`` makes.

    The model's backward gives the gradients of params alone (see on_ids and on_arrays). Targets that are IGNORED count for
    nothing. random: the model takes a generator as ``rng`` when it trains (dropout).
    """

    def __init__(self, model: Callable, draw: Callable[[np.random.Generator], tuple[Any, Any]], *, random: bool = False) -> None:
        self.model, self.draw, self.random = model, draw, random

    def batch(self, rng: np.random.Generator) -> tuple[Any, Any]:
        """Inputs and targets."""
        return self.draw(rng)

    def loss(self, params: trees.Tree, batch: trees.Tree, *, rng: np.random.Generator) -> Loss:
        """In nats, over the labels that are not ignored."""
        inputs, targets = batch
        logits, backward = self.model(params, inputs, **({"rng": rng} if self.random else {}))
        return labelled_loss(logits, backward, targets)


def labelled_loss(logits: Any, model_backward: Callable, targets: Any) -> Loss:
    """(sum, count), backward of cross-entropy behind a model, over the targets that are not IGNORED."""
    total, loss_backward = cross_entropy(logits, targets=targets, reduction="sum")
    return (total, int(np.count_nonzero(targets != IGNORED))), lambda dloss: model_backward(loss_backward(dloss[0]))


class FromLoss(Task):
    """A task of a function ``loss(params) -> value, gradients`` that makes its own batches: for measurements."""

    def __init__(self, loss: Callable[[trees.Tree], tuple[float, trees.Tree]]) -> None:
        self.function = loss

    def loss(self, params: trees.Tree, batch: None, *, rng: np.random.Generator) -> Loss:
        """The value, as a sum of one."""
        value, gradients = self.function(params)
        return (value, 1), lambda dloss: gradients


def on_ids(model: Callable) -> Callable:
    """A model that takes its token ids by keyword, as one that takes its inputs by position."""
    return lambda params, ids, **settings: model(params, ids=ids, **settings)


def on_arrays(model: Callable) -> Callable:
    """A model that takes its inputs by position and gives them a gradient, as one that leaves that gradient out."""

    def without_input_gradient(params: trees.Tree, inputs: Any, **settings: Any) -> tuple[Any, Callable]:
        logits, backward = model(params, inputs, **settings)
        return logits, lambda dlogits: backward(dlogits)[0]

    return without_input_gradient


def accuracy(logits: Any, targets: Any, *, ignore_index: int = IGNORED) -> float:
    """The part of the labelled positions at which the target has the largest logit.

    Raises ValueError when all targets are ignored.
    """
    labelled = targets != ignore_index
    if not labelled.any():
        raise invalid("targets", got=f"{ignore_index} everywhere", wants="at least one position that is not ignored")
    return float((logits.argmax(axis=-1) == targets)[labelled].mean())
