"""What byte-pair encoding learns, and how files spell it: every byte as a character that can be seen.

A token is a string of bytes, and a vocabulary is a JSON file, which holds text. So GPT-2 spells each byte as one character: bytes that are
printable in Latin-1 as themselves, and the 68 others, in their order, as those from U+0100 on. A blank is then Ġ, a line feed Ċ.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from minitransformers.models.tokenizers.added import AddedTokens, by_id

Merges = Mapping[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, eq=False)
class BytePairVocabulary:
    """What was learned: the bytes of each id; for each pair of ids that merges its rank and the id of both together; the added tokens.

    digits as in pieces.cut; unknown is the id for a byte without a token, None to refuse it.
    """

    tokens: Mapping[int, bytes]
    merges: Merges
    added: AddedTokens = field(default_factory=AddedTokens)
    digits: bool = False
    unknown: int | None = None
    seen: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False)  # pieces that were encoded before

    @functools.cached_property
    def size(self) -> int:
        """One more than the largest id: the rows that a model's table wants."""
        return max(self.tokens) + 1

    @functools.cached_property
    def byte_ids(self) -> dict[int, int]:
        """The id of each byte that is a token."""
        added = set(self.added.ids.values())
        return {token[0]: i for i, token in self.tokens.items() if len(token) == 1 and i not in added}


@functools.cache
def byte_order() -> tuple[int, ...]:
    """The 256 bytes, first those that are printable: GPT-2's ids from 0 to 255, and the order between equal counts."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return (*printable, *sorted(set(range(256)) - set(printable)))


def spelled(token: bytes) -> str:
    """A token as files spell it."""
    return "".join(_characters()[b] for b in token)


def unspelled(token: str) -> bytes:
    """The bytes that a file spells. Raises ValueError that shows a character which spells none."""
    try:
        return bytes(_bytes()[c] for c in token)
    except KeyError as error:
        raise ValueError(f"the token {token!r:.60} holds {error}, which spells no byte") from None


def from_spelling(
    ids: Mapping[str, int], merges: Iterable[tuple[str, str]], *, added: AddedTokens, digits: bool = False, unknown: int | None = None
) -> BytePairVocabulary:
    """The vocabulary that a file spells: the id of each token, and the merges in the order of their ranks.

    An added token is spelled as what it says, and need not be among the ids. Raises ValueError for a token that spells no bytes, an id
    that is no whole number of at least 0 or stands for two tokens, and a merge of what are no tokens or to what is none.
    """
    named = by_id({**ids, **added.ids})
    tokens = {i: token.encode() if token in added.ids else unspelled(token) for i, token in named.items()}
    ranks: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, (left, right) in enumerate(merges):
        absent = [part for part in (left, right, left + right) if part not in ids]
        if absent:
            raise ValueError(f"the merge of {left!r:.60} and {right!r:.60} wants {absent[0]!r:.60} to be a token")
        ranks[ids[left], ids[right]] = rank, ids[left + right]
    if unknown is not None and unknown not in tokens:
        raise ValueError(f"the id {unknown} of the unknown token is that of none")
    return BytePairVocabulary(tokens, ranks, added, digits, unknown)


@functools.cache
def _characters() -> tuple[str, ...]:
    """The character of each byte."""
    codes = {b: b if place < 188 else 256 + place - 188 for place, b in enumerate(byte_order())}  # 188 are printable
    return tuple(chr(codes[b]) for b in range(256))


@functools.cache
def _bytes() -> dict[str, int]:
    return {c: b for b, c in enumerate(_characters())}
