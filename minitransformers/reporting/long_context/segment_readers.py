"""Readers of a long text that has its question at the head of every segment: all of it at once, cut, in chunks, or searched.

Of each the parameters, the ids that it sees, and ``body(params, x) -> v, backward``, from what it sees, (texts, segments, length, width), to
one vector a text, (texts, width).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.foundation import Backward, slot
from minitransformers.long_context.attentive_pooling import attentive_pooling, init_attentive_pooling
from minitransformers.long_context.bm25 import bm25, bm25_index
from minitransformers.long_context.chunking import overlapping_chunks
from minitransformers.long_context.encoder_block import encoder_block, init_encoder_block
from minitransformers.long_context.passage_selection import top_documents
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.positional.learned import init_learned, learned
from minitransformers.reporting.networks import behind_norm

HEADS = 2


class Reader(NamedTuple):
    """init(rng, width) -> params, and what is made of them; sees is what it is given of (texts, segments, length) ids, None for all."""

    init: Callable
    body: Callable
    sees: Callable | None = None
    wide: int = 1                                            # the width of v, in widths


@slot
def joined(x: Array) -> tuple[Array, Backward]:
    """Segments as one text."""
    return x.reshape(len(x), -1, x.shape[-1]), lambda dout: dout.reshape(x.shape)


@slot
def first(x: Array) -> tuple[Array, Backward]:
    """What stands at the first position."""

    def backward(dout):
        dx = np.zeros_like(x)
        dx[..., 0, :] = dout
        return dx

    return x[..., 0, :], backward


@slot
def mean(x: Array) -> tuple[Array, Backward]:
    """The mean over positions."""
    return x.mean(axis=-2), lambda dout: np.repeat(dout[..., None, :] / x.shape[-2], x.shape[-2], axis=-2)


block = partial(encoder_block, num_heads=HEADS)


def parts(*of: Callable) -> Callable:
    """One part after the other, as one."""
    return partial(chain, parts=of)


def init_block(rng: np.random.Generator, width: int) -> Any:
    """One layer, its feed-forward network twice as wide as the rest."""
    return init_encoder_block(rng, width, num_heads=HEADS, d_hidden=2 * width)


def init_places(rng: np.random.Generator, width: int, count: int) -> Any:
    """Places as loud as words."""
    return init_learned(rng, width, max_positions=count, std=0.5)



def whole(length: int, *, sees: Callable | None = None, core: Callable = softmax_attention) -> Reader:
    """Of so many tokens each with its place; what the first of them has found."""
    return Reader(
        lambda rng, width: [None, init_places(rng, width, length), init_block(rng, width), None],
        parts(joined, learned, partial(block, core=core), first), sees,
    )  # fmt: skip


def each_token(length: int) -> Reader:
    """The same tokens without attention: the mean of what each is by itself."""
    init = lambda rng, width: [None, init_places(rng, width, length), (init_layer_norm(rng, width), init_feed_forward(rng, width, d_hidden=2 * width)), None]  # noqa: E731
    return Reader(init, parts(joined, learned, behind_norm(feed_forward, norm=layer_norm), mean))


def kept(keep: Callable, *, room: int, **settings: Any) -> Callable:
    """What a truncation leaves of the text."""

    def sees(ids):
        text = ids.reshape(len(ids), 1, -1)
        return text[..., keep(text.shape[-1], room=room, **settings)]

    return sees


def found(words: Array, *, count: int) -> Callable:
    """The segments that BM25 finds by these words, in the order of the text."""

    def sees(ids):
        scores = bm25(bm25_index(list(ids.reshape(-1, ids.shape[-1]))), words).reshape(ids.shape[:2])
        return np.take_along_axis(ids, np.sort(top_documents(scores, k=count).documents, axis=1)[..., None], axis=1)

    return sees


def chunks(size: int, *, overlap: int, pool: Callable, init_pool: Callable = lambda rng, width: None) -> Reader:
    """Each chunk by itself, and what is made of all of them."""
    return Reader(
        lambda rng, width: [init_places(rng, width, size), init_block(rng, width), None, init_pool(rng, width)],
        parts(learned, block, first, pool), lambda ids: overlapping_chunks(ids.reshape(len(ids), -1), size=size, overlap=overlap).ids,
    )  # fmt: skip


attentive: dict[str, Callable] = {"pool": attentive_pooling, "init_pool": init_attentive_pooling}
