"""Text to learn from: read, split by position, turned into ids, cut into windows.

The default text comes with Python: the language reference that ``help()`` shows, about 465,000 characters of English
with code in it. It differs a little between versions of Python, so a corpus has a fingerprint.

The last tenth is kept for validation. It is the last and not a random tenth, because neighbouring windows share
phrases: windows drawn at random would let the model see most of what it is tested on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import invalid
from minitransformers.training.vocabulary import Vocabulary, make_vocabulary


def python_reference() -> str:
    """Python's language reference, as its standard library carries it; entries in alphabetical order."""
    from pydoc_data.topics import topics  # half a megabyte: read when asked for

    return "\n".join(topics[name] for name in sorted(topics))


def read_text(path: str | Path) -> str:
    """A UTF-8 file as text, line ends as they are; a byte order mark is dropped.

    Raises ValueError when there is no such file, it is a folder, cannot be read, is empty or is not UTF-8.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such file")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, wants a text file")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if not raw:
        raise ValueError(f"{path}: is empty")
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}") from None


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text in two parts, as characters and as ids. Made by ``Corpus.from_text`` or ``Corpus.load``."""

    name: str
    vocabulary: Vocabulary
    train_text: str
    validation_text: str
    train: Array
    validation: Array

    @classmethod
    def from_text(
        cls, text: str, *, context: int, vocabulary: str = "characters", validation_fraction: float = 0.1, name: str = "text"
    ) -> Corpus:
        """Split a text: the last ``validation_fraction`` (above 0, below 1) of its characters is for validation.

        The vocabulary ("characters" or "bytes") is that of the whole text. context is in tokens.
        Raises ValueError where the training part has fewer than context + 1 tokens or the validation part fewer than two.
        """
        if not 0 < validation_fraction < 1:
            raise invalid("validation_fraction", got=validation_fraction, wants="a part above 0 and below 1")
        if context < 1:
            raise invalid("context", got=context, wants="at least 1")
        if not text:
            raise ValueError(f"{name}: is empty")
        cut = len(text) - round(len(text) * validation_fraction)
        made = make_vocabulary(vocabulary, text)
        train, validation = made.encode(text[:cut]), made.encode(text[cut:])
        if len(train) < context + 1:
            raise ValueError(f"{name}: is too short: {len(train)} tokens to train on, wants at least context + 1 = {context + 1}")
        if len(validation) < 2:
            raise ValueError(f"{name}: is too short: {len(validation)} tokens to validate on, wants at least 2")
        return cls(name, made, text[:cut], text[cut:], train, validation)

    @classmethod
    def load(
        cls, path: str | Path | None = None, *, context: int, vocabulary: str = "characters", validation_fraction: float = 0.1
    ) -> Corpus:
        """The corpus of a file, or of Python's language reference without one. Raises ValueError as the parts do."""
        text, name = (python_reference(), "Python language reference") if path is None else (read_text(path), str(path))
        return cls.from_text(text, context=context, vocabulary=vocabulary, validation_fraction=validation_fraction, name=name)

    def batch(self, rng: np.random.Generator, *, batch_size: int, context: int) -> tuple[Array, Array]:
        """Random windows of the training part: inputs and, one place on, targets, both (batch_size, context)."""
        windows = np.lib.stride_tricks.sliding_window_view(self.train, context + 1)
        drawn = windows[rng.integers(len(windows), size=batch_size)]
        return drawn[:, :-1], drawn[:, 1:]

    def evaluation_batches(self, *, batch_size: int, context: int, limit: int | None = None) -> Iterator[tuple[Array, Array]]:
        """Windows over the validation part: every token but the first is a target exactly once.

        The last batches may hold fewer or shorter windows. ``limit`` keeps that many full windows, evenly spread.
        """
        ids, count = self.validation, (len(self.validation) - 1) // context
        inputs = ids[: count * context].reshape(count, context)
        targets = ids[1 : count * context + 1].reshape(count, context)
        if limit is not None and 0 < limit < count:
            chosen = np.arange(limit) * count // limit
            inputs, targets, rest = inputs[chosen], targets[chosen], ids[:0]
        else:
            rest = ids[count * context :]
        for start in range(0, len(inputs), batch_size):
            yield inputs[start : start + batch_size], targets[start : start + batch_size]
        if len(rest) > 1:
            yield rest[None, :-1], rest[None, 1:]

    @property
    def tokens_per_character(self) -> float:
        """Validation tokens a character: 1 for characters, at least 1 for bytes. Turns bits a token into bits a character."""
        return len(self.validation) / len(self.validation_text)

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint remembers of the corpus: its vocabulary, its split and the fingerprint of its text."""
        digest = hashlib.sha256((self.train_text + self.validation_text).encode("utf-8", "surrogatepass")).hexdigest()
        return {"vocabulary": self.vocabulary.to_json(), "train_characters": len(self.train_text), "sha256": digest}
