"""Published word vectors and the published lists of words that bias is measured with: read where they lie, never kept here.

GloVe (Pennington et al. 2014), 400,000 lower-case words; word2vec (Mikolov et al. 2013), the 26,423 words that Bolukbasi et al. 2016 took
from Google News; their lists; the ten tests of Caliskan et al. 2017; and two sets that ask what vectors are good for. ``minitransformers weights``
says how to obtain them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import invalid
from minitransformers.models.published import published_file


class WordVectors(NamedTuple):
    """Words, and their vectors in the same order, (words, numbers), each of length 1."""

    words: list[str]
    vectors: Array

    def of(self, words: Sequence[str]) -> Array:
        """The vectors of these words; a word that is missing is named in a ValueError."""
        place = _places(tuple(self.words))
        for word in words:
            if word not in place:
                raise invalid("words", got=repr(word), wants="words that have a vector")
        return self.vectors[[place[word] for word in words]]

    def known(self, words: Sequence[str]) -> list[str]:
        """Those of these words that have a vector, in their order."""
        place = _places(tuple(self.words))
        return [word for word in words if word in place]


class AssociationTest(NamedTuple):
    """One association test: two sets of words, two sets of attributes, and the effect size that was found in people, if any."""

    name: str
    x: list[str]
    y: list[str]
    a: list[str]
    b: list[str]
    people: float | None


class GenderLists(NamedTuple):
    """The lists of Bolukbasi et al. 2016: pairs that define the direction, professions, words that are about gender, pairs to equalise."""

    pairs: list[tuple[str, str]]
    professions: list[str]
    specific: frozenset[str]
    equalize: list[tuple[str, str]]


@cache
def _places(words: tuple[str, ...]) -> dict[str, int]:
    return {word: place for place, word in enumerate(words)}


def _unit(vectors: Array) -> Array:
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def load_glove(*, first: int = 400_000, asked: Collection[str] = ()) -> WordVectors:
    """The most frequent words of GloVe 6B with 50 numbers each, in float64; and of the others those that are asked for, if it has them."""
    import pyarrow.parquet as parquet

    table = parquet.ParquetFile(published_file("glove", "words")).read(use_threads=False)
    words, wanted = table.column("index").to_pylist(), set(asked)
    kept = [place for place, word in enumerate(words) if place < first or word in wanted]
    vectors = np.load(published_file("glove", "vectors"), mmap_mode="r", allow_pickle=False)
    return WordVectors([words[place] for place in kept], _unit(vectors[kept]))


def load_word2vec() -> WordVectors:
    """Google News' vectors of 300 numbers, in float64, for the words that Bolukbasi et al. kept."""
    data = published_file("fairness", "vectors").read_bytes()
    head, start = data[: data.index(b"\n")].split(), data.index(b"\n") + 1
    count, width = int(head[0]), int(head[1])
    words, vectors = [], np.empty((count, width), np.float32)
    for row in range(count):
        end = data.index(b" ", start)
        words.append(data[start:end].decode().strip())
        vectors[row] = np.frombuffer(data, "<f4", count=width, offset=end + 1)
        start = end + 1 + 4 * width
    return WordVectors(words, _unit(vectors))


def association_tests() -> list[AssociationTest]:
    """The ten tests of Caliskan et al. 2017, in lower case."""
    tests = []
    for number, one in enumerate(json.loads(published_file("fairness", "weat").read_text(encoding="utf-8")), start=1):
        sets = [one[key] for key in ("first_target", "second_target", "first_attribute", "second_attribute")]
        name = f"{number} {sets[0]['name'].lower()} / {sets[1]['name'].lower()}"
        found = one["original_finding"]["d"]
        x, y, a, b = ([word.lower() for word in each["words"]] for each in sets)
        tests.append(AssociationTest(name, x, y, a, b, float(found) if found else None))
    return tests


def gender_lists() -> GenderLists:
    """What Bolukbasi et al. 2016 published with their paper, in the case in which it stands there."""
    lists = json.loads(published_file("fairness", "words").read_text(encoding="utf-8"))["gender"]
    pairs, equalize = ([(one, other) for one, other in lists[key]] for key in ("definitional_pairs", "equalize_pairs"))
    return GenderLists(pairs, [name for name, *_ in lists["professions"]], frozenset(lists["specific_full"]), equalize)


def similarity_pairs() -> list[tuple[str, str, float]]:
    """MEN (Bruni et al. 2014), 2,997 of its 3,000 pairs of words, and how related people found them, from 0 to 49."""
    rows = (line.split("\t") for line in published_file("fairness", "similarity").read_text(encoding="utf-8").splitlines() if line.strip())
    return [(one, other, float(related)) for one, other, related in rows]


def analogies(kind: str) -> list[list[str]]:
    """The questions of Mikolov et al. 2013 of one kind, such as "family", in lower case: the first is to the second as the third to the fourth."""
    found: dict[str, list[list[str]]] = {}
    for line in published_file("fairness", "analogies").read_text(encoding="utf-8").lower().splitlines():
        if line.startswith(":"):
            found[line.removeprefix(":").strip()] = questions = []
        elif line.strip():
            questions.append(line.split())
    if kind not in found:
        raise invalid("kind", got=repr(kind), wants=f"one of {', '.join(found)}")
    return found[kind]


def both_ends(positions: Array, count: int) -> tuple[Array, Array]:
    """The numbers of the words that lie farthest to either side, count of each, and labels: 0 for those at the low end, 1 at the high one."""
    order = np.argsort(positions, kind="stable")
    return np.concatenate([order[:count], order[-count:]]), np.repeat([0, 1], count)
