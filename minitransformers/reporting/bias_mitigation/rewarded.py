"""A policy that writes symbols, each by the one before it, some of them flagged; how it learns from rewards; and exact sums over all its texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.bias_mitigation.constrained_decoding import ban, banned_sequences
from minitransformers.bias_mitigation.policy_gradient_loss import leave_one_out_advantages, policy_gradient_loss
from minitransformers.compression.reverse_kl import reverse_kl
from minitransformers.training.fit import fit
from minitransformers.training.schedule import warmup_cosine
from minitransformers.training.task import Loss, Task

SYMBOLS, FLAGGED, LENGTH, TEXTS, START = 20, 2, 12, 64, 20   # the last row of a policy's table is the start


def drawn_reference(rng: np.random.Generator) -> Array:
    """Logits of each symbol after each, and at the start: flagged symbols are a little likelier than others."""
    table = rng.normal(size=(SYMBOLS + 1, SYMBOLS))
    table[:, :FLAGGED] += 0.3
    return table


def masked(table: Array) -> Array:
    """The table whose flagged symbols are banned, each alone."""
    before = np.arange(SYMBOLS + 1)[:, None] % SYMBOLS       # what came before makes no difference
    return ban(table, before, banned=banned_sequences([[symbol] for symbol in range(FLAGGED)], vocabulary=SYMBOLS))


# How it learns
def write(table: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Texts of a policy, and the symbol before each symbol."""
    steps, before = np.cumsum(np.exp(log_softmax(table)[0]), axis=-1), np.full((TEXTS, LENGTH + 1), START)
    for i in range(LENGTH):
        reached = steps[before[:, i]] < rng.random((TEXTS, 1))
        before[:, i + 1] = np.minimum(reached.sum(axis=-1), SYMBOLS - 1)
    return before[:, 1:], before[:, :-1]


class Rewarded(Task):
    """Minus the mean reward of a text, worth for each symbol, with a price for each nat of divergence from the reference where one was written."""

    def __init__(self, reference: Array, worth: Array, price: float) -> None:
        self.reference, self.worth, self.price = reference, worth, price

    def loss(self, params: Embedding, batch: None, *, rng: np.random.Generator) -> Loss:
        """Of texts that the policy writes now: a number whose gradient is an estimate of that of the mean."""
        texts, before = write(params.weight, rng)
        logits, table_backward = embedding(params, ids=before)
        to_come = np.cumsum(self.worth[texts][:, ::-1], axis=1)[:, ::-1]
        value, reward_backward = policy_gradient_loss(logits, sampled=texts, advantages=leave_one_out_advantages(to_come))
        apart, apart_backward = reverse_kl(logits, teacher=self.reference[before], reduction="sum")

        def backward(dtotal: Any) -> Embedding:
            return table_backward(reward_backward(dtotal[0]) + apart_backward(dtotal[0] * self.price / TEXTS))

        return (value + self.price / TEXTS * apart, 1), backward


def learned(task: Rewarded, rng: np.random.Generator, *, steps: int, rate: float, plain: bool) -> Array:
    """The table after so many updates from the reference, by Adam or by plain steps."""
    params = Embedding(task.reference)
    if not plain:
        return fit(params, task, steps=steps, peak=rate, rng=rng, clip=None).weight
    for step in range(1, steps + 1):
        _, backward = task.loss(params, None, rng=rng)
        params = Embedding(params.weight - warmup_cosine(step, peak=rate, steps=steps, warmup=steps // 10) * backward((np.float64(1), None)).weight)
    return params.weight


# Exact sums
def frequencies(table: Array) -> Array:
    """How often a text is in each state before each of its symbols: (length, states)."""
    found = [np.eye(SYMBOLS + 1)[START]]
    for _ in range(LENGTH - 1):
        found.append(np.append(found[-1] @ np.exp(log_softmax(table)[0]), 0))
    return np.array(found)


def earned(table: Array, worth: Array) -> float:
    """The mean worth of a symbol that the policy writes."""
    return float(frequencies(table).mean(axis=0) @ np.exp(log_softmax(table)[0]) @ worth)


def judged(table: Array, reference: Array) -> dict[str, float]:
    """Of a policy, a mean over all symbols of all texts."""
    log_p, log_r = log_softmax(table)[0], log_softmax(reference)[0]
    p, states = np.exp(log_p), frequencies(table).mean(axis=0)
    possible = np.where(p > 0, log_p, 0)
    each = states @ p                                        # how often each symbol is written
    clean = masked(reference)
    clean_p, clean_states = np.exp(log_softmax(clean)[0]), frequencies(clean).mean(axis=0)
    return {
        "flagged": each[:FLAGGED].sum(), "divergence": states @ (p * (possible - log_r)).sum(axis=-1), "entropy": -states @ (p * possible).sum(axis=-1),
        "effective": np.exp(-(each * np.log(np.maximum(each, 1e-300))).sum()), "clean": -clean_states @ (clean_p * np.where(clean_p > 0, log_p, 0)).sum(axis=-1),
    }  # fmt: skip
