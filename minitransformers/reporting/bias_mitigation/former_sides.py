"""Words that should be neutral, and who can tell on which side of a direction they lay: k-means, a linear probe, and the nearest words."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.bias_mitigation.bias_direction import BiasSubspace, bias_direction
from minitransformers.bias_mitigation.inlp import fit_linear
from minitransformers.bias_mitigation.weat import unit_rows
from minitransformers.reporting.bias_mitigation.word_quality import interval
from minitransformers.reporting.bias_mitigation.word_vectors import WordVectors, gender_lists, load_word2vec


class NeutralWords(NamedTuple):
    """Words of Google News with their vectors, the numbers of those that are not about gender, and those of professions among them.

    gender is the direction in which the published pairs differ, and what shares of it the first directions have.
    """

    table: WordVectors
    neutral: Array
    professions: Array
    gender: BiasSubspace


@cache
def neutral_words() -> NeutralWords:
    """By the published lists, which are binary."""
    table, lists = load_word2vec(), gender_lists()
    place = {word: i for i, word in enumerate(table.words)}
    neutral = [i for word, i in place.items() if word.isalpha() and word not in lists.specific]
    professions = [place[word] for word in table.known(lists.professions) if word not in lists.specific]
    gender = bias_direction(*(table.of([pair[i] for pair in lists.pairs]) for i in (0, 1)), sign_pair=2)
    return NeutralWords(table, np.array(neutral), np.array(professions), gender)


PROBES = ("k-means", "linear", "neighbours")
STARTS, NEAR, L2 = 5, 15, 0.01                               # of k-means; words that are asked; the penalty of the linear probe


def two_means(x: Array, rng: np.random.Generator) -> Array:
    """k-means with two clusters, the best of some starts: 0 or 1 for each row."""
    found = []
    for _ in range(STARTS):
        centres, before, own = x[rng.choice(len(x), 2, replace=False)], np.full(len(x), -1), np.full(len(x), -2)
        while not np.array_equal(before, own):
            distance = (centres**2).sum(axis=1) - 2 * x @ centres.T  # |x|^2 is the same for both
            before, own = own, distance.argmin(axis=1)
            members = np.eye(2)[own]
            centres = members.T @ x / np.maximum(members.sum(axis=0), 1)[:, None]
        found.append((distance.min(axis=1).sum(), own))
    return min(found, key=lambda one: one[0])[1]


def linear(x: Array, labels: Array, asked: Array) -> Array:
    """What a logistic classifier says that was fitted on x."""
    weight, intercept = fit_linear(x, labels, l2=L2)
    return (asked @ weight + intercept)[:, 0] > 0


def neighbours(x: Array, labels: Array, asked: Array) -> Array:
    """What most of the nearest words of x are, by cosine."""
    x, asked = unit_rows("x", x), unit_rows("asked", asked)
    nearest = np.argpartition(-asked @ x.T, NEAR, axis=1)[:, :NEAR]
    return labels[nearest].mean(axis=1) > 0.5


def told(x: Array, labels: Array, rng: np.random.Generator) -> dict[str, Array]:
    """Where each of PROBES is right: k-means on all words, under the better of its two names; the others fitted on a half and asked about the rest."""
    known, asked = np.split(rng.permutation(len(x)), 2)
    same = two_means(x, rng) == labels
    found = [probe(x[known], labels[known], x[asked]) == labels[asked] for probe in (linear, neighbours)]
    return dict(zip(PROBES, [same if same.mean() > 0.5 else ~same, *found], strict=True))


def shares_told(x: Array, labels: Array, rng: np.random.Generator, *, resamples: int) -> dict[str, float]:
    """How often each of PROBES is right, and, as "... low" and "... high", the interval of the words that were asked."""
    numbers: dict[str, float] = {}
    for probe, hits in told(x, labels, rng).items():
        drawn = interval(hits.astype(float), np.mean, rng, resamples=resamples)
        numbers |= {probe: float(drawn.estimate), f"{probe} low": float(drawn.low), f"{probe} high": float(drawn.high)}
    return numbers
