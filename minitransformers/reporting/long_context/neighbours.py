"""A sentence that matters because of the one before it: the texts, and readers in which a sentence hears of the others in different ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.relu import relu
from minitransformers.foundation import Backward
from minitransformers.long_context.encoder_block import encoder_block, init_encoder_block
from minitransformers.long_context.sentence_graph import init_sentence_graph, sentence_graph
from minitransformers.positional.learned import init_learned, learned

SENTENCES, LENGTH, NOISE, WIDTH, HEADS, BATCH = 12, 6, 38, 32, 2, 64
ALONE, EDGES, KINDS, PLACES, NO_PLACES = "each alone", "edges to neighbours", "edges of two kinds", "a Transformer over sentences", "the same without places"


def draw_neighbours(rng: np.random.Generator, *, texts: int = BATCH) -> tuple[Array, Array]:
    """Ids (texts, sentences, words) with a cue in one sentence, and the number of the sentence behind it."""
    ids = rng.integers(NOISE, size=(texts, SENTENCES, LENGTH))
    cue = rng.integers(SENTENCES - 1, size=texts)
    ids[np.arange(texts), cue, rng.integers(LENGTH, size=texts)] = NOISE
    return ids, cue + 1


def _edges_of(texts: int) -> tuple[Array, Array, Array]:
    """From each sentence to itself and its neighbours, sorted by target: sources, targets, and a kind (0 before, 1 itself, 2 after)."""
    steps = np.array([-1, 0, 1])
    source = np.arange(SENTENCES)[:, None] + steps
    inside = (source >= 0) & (source < SENTENCES)
    own = [source[inside], np.repeat(np.arange(SENTENCES), inside.sum(axis=1)), np.broadcast_to([0, 1, 2], source.shape)[inside]]
    shift = SENTENCES * np.arange(texts)[:, None]
    return (own[0] + shift).ravel(), (own[1] + shift).ravel(), np.tile(own[2], texts)


def _alone(params: Any, h: Array) -> tuple[Array, Backward]:
    return h, lambda dz: (None, dz)


def _graph(params: Any, h: Array, *, kinds: bool) -> tuple[Array, Backward]:
    sources, targets, kind = _edges_of(len(h))
    out, backward = sentence_graph(params, h.reshape(-1, WIDTH), sources=sources, targets=targets, kinds=kind if kinds else None)
    z, active_backward = gelu(out)

    def back(dz):
        dparams, dh = backward(active_backward(dz.reshape(-1, WIDTH)))
        return dparams, dh.reshape(h.shape)

    return z.reshape(h.shape), back


def _over_sentences(params: Any, h: Array) -> tuple[Array, Backward]:
    places, block = params
    x, places_backward = learned(places, h) if places is not None else (h, lambda dx: (None, dx))
    z, block_backward = encoder_block(block, x, num_heads=HEADS)

    def back(dz):
        dblock, dx = block_backward(dz)
        dplaces, dh = places_backward(dx)
        return (dplaces, dblock), dh

    return z, back


# How each is made, and what a sentence learns of the others: context(params, h) -> z, backward
CONTEXTS: dict[str, tuple[Callable, Callable]] = {
    ALONE: (lambda rng: None, _alone),
    EDGES: (lambda rng: init_sentence_graph(rng, WIDTH, num_heads=HEADS), partial(_graph, kinds=False)),
    KINDS: (lambda rng: init_sentence_graph(rng, WIDTH, num_heads=HEADS, kinds=3), partial(_graph, kinds=True)),
    PLACES: (lambda rng: (init_learned(rng, max_positions=SENTENCES, d_model=WIDTH), init_encoder_block(rng, WIDTH, num_heads=HEADS, d_hidden=WIDTH)), _over_sentences),
    NO_PLACES: (lambda rng: (None, init_encoder_block(rng, WIDTH, num_heads=HEADS, d_hidden=WIDTH)), _over_sentences),
}


def init_reader(name: str, rng: np.random.Generator) -> list[Any]:
    """Words, the map to sentences, what they learn of each other, and a network for the scores."""
    words = init_embedding(rng, NOISE + 1, WIDTH, std=1.0)
    return [words, init_linear(rng, WIDTH, WIDTH), CONTEXTS[name][0](rng), init_linear(rng, 2 * WIDTH, WIDTH), init_linear(rng, WIDTH, 1)]


def _reader(params: Any, ids: Array, *, context: Callable) -> tuple[Array, Backward]:
    words, lift, own, inner, outer = params
    e, words_backward = embedding(words, ids=ids)
    lifted, lift_backward = linear(lift, e)
    active, active_backward = relu(lifted)
    h = active.mean(axis=-2)
    z, context_backward = context(own, h)
    hidden, inner_backward = linear(inner, np.concatenate([h, z], axis=-1))
    rectified, rectified_backward = relu(hidden)
    scores, outer_backward = linear(outer, rectified)

    def backward(dscores):
        douter, drectified = outer_backward(dscores[..., None])
        dinner, dboth = inner_backward(rectified_backward(drectified))
        down, dh = context_backward(dboth[..., WIDTH:])
        dh = dh + dboth[..., :WIDTH]                         # h is read by the scorer and by the context
        dactive = np.broadcast_to(dh[..., None, :] / LENGTH, active.shape)
        dlift, de = lift_backward(active_backward(dactive))
        return [words_backward(de), dlift, down, dinner, douter]

    return scores[..., 0], backward


def reader_with(name: str) -> Callable:
    """``model(params, ids) -> scores of the sentences, backward``."""
    return partial(_reader, context=CONTEXTS[name][1])
