"""Byte-level byte-pair encoding: text as ids of byte strings that are frequent, found by merging what often stands side by side.

A vocabulary of words has no word for what it has not met; one of characters is complete only with all of Unicode, and makes texts
long. Here all 256 bytes are tokens, so that any text is, and what is frequent becomes one token. Sources: Gage 1994, A New Algorithm for
Data Compression; Sennrich, Haddow and Birch 2016, arXiv:1508.07909, section 3.2 (merges as a vocabulary); Radford et al. 2019, Language Models
are Unsupervised Multitask Learners, section 2.2 (bytes, and the rule of pieces.cut).

    pieces = the text, cut where the rule of pieces.py cuts; a piece is its bytes in UTF-8   (1)
    count(a, b) = sum over different pieces of how often the piece occurs times how often b follows a in it   (2)
    merge r = the pair with the largest count; of equals the one whose first token has the smallest id, then whose second has   (3)
    its token = the bytes of the first, then those of the second   (4)
    a piece is encoded: of all neighbours that have a merge, those of the lowest rank become one, the leftmost first, until none have   (5)
    ids = the ids of the pieces, one piece after the other; added tokens are cut out before   (6)
    text = the bytes of the tokens, one after the other, as UTF-8; U+FFFD for what is not UTF-8   (7)

After each merge (5) is applied to the pieces that held the pair, so that training leaves every piece as encoding makes it. All 256 bytes are
in a trained vocabulary. A published one may lack some: a text that holds such a byte is refused, unless there is a token for the unknown
(Hugging Face's tokenizers then leaves the byte out without a word).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Annotated

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, invalid, procedure
from minitransformers.models.tokenizers.added import AddedTokens, check_text, checked_ids
from minitransformers.models.tokenizers.byte_pair_vocabulary import BytePairVocabulary, Merges, byte_order
from minitransformers.models.tokenizers.pieces import cut


@procedure(
    title="Byte-pair encoding, training",
    source="Sennrich, Haddow and Birch 2016, arXiv:1508.07909, section 3.2; Radford et al. 2019, section 2.2",
    example=lambda rng: example([_SONG], vocabulary_size=270, special_tokens=("<|end|>",)),
    rejects=[
        bad("text", texts=["half \ud83d"]), bad(texts="one text"), bad(special_tokens=("a", "a")), bad(special_tokens=("",)),
        bad("vocabulary_size", vocabulary_size=257, special_tokens=("a", "b")),
    ],
)  # fmt: skip
def train_byte_pair_encoding(
    texts: Sequence[str], *, vocabulary_size: Annotated[int, at_least(256)], min_count: Annotated[int, at_least(1)] = 2,
    special_tokens: Sequence[str] = (), digits: bool = False,
) -> BytePairVocabulary:  # fmt: skip
    """The vocabulary of a list of texts: special tokens first, then the 256 bytes, then a token for each merge.

    It has vocabulary_size tokens, or fewer where no pair occurs min_count times any more. Bytes are in the order of GPT-2's (see
    byte_order), which decides between equal counts. digits as in pieces.cut. The same texts give the same vocabulary on any machine.
    Raises ValueError for half a surrogate pair, for special tokens that are empty or stand twice, and where they do not fit.
    """
    for text in texts:
        check_text(text)
    if "" in special_tokens or len(set(special_tokens)) < len(special_tokens):
        raise invalid("special_tokens", got=special_tokens, wants="different texts, none empty")
    if vocabulary_size < len(special_tokens) + 256:
        raise invalid("vocabulary_size", got=vocabulary_size, wants=f"at least 256 bytes and {len(special_tokens)} special tokens")

    tokens = [token.encode() for token in special_tokens] + [bytes([b]) for b in byte_order()]
    ids = {token: i for i, token in enumerate(tokens) if i >= len(special_tokens)}
    merges: dict[tuple[int, int], tuple[int, int]] = {}
    times = Counter(piece for text in texts for piece in cut(text, digits=digits))
    pieces = [[ids[bytes([b])] for b in piece.encode()] for piece in times]  # (1)
    often = list(times.values())

    counts: Counter[tuple[int, int]] = Counter()
    holders = defaultdict(set)                               # of each pair, the pieces that may hold it
    for place, piece in enumerate(pieces):
        for pair in pairwise(piece):
            counts[pair] += often[place]                     # (2)
            holders[pair].add(place)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapify(heap)
    while len(tokens) < vocabulary_size and heap:
        count, pair = heappop(heap)                          # (3)
        if -count != counts[pair]:                           # it has changed since: in its new place, if it is not there yet
            if counts[pair] and -count > counts[pair]:
                heappush(heap, (-counts[pair], pair))
            continue
        if -count < min_count:
            break
        token = tokens[pair[0]] + tokens[pair[1]]            # (4)
        if token not in ids:
            ids[token] = len(tokens)
            tokens.append(token)
        merges[pair] = len(merges), ids[token]
        changed: Counter[tuple[int, int]] = Counter()
        for place in holders.pop(pair):
            before, pieces[place] = pieces[place], merged(pieces[place], merges)
            for old in pairwise(before):
                changed[old] -= often[place]
            for new in pairwise(pieces[place]):
                changed[new] += often[place]
                holders[new].add(place)
        for other, difference in changed.items():
            counts[other] += difference
            if difference > 0:
                heappush(heap, (-counts[other], other))

    special = AddedTokens({token: i for i, token in enumerate(special_tokens)}, frozenset(range(len(special_tokens))))
    return BytePairVocabulary(dict(enumerate(tokens)), merges, special, digits)


@procedure(
    title="Byte-pair encoding",
    source="Sennrich, Haddow and Birch 2016, arXiv:1508.07909, algorithm 1; Radford et al. 2019, section 2.2",
    example=lambda rng: example("row the boat<|end|>", vocabulary=_example_vocabulary()),
    rejects=[bad(text="half \ud83d")],
)
def byte_pair_encode(text: str, *, vocabulary: BytePairVocabulary, special: bool = True) -> Int[Array, "tokens"]:
    """The ids of a text, none for an empty one.

    special=False reads added tokens as the ordinary text that they are written in: for text that a stranger wrote.
    Raises ValueError for half a surrogate pair, and for a byte that has no token.
    """
    check_text(text)
    ids: list[int] = []
    for part in vocabulary.added.split(text) if special else [text]:
        if isinstance(part, int):
            ids.append(part)
            continue
        for piece in cut(part, digits=vocabulary.digits):    # (1)
            found = vocabulary.seen.get(piece)
            if found is None:
                found = merged(_bytes_of(piece, vocabulary), vocabulary.merges)
                if len(piece) <= 64 and len(vocabulary.seen) < 65_536:  # nearly every piece of a text was met before
                    vocabulary.seen[piece] = found
            ids += found                                     # (6)
    return np.array(ids, np.intp)


def merged(symbols: list[int], merges: Merges) -> list[int]:
    """The ids that are left of a piece when nothing can be merged any more. n of them take n log n steps.

    A heap holds every pair of neighbours that merges, by rank and place. What is taken from it may be out of date, if one of the
    two has been merged since: then the pair that stands there now has another rank, or none.
    """
    ids: list[int] = symbols.copy()
    end = len(ids)
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))
    heap = [(merges[pair][0], i) for i, pair in enumerate(pairwise(ids)) if pair in merges]
    heapify(heap)
    while heap:
        rank, i = heappop(heap)
        j = after[i]
        now = merges.get((ids[i], ids[j])) if j < end else None
        if now is None or now[0] != rank:
            continue
        ids[i], ids[j], after[i] = now[1], _GONE, after[j]   # (5)
        if after[i] < end:
            before[after[i]] = i
        for left in (before[i], i):
            right = after[left] if left >= 0 else end
            if right < end and (found := merges.get((ids[left], ids[right]))) is not None:
                heappush(heap, (found[0], left))
    return [i for i in ids if i != _GONE]


@procedure(
    title="Byte-pair decoding",
    source="Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.2",
    example=lambda rng: example(rng.integers(256, size=7), vocabulary=_example_vocabulary()),
    rejects=[bad(ids=np.array([3, 999])), bad(ids=[-1]), bad(ids=[1.0]), bad(ids=[True]), bad(ids=np.array([[1]])), bad(ids=3)],
)
def byte_pair_decode(ids: Iterable[int], *, vocabulary: BytePairVocabulary, skip_special: bool = False) -> str:
    """The text of some ids. skip_special leaves special tokens out.

    A character may be spread over tokens: decode them together, or their bytes, vocabulary.tokens[id], by an incremental decoder.
    Raises ValueError for what is no id of the vocabulary.
    """
    found = checked_ids(ids, vocabulary.tokens, vocabulary.size)
    skipped = vocabulary.added.special if skip_special else ()
    return b"".join(vocabulary.tokens[i] for i in found if i not in skipped).decode("utf-8", errors="replace")  # (7)


def _bytes_of(piece: str, vocabulary: BytePairVocabulary) -> list[int]:
    found = [vocabulary.byte_ids.get(b, vocabulary.unknown) for b in piece.encode()]
    if None in found:
        byte = piece.encode()[found.index(None)]
        raise invalid("text", got=f"{piece[:40]!r}, with the byte 0x{byte:02x}", wants="bytes that are tokens of the vocabulary")
    return found  # type: ignore[return-value]


_GONE = -1  # the second of two that were merged
_SONG = "row, row, row your boat, gently down the stream: merrily, merrily, merrily, merrily, life is but a dream"


def _example_vocabulary() -> BytePairVocabulary:
    return train_byte_pair_encoding([_SONG], vocabulary_size=270, special_tokens=("<|end|>",))
