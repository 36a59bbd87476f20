"""Lines that a tokenizer may stumble over, by a seeded generator, and the vocabularies that were published, where a package has them."""

import functools
import importlib.util
import struct
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from minitransformers.models.published import PUBLISHED, published_file, state_of
from minitransformers.models.tokenizers.pieces import WHITE_SPACE
from minitransformers.training.text import python_reference

SPACES = "".join(sorted(WHITE_SPACE)) + "\x1c\x1d\x1e\x1f\u200b\u180e\ufeff"  # and what is taken for space
EMOJI = ["😀", "👩‍🚀", "👍🏽", "🇫🇷", "🏴󠁧󠁢󠁷󠁬󠁳󠁿", "❤️", "1️⃣", "🧑‍🤝‍🧑", "©️", "☺"]
SCRIPTS = [(0x4E00, 0x9FFF), (0x3040, 0x30FF), (0xAC00, 0xD7A3), (0x0620, 0x064A), (0x0904, 0x0939), (0x0E01, 0x0E30), (0x0391, 0x03A1),
           (0x0410, 0x044F), (0x05D0, 0x05EA), (0xF900, 0xFA2D), (0x20000, 0x2A6D6), (0xC0, 0x17F)]  # fmt: skip
APOSTROPHES = ["'s", "'S", "'ll", "'re've", "don't", " 'd", "''m", "’s", "'", "'t1", "'lla", "it's's"]
ADDED = ["<|endoftext|>", "<|endoftext|", "<|endoftext|><|endoftext|>", "[MASK]", "[mask]", "[SEP][CLS]", "<|im_start|>user"]
# What every table of Unicode since 2002 knows, but for four characters that have changed their class.
OLD = [c for c in map(chr, range(0x110000)) if unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs", "Co") and c not in "\u166d\u1734\u1885\u1886"]
WORDS = python_reference().split(" ")


@functools.cache
def lines(count=2000, seed=0):
    """As many lines, each of a few parts of all kinds; those of bytes are read as UTF-8, with U+FFFD for what is not."""
    rng = np.random.default_rng(seed)
    return ["".join(_part(rng) for _ in range(rng.integers(1, 9))) for _ in range(count)]


def _part(rng):
    def pick(options, most=1):
        return [options[i] for i in rng.integers(len(options), size=rng.integers(1, most + 1))]

    kind = int(rng.integers(12))
    if kind in (0, 1):
        return " ".join(pick(WORDS, 6)) + rng.choice(["", " ", "  ", "\n"])
    if kind == 2:
        return "".join(pick(SPACES, 6))
    if kind == 3:
        return "".join(pick(EMOJI, 3))
    if kind == 4:
        first, last = pick(SCRIPTS)[0]
        return "".join(map(chr, rng.integers(first, last + 1, size=rng.integers(1, 12))))
    if kind == 5:                                            # marks on letters, composed or not, in any order
        marked = "".join(pick("aeioucnAEgσΣ", 3)) + "".join(map(chr, rng.integers(0x300, 0x370, size=rng.integers(1, 6))))
        return unicodedata.normalize(str(rng.choice(["NFC", "NFD", "NFKD"])), marked)
    if kind == 6:                                            # bytes that are no UTF-8, and characters cut off
        whole = "".join(pick(EMOJI + ["é", "€", "中"], 3)).encode()
        return (rng.bytes(int(rng.integers(1, 8))) + whole[: int(rng.integers(len(whole) + 1))]).decode("utf-8", errors="replace")
    if kind == 7:                                            # long words, some at WordPiece's limit
        return "".join(pick("abcdefghijklmnop")) * int(rng.choice([30, 99, 100, 101, 250]))
    if kind == 8:
        return "".join(pick("0123456789٣४Ⅷ½²㊿", 7))
    if kind == 9:
        return "".join(pick(APOSTROPHES, 3))
    if kind == 10:
        return "".join(pick(ADDED, 2))
    return "".join(pick(OLD, 8))


def published(package, member):
    """The path of a file in a package that is installed, which is not imported, or that was downloaded; the test is skipped where there is none."""
    for model in PUBLISHED.values():
        for role, file in model.files.items():
            if file == f"{package}/{member}" and state_of(model) != "absent":
                return published_file(model.name, role)
    found = importlib.util.find_spec(package)
    path = Path((found.submodule_search_locations or [""])[0], member) if found else Path()
    if not path.is_file():
        pytest.skip(f"{package}, which has {member}, is not installed")
    return path


def gguf_settings(path):
    """The settings at the head of a .gguf file, lists of texts among them."""
    kinds = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    with open(path, "rb") as file:

        def read(kind):
            return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]

        def value(kind):
            if kind == 8:
                return file.read(read("Q")).decode()
            if kind == 9:
                inner, count = read("I"), read("Q")
                return [value(inner) for _ in range(count)]
            return read(kinds[kind])

        assert file.read(4) == b"GGUF" and read("I") == 3
        _, count = read("Q"), read("Q")
        return {value(8): value(read("I")) for _ in range(count)}
