"""Ways to train a model of sentences about occupations, learned with equal updates and asked alike.

A gap is the mean |log p/p'| of two pronouns over occupations. Beside it stand nats of tokens that are no pronouns, on sentences as they were found.
One arm trains nothing: what both pronouns of the model that read them as found have together is shared evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.bias_mitigation.balance_pairs import balance_pairs
from minitransformers.bias_mitigation.neutralising import NEUTRAL, NEUTRAL_TAGGED, neutral_map, neutralise_words
from minitransformers.reporting.bias_mitigation import occupations as of
from minitransformers.reporting.bias_mitigation.word_quality import interval, span
from minitransformers.reporting.seeds import Found, tried
from minitransformers.reporting.tables import mean_and_spread
from minitransformers.training.fit import fit

TEXTS, ASKED, STEPS, BATCH = 3000, 600, 300, 64              # sentences; those asked about
PLAIN, SHARED = "as found", "shared evenly at decoding"
HEADS = ("gap (95 %)", "nats a token (95 %)", "more than as found (95 %)", "nats, right pronoun", "divergence behind", "mass of both")
_MEASURES = ("gap", "nats", "told", "behind", "mass", "nats more")


def _as_found(texts: of.Texts, rng: np.random.Generator) -> list[list[str]]:
    return texts.tokens


class Arm(NamedTuple):
    """What is read of the sentences that were found, a term of the loss, whether it reads counterfactuals, and a token that is set when it is asked."""

    read: Callable[[of.Texts, np.random.Generator], list[list[str]]] = _as_found
    term: Callable | None = None
    twice: bool = False
    control: str | None = None


class Learned(NamedTuple):
    """An arm by name, with its parameters and what was measured of it."""

    name: str
    params: Any
    numbers: dict[str, float]


def drawn(rng: np.random.Generator, *, quick: bool) -> tuple[of.Texts, of.Texts]:
    """Sentences to read and sentences to be asked about, of one language."""
    language = of.language(rng)
    texts, asked = (language(rng, count // 10 if quick else count) for count in (TEXTS, ASKED))
    return texts, asked


def neutral_words(texts: of.Texts) -> list[list[str]]:
    """The sentences without words for either group."""
    table = neutral_map(NEUTRAL, tagged=NEUTRAL_TAGGED)
    return [neutralise_words(text, tags, neutral=table) for text, tags in zip(texts.tokens, texts.tags, strict=True)]


def _task(arm: Arm, texts: of.Texts, rng: np.random.Generator) -> of.Reading:
    return of.Reading(arm.read(texts, rng), batch=BATCH, term=arm.term, others=of.after_swap(texts) if arm.twice else None)


def _trained(arm: Arm, texts: of.Texts, rng: np.random.Generator, rate: float, *, quick: bool) -> Any:
    return fit(of.fresh(rng), _task(arm, texts, rng), steps=5 if quick else STEPS, peak=rate, rng=rng)


def losses(arms: Mapping[str, Arm], rng: np.random.Generator, *, quick: bool) -> Iterator[tuple[str, float, dict[str, float]]]:
    """What a tuning yields: an arm's own loss, on unread sentences that it is given as it was given those it read."""

    def lost(name: str, rng: np.random.Generator, rate: float) -> float:
        texts, asked = drawn(rng, quick=quick)
        params, task = _trained(arms[name], texts, rng, rate, quick=quick), _task(arms[name], asked, rng)
        (total, count), _ = task.loss(params, (task.ids, task.targets, task.others), rng=rng)
        return float(total / count)

    yield from tried(lost, arms, (1e-2,) if quick else (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), rng)


def learned(
    arms: Mapping[str, Arm], texts: of.Texts, asked: of.Texts, rates: Mapping[str, float], rng: np.random.Generator, *, quick: bool
) -> Iterator[Learned]:
    """Each arm learned and asked; PLAIN is the first, and SHARED, which is made of it, follows it."""
    plain: of.Expected | None = None
    for name, arm in arms.items():
        params = _trained(arm, texts, rng, rates[name], quick=quick)
        log_probs = of.reader(params, control=arm.control)
        found = of.expected(log_probs, asked)
        plain = plain or found
        yield Learned(name, params, _measured(found, plain, rng, quick=quick))
        if name == PLAIN:
            yield Learned(SHARED, params, _measured(of.expected(_evenly(log_probs), asked), plain, rng, quick=quick))


def _evenly(log_probs: Callable[[Sequence[Sequence[str]]], Array]) -> Callable[[Sequence[Sequence[str]]], Array]:
    return lambda some: balance_pairs(log_probs(some), sets=of.PAIR_IDS.tolist())


def _measured(found: of.Expected, plain: of.Expected, rng: np.random.Generator, *, quick: bool) -> dict[str, float]:
    resamples = 100 if quick else 500
    gaps = interval(found.gaps, lambda some: some.mean(), rng, resamples=resamples)
    rows = np.stack([*found.nats.T, plain.nats[:, 0]], axis=1)

    def a_token(some: Array) -> Array:
        return np.array([some[:, 0].sum(), (some[:, 0] - some[:, 2]).sum()]) / some[:, 1].sum()

    nats = interval(rows, a_token, rng, resamples=resamples)
    ends = [(end, getattr(gaps, field), *getattr(nats, field)) for end, field in (("", "estimate"), (" low", "low"), (" high", "high"))]
    each = {name + end: float(values[i]) for end, *values in ends for i, name in enumerate(("gap", "nats", "nats more"))}
    return each | {"told": found.told, "behind": found.behind, "mass": found.mass}


# What a section says of them --------------------------------------------------------------------------------------------


def at(found: Found, measure: str, name: str) -> Any:
    """A measure of an arm."""
    return found[measure][name][0]


def told(found: Found, measure: str, *names: str, form: str = ".2f") -> str:
    """A measure of some arms in words."""
    return ", ".join(f"{name} {mean_and_spread(at(found, measure, name), form)}" for name in names)


def bought(found: Found, name: str, part: float) -> bool:
    """Whether the gap is at most this part of what it is as found, for at most 0.05 nats a token."""
    return at(found, "gap", name) <= part * at(found, "gap", PLAIN) and at(found, "nats more", name) <= 0.05


def row(found: Found, name: str) -> list[str]:
    """An arm's cells under HEADS."""
    own = {measure: at(found, measure, name) for measure in found if name in found[measure] and 0 in found[measure][name]}
    spans = [span(own, measure, form) for measure, form in (("gap", ".2f"), ("nats", ".3f"), ("nats more", "+.3f"))]
    return [*spans, *(mean_and_spread(own[measure], form) for measure, form in (("told", ".2f"), ("behind", ".4f"), ("mass", ".2f")))]


def means(found: Found, name: str) -> dict[str, float]:
    """The numbers of an arm for the pages."""
    return {measure.replace(" ", "_"): np.mean(at(found, measure, name)) for measure in _MEASURES}


def draw(ax: Any, found: Found, names: Iterable[str]) -> None:
    """Gaps beside what they cost."""
    for i, name in enumerate(names):
        ax.plot(np.mean(at(found, "nats", name)), np.mean(at(found, "gap", name)), "o" if i < 8 else "s", color=f"C{i % 8}", label=name)
    ax.set(xlabel="nats a token that is no pronoun", ylabel="gap, mean |log p/p'|", ylim=(-0.05, None))
    ax.legend(fontsize=7, loc="center")                      # gaps lie near those of the text, or near 0
