"""The words of GloVe that association tests and pairs ask for, and an association test of the vectors of several ways, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy import ndarray as Array

from minitransformers.bias_mitigation.weat import weat
from minitransformers.reporting.bias_mitigation.word_quality import Ways, beside_the_first, interval, with_ends
from minitransformers.reporting.bias_mitigation.word_vectors import (
    AssociationTest,
    WordVectors,
    association_tests,
    gender_lists,
    load_glove,
    similarity_pairs,
)


@cache
def tested_words(frequent: int) -> WordVectors:
    """The most frequent words, and as far as GloVe has them those of the tests, of the pairs that are related, and of those about gender."""
    tests = {word for test in association_tests() for words in test[1:5] for word in words}
    related = {word for pair in similarity_pairs() for word in pair[:2]}
    return load_glove(first=frequent, asked=tests | related | {word.lower() for pair in gender_lists().pairs for word in pair})


def sets_of(test: AssociationTest, words: Sequence[str]) -> list[Array]:
    """The numbers of those words of a test that are among these, a list for each of its four sets."""
    place = {word: i for i, word in enumerate(words)}
    return [np.array([place[word] for word in some if word in place]) for some in test[1:5]]


def associations(sets: Sequence[Array], ways: Ways, rng: np.random.Generator, *, resamples: int, splits: int) -> Mapping[str, dict[str, float]]:
    """Of each way "d", the effect size, and "apart", the difference of the mean associations, with_ends of words drawn within each set; and "p"."""
    rows, groups = np.concatenate(sets), np.repeat(np.arange(4), list(map(len, sets)))

    def both(drawn: Array) -> Array:                         # places in rows
        each = [rows[drawn[groups[drawn] == group]] for group in range(4)]
        return beside_the_first(np.array([_found(vectors, each) for vectors in ways.values()]))

    found = interval(np.arange(len(rows)), both, rng, groups=groups, resamples=resamples)
    numbers: dict[str, dict[str, float]] = {}
    for i, way in enumerate(ways):
        for j, name in enumerate(("d", "apart")):
            of = type(found)(*(values[..., j, :] for values in found))
            numbers[way] = numbers.get(way, {}) | with_ends(of, i, name)
        numbers[way]["p"] = _chance(ways[way], sets, rng, splits)
    return numbers


def _found(vectors: Array, sets: Sequence[Array]) -> tuple[float, float]:
    found = weat(*(vectors[rows] for rows in sets), splits=0)
    return found.effect_size, found.associations_x.mean() - found.associations_y.mean()


def _chance(vectors: Array, sets: Sequence[Array], rng: np.random.Generator, splits: int) -> float:
    """p of a test. Words are shared out between sets of one size: of the larger one as many are drawn as the other has."""
    size = min(map(len, sets[:2]))
    drawn = [rng.permutation(rows)[:size] for rows in sets[:2]]
    return weat(*(vectors[rows] for rows in (*drawn, *sets[2:])), splits=splits, rng=rng).p_value
