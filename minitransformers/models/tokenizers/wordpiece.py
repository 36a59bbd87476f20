"""WordPiece, as BERT has it: text as words without case and accents, and each word as the longest pieces that are in the vocabulary.

Sources: Schuster and Nakajima 2012, Japanese and Korean Voice Search; Wu et al. 2016, arXiv:1609.08144, section 4.1; Devlin et al. 2019,
arXiv:1810.04805, section 3, and its code. The steps (1) to (4) can be left out.

    control characters (but not tab, line feed, carriage return), private ones and U+FFFD are dropped; white space becomes a blank   (1)
    a blank stands on both sides of every Chinese character  (2)
    accents are taken off: of the canonical decomposition (NFD) the non-spacing marks are dropped   (3)
    lower case, character by character                       (4)
    words = what stands between white space, every punctuation mark a word of its own   (5)
    piece at i = the longest word[i:j] that is a token, with ## in front where i > 0; then i = j, until the word is used up   (6)
    ids of a word = its pieces; [UNK] alone if there is a place where no piece fits, or the word has more than 100 characters   (7)
    text = the tokens with blanks between them, but none where ## stands, nor before . , ! ?   (8)

Much is lost on the way: case, accents, how wide the spaces were, and every word that is [UNK]. What characters are (marks, punctuation)
is read in Python's own Unicode tables; Hugging Face's tokenizers, which this follows otherwise, does not know those added since 2015.
"""

import functools
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.foundation import bad, example, procedure
from minitransformers.models.tokenizers.added import AddedTokens, check_text, checked_ids
from minitransformers.models.tokenizers.pieces import WHITE_SPACE

# Unified and compatibility ideographs. The block from U+2B820 on starts 256 characters late, as it does in the reference.
_CHINESE = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
# Of one token each: longer ones stand here for vocabularies that have such tokens.
_TIDY = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" do not", " don't"),
         (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


@procedure(
    title="BERT's words",
    source="Devlin et al. 2019, arXiv:1810.04805, section 3, and the code beside it",
    example=lambda rng: example("A naïve  Σ, 東京!"),
    rejects=[bad(text="half \ud83d")],
)
def basic_words(text: str, *, clean: bool = True, space_chinese: bool = True, strip_accents: bool = True, lower: bool = True) -> list[str]:
    """The words of a text, which are then cut into pieces. Each setting is one of the steps (1) to (4).

    A cased BERT is trained with strip_accents=False and lower=False. Raises ValueError for half a surrogate pair.
    """
    check_text(text)
    text = text.translate(_before_accents(clean, space_chinese))
    if strip_accents:
        text = unicodedata.normalize("NFD", text)
    return [word for word in text.translate(_from_accents(strip_accents, lower)).split(" ") if word]


class _Table(dict):
    """What str.translate puts in the place of each character; worked out when the character is met first."""

    def __init__(self, replacement: Callable[[str], str]) -> None:
        self.replacement = replacement

    def __missing__(self, code: int) -> str:
        self[code] = self.replacement(chr(code))
        return self[code]


@functools.cache
def _before_accents(clean: bool, space_chinese: bool) -> _Table:
    def replacement(c: str) -> str:
        if clean and c not in "\t\n\r" and (c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Co")):
            return ""
        if clean and c in WHITE_SPACE:
            return " "                                       # (1)
        if space_chinese and any(first <= ord(c) <= last for first, last in _CHINESE):
            return f" {c} "                                  # (2)
        return c

    return _Table(replacement)


@functools.cache
def _from_accents(strip_accents: bool, lower: bool) -> _Table:
    def replacement(c: str) -> str:
        if strip_accents and unicodedata.category(c) == "Mn":
            return ""                                        # (3)
        lowered = c.lower() if lower else c                  # (4)
        return "".join(" " if x in WHITE_SPACE else f" {x} " if _is_punctuation(x) else x for x in lowered)  # (5)

    return _Table(replacement)


def _is_punctuation(c: str) -> bool:
    """Unicode's, and of ASCII all that is seen and neither letter nor number: $ and ^ are, and € is not."""
    return "!" <= c <= "~" and not c.isalnum() if c.isascii() else unicodedata.category(c)[0] == "P"


@dataclass(frozen=True, eq=False)
class WordPieceVocabulary:
    """The id of each token, that of [UNK], the added tokens, how a text is made words, and whether (8) takes blanks before marks away."""

    ids: Mapping[str, int]
    unknown: int
    added: AddedTokens = field(default_factory=AddedTokens)
    words: Callable[[str], list[str]] = basic_words
    longest_word: int = 100
    tidy: bool = True
    seen: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False)  # words that were encoded before

    @functools.cached_property
    def tokens(self) -> dict[int, str]:
        """The token of each id."""
        return {i: token for token, i in {**self.ids, **self.added.ids}.items()}

    @functools.cached_property
    def size(self) -> int:
        """One more than the largest id: the rows that a model's table wants."""
        return max(self.tokens) + 1

    @functools.cached_property
    def longest_token(self) -> int:
        """In characters: no longer piece need be looked for."""
        return max(map(len, self.ids))


@procedure(
    title="WordPiece",
    source="Wu et al. 2016, arXiv:1609.08144, section 4.1; Devlin et al. 2019, arXiv:1810.04805, section 3",
    example=lambda rng: example("Unaffable [MASK], affine!", vocabulary=_example_vocabulary()),
    rejects=[bad(text="half \ud83d")],
)
def wordpiece_encode(text: str, *, vocabulary: WordPieceVocabulary, special: bool = True) -> Int[Array, "tokens"]:
    """The ids of a text, none for an empty one. [CLS] and [SEP] are not put around it: that is done for what a model is asked.

    special=False reads added tokens as the ordinary text that they are written in: for text that a stranger wrote.
    Raises ValueError for half a surrogate pair.
    """
    check_text(text)
    ids: list[int] = []
    for part in vocabulary.added.split(text) if special else [text]:
        if isinstance(part, int):
            ids.append(part)
            continue
        for word in vocabulary.words(part):
            found = vocabulary.seen.get(word)
            if found is None:
                found = _pieces(word, vocabulary)
                if len(vocabulary.seen) < 65_536:            # nearly every word of a text was met before
                    vocabulary.seen[word] = found
            ids += found
    return np.array(ids, np.intp)


def _pieces(word: str, vocabulary: WordPieceVocabulary) -> list[int]:
    start, found = 0, []
    while start < len(word) <= vocabulary.longest_word:
        mark = "##" if start else ""
        for end in range(min(len(word), start + vocabulary.longest_token - len(mark)), start, -1):
            if (piece := vocabulary.ids.get(mark + word[start:end])) is not None:  # (6)
                break
        else:
            break
        found.append(piece)
        start = end
    return found if start == len(word) else [vocabulary.unknown]  # (7)


@procedure(
    title="WordPiece, decoding",
    source="Wu et al. 2016, arXiv:1609.08144, section 4.1",
    example=lambda rng: example(rng.integers(_example_vocabulary().size, size=7), vocabulary=_example_vocabulary()),
    rejects=[bad(ids=np.array([3, 999])), bad(ids=[-1]), bad(ids=[1.0]), bad(ids=[True]), bad(ids=np.array([[1]])), bad(ids=3)],
)
def wordpiece_decode(ids: Iterable[int], *, vocabulary: WordPieceVocabulary, skip_special: bool = False) -> str:
    """A text that has these ids, in lower case and with single blanks. skip_special leaves special tokens out.

    Raises ValueError for what is no id of the vocabulary.
    """
    skipped: frozenset[int] = vocabulary.added.special if skip_special else frozenset()
    parts: list[str] = []
    for i in checked_ids(ids, vocabulary.tokens, vocabulary.size):
        if i not in skipped:
            token = vocabulary.tokens[i]
            part = token.removeprefix("##") if parts and token.startswith("##") else f" {token}" if parts else token
            for before, tidied in _TIDY if vocabulary.tidy else ():
                part = part.replace(before, tidied)
            parts.append(part)                               # (8)
    return "".join(parts)


def _example_vocabulary() -> WordPieceVocabulary:
    tokens = ["[UNK]", "[MASK]", "un", "##aff", "##able", "aff", "##ine", ",", "!", "##a"]
    ids = {token: i for i, token in enumerate(tokens)}
    return WordPieceVocabulary(ids, unknown=0, added=AddedTokens({"[UNK]": 0, "[MASK]": 1}, frozenset({0, 1})))
