"""Texts that speak for one of two answers and hold the word of a group, which goes with the answer in training; and a reader of them.

The reader attends once, and gathers a mean over all positions. Its attention may be penalised while it learns, or made sharper or more even
afterwards, by an inverse temperature beta.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import MultiHeadAttention, init_multi_head_attention, multi_head_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.softmax import softmax
from minitransformers.bias_mitigation.attention_entropy_loss import attention_entropy_loss
from minitransformers.bias_mitigation.group_metrics import equal_opportunity_gap, group_rates
from minitransformers.bias_mitigation.tempered_attention import InverseTemperature, tempered_attention
from minitransformers.foundation import Backward, slot
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.reporting.bias_mitigation.word_quality import interval
from minitransformers.training.fit import fit
from minitransformers.training.task import Loss, Task

LENGTH, EVIDENCE, NEUTRAL, WIDTH, HEADS, BATCH = 12, 20, 40, 32, 4, 64  # evidence: words for each answer
GROUPS, NOBODY = (0, 1), 2                                   # the words of the groups, and the one in their place where it is deleted
VOCABULARY = 3 + 2 * EVIDENCE + NEUTRAL
MEASURES = ("right", "gap", "moved", "worst")


class Texts(NamedTuple):
    """Ids (texts, LENGTH), the answer of each and its group."""

    ids: Array
    answers: Array
    groups: Array


def texts(rng: np.random.Generator, count: int, *, with_answer: float) -> Texts:
    """with_answer is the share of texts in which the group's word goes with the answer."""
    answer = rng.integers(2, size=count)
    group = np.where(rng.random(count) < with_answer, answer, 1 - answer)
    speaks_for = np.where(rng.random((count, LENGTH)) < 0.7, answer[:, None], 1 - answer[:, None])
    evidence = 3 + speaks_for * EVIDENCE + rng.integers(EVIDENCE, size=(count, LENGTH))
    ids = np.where(rng.random((count, LENGTH)) < 0.4, evidence, 3 + 2 * EVIDENCE + rng.integers(NEUTRAL, size=(count, LENGTH)))
    ids[np.arange(count), rng.integers(LENGTH, size=count)] = group
    return Texts(ids, answer, group)


def without(ids: Array) -> Array:
    """The group's word deleted."""
    return np.where(ids <= max(GROUPS), NOBODY, ids)


# The reader
class Reader(NamedTuple):
    """Word vectors, attention without its core, and the network behind it."""

    words: Embedding
    attention: MultiHeadAttention
    head: tuple


def init_reader(rng: np.random.Generator) -> Reader:
    """Before it has read anything."""
    head = (init_layer_norm(rng, WIDTH), init_linear(rng, WIDTH, WIDTH), None, init_linear(rng, WIDTH, 2))
    return Reader(init_embedding(rng, VOCABULARY, WIDTH, std=0.5), init_multi_head_attention(rng, WIDTH, num_heads=HEADS), head)


def reader(params: Reader, ids: Array, *, core: Callable = tempered_attention, beta: float = 1.0) -> tuple[Array, Backward]:
    """Logits of the two answers: what attention gathers, a mean over all positions, and a small network."""
    x, words_backward = embedding(params.words, ids=ids)
    attention = params.attention._replace(core=InverseTemperature(np.full(HEADS, beta, x.dtype)))
    gathered, attention_backward = multi_head_attention(attention, x, num_heads=HEADS, core=core)
    logits, head_backward = chain(params.head, gathered.mean(axis=-2), parts=(layer_norm, linear, slot(gelu), linear))

    def backward(dlogits: Array) -> Reader:
        dhead, dmean = head_backward(dlogits)
        dattention, dx, *_ = attention_backward(np.repeat(dmean[:, None] / LENGTH, LENGTH, axis=1))
        return Reader(words_backward(dx), dattention._replace(core=None), dhead)

    return logits, backward


class Way(NamedTuple):
    """What is done while it learns: a penalty on scores, ``penalty(scores) -> value, backward``, and its weight; and whether the word is deleted."""

    penalty: Callable | None = None
    weight: float = 0.0
    deleted: bool = False

    def read(self, ids: Array) -> Array:
        """What the reader is given."""
        return without(ids) if self.deleted else ids


class Answering(Task):
    """Telling the answer in one of the ways."""

    def __init__(self, way: Way) -> None:
        self.way = way

    def batch(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Texts and answers; the word goes with the answer in nine of ten."""
        return texts(rng, BATCH, with_answer=0.9)[:2]

    def loss(self, params: Reader, batch: tuple[Array, Array], *, rng: np.random.Generator) -> Loss:
        """A mean in nats, and the penalty."""
        ids, answers = batch
        core = None if self.way.penalty is None else _Penalised(self.way.penalty)
        logits, backward = reader(params, self.way.read(ids), core=core or tempered_attention)
        loss, loss_backward = cross_entropy(logits, targets=answers)
        if core is None:
            return (loss, 1), lambda dtotal: backward(loss_backward(dtotal[0]))

        def both_backward(dtotal: Any) -> Reader:
            core.arriving = self.way.weight * dtotal[0]
            return backward(loss_backward(dtotal[0]))

        return (loss + self.way.weight * core.value, 1), both_backward


class _Penalised:
    """The core, whose queries and keys get the gradient of a penalty as well: that of value, when arriving is what reaches it."""

    def __init__(self, penalty: Callable) -> None:
        self.penalty, self.value, self.arriving = penalty, 0.0, 0.0

    def __call__(self, own: Any, query: Array, key: Array, value: Array, bias: Array | None = None, *, mask: Array | None = None) -> tuple[Array, Backward]:
        heads, backward = tempered_attention(own, query, key, value, bias, mask=mask)
        scale = query.dtype.type(query.shape[-1] ** -0.5)
        self.value, penalty_backward = self.penalty(scale * query @ key.swapaxes(-1, -2))

        def both(dheads: Array) -> tuple:
            down, dquery, dkey, *rest = backward(dheads)
            dscores = scale * penalty_backward(query.dtype.type(self.arriving))
            return down, dquery + dscores @ key, dkey + dscores.swapaxes(-1, -2) @ query, *rest

        return heads, both


def learned(way: Way, rng: np.random.Generator, *, steps: int, rate: float) -> Reader:
    """The reader after so many updates."""
    return fit(init_reader(rng), Answering(way), steps=steps, peak=rate, rng=rng)


# What is measured
def numbers(rows: Array) -> Array:
    """Of rows (probability, probability with the word exchanged, answer, group): accuracy, both gaps, and the accuracy of the worse group."""
    p, other, answers, groups = rows.T
    rates = group_rates((p > 0.5).astype(int), labels=answers.astype(int), groups=groups.astype(int))
    right = (p > 0.5) == answers
    worst = min(right[groups == group].mean() for group in GROUPS)
    return np.array([right.mean(), equal_opportunity_gap(rates).difference, np.abs(p - other).mean(), worst])


def asked(params: Reader, way: Way, of: Texts, *, beta: float = 1.0) -> Array:
    """The rows of numbers; probabilities are those of the second answer."""

    def said(ids: Array) -> Array:
        return softmax(reader(params, way.read(ids), beta=beta)[0].astype(np.float64))[0][:, 1]

    exchanged = np.where(of.ids <= max(GROUPS), 1 - of.ids, of.ids)
    return np.stack([said(of.ids), said(exchanged), of.answers, of.groups], axis=1)


def measured(rows: Array, of: Texts, rng: np.random.Generator, *, resamples: int) -> dict[str, float]:
    """MEASURES, and " low" and " high" of each, with texts drawn anew among those of the same answer and group."""
    found = interval(rows, numbers, rng, groups=2 * of.answers + of.groups, resamples=resamples)
    ends = (("", found.estimate), (" low", found.low), (" high", found.high))
    return {measure + end: float(values[i]) for i, measure in enumerate(MEASURES) for end, values in ends}


def spread(params: Reader, ids: Array) -> dict[str, float]:
    """Nats of entropy of the mean of the heads' attention, which the penalty is about, and of a single head's."""
    found: list[Any] = []

    def core(own: Any, query: Array, key: Array, *rest: Any, **settings: Any) -> tuple[Array, Backward]:
        scores = query.shape[-1] ** -0.5 * query.astype(np.float64) @ key.swapaxes(-1, -2)
        found.extend(-attention_entropy_loss(each)[0] for each in (scores, scores.reshape(-1, 1, LENGTH, LENGTH)))
        return tempered_attention(own, query, key, *rest, **settings)

    reader(params, ids, core=core)
    return dict(zip(("of the mean", "of a head"), found, strict=True))
