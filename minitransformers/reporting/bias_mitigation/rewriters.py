"""Sentences of placeholder words in which some have a neutral form, unless they are names, and what rewrites them.

A sentence has a slot. In half of the templates a title stands before it: there the word is a name, and must stay. Of the words with a neutral form
some are in the lexicon of a rule and in the text that networks learn from, and some are in neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.bias_mitigation.neural_rewriting import greedy_rewriting, init_neural_rewriting, neural_rewriting
from minitransformers.bias_mitigation.rule_rewriting import rewrite
from minitransformers.bias_mitigation.token_rewriter import init_token_rewriter, token_rewriter
from minitransformers.reporting.bias_mitigation.word_quality import interval
from minitransformers.reporting.measures import nats
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled

LENGTH, FILLERS, LISTED, SEEN, STEPS, BATCH, ASKED, UNREAD = 8, 40, 12, 9, 600, 32, 240, 60  # the last: templates that are only asked about
WORDS = ["start", "title", *(f"other{i}" for i in range(FILLERS)), *(f"noun{i}" for i in range(LISTED)), *(f"neutral{i}" for i in range(LISTED))]
IDS = {word: i for i, word in enumerate(WORDS)}
START, TITLE, OTHER, NOUN, NEUTRAL = (IDS[word] for word in ("start", "title", "other0", "noun0", "neutral0"))
LEXICON = {f"noun{i}": f"neutral{i}" for i in range(SEEN)}
KNOWN, NEW, WORD, NONE = "seen templates, seen words", "new templates, seen words", "new templates, new words", "new templates, nothing to change"
SETS = {KNOWN: "known", NEW: "new", WORD: "word", NONE: "none"}  # and what they are called in paths
TOKEN, SEQUENCE = "each token, {} templates", "sequence to sequence, {} templates"
_SIZES: dict[str, Any] = {"d_model": 32, "num_layers": 1, "num_heads": 4, "d_hidden": 64}

Templates = tuple[Array, Array]                              # ids (count, LENGTH) with a slot at a place, places
Sentences = tuple[Array, Array, Array]                       # sources, targets, the numbers of their templates


def templates(rng: np.random.Generator, count: int) -> Templates:
    """Ids with a slot at a place, behind a title in half of them."""
    ids = rng.integers(OTHER, OTHER + FILLERS, size=(count, LENGTH))
    places = rng.integers(1, LENGTH, size=count)
    titled = np.arange(0, count, 2)
    ids[titled, places[titled] - 1] = TITLE
    return ids, places


def sentences(known: Templates, rng: np.random.Generator, count: int, low: int, high: int) -> Sentences:
    """Slots hold the words from low to below high; those from OTHER to below NOUN stay everywhere."""
    ids, places = known
    rows = rng.integers(len(ids), size=count)
    words = rng.integers(low, high, size=count)
    source, at = ids[rows], (np.arange(count), places[rows])
    source[at] = words
    target = source.copy()
    named = source[at[0], at[1] - 1] == TITLE
    target[at] = np.where(named | (words < NOUN), words, words - NOUN + NEUTRAL)
    return source, target, rows


def to_be_asked(seen: Templates, new: Templates, rng: np.random.Generator) -> dict[str, Sentences]:
    """Sentences of each of SETS."""
    ranges = {KNOWN: (seen, NOUN, NOUN + SEEN), NEW: (new, NOUN, NOUN + SEEN), WORD: (new, NOUN + SEEN, NEUTRAL), NONE: (new, OTHER, NOUN)}
    return {name: sentences(known, rng, ASKED, low, high) for name, (known, low, high) in ranges.items()}


def by_rule(source: Array, *, exception: bool) -> Array:
    """What the rule makes of sentences; exception: it leaves names alone."""
    made = []
    for row in source:
        text = " ".join(WORDS[i] for i in row)
        if exception:                                        # what stands in quotation marks is left alone
            text = re.sub(r"title (\w+)", r'title "\1"', text)
        made.append([IDS[word] for word in rewrite(text, lexicon=LEXICON).text.replace('"', "").split()])
    return np.array(made)


# Networks: TOKEN and SEQUENCE -------------------------------------------------------------------------------------------


def logits(way: str, params: Any, inputs: tuple[Array, Array]) -> tuple[Array, Any]:
    """Of each token of the target, which stands one place on behind START; inputs are source and shifted(target)."""
    if way == TOKEN:
        return token_rewriter(params, ids=inputs[0], start=START)
    return neural_rewriting(params, source=inputs[0], target=inputs[1], num_heads=_SIZES["num_heads"])


def shifted(target: Array) -> Array:
    """What a sequence to sequence model has of the target before each of its tokens."""
    return np.concatenate([np.full((len(target), 1), START), target[:, :-1]], axis=1)


def trained(way: str, seen: Templates, rng: np.random.Generator, rate: float, *, quick: bool) -> Any:
    """A network that has learned from sentences of these templates."""
    if way == TOKEN:
        params: Any = init_token_rewriter(rng, vocabulary=len(WORDS), d_model=24, d_hidden=64)
    else:
        params = init_neural_rewriting(rng, vocabulary=len(WORDS), **_SIZES)

    def draw(rng: np.random.Generator) -> tuple[tuple[Array, Array], Array]:
        source, target, _ = sentences(seen, rng, BATCH, NOUN, NOUN + SEEN)
        return (source, shifted(target)), target

    task = Labelled(lambda params, inputs: logits(way, params, inputs), draw)
    return fit(params, task, steps=10 if quick else STEPS, peak=rate, rng=rng)


def lost(way: str, count: int, rng: np.random.Generator, rate: float, *, quick: bool) -> float:
    """What it loses on sentences of new templates after so many: with something to change, and with nothing."""
    seen, new = templates(rng, count), templates(rng, UNREAD)
    params = trained(way, seen, rng, rate, quick=quick)
    tests = [sentences(new, rng, ASKED, low, high) for low, high in ((NOUN, NOUN + SEEN), (OTHER, NOUN))]
    return float(np.mean([nats(logits(way, params, (source, shifted(target)))[0], target) for source, target, _ in tests]))


def written(way: str, params: Any, source: Array) -> Array:
    """What a network makes of sentences."""
    if way == TOKEN:
        return logits(way, params, (source, source))[0].argmax(-1)
    return greedy_rewriting(params, source, start=START, num_tokens=LENGTH, num_heads=_SIZES["num_heads"])


# What is measured -------------------------------------------------------------------------------------------------------


def measured(made: Array, asked: Sentences, rng: np.random.Generator, *, quick: bool) -> dict[str, float]:
    """Shares of sentences that are as they should be, of words to change that became the right ones, of words to stay that did not."""
    source, target, rows = asked
    change, right = source != target, made == target
    columns = np.stack([right.all(-1), (change & right).sum(-1), change.sum(-1), (~change & ~right).sum(-1), (~change).sum(-1)], axis=1)

    def shares(drawn: Array) -> Array:
        exact, changed, to_change, over, to_stay = drawn.sum(axis=0)
        return np.array([exact / len(drawn), changed / max(to_change, 1), over / to_stay])

    found = interval(columns.astype(float), shares, rng, resamples=100 if quick else 500, clusters=rows)
    ends: Mapping[str, Array] = {"": found.estimate, " low": found.low, " high": found.high}
    return {name + end: float(values[i]) for i, name in enumerate(("exact", "right", "over")) for end, values in ends.items()}
