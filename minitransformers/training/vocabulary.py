"""Vocabularies: which whole number stands for which piece of text.

Two need no training and lose nothing. Characters: one id for every distinct character of a corpus, in the order of
their code points. Bytes: 256 ids, UTF-8, any text whatever, more tokens where the text is not ASCII.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import invalid


class CharacterVocabulary:
    """One id a character. ``symbols`` is a string of the distinct characters; their positions are the ids."""

    kind = "characters"

    def __init__(self, symbols: str) -> None:
        if not symbols or len(set(symbols)) != len(symbols):
            raise invalid("symbols", got=repr(symbols[:40]), wants="at least one character, none twice")
        self.symbols, self.size = symbols, len(symbols)
        codes = np.array([ord(symbol) for symbol in symbols])
        self._ids = np.full(codes.max() + 1, -1, np.intp)     # id of each code point, -1 where there is none
        self._ids[codes] = np.arange(self.size)

    @classmethod
    def of(cls, text: str) -> CharacterVocabulary:
        """The vocabulary of the characters that occur in a text."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> Array:
        """Ids, one a character. Raises ValueError that shows the first unknown character and its place."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
        unknown = np.flatnonzero((ids < 0) | (codes >= len(self._ids)))
        if len(unknown):
            place = int(unknown[0])
            raise invalid(
                "text", got=f"{text[place]!r} (U+{ord(text[place]):04X}) at character {place}",
                wants=f"only the {self.size} characters of the vocabulary",
            )  # fmt: skip
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids. Raises ValueError for what is no whole number, or outside the vocabulary."""
        return "".join(self.symbols[i] for i in _checked(ids, self.size))

    def to_json(self) -> dict[str, Any]:
        """A dict that vocabulary_from_json reads."""
        return {"kind": self.kind, "symbols": self.symbols}


class ByteVocabulary:
    """The 256 bytes of UTF-8."""

    kind = "bytes"
    size = 256

    def encode(self, text: str) -> Array:
        """Ids, one a byte of UTF-8. Raises ValueError for half a surrogate pair, which UTF-8 does not have."""
        try:
            return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.intp)
        except UnicodeEncodeError as error:
            raise invalid("text", got=f"{text[error.start]!r} at character {error.start}", wants="characters that UTF-8 has") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; bytes that are not UTF-8, as a model may write, become U+FFFD. Raises ValueError as above."""
        return bytes(_checked(ids, 256)).decode("utf-8", errors="replace")

    def to_json(self) -> dict[str, Any]:
        """A dict that vocabulary_from_json reads."""
        return {"kind": self.kind}


Vocabulary = CharacterVocabulary | ByteVocabulary


def make_vocabulary(kind: str, text: str) -> Vocabulary:
    """The vocabulary of a text by its kind, "characters" or "bytes". Raises ValueError for another kind."""
    if kind == "characters":
        return CharacterVocabulary.of(text)
    if kind == "bytes":
        return ByteVocabulary()
    raise invalid("vocabulary", got=repr(kind), wants='"characters" or "bytes"')


def vocabulary_from_json(values: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that to_json described. Raises ValueError for anything else."""
    kind, symbols = values.get("kind"), values.get("symbols")
    if kind == "characters" and isinstance(symbols, str):
        return CharacterVocabulary(symbols)
    if kind == "bytes":
        return ByteVocabulary()
    raise invalid("vocabulary", got=f"{dict(values)!r:.80}", wants='{"kind": "characters", "symbols": "..."} or {"kind": "bytes"}')


def _checked(ids: Iterable[int], size: int) -> list[int]:
    """The ids as Python's integers. Nothing is rounded: 1.9 is no id, and neither is True."""
    listed, numbers, wants = ids.tolist() if isinstance(ids, np.ndarray) else ids, [], f"whole numbers from 0 to {size - 1}"
    if not isinstance(listed, Iterable):
        raise invalid("ids", got=f"{listed!r} alone", wants=wants)
    for i in listed:
        number = i.item() if isinstance(i, np.generic) else i
        if type(number) is not int or not 0 <= number < size:
            raise invalid("ids", got=repr(number), wants=wants)
        numbers.append(number)
    return numbers
