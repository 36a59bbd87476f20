"""Models that count, each on what the last wrote: sentences of an occupation, a pronoun and a word, and what becomes of a lean in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.bias_mitigation.amplification_loop import count_model, next_generation
from minitransformers.bias_mitigation.bootstrap import bootstrap_interval
from minitransformers.models.decoding import next_token_probabilities
from minitransformers.reporting.seeds import Found
from minitransformers.reporting.tables import mean_and_spread

SENTENCES, ROUNDS, LOOPS, JOBS, WORDS = 2000, 5, 20, 10, 30  # fewer than 20 loops make no interval
SIZES, PRONOUNS = (JOBS, 2, WORDS), ("she", "he")
SHARES, ZIPF = np.linspace(0.2, 0.8, JOBS), 1 / np.arange(1, WORDS + 1)
COLUMNS = ("written", "gap, first", "after 1", "after 3", "after 5", "middle 95 %", "rarer pronoun", "words", "nats of real text")
MEASURES = ("gap", "rarer", "words", "nats")
_FORMS = (("rarer", ".3f"), ("words", ".1f"), ("nats", ".3f"))


def alone(written: Array, first: Array) -> Array:
    """The next generation learns from what the last wrote, and from nothing else."""
    return written


class Written(NamedTuple):
    """How a generation writes, settings of next_token_probabilities, and what the next learns from, of what was written and the first sentences."""

    settings: Mapping[str, Any]
    kept: Callable[[Array, Array], Array] = alone


def real(rng: np.random.Generator, sentences: int) -> Array:
    """Occupations, alike; pronouns by the occupation's share; words by Zipf's law."""
    job = rng.integers(JOBS, size=sentences)
    pronoun = (rng.random(sentences) < SHARES[job]).astype(int)
    return np.stack([job, pronoun, rng.choice(WORDS, p=ZIPF / ZIPF.sum(), size=sentences)], axis=1)


def measured(sentences: Array, asked: Array) -> dict[str, Any]:
    """MEASURES of the model that has counted these sentences; the nats are those of the sentences that it is asked for."""
    pronoun, word = count_model(sentences, sizes=SIZES)
    spoken = np.exp(word).mean(0)                            # the words after both pronouns, alike
    return {
        "gap": np.abs(pronoun[:, 0] - pronoun[:, 1]).mean(),
        "rarer": np.exp(pronoun).min(-1).mean(),
        "words": np.exp(-(spoken * np.log(spoken)).sum()),
        "nats": -(pronoun[asked[:, 0], asked[:, 1]] + word[asked[:, 1], asked[:, 2]]).mean(),
    }


def loop(way: Written, rng: np.random.Generator, *, sentences: int = SENTENCES) -> Iterator[dict[str, Any]]:
    """What is measured of each generation, from the first, which has read real sentences."""
    first, asked = (real(rng, sentences) for _ in range(2))
    read = way.kept(first, first)
    yield measured(first, asked)
    for _ in range(ROUNDS):
        written = next_generation(read, sizes=SIZES, rng=rng, probabilities=partial(next_token_probabilities, **way.settings))
        read = way.kept(written, first)
        yield measured(read, asked)


def generations(way: Written, rng: np.random.Generator, *, quick: bool) -> Iterator[tuple[int, dict[str, float]]]:
    """Of each generation the means over loops; "low" and "high" of the gap's; how little it grew and how far it drifted in any of them."""
    loops = [list(loop(way, rng, sentences=200 if quick else SENTENCES)) for _ in range(LOOPS)]
    start = np.array([each[0]["gap"] for each in loops])
    for step in range(ROUNDS + 1):
        found = {measure: np.array([each[step][measure] for each in loops]) for measure in MEASURES}
        interval = bootstrap_interval(found["gap"], statistic=np.mean, rng=rng, resamples=100 if quick else 2000)
        ends = {"low": interval.low, "high": interval.high}
        ends |= {"least growth": (found["gap"] / start).min(), "drift": np.abs(found["gap"] - start).max()}
        yield step, {measure: values.mean() for measure, values in found.items()} | ends


def told(found: Found, *names: str, measure: str = "gap", form: str = ".2f") -> str:
    """A measure of the first generation and of the last, by way."""
    both = {name: [mean_and_spread(found[measure][name][step], form) for step in (0, ROUNDS)] for name in names}
    return "; ".join(f"{name}: {' to '.join(ends)}" for name, ends in both.items())


def rows(found: Found, names: Iterable[str], first: str) -> Iterator[list[str]]:
    """Rows of COLUMNS: each way, the first generation of one of them, and a uniform guess."""

    def beside(name: str, step: int) -> list[str]:
        return [mean_and_spread(found[measure][name][step], form) for measure, form in _FORMS]

    for name in names:
        gaps = [mean_and_spread(found["gap"][name][step], ".2f") for step in (0, 1, 3, ROUNDS)]
        ends = "{:.2f} to {:.2f}".format(*(np.mean(found[end][name][ROUNDS]) for end in ("low", "high")))
        yield [name, *gaps, ends, *beside(name, ROUNDS)]
    yield ["first generation", mean_and_spread(found["gap"][first][0]), *[""] * 4, *beside(first, 0)]
    yield ["uniform guess", *[""] * 7, f"{np.log(2 * WORDS):.3f}"]
