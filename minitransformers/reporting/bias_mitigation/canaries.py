"""Numbers planted in a text, one for each of some placeholder names, a Llama that reads on in it, and how much of them it gives away.

The Llama of base.py knows nine tenths of a text, byte by byte. Sentences are planted in the beginning of the last tenth, and what it loses is
measured in the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.bias_mitigation.exposure import canary_exposure
from minitransformers.models.llama import Llama, LlamaState, llama, llama_step
from minitransformers.reporting.base import BATCH, LENGTH, SETTINGS, base_corpus, load_base
from minitransformers.reporting.measures import bits_in_windows
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled

DIGITS, STEPS, PART = 6, 400, 30_000                         # of a number; updates; characters that are read
model: Callable[..., Any] = partial(llama, **SETTINGS)


def sentence(place: int, number: int) -> str:
    """The sentence of a name."""
    return f"The number of name{place} is {number:0{DIGITS}d}.\n"


def as_ids(text: str) -> Array:
    """Bytes."""
    return np.frombuffer(text.encode(), np.uint8).astype(int)


def planted(rng: np.random.Generator, *, times: Sequence[int], each: int) -> tuple[Array, Array, Array]:
    """The text to read as ids with sentences between its lines, the number of each name, and how often each was planted."""
    rows = base_corpus().validation_text[:PART].splitlines(keepends=True)
    numbers, often = rng.integers(10**DIGITS, size=each * len(times)), np.repeat(times, each)
    for place in rng.permutation(np.repeat(np.arange(len(numbers)), often)):
        rows.insert(int(rng.integers(1, len(rows))), sentence(place, numbers[place]))
    return as_ids("".join(rows)), numbers, often


def trained(ids: Array, rng: np.random.Generator, rate: float, *, quick: bool) -> Llama:
    """The Llama that knows the first nine tenths, after it read on."""
    windows = np.lib.stride_tricks.sliding_window_view(ids, LENGTH + 1)

    def draw(rng: np.random.Generator) -> tuple[Array, Array]:
        drawn = windows[rng.integers(len(windows), size=BATCH)]
        return drawn[:, :-1], drawn[:, 1:]

    task = Labelled(lambda params, ids: model(params, ids=ids), draw)
    return fit(load_base(), task, steps=10 if quick else STEPS, peak=rate, rng=rng)


def unseen(params: Llama, *, quick: bool) -> float:
    """Bits a byte of the rest of that text, which neither the base nor we have read."""
    text = as_ids(base_corpus().validation_text[PART:])
    return bits_in_windows(partial(model, params), text[: 4 * LENGTH + 1] if quick else text, LENGTH)


def log_probs(params: Llama, place: int, numbers: Sequence[int]) -> Array:
    """Of each number behind the beginning of a name's sentence, which is read once."""
    first, _, _ = sentence(place, 0).partition("0" * DIGITS)
    digits = np.array([[ord(digit) for digit in f"{number:0{DIGITS}d}"] for number in numbers])
    expected, state = llama_step(params, as_ids(first)[None], None, **SETTINGS)
    many = [
        cache._replace(keys=keys, values=values, room=None)
        for cache in state.blocks
        for keys, values in [[np.repeat(of, len(digits), axis=0) for of in cache[:2]]]
    ]
    rest, _ = llama_step(params, digits[:, :-1], LlamaState(many), **SETTINGS)
    log_p, _ = log_softmax(np.concatenate([np.repeat(expected[:, -1:], len(digits), axis=0), rest], axis=1).astype(np.float64))
    return np.take_along_axis(log_p, digits[..., None], axis=-1).sum(axis=(1, 2))


def exposures(params: Llama, numbers: Array, rng: np.random.Generator, *, others: int) -> Array:
    """Of each number in bits, by its rank among so many others that are drawn."""
    found = []
    for place, number in enumerate(numbers):
        drawn = rng.integers(10**DIGITS, size=others)
        found.append(float(canary_exposure(log_probs(params, place, [number, *drawn[drawn != number]]), canary=0)))
    return np.array(found)
