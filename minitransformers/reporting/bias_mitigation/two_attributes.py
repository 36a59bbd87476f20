"""A language of occupations with two attributes, a small model that has learned it, and what is measured of such a model.

A text is an occupation and one of three templates; what follows is a word of attribute A, a word of attribute B, or one of the fillers, by
template. How often an occupation goes with the first word of an attribute is its share. All probabilities are known, so that gaps and nats are
sums over occupations and no samples. What is done to the model sees some of the occupations; the others tell whether more has been learned than those.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.bias_mitigation.debiasing_adapter import StackedAdapters, debiasing_adapter
from minitransformers.compression.gated_neurons import NeuronGates, gated_neurons
from minitransformers.foundation import Backward, slot
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.reporting.bias_mitigation.word_quality import interval
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled

OCCUPATIONS, SEEN, FILLERS, BATCH = 36, 24, 20, 128
A, B, TEXT = range(3)                                        # templates; the words of A are 0 and 1, those of B 2 and 3
WORDS, WIDTH, HIDDEN = 4 + FILLERS, 16, 64
MEASURES = ("gap A", "gap B", "nats")                        # those of by_occupation


def language(rng: np.random.Generator) -> Array:
    """Probabilities (occupations, templates, words)."""
    found = np.zeros((OCCUPATIONS, 3, WORDS))
    for attribute in (A, B):
        found[:, attribute, 2 * attribute] = rng.permutation(np.linspace(0.1, 0.9, OCCUPATIONS))
        found[:, attribute, 2 * attribute + 1] = 1 - found[:, attribute, 2 * attribute]
    found[:, TEXT, 4:] = rng.dirichlet(np.full(FILLERS, 0.3), size=OCCUPATIONS)
    return found


def balanced(of: Array, attribute: int) -> Array:
    """The language with both words of an attribute equally likely, of the occupations that are seen: what exchanging the words makes of it."""
    found = of[:SEEN].copy()
    found[:, attribute, 2 * attribute : 2 * attribute + 2] = 0.5
    return found


def draw(rng: np.random.Generator, of: Array) -> tuple[Array, Array]:
    """A batch of texts, the ids of an occupation and of a template each, and what follows."""
    who, template = rng.integers(len(of), size=BATCH), rng.integers(3, size=BATCH)
    reached = np.cumsum(of, axis=-1)[who, template] < rng.random((BATCH, 1))
    return np.stack([who, OCCUPATIONS + template], axis=1), np.minimum(reached.sum(axis=-1), WORDS - 1)


# The model
class Network(NamedTuple):
    """Vectors of occupations and templates; a layer whose units can be closed; and what stands behind it, adapters included."""

    words: Embedding
    front: tuple
    behind: tuple


BEHIND = (linear, slot(gelu), debiasing_adapter, linear)      # no norm: it would undo the way from 0 that attributions take


def init_network(rng: np.random.Generator) -> Network:
    """Its sizes are this file's; there is no adapter."""
    front = (init_layer_norm(rng, 2 * WIDTH), init_linear(rng, 2 * WIDTH, HIDDEN), None)
    behind = (init_linear(rng, HIDDEN, HIDDEN), None, StackedAdapters(None), init_linear(rng, HIDDEN, WORDS))
    return Network(init_embedding(rng, OCCUPATIONS + 3, WIDTH, std=0.5), front, behind)


def first_layer(params: Network, ids: Array) -> tuple[Array, Backward]:
    """Its units, closed where params have a gate of 0, and backward: dhidden -> the gradients of words and front."""
    x, words_backward = embedding(params.words, ids=ids)     # (texts, 2, width)
    own = params.front[2]
    activation = slot(gelu) if own is None else gated_neurons
    hidden, front_backward = chain(params.front, x.reshape(len(x), -1), parts=(layer_norm, linear, activation))

    def backward(dhidden: Array) -> tuple[Any, Any]:
        dfront, dx = front_backward(dhidden)
        return words_backward(dx.reshape(x.shape)), dfront

    return hidden, backward


def network(params: Network, ids: Array) -> tuple[Array, Backward]:
    """Logits of the next word, and backward: dlogits -> Network of gradients."""
    hidden, first_backward = first_layer(params, ids)
    logits, behind_backward = chain(params.behind, hidden, parts=BEHIND)

    def backward(dlogits: Array) -> Network:
        dbehind, dhidden = behind_backward(dlogits)
        dwords, dfront = first_backward(dhidden)
        return Network(dwords, dfront, dbehind)

    return logits, backward


def with_gates(base: Network, gates: Array) -> Network:
    """The same model with gates on the units of the first layer."""
    return base._replace(front=(*base.front[:2], NeuronGates(gates)))


# What is measured
def log_probabilities(params: Network) -> Array:
    """Of each word after each occupation and template."""
    ids = np.stack(np.meshgrid(np.arange(OCCUPATIONS), OCCUPATIONS + np.arange(3), indexing="ij"), axis=-1)
    logits, _ = network(params, ids.reshape(-1, 2))
    return log_softmax(logits.astype(np.float64))[0].reshape(OCCUPATIONS, 3, WORDS)


def by_occupation(log_p: Array, of: Array) -> Array:
    """Of each occupation: the gap of A, that of B, |log p/p'| of their two words, and nats a filler."""
    gaps = [np.abs(log_p[:, attribute, 2 * attribute] - log_p[:, attribute, 2 * attribute + 1]) for attribute in (A, B)]
    return np.stack([*gaps, -(of[:, TEXT] * log_p[:, TEXT]).sum(axis=-1)], axis=1)


def with_intervals(log_p: Array, of: Array, rng: np.random.Generator, *, resamples: int) -> dict[str, float]:
    """MEASURES of the occupations that are seen, " low" and " high" of each with occupations drawn anew, and " unseen" of the others."""
    rows = by_occupation(log_p, of)
    seen = interval(rows[:SEEN], lambda drawn: drawn.mean(axis=0), rng, resamples=resamples)
    ends = (("", seen.estimate), (" low", seen.low), (" high", seen.high))
    found = {name + end: float(values[i]) for i, name in enumerate(MEASURES) for end, values in ends}
    return found | {f"{name} unseen": float(rows[SEEN:, i].mean()) for i, name in enumerate(MEASURES)}


def entropy(of: Array) -> float:
    """Nats a filler that nobody can do better than, of the occupations that are seen."""
    p = of[:SEEN, TEXT]
    return float(-np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1).mean())


def distance(params: Network, wanted: Array) -> float:
    """Nats a word that the model loses on a language of the first occupations, templates alike."""
    return float(-(wanted * log_probabilities(params)[: len(wanted)]).sum(axis=-1).mean())


def gap_behind(params: Network) -> Callable:
    """``gap(hidden) -> values, backward``: the logit of A's first word less that of its second, of units of the first layer."""

    def gap(hidden: Array) -> tuple[Array, Callable]:
        logits, backward = chain(params.behind, hidden, parts=BEHIND)

        def down(dvalues: Array) -> Array:
            dlogits = np.zeros_like(logits)
            dlogits[..., 0], dlogits[..., 1] = dvalues, -dvalues
            return backward(dlogits)[1]

        return logits[..., 0] - logits[..., 1], down

    return gap


def trained_base(of: Array, rng: np.random.Generator, *, rate: float, steps: int) -> Network:
    """The model after so many updates on the language as it is."""
    return fit(init_network(rng), Labelled(network, partial(draw, of=of)), steps=steps, peak=rate, rng=rng)


@cache
def known(seed: int, *, rate: float, steps: int) -> tuple[Array, Network]:
    """A language, and a model that has learned it."""
    rng = np.random.default_rng(seed)
    of = language(rng)
    return of, trained_base(of, rng, rate=rate, steps=steps)
