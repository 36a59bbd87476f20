"""Yardsticks: what simpler things than a neural network reach on the same text, in bits per character.

A loss alone says little. These are numbers of the same kind on the same validation part: counting characters, counting
pairs, and two compressors. One bit per character less halves, per character, the number of guesses that remain.

**Counting**, fitted on the training part and measured on the validation part, with A distinct characters in all:

    unigram   p(b)   = (n(b) + 1) / (n + A)                       one is added, so that nothing is impossible
    bigram    p(b|a) = (n(a, b) + p(b)) / (n(a) + 1)              a rare a leans on the unigram by one pseudo-count

**Oracles** are the same two models fitted on the very characters that they are measured on, without smoothing: no
model that counts characters (or pairs) can do better there, and none that is honest does as well.

**Compressors** in two settings: the validation part alone, and after the training part, which costs
size(train + validation) - size(train). The second is the fair comparison with a trained model, for lzma: its window of 8 MiB
holds the training part of any small corpus. zlib looks back 32 KiB at most, so it forgets nearly all of it. Both
compressors count their headers in the first setting.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minitransformers.foundation import invalid


class Yardsticks(NamedTuple):
    """Bits per character of the validation part; lower is better."""

    uniform: float
    unigram: float
    bigram: float
    unigram_oracle: float
    bigram_oracle: float
    zlib_alone: float
    zlib_after_train: float
    lzma_alone: float
    lzma_after_train: float


def yardsticks(train_text: str, validation_text: str) -> Yardsticks:
    """Measure all of them, on every validation character but the first, which no window predicts.

    Compressors count all characters. Raises ValueError when the training part is empty or the validation part has
    fewer than two characters.
    """
    return Yardsticks(
        **counted(train_text, validation_text),
        zlib_alone=_alone(_zlib_size, validation_text),
        zlib_after_train=_after(_zlib_size, train_text, validation_text),
        lzma_alone=_alone(_lzma_size, validation_text),
        lzma_after_train=_after(_lzma_size, train_text, validation_text),
    )


def counted(train_text: str, validation_text: str) -> dict[str, float]:
    """Those that count, by name; no compressor runs. Raises as yardsticks does."""
    if not train_text:
        raise invalid("train_text", got="no characters", wants="at least one")
    if len(validation_text) < 2:
        raise invalid("validation_text", got=f"{len(validation_text)} characters", wants="at least two")
    codes = np.frombuffer((train_text + validation_text).encode("utf-32-le", "surrogatepass"), np.uint32)
    alphabet, ids = np.unique(codes, return_inverse=True)
    size, train, validation = len(alphabet), ids[: len(train_text)], ids[len(train_text) :]
    before, after = validation[:-1], validation[1:]

    counts = np.bincount(train, minlength=size)
    unigram = (counts + 1) / (len(train) + size)
    rows, pairs = _pair_counts(train[:-1], train[1:], before, after, size)
    bigram = (pairs + unigram[after]) / (rows + 1)

    own = np.bincount(after, minlength=size)
    own_rows, own_pairs = _pair_counts(before, after, before, after, size)
    return {
        "uniform": float(np.log2(size)),
        "unigram": _bits(unigram[after]),
        "bigram": _bits(bigram),
        "unigram_oracle": _bits(own[after] / len(after)),
        "bigram_oracle": _bits(own_pairs / own_rows),
    }


def _pair_counts(first, second, asked_first, asked_second, size: int):
    """n(a) and n(a, b) in the pairs (first, second), looked up for each pair asked for."""
    keys, counts = np.unique(first * size + second, return_counts=True)  # a dense table of pairs would be size x size
    asked = asked_first * size + asked_second
    place = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
    pairs = np.where(keys[place] == asked, counts[place], 0) if len(keys) else np.zeros(len(asked), int)
    return np.bincount(first, minlength=size)[asked_first], pairs


def _bits(probabilities) -> float:
    return float(np.log2(1 / probabilities).mean())


def _zlib_size(raw: bytes) -> int:
    return len(zlib.compress(raw, 9))


def _lzma_size(raw: bytes) -> int:
    return len(lzma.compress(raw, preset=6 | lzma.PRESET_EXTREME))  # preset 6: a window of 8 MiB


def _alone(size: Callable[[bytes], int], text: str) -> float:
    return 8 * size(text.encode("utf-8", "surrogatepass")) / len(text)


def _after(size: Callable[[bytes], int], prior: str, text: str) -> float:
    before, both = prior.encode("utf-8", "surrogatepass"), (prior + text).encode("utf-8", "surrogatepass")
    return 8 * (size(both) - size(before)) / len(text)
