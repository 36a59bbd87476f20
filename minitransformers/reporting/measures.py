"""What sections measure alike: growth, times side by side, bits, and the score of simply counting."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.softmax import softmax
from minitransformers.reporting.seeds import one_seed
from minitransformers.training.fit import fit
from minitransformers.training.optimizer import TrainingDiverged
from minitransformers.training.task import IGNORED, Labelled, labelled_loss
from minitransformers.training.text import Corpus
from minitransformers.training.yardsticks import counted

Key = TypeVar("Key")


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """p of the power law cost = c size^p that fits best, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def growth(costs: dict[Any, Any], *, last: int = 3) -> float:
    """The fitted power of one curve, {size: cost}, over its largest sizes: below, what a call costs whatever its size still shows."""
    return fitted_exponent(*zip(*list(one_seed(costs).items())[-last:], strict=True))


def crossing(sizes: Sequence[float], one: Sequence[float], other: Sequence[float]) -> float | None:
    """The size from which the other costs more, on straight lines between logarithms; None where it does not at the largest."""
    gaps = np.log(other) - np.log(one)
    if gaps[-1] < 0:
        return None
    last = int(np.flatnonzero(gaps < 0).max(initial=-1))
    if last < 0:
        return float(sizes[0])
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    return float(sizes[last] * (sizes[last + 1] / sizes[last]) ** share)


class Ratio(NamedTuple):
    """How long one form takes beside another: quartiles of the ratios of neighbouring times."""

    low: float
    median: float
    high: float


def paired_times(forms: Mapping[str, Callable[[], Any]], *, rounds: int, seed: int = 0) -> dict[str, Ratio]:
    """The time of each form over that of the first, all in one process, in random order, an untimed call first.

    The machine's pace drifts; what runs within a few milliseconds of each other drifts alike.
    """
    order, names = random.Random(seed), list(forms)
    for form in forms.values():
        form()
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in order.sample(names, len(names)):
            start = time.perf_counter()
            forms[name]()
            found[name].append(time.perf_counter() - start)
    first = np.array(found[names[0]])
    return {name: Ratio(*map(float, np.quantile(np.array(times) / first, [0.25, 0.5, 0.75]))) for name, times in found.items()}


@contextmanager
def processor_seconds() -> Iterator[Callable[[], float]]:
    """How long the processor worked for this thread: ``with processor_seconds() as spent: ...``, then ``spent()``."""
    start, end = time.thread_time(), [0.0]
    try:
        yield lambda: (end[0] or time.thread_time()) - start
    finally:
        end[0] = time.thread_time()


def shortest_times(calls: Mapping[Key, Callable[[], Any]], *, rounds: int) -> dict[Key, float]:
    """The shortest time of each call, in seconds of this thread's own, one after the other in every round: what else runs can only lengthen it."""
    times: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            with processor_seconds() as spent:
                call()
            times[key].append(spent())
    return {key: min(of) for key, of in times.items()}


def peak_megabytes(call: Callable[[], Any]) -> float:
    """Megabytes that a call holds at once, beyond what there was. It runs slower meanwhile: time it apart."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def apart(numbers: Iterable[float]) -> float:
    """By how many per cent the largest is above the smallest: how equal models are in size."""
    found = list(numbers)
    return 100 * (max(found) / min(found) - 1)


def nats(logits: Array, targets: Array) -> float:
    """Nats a label: the mean cross-entropy over targets that are not IGNORED."""
    (total, count), _ = labelled_loss(logits, lambda dlogits: dlogits, targets)
    return float(total) / count


def mean_nats(model: Callable, batches: Iterable[tuple[Array, Array]]) -> float:
    """Nats a label that ``model(ids) -> logits, backward`` loses, a mean over batches (ids, targets): each counts alike."""
    return float(np.mean([nats(model(ids)[0], targets) for ids, targets in batches]))


def bits(nats: float) -> float:
    """Nats as bits."""
    return float(nats / np.log(2))


def bits_in_windows(model: Callable, text: Array, length: int, *, new: int | None = None) -> float:
    """Bits a token of one text that ``model(ids=ids) -> logits, backward`` reads in windows of this length, about 2,048 tokens at once.

    text is ids (tokens,), the first of which is only read. Every other token is predicted once, from what its window has before it.
    new: of each window only so many tokens, the last, are predicted, and windows overlap in the others; the first such are only read.
    """
    new = length if new is None else new
    windows = np.lib.stride_tricks.sliding_window_view(text, length + 1)[::new]
    total, count, at_once = 0.0, 0, max(1, 2048 // length)
    for start in range(0, len(windows), at_once):
        part = windows[start : start + at_once]
        logits, backward = model(ids=part[:, :-1])
        targets = np.where(np.arange(length) < length - new, IGNORED, part[:, 1:])
        (of_part, number), _ = labelled_loss(logits, backward, targets)
        total, count = total + float(of_part), count + number
    return bits(total / count)


def bits_after(
    model: Callable, params: Any, corpus: Corpus, *, context: int, batch_size: int, rng: np.random.Generator, whole: bool = True, **settings: Any
) -> float:
    """Bits a character of the validation text after a fit of ``model(params, ids)`` to windows of the training text; where it diverged, of guessing.

    settings are those of ``fit``. whole: all of the validation text, and not two windows alone.
    """
    task = Labelled(model, partial(corpus.batch, batch_size=batch_size, context=context))
    try:
        learned = fit(params, task, rng=rng, **settings)
    except TrainingDiverged:
        return float(np.log2(corpus.vocabulary.size))
    text = corpus.validation if whole else corpus.validation[: 2 * context + 1]
    return bits_in_windows(lambda ids: model(learned, ids), text, context)


def gradient_by_distance(model: Callable, table: Array, batches: Iterable[tuple[Array, Array]]) -> Array:
    """The norm of the gradient of a text's last log-probability in each place of what it reads, the last place first, whose own is 1: a mean over texts.

    ``model(table[ids]) -> logits, backward``, and ``backward(dlogits)`` gives the gradients of its parameters and that of table[ids]. batches are of
    ids and of targets, both (texts, positions).
    """
    norms: list[Array] = []
    for ids, targets in batches:
        logits, backward = model(table[ids])
        weights, _ = softmax(logits[:, -1])
        dlogits = np.zeros_like(logits)
        dlogits[:, -1] = np.eye(logits.shape[-1])[targets[:, -1]] - weights
        norms += [*np.linalg.norm(backward(dlogits)[1], axis=-1)]
    mean = np.mean(norms, axis=0)[::-1]
    return np.asarray(mean / mean[0])


def counted_pairs(corpus: Corpus) -> float:
    """Bits a character that counting pairs of characters reaches on the whole validation part: what a model must beat to be shown.

    Parts of the text differ: score a model on the whole of it, too, or on windows spread evenly over it.
    """
    return counted(corpus.train_text, corpus.validation_text)["bigram"]
