"""Ways against bias in decisions about the Adult census, each learned at a rate of its own, and a fresh probe of what the hidden layer tells.

Rates are chosen on a fifth of the training data by the loss of the task, and of a way besides by ten times the soft parity that it is to
bring down. By the task alone the adversaries got the largest rate of all, at which the stronger one hardly changed a decision. Ten was
chosen there as well, of 3, 10, 30 and 100.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.linear import linear
from minitransformers.bias_mitigation.adversarial_debiasing import AdversarialDebiasing
from minitransformers.bias_mitigation.reweighting import reweighting_weights
from minitransformers.reporting.bias_mitigation.deciding import PROBE, Deciding, Way, hidden, learned, readable
from minitransformers.reporting.bias_mitigation.decisions import Table, load_adult
from minitransformers.reporting.seeds import tried

UPDATES, PARTS = 600, 10                                     # what soft parity counts beside the loss of the task
NONE, WEIGHTED, WEAK, STRONG = "nothing", "reweighting", "adversary, λ = 1", "adversary, λ = 3"
PARITY, OPPORTUNITY = "soft parity", "soft parity of the yes"
WAYS = {
    NONE: Way(), WEIGHTED: Way(lambda people: reweighting_weights(people.labels, groups=people.groups)),
    WEAK: Way(strength=1), STRONG: Way(strength=3), PARITY: Way(parity=PARTS), OPPORTUNITY: Way(parity=PARTS, yes=True),
}  # fmt: skip
adult = cache(load_adult)                                    # to learn from, and to be asked about


class Learned(NamedTuple):
    """What makes a hidden layer in one of WAYS, and the logits for those to learn from and those asked about."""

    encoder: list
    known: Array
    asked: Array


def trained(name: str, people: Table, rng: np.random.Generator, rate: float, *, quick: bool) -> AdversarialDebiasing:
    """What decides, in one of WAYS."""
    return learned(WAYS[name], people, rng, steps=40 if quick else UPDATES, rate=rate)


def losses(rng: np.random.Generator, *, quick: bool) -> Iterator[tuple[str, float, dict[str, float]]]:
    """What a tuning yields."""
    people = adult()[0]
    kept = np.arange(len(people.labels)) % 5 == 0
    known, asked = (Table(*(part[rows] for part in people)) for rows in (~kept, kept))

    def lost(name: str, rng: np.random.Generator, rate: float) -> float:
        task = Deciding(Way() if name == NONE else Way(parity=PARTS, yes=WAYS[name].yes), asked)
        (loss, _), _ = task.loss(trained(name, known, rng, rate, quick=quick), (asked, task.weights))
        return float(loss)

    rates = (3e-3, 1e-2) if quick else (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    yield from tried(lost, WAYS, rates, rng, alike=False, starts=1 if quick else 3)


def read(rng: np.random.Generator, *, encoder: list | None = None, quick: bool) -> float:
    """How often a fresh probe reads the sex from what an encoder makes of the features, or from the features themselves."""
    known, asked = ((of.features if encoder is None else hidden(encoder, of.features)[0], of.groups) for of in adult())
    return readable(known, asked, rng, steps=20 if quick else PROBE)


def each_learned(rates: Mapping[str, float], rng: np.random.Generator, *, quick: bool) -> Iterator[tuple[str, Learned]]:
    """Each way learned and asked."""
    for name in WAYS:
        params = trained(name, adult()[0], rng, rates[name], quick=quick)
        known, asked = (linear(params.head, hidden(params.encoder, of.features)[0])[0] for of in adult())
        yield name, Learned(params.encoder, known, asked)
