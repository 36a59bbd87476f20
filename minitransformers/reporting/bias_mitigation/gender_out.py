"""The direction of gender taken out of the words of GloVe, in three ways, and as many directions drawn at random.

The lists that say what the direction is, and which words hard debias makes neutral or equal, are those of Bolukbasi et al. 2016. They are
binary, and so is this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy import ndarray as Array

from minitransformers.bias_mitigation.bias_direction import bias_direction
from minitransformers.bias_mitigation.hard_debias import hard_debias, remove_subspace
from minitransformers.bias_mitigation.inlp import inlp
from minitransformers.bias_mitigation.leace import erase, leace
from minitransformers.bias_mitigation.weat import unit_rows
from minitransformers.reporting.bias_mitigation.tested_words import sets_of
from minitransformers.reporting.bias_mitigation.word_vectors import AssociationTest, WordVectors, both_ends, gender_lists

BEFORE, HARD, INLP, LEACE, RANDOM = "as published", "hard debias", "INLP", "LEACE", "as many random directions"
_ROUNDS, _TOLERANCE = 45, 0.02


def ways(
    table: WordVectors, rng: np.random.Generator, *, frequent: int, side: int, tests: Iterable[AssociationTest]
) -> tuple[dict[str, Array], dict[str, int]]:
    """The vectors after each way, and how many directions it took out.

    INLP and LEACE are fitted on words of the first, most frequent ones that lie far out to either side, none of which stands in the
    tests; on half of them, and the other half is what INLP stops by.
    """
    words, vectors = table
    basis = bias_direction(*(table.of([pair[i].lower() for pair in gender_lists().pairs]) for i in (0, 1)), sign_pair=2).basis
    tested = {words[row] for test in tests for rows in sets_of(test, words) for row in rows}
    allowed = np.array([i for i, word in enumerate(words[:frequent]) if word.isalpha() and word not in tested])
    rows, labels = both_ends(vectors[allowed] @ basis[:, 0], side)
    own, held = np.split(rng.permutation(2 * side), 2)
    x = vectors[allowed[rows]]
    found = inlp(x[own], labels[own], rounds=_ROUNDS, tolerance=_TOLERANCE, dev_x=x[held], dev_labels=labels[held])
    erased, _ = erase(vectors, eraser=leace(x[own], np.eye(2)[labels[own]]))
    count = found.directions.shape[1]
    random, _ = np.linalg.qr(rng.normal(size=(vectors.shape[1], count)))
    after = {
        BEFORE: vectors, HARD: hard(words, vectors, basis), INLP: vectors @ found.projection, LEACE: erased,
        RANDOM: remove_subspace(vectors, basis=random)[0],
    }  # fmt: skip
    return {way: unit_rows(way, of) for way, of in after.items()}, {BEFORE: 0, HARD: 1, INLP: count, LEACE: 1, RANDOM: count}


def hard(words: Sequence[str], vectors: Array, basis: Array) -> Array:
    """Hard debias with the published lists: pairs in lower case, no word in two of them."""
    lists, place = gender_lists(), {word: i for i, word in enumerate(words)}
    equal: dict[int, int] = {}
    for one, other in ([place.get(word.lower(), -1) for word in pair] for pair in lists.equalize):
        if min(one, other) >= 0 and not {one, other} & {*equal, *equal.values()}:
            equal[one] = other
    specific = {word.lower() for word in lists.specific}
    neutral = [i for i, word in enumerate(words) if word not in specific and i not in {*equal, *equal.values()}]
    return hard_debias(vectors, basis=basis, neutral=np.array(neutral), equal=[np.array(pair) for pair in equal.items()])
