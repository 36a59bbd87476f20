"""Four languages that share a part of their shift, one frozen reader, and ways to have its adapters for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.embedding import Embedding
from minitransformers.foundation import Backward, trees
from minitransformers.peft.bottleneck_adapter import init_bottleneck_adapter
from minitransformers.peft.hyper_adapters import HyperAdapters, hyper_adapter, hyper_adapters, init_hyper_adapters
from minitransformers.reporting import adaptation as at
from minitransformers.reporting.measures import nats
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled

TASKS, TEXTS, KEPT, EACH, WIDTH = 4, 32, 16, 8, 4            # texts to learn from, texts kept back, texts of each task in an update
SHARED, SEPARATE, HYPER = "one for all", "one each", "written by a network"


def languages(rng: np.random.Generator, own: float) -> tuple[list[at.Language], at.Language]:
    """Four that share one shift and have one of their own, and a fifth: the mean of the four."""
    common = at.shifted(at.language(), rng, size=0.5)
    four = [at.shifted(common, rng, size=own) for _ in range(TASKS)]
    return four, at.Language(*(np.mean(tables, axis=0) for tables in zip(*four, strict=True)))


def with_targets(ids: Array) -> tuple[Array, Array]:
    """Texts, and what follows each symbol, where two say what may."""
    targets = ids[:, 1:].copy()
    targets[:, 0] = IGNORED
    return ids[:, :-1], targets


# Three ways to have adapters: ``adapters(trained, task)`` and its backward
def fresh(rng: np.random.Generator) -> list[Any]:
    """Two for each block."""
    return [tuple(init_bottleneck_adapter(rng, at.WIDTH, d_bottleneck=WIDTH, std=0.1, residual_std=0.0) for _ in range(2)) for _ in range(at.LAYERS)]


def of_all(trained: Any, task: int) -> tuple[Any, Backward]:
    """The same for each task."""
    return trained, lambda found: found


def of_each(trained: Any, task: int) -> tuple[Any, Backward]:
    """Those of the task; the others' gradients are zero."""
    return trained[task], lambda found: [found if i == task else trees.zeros_like(own) for i, own in enumerate(trained)]


def written(trained: Any, task: int) -> tuple[Any, Backward]:
    """Those that a network writes."""
    return hyper_adapters(trained, task=task)


def fresh_network(rng: np.random.Generator) -> HyperAdapters:
    """The network, and a row for each task."""
    return init_hyper_adapters(rng, at.WIDTH, d_bottleneck=WIDTH, num_tasks=TASKS, num_layers=at.LAYERS, d_row=8, d_hidden=16, d_code=8, std=0.1)


WAYS: dict[str, tuple[Callable, Callable, dict[str, Any]]] = {
    SHARED: (fresh, of_all, {}),
    SEPARATE: (lambda rng: [fresh(rng) for _ in range(TASKS)], of_each, {}),
    HYPER: (fresh_network, written, {"adapter": hyper_adapter}),
}


def reads(trained: Any, ids: Array, *, task: int, name: str, base: at.Reader) -> tuple[Array, Backward]:
    """The frozen reader with the adapters of a task."""
    _, of, slots = WAYS[name]
    adapters, adapters_backward = of(trained, task)
    logits, backward = at.reader_between(base, adapters, ids, **slots)
    return logits, lambda dlogits: adapters_backward(backward(dlogits))


def reads_all(trained: Any, ids: Array, *, name: str, base: at.Reader) -> tuple[Array, Backward]:
    """A batch with as many texts of each task, in their order: four calls of one reader."""
    calls = [reads(trained, part, task=task, name=name, base=base) for task, part in enumerate(np.split(ids, TASKS))]

    def backward(dlogits: Array) -> Any:
        found = [back(part) for (_, back), part in zip(calls, np.split(dlogits, TASKS), strict=True)]
        return trees.map(lambda *parts: sum(parts), *found)

    return np.concatenate([logits for logits, _ in calls]), backward


# Learning from few texts, and stopping in time
def stopped_in_time(params: Any, run: Callable, batches: Callable, kept: tuple[Array, Array], rng: np.random.Generator, *, steps: int, peak: float) -> Any:
    """The parameters that were best on texts kept back, looked at six times."""
    best: list[Any] = [np.inf, params]

    def watch(step: int, loss: float, now: Any) -> None:
        if step % (steps // 6) == 0 and (lost := nats(run(now, kept[0])[0], kept[1])) < best[0]:
            best[:] = lost, trees.map(np.copy, now)

    fit(params, Labelled(run, batches), steps=steps, peak=peak, rng=rng, watch=watch)
    return best[1]


def learn(name: str, rng: np.random.Generator, four: list[at.Language], base: at.Reader, *, steps: int, peak: float) -> Any:
    """The adapters of a way, from 32 texts of each task."""
    known, kept = ([at.written(language, rng, count) for language in four] for count in (TEXTS, KEPT))

    def batches(rng: np.random.Generator) -> tuple[Array, Array]:
        return with_targets(np.concatenate([texts[rng.integers(TEXTS, size=EACH)] for texts in known]))

    run = partial(reads_all, name=name, base=base)
    return stopped_in_time(WAYS[name][0](rng), run, batches, with_targets(np.concatenate(kept)), rng, steps=steps, peak=peak)


def lost(trained: Any, name: str, four: list[at.Language], base: at.Reader) -> float:
    """Nats too many, a mean over the tasks."""
    return float(np.mean([at.left(trained, partial(reads, task=task, name=name, base=base), of, count=128) for task, of in enumerate(four)]))


def new_row(network: HyperAdapters, fifth: at.Language, rng: np.random.Generator, base: at.Reader, *, steps: int, peak: float) -> float:
    """Nats too many with a row for a fifth task, all else frozen: 8 numbers."""

    def run(row: Array, ids: Array) -> tuple[Array, Backward]:
        made, made_backward = hyper_adapters(network._replace(tasks=Embedding(row)), task=0)
        logits, backward = at.reader_between(base, made, ids, adapter=hyper_adapter)
        return logits, lambda dlogits: made_backward(backward(dlogits)).tasks.weight

    known, kept = at.written(fifth, rng, TEXTS), with_targets(at.written(fifth, rng, KEPT))
    start = network.tasks.weight.mean(axis=0, keepdims=True)
    row = stopped_in_time(start, run, lambda rng: with_targets(known[rng.integers(TEXTS, size=EACH)]), kept, rng, steps=steps, peak=peak)
    return at.left(row, run, fifth, count=128)
