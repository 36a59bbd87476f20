"""Classification: the task of naming the class of each example, measured on examples not learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

from minitransformers.foundation import at_least, checked, invalid, trees
from minitransformers.training.task import Labelled, accuracy, labelled_loss


class Classification(Labelled):
    """Examples of ``model(params, inputs) -> logits, backward`` (dlogits -> gradients of params), logits (examples, classes).

    train and test are (inputs, labels); inputs is an array or a tree of arrays whose first axis is the examples. Batches are
    drawn with replacement. random: the model takes a generator as ``rng`` when it trains (dropout). described is what a checkpoint
    remembers of the model. evaluate gives the mean loss in nats and the part of the test examples that are named rightly.
    Raises ValueError where inputs and labels are not equally many.
    """

    @checked
    def __init__(
        self, model: Callable, train: Any, test: Any, *, batch_size: Annotated[int, at_least(1)], random: bool = False, described: object = None,
    ) -> None:  # fmt: skip
        for name, (inputs, labels) in (("train", train), ("test", test)):
            for path, leaf in trees.leaves(inputs, "inputs"):
                if len(leaf) != len(labels) or not len(labels):
                    raise invalid(name, got=f"{len(leaf)} in {path} and {len(labels)} labels", wants="one label an example, at least one")
        super().__init__(model, self._drawn, random=random)
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
        """The model, how many examples there are, and their fingerprint."""
        digest = hashlib.sha256()
        for path, leaf in trees.leaves((self.train, self.test)):
            digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
        sizes = {"batch_size": self.batch_size, "train": len(self.train[1]), "test": len(self.test[1])}
        return {"model": self.described, **sizes, "sha256": digest.hexdigest()}
