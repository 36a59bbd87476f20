"""What a student can be shown of its teacher, a reader of the language of ``adaptation``, and how it learns from that."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import embedding
from minitransformers.basics.linear import linear
from minitransformers.basics.softmax import softmax
from minitransformers.compression.hidden_state_loss import hidden_state_loss
from minitransformers.compression.top_k_loss import renormalised_top_k_loss, top_k_loss
from minitransformers.foundation import trees
from minitransformers.models.distillation_loss import distillation_loss
from minitransformers.models.gpt2 import gpt2_block
from minitransformers.norms.layer_norm import layer_norm
from minitransformers.positional.learned import learned
from minitransformers.reporting import adaptation as at
from minitransformers.training.task import IGNORED, Task

HARD, TEXT, DRAWN, TOP, RENORMALISED = "the texts", "texts that it wrote", "an answer of its, drawn anew", "its three likeliest and the rest", "its three likeliest alone"
SOFT, WARM, STATES = "all its probabilities", "all of them, at temperature 2", "probabilities and hidden states"
BATCH, SHARE = 32, 0.3                                       # texts in an update; how much hidden states count beside probabilities


class Shown(NamedTuple):
    """Texts, what follows each symbol, and the teacher's logits and hidden states there."""

    ids: Array
    targets: Array
    logits: Array
    states: Array


# What is learned from: loss(logits, shown, rng) -> sum in nats, backward
def answers(logits: Array, shown: Shown, rng: np.random.Generator) -> Any:
    """What stands in the text."""
    return cross_entropy(logits, targets=shown.targets, reduction="sum")


def drawn_answers(logits: Array, shown: Shown, rng: np.random.Generator) -> Any:
    """What the teacher draws, anew each time."""
    climbing = np.cumsum(softmax(shown.logits.astype(np.float64))[0], axis=-1)
    drawn = (climbing < rng.random((*shown.ids.shape, 1))).sum(-1).clip(max=at.SYMBOLS - 1)
    return cross_entropy(logits, targets=np.where(shown.targets == IGNORED, IGNORED, drawn), reduction="sum")


def likeliest(logits: Array, shown: Shown, rng: np.random.Generator, *, loss: Callable) -> Any:
    """The teacher's three likeliest symbols."""
    ids = np.argsort(-shown.logits, axis=-1)[..., :3]
    shares = np.take_along_axis(softmax(shown.logits)[0], ids, axis=-1)
    return loss(logits, ids=ids, probabilities=shares, targets=shown.targets, reduction="sum")


def probabilities(logits: Array, shown: Shown, rng: np.random.Generator, *, temperature: float = 1.0) -> Any:
    """All of the teacher's probabilities."""
    return distillation_loss(logits, teacher=shown.logits, targets=shown.targets, temperature=temperature, reduction="sum")


SOURCES: dict[str, Callable] = {
    HARD: answers, TEXT: answers, DRAWN: drawn_answers, TOP: partial(likeliest, loss=top_k_loss),
    RENORMALISED: partial(likeliest, loss=renormalised_top_k_loss), SOFT: probabilities, WARM: partial(probabilities, temperature=2.0), STATES: probabilities,
}  # fmt: skip


# The student, and what it has to do
def with_states(params: at.Reader, ids: Array) -> tuple[tuple[Array, Array], Callable]:
    """The reader's logits, and what leaves each of its blocks, (layers, batch, positions, width); backward takes the gradients of both."""
    words, words_backward = embedding(params.embedding, ids=ids)
    x, places_backward = learned(params.positions, words)
    states, backwards = [], []
    for block in params.blocks:
        x, back = gpt2_block(block, x, num_heads=at.HEADS)
        states.append(x)
        backwards.append(back)
    normed, norm_backward = layer_norm(params.norm, x)
    logits, head_backward = linear(params.head, normed)

    def backward(dlogits, dstates):
        dhead, dnormed = head_backward(dlogits)
        dnorm, dx = norm_backward(dnormed)
        dblocks = []
        for back, dstate in zip(reversed(backwards), reversed(dstates), strict=True):
            dblock, dx = back(dx + dstate)                   # a state is read by the next block and by the loss
            dblocks.append(dblock)
        dplaces, dwords = places_backward(dx)
        return at.Reader(words_backward(dwords), dplaces, dblocks[::-1], dnorm, dhead)

    return (logits, np.stack(states)), backward


class Taught(Task):
    """params are the student, and a map from its hidden states to the teacher's."""

    def __init__(self, source: str, shown: Shown) -> None:
        self.source, self.shown = source, shown

    def batch(self, rng: np.random.Generator) -> Shown:
        """Some of the texts, with all that is said about them."""
        rows = rng.integers(len(self.shown.ids), size=BATCH)
        return Shown(*(part[rows] for part in self.shown))

    def loss(self, params: trees.Tree, shown: Shown, *, rng: np.random.Generator) -> Any:
        """In nats, a sum over symbols."""
        (student, bridge), count = params, int((shown.targets != IGNORED).sum())
        (logits, states), backward = with_states(student, shown.ids)
        total, loss_backward = SOURCES[self.source](logits, shown, rng)
        if self.source != STATES:
            return (total, count), lambda dloss: (backward(loss_backward(dloss[0]), np.zeros_like(states)), trees.zeros_like(bridge))
        apart, apart_backward = hidden_state_loss(bridge, states, teacher=np.moveaxis(shown.states, 1, 0))

        def back(dloss):
            dbridge, dstates = apart_backward(SHARE * count * dloss[0])
            return backward(loss_backward(dloss[0]), dstates), dbridge

        return (total + SHARE * count * apart, count), back


def shown_by(teacher: at.Reader, source: str, rng: np.random.Generator, *, texts: int) -> Shown:
    """So many texts, the language's own or the teacher's, and all that it has to say about them."""
    ids = at.written(at.language(), rng, texts)
    if source == TEXT:
        for place in range(2, ids.shape[1]):                 # it begins as the language does, with any two symbols, and goes on itself
            chances = softmax(at.reader(teacher, ids[:, :place])[0][:, -1].astype(np.float64))[0]
            ids[:, place] = (np.cumsum(chances, axis=-1) < rng.random((texts, 1))).sum(-1).clip(max=at.SYMBOLS - 1)
    targets = ids[:, 1:].copy()
    targets[:, 0] = IGNORED
    (logits, states), _ = with_states(teacher, ids[:, :-1])
    return Shown(ids[:, :-1], targets, logits, np.moveaxis(states, 0, 1))
