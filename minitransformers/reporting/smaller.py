"""What sections on smaller models share: the base model's matrices, a model that learns while it is small, and what it then says.

The base is the small Llama of ``base``: 21 matrices of its attention and feed-forward networks are made smaller; its embedding, which is its head
as well, and its norms stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from minitransformers.foundation import Backward, reparameterize, trees
from minitransformers.models.distillation_loss import distillation_loss
from minitransformers.models.llama import Llama, llama
from minitransformers.peft.targets import targets
from minitransformers.reporting.base import BATCH, LENGTH, SETTINGS, base_corpus
from minitransformers.training.fit import fit
from minitransformers.training.language_modelling import LanguageModelling
from minitransformers.training.task import labelled_loss
from minitransformers.training.text import Corpus

MATRICES = ["attention.*.weight", "feed_forward.*.weight"]


def at_matrices(make: Callable, params: trees.Tree) -> trees.Tree:
    """The same tree with ``make(weight)`` in the place of each of its matrices; all else stays, and is trained where the tree is."""
    chosen = set(targets(params, MATRICES))
    return trees.unflatten(params, [make(leaf) if path in chosen else leaf for path, leaf in trees.leaves(params)])


def changed(params: trees.Tree, ids: Any, *, base: Llama, change: Callable | None) -> tuple[Any, Backward]:
    """The base's logits with what ``change`` makes of params for weights, and backward: dlogits -> gradients of params."""
    tree, back = reparameterize(params, base=base, change=change)
    logits, backward = llama(tree, ids=ids, **SETTINGS)
    return logits, lambda dlogits: back(backward(dlogits))


@cache
def corpora() -> dict[bool, Corpus]:
    """The base's text, for what is reported (True); and its training part alone, of which rates are chosen by the last tenth."""
    whole = base_corpus()
    return {True: whole, False: Corpus.from_text(whole.train_text, context=LENGTH, vocabulary="bytes")}


class Told(LanguageModelling):
    """Saying the next byte, or what a teacher says of it; of all of the training part, or of few windows of it over and over."""

    def __init__(self, corpus: Corpus, model: Callable, *, teacher: Llama | None, few: int | None, windows: int | None) -> None:
        super().__init__(corpus, model, context=LENGTH, batch_size=BATCH, eval_windows=windows)
        self.teacher = teacher
        self.few = None if few is None else corpus.batch(np.random.default_rng(few), batch_size=few, context=LENGTH)

    def batch(self, rng: np.random.Generator) -> Any:
        """Ids, the bytes that follow, and the teacher's logits where there is one."""
        if self.few is None:
            ids, targets = super().batch(rng)
        else:
            rows = rng.integers(len(self.few[0]), size=self.batch_size)
            ids, targets = self.few[0][rows], self.few[1][rows]
        return ids, targets, None if self.teacher is None else llama(self.teacher, ids=ids, **SETTINGS)[0]

    def loss(self, params: trees.Tree, batch: Any, *, rng: np.random.Generator) -> Any:
        """In nats, a sum over positions: cross-entropy, or how far the teacher's distribution is."""
        ids, targets, theirs = batch
        logits, backward = self.model(params, ids)
        if theirs is None:
            return labelled_loss(logits, backward, targets)
        total, loss_backward = distillation_loss(logits, teacher=theirs, targets=targets, reduction="sum")
        return (total, targets.size), lambda dloss: backward(loss_backward(dloss[0]))


def task(
    *, base: Llama, change: Callable | None = None, reported: bool = True, windows: int | None = None, teacher: Llama | None = None, few: int | None = None
) -> Told:
    """Learning with weights that ``change`` makes. windows are as many as are evaluated, few as many as are learned from; None: all."""
    return Told(corpora()[reported], partial(changed, base=base, change=change), teacher=teacher, few=few, windows=windows)


def bits_of(params: trees.Tree, **settings: Any) -> float:
    """Bits a character of what was not read."""
    return task(**settings).evaluate(params)["bits per character"]


def learned(params: trees.Tree, rng: np.random.Generator, *, steps: int, rate: float, **settings: Any) -> trees.Tree:
    """params after so many updates."""
    return fit(params, task(**settings), steps=steps, peak=rate, rng=rng, warmup=0.1, floor=0.05)
