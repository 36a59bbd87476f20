"""A yes or a no about people, learned with one hidden layer in one of several ways against bias; and a fresh probe of what that layer tells."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.chain import chain
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.relu import relu
from minitransformers.bias_mitigation.adversarial_debiasing import AdversarialDebiasing, AdversarialLosses, adversarial_debiasing
from minitransformers.bias_mitigation.gradient_reversal import reversal_strength
from minitransformers.bias_mitigation.soft_parity import soft_parity
from minitransformers.bias_mitigation.weighted_cross_entropy import weighted_cross_entropy
from minitransformers.foundation import slot, trees
from minitransformers.reporting.bias_mitigation.decisions import Table
from minitransformers.training.fit import fit
from minitransformers.training.task import Loss, Task

WIDTH, BATCH = 32, 512
PROBE, RATE = 300, 0.01                                      # updates of a probe and their rate, the same for all

hidden = partial(chain, parts=(linear, slot(relu)))          # the encoder
reader = partial(chain, parts=(linear, slot(relu), linear))  # who reads the group from what the encoder makes


class Way(NamedTuple):
    """What is done: a weight for each person or None, how much soft parity counts, whether of the label yes alone, how strong an adversary gets."""

    weights: Callable[[Table], Array] | None = None
    parity: float = 0.0
    yes: bool = False
    strength: float = 0.0


def init_reader(rng: np.random.Generator, width: int) -> list[Any]:
    """Parameters of reader."""
    return [init_linear(rng, width, WIDTH), None, init_linear(rng, WIDTH, 2)]


class Deciding(Task):
    """The task in one of the ways. progress is the part of the updates that is done: an adversary's strength goes by it."""

    def __init__(self, way: Way, people: Table) -> None:
        self.way, self.people, self.progress = way, people, 0.0
        weights = np.ones(len(people.labels)) if way.weights is None else way.weights(people)
        self.weights = weights.astype(people.features.dtype)

    def batch(self, rng: np.random.Generator) -> tuple[Table, Array]:
        """People, drawn with replacement, and their weights."""
        rows = rng.integers(len(self.people.labels), size=BATCH)
        return Table(*(part[rows] for part in self.people)), self.weights[rows]

    def loss(self, params: AdversarialDebiasing, batch: tuple[Table, Array], *, rng: np.random.Generator | None = None) -> Loss:
        """A mean in nats; with an adversary the task's."""
        (x, labels, groups), weights = batch
        if self.way.strength:
            strength = self.way.strength * reversal_strength(self.progress)
            losses, backward = adversarial_debiasing(params, x, targets=labels, groups=groups, encoder=hidden, adversary=reader, strength=strength)
            return (losses.task, 1), lambda dloss: backward(AdversarialLosses(dloss[0], dloss[0]))[0]
        logits, backward = decided(params, x)
        out, task_backward = weighted_cross_entropy(logits, targets=labels, weights=weights)
        if not self.way.parity:
            return (out, 1), lambda dloss: backward(task_backward(dloss[0]))
        asked = labels == 1 if self.way.yes else None
        apart, parity_backward = soft_parity(logits[:, 1] - logits[:, 0], groups=groups, num_groups=2, mask=asked)

        def both_backward(dloss: Any) -> Any:
            dodds = parity_backward(self.way.parity * dloss[0])
            return backward(task_backward(dloss[0]) + np.stack([-dodds, dodds], axis=1))

        return (out + self.way.parity * apart, 1), both_backward


def decided(params: AdversarialDebiasing, x: Array) -> tuple[Array, Callable]:
    """Logits of no and yes; backward gives what params get, nothing for an adversary."""
    logits, backward = chain([params.encoder, params.head], x, parts=(hidden, linear))

    def without_inputs(dlogits: Array) -> AdversarialDebiasing:
        (dencoder, dhead), _ = backward(dlogits)
        return AdversarialDebiasing(dencoder, dhead, params.adversary and trees.zeros_like(params.adversary))

    return logits, without_inputs


def learned(way: Way, people: Table, rng: np.random.Generator, *, steps: int, rate: float) -> AdversarialDebiasing:
    """What decides after so many updates."""
    encoder, head = [init_linear(rng, people.features.shape[1], WIDTH), None], init_linear(rng, WIDTH, 2)
    task = Deciding(way, people)

    def watch(step: int, loss: float, params: Any) -> None:
        task.progress = step / steps

    params = AdversarialDebiasing(encoder, head, init_reader(rng, WIDTH) if way.strength else None)
    return fit(params, task, steps=steps, peak=rate, rng=rng, watch=watch)


class _Reading(Task):
    """Which group, from numbers about a person; groups weigh alike."""

    def __init__(self, numbers: Array, groups: Array) -> None:
        self.numbers, self.groups = numbers, groups
        self.weights = (1 / np.bincount(groups)[groups]).astype(numbers.dtype)

    def batch(self, rng: np.random.Generator) -> tuple[Array, ...]:
        rows = rng.integers(len(self.groups), size=BATCH)
        return self.numbers[rows], self.groups[rows], self.weights[rows]

    def loss(self, params: Any, batch: tuple[Array, ...], *, rng: np.random.Generator) -> Loss:
        guesses, backward = reader(params, batch[0])
        out, loss_backward = weighted_cross_entropy(guesses, targets=batch[1], weights=batch[2])
        return (out, 1), lambda dloss: backward(loss_backward(dloss[0]))[0]


def readable(known: tuple[Array, Array], asked: tuple[Array, Array], rng: np.random.Generator, *, steps: int = PROBE) -> float:
    """The balanced accuracy, of asked, of a fresh probe with one hidden layer that learns from known; both are numbers and groups."""
    middle, spread = known[0].mean(0), known[0].std(0) + 1e-6
    params = fit(init_reader(rng, known[0].shape[1]), _Reading((known[0] - middle) / spread, known[1]), steps=steps, peak=RATE, rng=rng)
    right = reader(params, (asked[0] - middle) / spread)[0].argmax(-1) == asked[1]
    return float(np.mean([right[asked[1] == group].mean() for group in np.unique(asked[1])]))
