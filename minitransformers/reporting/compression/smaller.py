"""What sections on smaller models share: the base model's matrices, a model that learns while it is small, and what it then says.

The base is the small Llama of ``base``: 21 matrices of its attention and feed-forward networks are made smaller; its embedding, which is its head
as well, and its norms stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np

from minitransformers.compression.head_pruning import heads_by_width
from minitransformers.foundation import Backward, reparameterize, trees
from minitransformers.models.distillation_loss import distillation_loss
from minitransformers.models.llama import Llama, llama, llama_attention
from minitransformers.peft.targets import targets
from minitransformers.reporting.base import BATCH, LENGTH, SETTINGS, SIZES, base_corpus, load_base
from minitransformers.reporting.measures import paired_times
from minitransformers.reporting.observed import TOGETHER, Inputs, observed, paths_of
from minitransformers.training.fit import fit
from minitransformers.training.language_modelling import LanguageModelling
from minitransformers.training.task import labelled_loss
from minitransformers.training.text import Corpus

MATRICES = ["attention.*.weight", "feed_forward.*.weight"]
D_HEAD = SIZES["d_model"] // SIZES["num_heads"]
reads: Callable = partial(llama, attention=partial(heads_by_width, attention=llama_attention, d_head=D_HEAD), **SETTINGS)  # as many heads as it has


def at_matrices(make: Callable, params: trees.Tree, inputs: Mapping[str, Inputs] | None = None) -> trees.Tree:
    """The same tree with ``make(weight)`` in the place of each of its matrices; all else stays, and is trained where the tree is.

    Where inputs are given, those of each matrix by its path, it is ``make(weight, inputs)``.
    """
    chosen = set(targets(params, MATRICES))

    def made(path: str, leaf: Any) -> Any:
        return make(leaf) if inputs is None else make(leaf, inputs[path])

    return trees.unflatten(params, [made(path, leaf) if path in chosen else leaf for path, leaf in trees.leaves(params)])


def share_left(params: trees.Tree) -> float:
    """The share of numbers that are not zero, a mean over the matrices."""
    chosen = set(targets(params, MATRICES))
    return float(np.mean([np.count_nonzero(leaf) / leaf.size for path, leaf in trees.leaves(params) if path in chosen]))


def side_by_side(make: Callable, params: Llama, inputs: Mapping[str, Inputs]) -> Llama:
    """The same model with ``make(weight, inputs)`` for its matrices, where weight is all that is multiplied with the same inputs, side by side."""
    arrays = dict(trees.leaves(params))
    for block in range(len(params.blocks)):
        for paths in (paths_of(block, parts) for parts in TOGETHER):
            cuts = np.cumsum([arrays[path].shape[1] for path in paths])[:-1]
            made = make(np.concatenate([arrays[path] for path in paths], axis=1), inputs[paths[0]])
            arrays.update(zip(paths, np.split(made, cuts, axis=1), strict=True))
    return trees.unflatten(params, arrays.values())


def changed(params: trees.Tree, ids: Any, *, base: Llama, change: Callable | None, model: Callable) -> tuple[Any, Backward]:
    """A model's logits with what ``change`` makes of params for weights, and backward: dlogits -> gradients of params."""
    tree, back = reparameterize(params, base=base, change=change)
    logits, backward = model(tree, ids=ids)
    return logits, lambda dlogits: back(backward(dlogits))


@cache
def corpora() -> dict[bool, Corpus]:
    """The base's text, for what is reported (True); and its training part alone, of which rates are chosen by the last tenth."""
    whole = base_corpus()
    return {True: whole, False: Corpus.from_text(whole.train_text, context=LENGTH, vocabulary="bytes")}


def base_inputs(rng: np.random.Generator, *, windows: int = 64) -> dict[str, Inputs]:
    """What the base's matrices are multiplied with in so many windows of what it has read, a batch at a time."""
    return observed(load_base(), (corpora()[True].batch(rng, batch_size=BATCH, context=LENGTH)[0] for _ in range(windows // BATCH)), **SETTINGS)


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
    *, base: Llama, change: Callable | None = None, model: Callable = reads, reported: bool = True, windows: int | None = None,
    teacher: Llama | None = None, few: int | None = None,
) -> Told:  # fmt: skip
    """Learning with weights that ``change`` makes. windows are as many as are evaluated, few as many as are learned from; None: all."""
    return Told(corpora()[reported], partial(changed, base=base, change=change, model=model), teacher=teacher, few=few, windows=windows)


def bits_of(params: trees.Tree, **settings: Any) -> float:
    """Bits a character of what was not read."""
    return task(**settings).evaluate(params)["bits per character"]


def pace(model: Callable, tree: Llama, *, rounds: int) -> float:
    """How many tokens a model reads while the base reads one, 16 windows at a time in turn: forward only."""
    ids, base = corpora()[True].validation[: 16 * LENGTH].reshape(16, LENGTH), load_base()
    return 1 / paired_times({"base": lambda: reads(base, ids=ids), "own": lambda: model(tree, ids=ids)}, rounds=rounds)["own"].median


def learned(params: trees.Tree, rng: np.random.Generator, *, steps: int, rate: float, watch: Callable | None = None, **settings: Any) -> trees.Tree:
    """params after so many updates; watch is fit's."""
    return fit(params, task(**settings), steps=steps, peak=rate, rng=rng, warmup=0.1, floor=0.05, watch=watch)
