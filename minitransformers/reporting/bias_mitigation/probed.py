"""Sentences of a word of one of two groups, an occupation and words of a topic; an encoder that learns the topic; and a probe of the group.

A sentence and its counterfactual, in which the word of the other group stands, may both be learned from, or pulled together by a term of their
vectors. Deleting the word does not hide the group: the occupation tells it, and how often is known exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.chain import chain
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, slot
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled, Loss, Task, on_arrays

OCCUPATIONS, TOPICS, EACH, CLEAN, WIDTH, BATCH = 12, 4, 10, 0.8, 32, 128
SHARES = np.linspace(0.1, 0.9, OCCUPATIONS)                  # of each occupation, how often it stands with the second group
VOCABULARY = 3 + OCCUPATIONS + TOPICS * EACH                 # words of two groups, one for neither, occupations, topics
BAYES = float(np.maximum(SHARES, 1 - SHARES).mean())         # right, from the occupation alone


def sentences(rng: np.random.Generator, count: int) -> tuple[Array, Array, Array]:
    """Ids (sentences, 5), their topics and groups."""
    who, topic = rng.integers(OCCUPATIONS, size=count), rng.integers(TOPICS, size=count)
    group = (rng.random(count) < SHARES[who]).astype(int)
    of = np.where(rng.random((count, 3)) < CLEAN, topic[:, None], rng.integers(TOPICS, size=(count, 3)))
    words = 3 + OCCUPATIONS + of * EACH + rng.integers(EACH, size=(count, 3))
    return np.concatenate([group[:, None], 3 + who[:, None], words], axis=1), topic, group


def exchanged(ids: Array) -> Array:
    """Each with the word of the other group."""
    return np.concatenate([1 - ids[:, :1], ids[:, 1:]], axis=1)


def without(ids: Array) -> Array:
    """Each with the word for neither group."""
    return np.concatenate([np.full_like(ids[:, :1], 2), ids[:, 1:]], axis=1)


class Way(NamedTuple):
    """What is learned: whether the word is deleted, whether from both forms, and a term ``extra(vectors, counterfactuals) -> value, backward``."""

    deleted: bool = False
    both_forms: bool = False
    extra: Callable | None = None

    def read(self, ids: Array) -> Array:
        """What the encoder is given."""
        return without(ids) if self.deleted else ids


class Encoder(NamedTuple):
    """Word vectors, the layers behind their mean, and what tells the topic."""

    words: Embedding
    layers: tuple
    head: Linear


def encode(params: Encoder, ids: Array) -> tuple[Array, Backward]:
    """Vectors of sentences, and backward: dvectors -> the gradients of words and layers."""
    x, words_backward = embedding(params.words, ids=ids)
    vectors, layers_backward = chain(params.layers, x.mean(axis=1), parts=(linear, slot(gelu), linear))

    def backward(dvectors: Array) -> tuple[Any, Any]:
        dlayers, dmean = layers_backward(dvectors)
        return words_backward(np.repeat(dmean[:, None] / ids.shape[1], ids.shape[1], axis=1)), dlayers

    return vectors, backward


class Telling(Task):
    """The topic of sentences, and what a way asks of pairs."""

    def __init__(self, way: Way) -> None:
        self.way = way

    def batch(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Sentences and their topics."""
        return sentences(rng, BATCH)[:2]

    def loss(self, params: Encoder, batch: tuple[Array, Array], *, rng: np.random.Generator) -> Loss:
        """A mean in nats, and the term of pairs."""
        ids, topics = self.way.read(batch[0]), batch[1]
        pairs = self.way.both_forms or self.way.extra is not None
        vectors, encode_backward = encode(params, np.concatenate([ids, exchanged(ids)]) if pairs else ids)
        told = len(vectors) if self.way.both_forms else len(ids)
        logits, head_backward = linear(params.head, vectors[:told])
        loss, loss_backward = cross_entropy(logits, targets=np.resize(topics, told))
        extra, extra_backward = self.way.extra(vectors[: len(ids)], vectors[len(ids) :]) if self.way.extra is not None else (0.0, None)

        def backward(dtotal: Any) -> Encoder:
            dhead, dtold = head_backward(loss_backward(dtotal[0]))
            dvectors = np.concatenate([dtold, np.zeros_like(vectors[told:])])
            if extra_backward is not None:
                dvectors = dvectors + np.concatenate(extra_backward(dtotal[0]))
            dwords, dlayers = encode_backward(dvectors)
            return Encoder(dwords, dlayers, dhead)

        return (loss + extra, 1), backward


def learned(way: Way, rng: np.random.Generator, *, steps: int, rate: float) -> Encoder:
    """The encoder after so many updates."""
    layers = (init_linear(rng, WIDTH, 2 * WIDTH), None, init_linear(rng, 2 * WIDTH, WIDTH))
    params = Encoder(init_embedding(rng, VOCABULARY, WIDTH, std=0.5), layers, init_linear(rng, WIDTH, TOPICS))
    return fit(params, Telling(way), steps=steps, peak=rate, rng=rng)


def probe(x: Array, groups: Array, rng: np.random.Generator, *, steps: int, rate: float) -> Callable[[Array], Array]:
    """A network of one hidden layer that tells the group of vectors: ``asked(x)`` are logits."""

    def draw(rng: np.random.Generator) -> tuple[Array, Array]:
        rows = rng.integers(len(x), size=BATCH)
        return x[rows], groups[rows]

    model = partial(chain, parts=(linear, slot(gelu), linear))
    start = (init_linear(rng, x.shape[1], 64), None, init_linear(rng, 64, 2))
    found = fit(start, Labelled(on_arrays(model), draw), steps=steps, peak=rate, rng=rng)
    return lambda rows: model(found, rows)[0]


def standard(x: Array, like: Array) -> Array:
    """With the mean and the spread of like taken out."""
    return (x - like.mean(axis=0)) / (like.std(axis=0) + 1e-6)
