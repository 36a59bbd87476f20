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
from minitransformers.models.llama import Llama, llama
from minitransformers.peft.targets import targets
from minitransformers.reporting.base import BATCH, LENGTH, SETTINGS, base_corpus
from minitransformers.training.fit import fit
from minitransformers.training.language_modelling import LanguageModelling
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


def task(*, base: Llama, change: Callable | None = None, reported: bool = True, windows: int | None = None) -> LanguageModelling:
    """Saying the next byte, with changed weights."""
    model = partial(changed, base=base, change=change)
    return LanguageModelling(corpora()[reported], lambda params, ids: model(params, ids), context=LENGTH, batch_size=BATCH, eval_windows=windows)


def bits_of(params: trees.Tree, **settings: Any) -> float:
    """Bits a character of what was not read."""
    return task(**settings).evaluate(params)["bits per character"]


def learned(params: trees.Tree, rng: np.random.Generator, *, steps: int, rate: float, **settings: Any) -> trees.Tree:
    """params after so many updates on the base's text."""
    return fit(params, task(**settings), steps=steps, peak=rate, rng=rng, warmup=0.1, floor=0.05)
