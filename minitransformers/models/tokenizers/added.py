"""What tokenizers share: tokens that are cut out of a text before anything else is done to it, and checks of texts and of ids.

Such a token (<|endoftext|>, [MASK]) was added to a vocabulary by name. It stands for itself and is never found by merging or matching.
"""

import functools
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from minitransformers.foundation import invalid


@dataclass(frozen=True, eq=False)
class AddedTokens:
    """The id of each, and which of them are special: no part of a text, but of what a model makes of it."""

    ids: Mapping[str, int] = field(default_factory=dict)
    special: frozenset[int] = frozenset()

    def split(self, text: str) -> Iterator[str | int]:
        """The text from left to right: an added token as its id, of several that begin at one place the longest, and all else as text."""
        start = 0
        for found in self._pattern.finditer(text) if self.ids else ():
            if start < found.start():
                yield text[start : found.start()]
            yield self.ids[found[0]]
            start = found.end()
        if start < len(text):
            yield text[start:]

    @functools.cached_property
    def _pattern(self) -> re.Pattern:
        return re.compile("|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))))


def by_id(ids: Mapping[str, int]) -> dict[int, str]:
    """The token of each id.

    Raises ValueError for an id that is no whole number of at least 0 or stands for two tokens, and a token with half a surrogate pair.
    """
    tokens: dict[int, str] = {}
    for token, i in ids.items():
        if not token.isascii() and any("\ud800" <= c <= "\udfff" for c in token):
            raise ValueError(f"the token {token!r:.60} holds half a surrogate pair")
        if type(i) is not int or i < 0:
            raise ValueError(f"the token {token!r:.60} has the id {i!r:.40}, wants a whole number of at least 0")
        if i in tokens:
            raise ValueError(f"the id {i} stands for two tokens, {tokens[i]!r:.60} and {token!r:.60}")
        tokens[i] = token
    return tokens


def check_text(text: str) -> None:
    """Raise ValueError for half a surrogate pair, which is no character: no encoding of Unicode has it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wants = "characters, and half a surrogate pair is none"
        raise invalid("text", got=f"{text[error.start]!r} at character {error.start}", wants=wants) from None


def checked_ids(ids: Iterable[int], known: Container[int], size: int) -> list[int]:
    """Ids as Python's integers. Raises ValueError for what is no whole number (True and 1.0 are none), and for an unknown one."""
    listed, found, wants = ids.tolist() if isinstance(ids, np.ndarray) else ids, [], f"whole numbers from 0 to {size - 1}"
    if not isinstance(listed, Iterable):
        raise invalid("ids", got=f"{listed!r} alone", wants=wants)
    for i in listed:
        number = i.item() if isinstance(i, np.generic) else i
        if type(number) is not int or number not in known:
            raise invalid("ids", got=f"{number!r:.40}", wants=f"{wants}, which are tokens of the vocabulary")
        found.append(number)
    return found
