"""Sorting lines into entries of Python's language reference: what sections ask of models that have read, and of what needs no reading.

Lines to learn from are among what the base model has read; none of those that it is tested on is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.linear import init_linear, linear
from minitransformers.foundation import Backward
from minitransformers.models.llama import llama_body
from minitransformers.reporting.base import SETTINGS, base_corpus, longest_entries
from minitransformers.training.classification import Classification
from minitransformers.training.fit import fit
from minitransformers.training.task import on_arrays


class Labelled(NamedTuple):
    """Lines of text, and for each the number of the entry that it is from."""

    lines: list[str]
    labels: Array


def labelled_lines(*, shortest: int, longest: int) -> tuple[Labelled, Labelled]:
    """Lines of the longest entries, to learn from and to be tested on, cut at ``longest`` characters; none stands in two entries.

    Those to learn from are among what the base model has read; none of the tests is. An entry with fewer than forty tests is left
    out: what its end says stands in other entries too.
    """

    def lines_of(text: str) -> list[str]:
        return list(dict.fromkeys(line.strip()[:longest] for line in text.splitlines() if len(line.strip()) >= shortest))

    entries, corpus = longest_entries().values(), base_corpus()
    read = set(lines_of(corpus.train_text + "\n" + corpus.validation_text))
    times = Counter(line for parts in entries for line in set(lines_of("\n".join(parts))))
    found = []
    for number in (0, 1):
        own = [[line for line in lines_of(parts[number]) if times[line] == 1 and (number == 0 or line not in read)] for parts in entries]
        found.append(own)
    kept = [label for label, tests in enumerate(found[1]) if len(tests) >= 40]

    def labelled(own: list[list[str]]) -> Labelled:
        return Labelled([line for label in kept for line in own[label]], np.repeat(np.arange(len(kept)), [len(own[label]) for label in kept]))

    return labelled(found[0]), labelled(found[1])


def padded(texts: list[str], length: int, *, fill: int = 0) -> tuple[Array, Array]:
    """The first bytes of each text, (texts, length), and which of them are no padding."""
    rows = [list(text.encode()[:length]) for text in texts]
    ids = np.array([row + [fill] * (length - len(row)) for row in rows])
    return ids, np.arange(length) < np.array([len(row) for row in rows])[:, None]


def chosen_lines(known: Labelled, number: int, rng: np.random.Generator) -> Labelled:
    """So many lines, as many of each entry, up to rounding."""
    classes = int(known.labels.max()) + 1
    order = np.concatenate([rng.permutation(np.flatnonzero(known.labels == label))[: -(-number // classes)] for label in range(classes)])
    return Labelled([known.lines[i] for i in order], known.labels[order])


def linear_probe(
    train: Array, labels: Array, test: Array, *, least: float, rng: np.random.Generator, steps: int, peak: float, batch_size: int
) -> Array:
    """The answers of a linear map that learns from features (examples, width), for others; each feature is standardised.

    least is added to its standard deviation.
    """
    middle, spread = train.mean(0), train.std(0) + least
    train, test = (((found - middle) / spread).astype(np.float32) for found in (train, test))
    task = Classification(on_arrays(linear), (train, labels), (train, labels), batch_size=batch_size)
    head = init_linear(rng, train.shape[1], int(labels.max()) + 1)
    return linear(fit(head, task, steps=steps, peak=peak, rng=rng, warmup=0.1, weight_decay=0.1), test)[0].argmax(-1)


def mean_states(states: Callable, texts: list[str], *, length: int, fill: int) -> Array:
    """The mean hidden state of each text, (texts, width), 64 texts at once: ``states(ids, real)`` are those of all places, padding among them."""
    found = []
    for start in range(0, len(texts), 64):
        ids, real = padded(texts[start : start + 64], length, fill=fill)
        found.append(np.einsum("nt,ntd->nd", shares_of(real), states(ids, real)))
    return np.concatenate(found)


def shares_of(real: Array) -> Array:
    """A weight for each place that makes a sum over them a mean over those that are real."""
    return (real / real.sum(axis=1, keepdims=True)).astype(np.float32)


def probed(states: Callable, known: Labelled, asked: Labelled, *, length: int, fill: int = 0, **settings: Any) -> float:
    """The share of lines that a linear map on the mean of frozen states sorts rightly, all entries alike; settings are those of linear_probe."""
    train, test = (mean_states(states, lines, length=length, fill=fill) for lines in (known.lines, asked.lines))
    return balanced_accuracy(linear_probe(train, known.labels, test, **settings), asked.labels)


def by_trigrams(texts: list[str], labels: Array, asked: list[str]) -> Array:
    """What naive Bayes on three characters answers: how often each entry has each of them, and one more for those that it does not have."""
    entries = range(int(labels.max()) + 1)
    counts = [Counter(part for text, own in zip(texts, labels, strict=True) if own == entry for part in _trigrams(text)) for entry in entries]
    different = len(set().union(*counts))
    scores = [[sum(math.log((of[part] + 1) / (of.total() + different)) for part in _trigrams(text)) for of in counts] for text in asked]
    return np.argmax(scores, axis=-1)


def _trigrams(text: str) -> list[str]:
    return [text[i : i + 3] for i in range(len(text) - 2)]


def balanced_accuracy(answers: Array, labels: Array) -> float:
    """The share of right answers, a mean over the entries: each counts alike, however many lines it has."""
    return float(np.mean([(answers[labels == label] == label).mean() for label in np.unique(labels)]))


def classifier(params: tuple, inputs: tuple) -> tuple[Array, Backward]:
    """A head that reads the mean of a Llama's hidden states: ``(body, head), (ids, weights)``, which are shares_of what is real.

    Padding stands behind a line, where nobody sees it.
    """
    (body, head), (ids, weight) = params, inputs
    states, body_backward = llama_body(body, ids=ids, **SETTINGS)
    logits, head_backward = linear(head, np.einsum("nt,ntd->nd", weight, states))

    def backward(dlogits: Array) -> tuple[Any, Any]:
        dhead, dmean = head_backward(dlogits)
        return body_backward(weight[..., None] * dmean[:, None, :]), dhead

    return logits, backward
