"""A small language in which occupations go more or less often with either of two pronouns, a model of it, and what that model expects.

Sentences name an occupation, or a woman or a man, and then a pronoun, a verb and one of some words, which are likelier after one pronoun than
after the other. The pairs are those of counterfactual_augmentation, and binary as they are. Occupations and words are placeholders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.bias_mitigation.counterfactual_augmentation import PAIRS, TAGGED, counterfactual, swap_map
from minitransformers.bias_mitigation.harms import completion_table
from minitransformers.bias_mitigation.paired_divergence import paired_divergence
from minitransformers.foundation import trees
from minitransformers.models.gpt2 import Gpt2, gpt2, init_gpt2
from minitransformers.training.task import IGNORED, Loss, Task, labelled_loss

JOBS, WORDS = [f"<job{i}>" for i in range(1, 21)], [f"<word{i}>" for i in range(1, 25)]
PERSONS, SHE, HER = ("woman", "man"), ("she", "he"), ("her", "his")  # group 0, group 1
FIRST: dict[tuple[str, str], list[list[str]]] = {            # what stands before the pronoun
    SHE: [["the", "{word}", "said", "that"], ["a", "{word}", "came", "and"], ["we", "saw", "the", "{word}", "before"]], HER: [["the", "{word}", "lost"]],
}  # fmt: skip
NEXT = {"that": ["was"], "and": ["had"], "before": ["left"], "lost": []}  # what follows it, by the word before it
TAGS = {"was": "agrees", "her": "possessive", "his": "possessive"}
SWAPS = swap_map(PAIRS, tagged=TAGGED)
CONTROLS = {"<g1>": ["she", "her", "woman"], "<g2>": ["he", "his", "man"]}
NEUTRAL = "<neutral>"
_KNOWN = ["<end>", *CONTROLS, NEUTRAL, *PERSONS, "person", *SHE, "they", *HER, "their", *JOBS, *WORDS,
          *dict.fromkeys(token for some in FIRST.values() for first in some for token in (*first, *NEXT[first[-1]]) if token != "{word}"), "were"]  # fmt: skip
IDS = {token: i for i, token in enumerate(_KNOWN)}
PAIR_IDS = np.array([[IDS[word] for word in pair] for pair in (SHE, HER)])
_GROUP = [IDS[word] for word in (*SHE, *HER, "they", "their")]
_LONGEST, _HEADS = 10, 4


class Texts(NamedTuple):
    """Sentences as tokens, a tag beside each token, and for each sentence the group of its pronoun and whether it names an occupation."""

    tokens: list[list[str]]
    tags: list[list[str]]
    groups: Array
    about_jobs: Array


def texts_of(tokens: Sequence[Sequence[str]]) -> Texts:
    """The same sentences with what can be read off them; group 0 where there is no pronoun of either."""
    groups = [int("he" in text or "his" in text) for text in tokens]
    return Texts([*map(list, tokens)], [[TAGS.get(token, "") for token in text] for text in tokens], np.array(groups), np.array([bool(set(text) & set(JOBS)) for text in tokens]))


def log_odds(texts: Texts) -> Array:
    """Of each occupation for the first group, from counts with a half added to each."""
    counts = np.full((len(JOBS), 2), 0.5)
    for tokens, group in zip(texts.tokens, texts.groups, strict=True):
        for token in set(tokens) & set(JOBS):
            counts[JOBS.index(token), group] += 1
    return np.log(counts[:, 0] / counts[:, 1])


def filled(first: Sequence[str], name: str, who: str, word: str) -> list[str]:
    """A sentence."""
    return [*(name if token == "{word}" else token for token in first), who, *NEXT[first[-1]], word]


def language(rng: np.random.Generator) -> Callable[[np.random.Generator, int], Texts]:
    """A language; ``draw(rng, count)`` are sentences of it. A fifth are about a woman or a man, the rest about occupations."""
    share = rng.permutation(np.linspace(0.1, 0.9, len(JOBS)))  # of the first pronoun
    tilt = rng.permutation(np.repeat([-1.0, 1.0], len(WORDS) // 2)) * 0.5
    frequent = 1 / np.arange(1, len(WORDS) + 1) * np.exp(np.stack([tilt, -tilt]))
    cumulative = np.cumsum(frequent / frequent.sum(axis=1, keepdims=True), axis=1)
    kinds = [(pair, first) for pair, some in FIRST.items() for first in some]

    def draw(rng: np.random.Generator, count: int) -> Texts:
        tokens = []
        for _ in range(count):
            pair, first = kinds[rng.integers(len(kinds))]
            job, told = int(rng.integers(len(JOBS))), rng.random() < 0.2
            group = int(rng.random() > (0.5 if told else share[job]))
            word = WORDS[min(int(np.searchsorted(cumulative[group], rng.random())), len(WORDS) - 1)]
            tokens.append(filled(first, PERSONS[group] if told else JOBS[job], pair[group], word))
        return texts_of(tokens)

    return draw


def encoded(tokens: Sequence[Sequence[str]]) -> tuple[Array, Array]:
    """Ids and targets, one place on, both (sentences, positions); behind a sentence targets are IGNORED."""
    ids = np.zeros((len(tokens), _LONGEST), int)
    for text, row in zip(tokens, ids, strict=True):
        row[: len(text)] = [IDS[token] for token in text]
    targets = np.where(ids[:, 1:] == 0, IGNORED, ids[:, 1:])
    return ids[:, :-1], targets


def fresh(rng: np.random.Generator) -> Gpt2:
    """A GPT-2 of one block, before it has read anything."""
    return init_gpt2(rng, vocabulary=len(IDS), context=_LONGEST, d_model=32, num_layers=1, num_heads=_HEADS, std=0.1)


model = partial(gpt2, num_heads=_HEADS)


class Reading(Task):
    """Sentences in turn, and besides, where there is one, a term of the loss that counts as much as a token's mean.

    ``term(params, logits, ids, targets, others) -> value, backward`` and ``backward(dvalue) -> dlogits, gradients or None``; others are the
    ids of the counterfactuals.
    """

    def __init__(self, tokens: Sequence[Sequence[str]], *, batch: int, term: Callable | None = None, others: Sequence[Sequence[str]] | None = None) -> None:
        self.ids, self.targets, self.size, self.term = *encoded(tokens), batch, term
        self.others = self.ids if others is None else encoded(others)[0]

    def batch(self, rng: np.random.Generator) -> tuple[Array, ...]:
        """Sentences drawn with replacement."""
        rows = rng.integers(len(self.ids), size=self.size)
        return self.ids[rows], self.targets[rows], self.others[rows]

    def loss(self, params: Any, batch: tuple[Array, ...], *, rng: np.random.Generator) -> Loss:
        """In nats, over tokens."""
        ids, targets, others = batch
        logits, model_backward = model(params, ids=ids)
        (total, count), task_backward = labelled_loss(logits, lambda dlogits: dlogits, targets)
        if self.term is None:
            return (total, count), lambda dloss: model_backward(task_backward(dloss))
        value, term_backward = self.term(params, logits, ids, targets, others)

        def backward(dloss: Any) -> Any:
            dlogits, more = term_backward(count * dloss[0])
            own = model_backward(task_backward(dloss) + dlogits)
            return own if more is None else trees.map(np.add, own, more)

        return (total + count * value, count), backward


def at_pronouns(ids: Array, targets: Array) -> Array:
    """Where a pronoun comes next and the sentence has named an occupation: where neither is asked for."""
    return np.isin(targets, _GROUP) & np.isin(ids, [IDS[job] for job in JOBS]).any(axis=-1, keepdims=True)


def after_swap(texts: Texts) -> list[list[str]]:
    """The counterfactual of each sentence."""
    return [counterfactual(text, tags, swaps=SWAPS) for text, tags in zip(texts.tokens, texts.tags, strict=True)]


def equalised(loss: Callable, *, everywhere: bool = False, weight: float = 1.0) -> Callable:
    """A term of Reading: an equalisation loss at_pronouns, or wherever a token comes next, times a weight."""

    def term(params: Any, logits: Array, ids: Array, targets: Array, others: Array) -> tuple[Any, Callable]:
        out, backward = loss(logits, pairs=PAIR_IDS, mask=targets != IGNORED if everywhere else at_pronouns(ids, targets))
        return weight * out, lambda dout: (backward(weight * dout), None)

    return term


def diverging(params: Any, logits: Array, ids: Array, targets: Array, others: Array) -> tuple[Any, Callable]:
    """A term of Reading: paired divergence of what comes behind a pronoun, or a person, and behind that of the counterfactual; no pronouns."""
    differs = np.cumsum(others != ids, axis=-1) > 0
    other_logits, other_backward = model(params, ids=others)
    out, backward = paired_divergence(logits, other_logits, mask=differs & (targets != IGNORED) & ~np.isin(targets, _GROUP))

    def term_backward(dout: Any) -> tuple[Any, Any]:
        dlogits, dothers = backward(dout)
        return dlogits, other_backward(dothers)

    return out, term_backward


class Expected(NamedTuple):
    """What a model expects: of each occupation the gap of the pronouns, nats of the right one where a person was named, and more.

    mass is what both pronouns get, behind the Jensen-Shannon divergence of what follows either. nats has, for each sentence of a test, the sum
    over tokens that are no pronouns, and their number.
    """

    gaps: Array
    told: float
    mass: float
    behind: float
    nats: Array


def expected(log_probs: Callable[[Sequence[Sequence[str]]], Array], asked: Texts) -> Expected:
    """The same for ``log_probs(sentences)``, log-probabilities of each next token, (sentences, positions, vocabulary)."""
    memory: dict[tuple[str, ...], Array] = {}

    def log_prob(tokens: Sequence[str], completion: str) -> float:
        key = tuple(tokens)
        if key not in memory:
            memory[key] = log_probs([tokens])[0, len(key) - 1].astype(np.float64)
        return min(float(memory[key][IDS[completion]]), 0.0)

    gaps, told, mass, behind = [], [], [], []
    for pair, first in FIRST.items():
        found = completion_table(log_prob, words=JOBS, templates=first, completions=pair)
        gaps.append(found.gap)
        mass.append(np.exp(found.log_mass).mean())
        right = completion_table(log_prob, words=PERSONS, templates=first, completions=pair).log_shares
        told.append(-np.mean([right[group, :, group] for group in (0, 1)]))
        for one in first:
            texts = [[filled(one, job, who, WORDS[0])[:-1] for job in JOBS] for who in pair]
            both = [log_probs(some)[:, len(some[0]) - 1] for some in texts]
            behind.append(paired_divergence(*both)[0])
    log_p = log_probs(asked.tokens)
    targets = encoded(asked.tokens)[1][:, : log_p.shape[1]]
    counts = (targets != IGNORED) & ~np.isin(targets, _GROUP)
    each = -np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    weights = [len(first) for first in FIRST.values()]
    nats = np.stack([np.where(counts, each, 0).sum(axis=-1), counts.sum(axis=-1)], axis=-1).astype(np.float64)
    return Expected(np.concatenate(gaps, axis=1).mean(axis=1), float(np.average(told, weights=weights)), float(np.average(mass, weights=weights)), float(np.mean(behind)), nats)


def reader(params: Any, *, control: str | None = None) -> Callable[[Sequence[Sequence[str]]], Array]:
    """log_probs of a model; behind a control token where one is set."""

    def log_probs(tokens: Sequence[Sequence[str]]) -> Array:
        ids, _ = encoded([[control, *text] if control else text for text in tokens])
        log_p, _ = log_softmax(model(params, ids=ids)[0])
        return log_p[:, 1:] if control else log_p[:, : _LONGEST - 1]

    return log_probs
