"""Classification: the task of naming the class of each example, measured on examples not learned from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

from minitransformers.foundation import at_least, checked, invalid, trees
from minitransformers.training.task import Labelled, accuracy, labelled_loss


class Classification(Labelled):
    """Examples of ``model(params, inputs) -> logits, backward``, logits (examples, classes).

    train and test are (inputs, labels); inputs is an array or a tree of arrays whose first axis is the examples. Batches are
    drawn with replacement. evaluate gives the mean loss in nats and the part of the test examples that are named rightly.
    Raises ValueError where inputs and labels are not equally many.
    """

    @checked
    def __init__(
        self, model: Callable, train: Any, test: Any, *, batch_size: Annotated[int, at_least(1)], described: Any = None
    ) -> None:
        for name, (inputs, labels) in (("train", train), ("test", test)):
            for path, leaf in trees.leaves(inputs, "inputs"):
                if len(leaf) != len(labels) or not len(labels):
                    raise invalid(name, got=f"{len(leaf)} in {path} and {len(labels)} labels", wants="one label an example, at least one")
        super().__init__(model, self._drawn)
        self.train, self.test, self.batch_size, self.described = train, test, batch_size, described

    def _drawn(self, rng: np.random.Generator) -> tuple[Any, Any]:
        inputs, labels = self.train
        chosen = rng.integers(len(labels), size=self.batch_size)
        return trees.map(lambda leaf: leaf[chosen], inputs), labels[chosen]

    def evaluate(self, params: trees.Tree) -> dict[str, float]:
        """On the test examples, all at once."""
        inputs, labels = self.test
        logits, backward = self.model(params, inputs)
        (nats, count), _ = labelled_loss(logits, backward, labels)
        return {"nats per example": float(nats) / count, "accuracy": accuracy(logits, labels)}

    def to_json(self) -> dict[str, Any]:
        """The model and how many examples there are."""
        return {"model": self.described, "batch_size": self.batch_size, "train": len(self.train[1]), "test": len(self.test[1])}
