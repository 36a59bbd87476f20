"""Language modelling: the task of saying which token comes next, measured in bits per character of text not learned from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

from minitransformers.foundation import at_least, checked, invalid, trees
from minitransformers.training.task import Labelled, labelled_loss, on_ids
from minitransformers.training.text import Corpus


class LanguageModelling(Labelled):
    """Windows of a corpus for ``model(params, ids=ids) -> logits, backward``.

    context and batch_size are tokens in a window and windows in a batch; evaluate reads the whole validation part, or
    eval_windows windows of it. random: the model takes a generator as ``rng`` when it trains (dropout). described is what a
    checkpoint remembers of the model, and model_defaults its settings where nothing was chosen.
    Raises ValueError where the training part is too short for a window.
    """

    @checked
    def __init__(
        self, corpus: Corpus, model: Callable, *, context: Annotated[int, at_least(1)], batch_size: Annotated[int, at_least(1)],
        eval_windows: Annotated[int, at_least(1)] | None = None, random: bool = False, described: object = None, model_defaults: object = None,
    ) -> None:  # fmt: skip
        if context >= len(corpus.train):
            raise invalid("context", got=context, wants=f"fewer than the {len(corpus.train)} tokens to train on")
        super().__init__(on_ids(model), self._windows, random=random)
        self.corpus, self.context, self.batch_size, self.eval_windows = corpus, context, batch_size, eval_windows
        self.described, self.model_defaults = described, model_defaults
        self.per_nat = corpus.tokens_per_character / math.log(2)

    def _windows(self, rng: np.random.Generator) -> tuple[Any, Any]:
        """Random windows of the training part: ids, and the token after each."""
        return self.corpus.batch(rng, batch_size=self.batch_size, context=self.context)

    def evaluate(self, params: trees.Tree) -> dict[str, float]:
        """Every token of the validation part but the first predicted once.

        A window starts without a past, so early positions know little: this overstates what the model can do with a long one.
        """
        nats, count = 0.0, 0
        windows = self.corpus.evaluation_batches(batch_size=self.batch_size, context=self.context, limit=self.eval_windows)
        for ids, targets in windows:
            logits, backward = self.model(params, ids)
            (loss, number), _ = labelled_loss(logits, backward, targets)
            nats, count = nats + float(loss), count + number
        return {"bits per character": nats / count * self.per_nat}

    def to_json(self) -> dict[str, Any]:
        """The model, the text, and how it is cut."""
        sizes = {"context": self.context, "batch_size": self.batch_size, "eval_windows": self.eval_windows}
        return {"model": self.described, "corpus": self.corpus.to_json(), **sizes}

    def defaults(self) -> dict[str, Any]:
        """The model's."""
        return {} if self.model_defaults is None else {"model": self.model_defaults}
