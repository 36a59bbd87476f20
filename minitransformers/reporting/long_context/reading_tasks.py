"""A question about a long text, and two tasks besides plainly answering it: not knowing which segment knows, and saying the order of parts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import trees
from minitransformers.long_context.retrieve_then_read import retrieve_then_read
from minitransformers.long_context.segment_reordering import segment_reordering, shuffled_chunks
from minitransformers.training.task import Labelled, Loss


def two_marks(rng: np.random.Generator, *, texts: int, segments: int, length: int, marks: int, noise: int) -> tuple[Array, Array, Array]:
    """Two marks in two segments of a text, and a question at the head of every segment: which came first, or which came last?

    Marks are the tokens below ``marks``; noise comes after them, and moves on by one token a segment from wherever it begins; the two questions
    are the last tokens. Returns ids (texts, segments, length), the mark that is asked for, and the segment where it stands.
    """
    moves = np.arange(segments)[:, None] + rng.integers(noise, size=(texts, 1, 1)) + rng.integers(2, size=(texts, segments, length))
    ids, last = marks + moves % noise, rng.integers(2, size=texts)
    ids[..., 0] = marks + noise + last[:, None]
    places, kinds = (rng.permuted(np.tile(np.arange(count), (texts, 1)), axis=1)[:, :2] for count in (segments, marks))
    places.sort(axis=1)
    rows = np.arange(texts)
    ids[rows[:, None], places, rng.integers(1, length, size=(texts, 2))] = kinds
    return ids, kinds[rows, last], places[rows, last]


def at_best(seen: Collection[int], *, segments: int, marks: int) -> float:
    """Right answers to that of one who sees these segments: the asked mark; the other, which it is not; or neither of them."""
    pairs = [(i, j) for i in range(segments) for j in range(segments) if i != j]
    return sum(1.0 if i in seen else 1 / (marks - 1) if j in seen else 1 / marks for i, j in pairs) / len(pairs)


class Retrieving(Labelled):
    """Every segment is read alone, and what they say of the answers is weighted by a score of each.

    ``model(params, ids) -> logits, backward``, (texts, segments, answers + 1), whose last column are the scores.
    """

    def loss(self, params: Any, batch: Any, *, rng: np.random.Generator) -> Loss:
        """In nats, of the answer; which segment has it is summed out."""
        ids, targets = batch
        logits, backward = self.model(params, ids)
        log_probs, softmax_backward = log_softmax(logits[..., :-1])
        at = np.broadcast_to(targets[:, None, None], (*logits.shape[:2], 1))
        total, loss_backward = retrieve_then_read(logits[..., -1], np.take_along_axis(log_probs, at, axis=-1), reduction="sum")

        def back(dloss):
            dscores, dright = loss_backward(dloss[0])
            dlog_probs = np.zeros_like(log_probs)
            np.put_along_axis(dlog_probs, at, dright, axis=-1)
            return backward(np.concatenate([softmax_backward(dlog_probs), dscores[..., None]], axis=-1))

        return (total, len(ids)), back


def said(logits: Array) -> Array:
    """The logarithm of what all segments together say of each answer, (texts, answers)."""
    log_prior, log_probs = log_softmax(logits[..., -1])[0], log_softmax(logits[..., :-1])[0]
    return np.log(np.exp(log_prior[..., None] + log_probs).sum(axis=1))


class Reordering(Labelled):
    """Answering, and saying of a shuffled text in which order its parts came: the two losses are added.

    ``reads(params, ids) -> last, backward`` is what becomes of the last segment, ``answers(params, last) -> logits, backward`` answers from it.
    params are those of reads, of answers, and the head that tells orders.
    """

    def __init__(self, reads: Callable, answers: Callable, draw: Callable, *, max_chunks: int) -> None:
        self.reads, self.answers, self.draw, self.max_chunks = reads, answers, draw, max_chunks

    def batch(self, rng: np.random.Generator) -> Any:
        """Ids, answers, and the same texts shuffled behind the question at the head of each segment, with the class of the order."""
        ids, targets = self.draw(rng)
        mixed = [shuffled_chunks(text, rng=rng, max_chunks=self.max_chunks) for text in ids[..., 1:].reshape(len(ids), -1)]
        shuffled = ids.copy()
        shuffled[..., 1:] = np.reshape([text.ids for text in mixed], (*ids.shape[:2], -1))
        return ids, targets, shuffled, np.array([text.label for text in mixed])

    def loss(self, params: Any, batch: Any, *, rng: np.random.Generator) -> Loss:
        """In nats, the sum over texts of both."""
        (reads, answers, order), (ids, targets, shuffled, labels) = params, batch
        last, read_backward = self.reads(reads, ids)
        logits, answer_backward = self.answers(answers, last)
        total, loss_backward = cross_entropy(logits, targets=targets, reduction="sum")
        mixed, mixed_backward = self.reads(reads, shuffled)
        surprise, order_backward = segment_reordering(order, mixed, labels=labels)

        def back(dloss):
            danswers, dlast = answer_backward(loss_backward(dloss[0]))
            dorder, dmixed = order_backward(dloss[0] * len(ids))
            return trees.map(np.add, read_backward(dlast), mixed_backward(dmixed)), danswers, dorder

        return (total + len(ids) * surprise, len(ids)), back
