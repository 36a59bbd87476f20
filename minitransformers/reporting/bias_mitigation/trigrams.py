"""A model of words that counts: trigrams of Python's reference, and sequences of it that are banned, for sections on decoding."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
from numpy import ndarray as Array
from scipy.sparse import csr_array

from minitransformers.bias_mitigation.constrained_decoding import BannedSequences, banned_sequences
from minitransformers.training.text import python_reference

VOCABULARY, SHARES = 1500, (0.6, 0.3, 0.1)                   # of three words, of two, of one


class Trigrams:
    """Probabilities of the next word from counts of one, two and three words."""

    def __init__(self, ids: Array) -> None:
        self.one = (np.bincount(ids, minlength=VOCABULARY) + 0.5) / (len(ids) + 0.5 * VOCABULARY)
        self.after: list[tuple[Array, Any]] = []             # what was seen before a word, and a row of counts for each; none in the last
        for seen in (ids[1:-1], ids[:-2] * VOCABULARY + ids[1:-1]):
            known, rows = np.unique(seen, return_inverse=True)
            self.after.append((known, csr_array((np.ones(len(rows)), (rows, ids[2:])), shape=(len(known) + 1, VOCABULARY))))

    def log_probabilities(self, pairs: Array) -> Array:
        """After each two words: (texts, vocabulary)."""
        found, total = SHARES[2] * self.one, np.full((len(pairs), 1), SHARES[2])
        for share, (known, counts), seen in zip(SHARES[1::-1], self.after, (pairs[:, 1], pairs[:, 0] * VOCABULARY + pairs[:, 1]), strict=True):
            place = np.minimum(np.searchsorted(known, seen), len(known) - 1)
            rows = counts[np.where(known[place] == seen, place, len(known))].toarray()
            number = rows.sum(axis=1, keepdims=True)
            found, total = found + share * rows / np.maximum(number, 1), total + share * (number > 0)
        return np.log(found / total)

    def nats(self, texts: Array) -> Array:
        """A word of each text, after the first two."""
        rows = [self.log_probabilities(texts[:, place - 2 : place])[np.arange(len(texts)), texts[:, place]] for place in range(2, texts.shape[1])]
        return -np.mean(rows, axis=0)

    def step(self, ids: Array, state: Array | None) -> tuple[Array, Array]:
        """Logits of all places, as beam search asks for them; state is the last word, and nothing stands before a text."""
        seen = np.concatenate([np.zeros((len(ids), 1), int) if state is None else state, ids], axis=1)
        return np.stack([self.log_probabilities(seen[:, place : place + 2]) for place in range(ids.shape[1])], axis=1), seen[:, -1:]


@cache
def halves(length: int | None = None) -> tuple[Array, Array, list[str]]:
    """The ids of both halves of the text, or of its first words alone, and what each id spells."""
    tokens = re.findall(r"[a-z_]+|[^\sa-z_]", python_reference().lower())
    words = ["<other>", *(word for word, _ in Counter(tokens).most_common(VOCABULARY - 1))]
    place = {word: i for i, word in enumerate(words)}
    first, second = np.array_split(np.array([place.get(token, 0) for token in tokens[:length]]), 2)
    return first, second, words


def drawn_bans(rng: np.random.Generator, ids: Array, words: list[str]) -> BannedSequences:
    """Twenty words and as many longer sequences among the frequent ones, of letters alone."""
    plain = [i for i, word in enumerate(words) if word.isalpha() and len(word) > 3][:60]
    found = [[int(word)] for word in rng.choice(plain, 20, replace=False)]
    for length, few in ((2, 12), (3, 8)):
        runs = Counter(map(tuple, np.lib.stride_tricks.sliding_window_view(ids, length).tolist()))
        often = [run for run, _ in runs.most_common(400) if all(words[word].isalpha() for word in run)]
        found += [list(often[place]) for place in rng.choice(min(40, len(often)), few, replace=False)]
    return banned_sequences(found, vocabulary=VOCABULARY)


def violated(texts: Array, banned: BannedSequences) -> Array:
    """Of each text, whether a banned sequence comes up in it."""
    state, found = np.zeros(len(texts), int), np.zeros(len(texts), bool)
    for place in range(texts.shape[1]):
        state = banned.next[state, texts[:, place]]
        found |= banned.accept[state]
    return found
