"""What word vectors are good for, beside any measure of bias: how related words are, and analogies within families, with intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray as Array
from scipy.stats import rankdata

from minitransformers.bias_mitigation.bootstrap import BootstrapInterval, bootstrap_interval
from minitransformers.reporting.bias_mitigation.word_vectors import analogies, similarity_pairs

Ways = Mapping[str, Array]                                   # vectors of length 1 of the same words; the first are those that the others are compared with


def interval(rows: Array, statistic: Callable, rng: np.random.Generator, *, resamples: int, **settings: Any) -> BootstrapInterval:
    """bootstrap_interval without its warning of few rows: who calls says how many there are."""
    with warnings.catch_warnings(action="ignore"):
        return bootstrap_interval(rows, statistic=statistic, rng=rng, resamples=resamples, **settings)


def beside_the_first(found: Array) -> Array:
    """Numbers of each way, (ways, ...), and behind them in the last axis by how much they are above those of the first way."""
    return np.stack([found, found - found[:1]], axis=-1)


def with_ends(found: BootstrapInterval, way: int, name: str) -> dict[str, float]:
    """Of beside_the_first: the number of a way as name, its change as "name more", and " low" and " high" for the interval of each."""
    ends = (("", found.estimate), (" low", found.low), (" high", found.high))
    return {name + more + end: float(values[way, i]) for end, values in ends for i, more in enumerate(("", " more"))}


def span(of: Mapping[str, Any], measure: str, form: str = ".2f") -> str:
    """A number and its interval, "0.66 (0.64 to 0.68)"; each the mean over seeds."""
    number, low, high = (f"{np.mean(of[measure + end]):{form}}" for end in ("", " low", " high"))
    return f"{number} ({low} to {high})"


def relatedness(words: Sequence[str], ways: Ways, rng: np.random.Generator, *, resamples: int) -> dict[str, dict[str, float]]:
    """Of each way the rank correlation of cosines with people's judgement (MEN), over the pairs of which both words are there: pairs are drawn."""
    place = {word: i for i, word in enumerate(words)}
    known = [(place[one], place[other], related) for one, other, related in similarity_pairs() if one in place and other in place]
    one, other = np.array([pair[:2] for pair in known]).T
    columns = [np.sum(vectors[one] * vectors[other], axis=1) for vectors in ways.values()]
    rows = np.stack([*columns, np.array([related for *_, related in known])], axis=1)

    def ranked(drawn: Array) -> Array:
        return beside_the_first(np.corrcoef(rankdata(drawn, axis=0), rowvar=False)[-1, :-1])

    found = interval(rows, ranked, rng, resamples=resamples)
    return {way: with_ends(found, i, "similarity") | {"pairs": len(known)} for i, way in enumerate(ways)}


def family_analogies(words: Sequence[str], ways: Ways, rng: np.random.Generator, *, resamples: int) -> dict[str, dict[str, float]]:
    """Of each way how many analogies of family are right among these words; what is drawn are the pairs that questions begin with."""
    place = {word: i for i, word in enumerate(words)}
    questions = np.array([[place[word] for word in asked] for asked in analogies("family") if all(word in place for word in asked)])
    right = np.stack([_answers(vectors, questions) == questions[:, 3] for vectors in ways.values()], axis=1).astype(float)
    _, begun = np.unique(questions[:, :2], axis=0, return_inverse=True)
    found = interval(right, lambda drawn: beside_the_first(drawn.mean(axis=0)), rng, resamples=resamples, clusters=begun.ravel())
    return {way: with_ends(found, i, "family") | {"questions": len(questions)} for i, way in enumerate(ways)}


def _answers(vectors: Array, questions: Array) -> Array:
    """The word that is nearest to second - first + third, none of the three."""
    first, second, third, _ = questions.T
    near = (vectors[second] - vectors[first] + vectors[third]) @ vectors.T
    np.put_along_axis(near, questions[:, :3], -np.inf, axis=1)
    return near.argmax(axis=1)
