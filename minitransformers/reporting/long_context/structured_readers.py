"""Readers of a long text that know its structure: levels, first tokens, relations, edges. Each is a ``segment_readers.Reader``."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.gelu import gelu
from minitransformers.long_context.attentive_pooling import attentive_pooling, init_attentive_pooling
from minitransformers.long_context.discourse_bias import discourse_bias, discourse_relations, init_discourse_bias
from minitransformers.long_context.hat import hat, init_hat
from minitransformers.long_context.hierarchical_transformer import hierarchical_transformer, init_hierarchical_transformer
from minitransformers.long_context.sentence_edges import sentence_edges
from minitransformers.long_context.sentence_graph import init_sentence_graph, sentence_graph
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.reporting.long_context.segment_readers import (
    HEADS,
    Reader,
    block,
    first,
    init_block,
    init_places,
    joined,
    parts,
)


def levels(segments: int) -> Reader:
    """Words, sentences, document."""

    def init(rng, width):
        own = init_hierarchical_transformer(rng, width, num_heads=HEADS, max_sentences=segments, d_hidden=2 * width)
        return own._replace(places=init_places(rng, width, segments))

    def body(params, x):
        out, backward = hierarchical_transformer(params, x, num_heads=HEADS)
        return out.document, lambda dout: backward((None, None, dout))

    return Reader(init, body)


def first_tokens(segments: int, length: int) -> Reader:
    """Segments that hear of each other through their first tokens."""

    def init(rng, width):
        own = init_hat(rng, width, layout=["SC"], max_segments=segments, num_heads=HEADS, d_hidden=2 * width)
        return [None, own._replace(blocks=[own.blocks[0]._replace(places=init_places(rng, width, segments))]), None]

    return Reader(init, parts(joined, partial(hat, length=length, num_heads=HEADS), first))


def related(units: Array) -> Reader:
    """All at once, with what two tokens are to each other in these units in the place of positions."""
    relations = discourse_relations(units)

    def core(params, query, key, value, bias, *, mask=None):
        added, bias_backward = discourse_bias(params, relations=relations)
        out, backward = softmax_attention(None, query, key, value, added)

        def back(dout):
            _, dquery, dkey, dvalue, dadded = backward(dout)
            return bias_backward(dadded), dquery, dkey, dvalue, None

        return out, back

    def init(rng, width):
        own = init_block(rng, width)
        return [None, own._replace(attention=own.attention._replace(core=init_discourse_bias(rng, num_heads=HEADS, std=1.0))), None]

    return Reader(init, parts(joined, partial(block, core=core), first))


def linked(segments: int, *, reach: int) -> Reader:
    """Each segment by itself, then as a node of a graph with edges to those so near before and behind it."""
    edges = sentence_edges(np.zeros((segments, 1), int), reach=reach, most=0)

    def along(params, x):
        shift = segments * np.arange(len(x))[:, None]
        ends = {"sources": (shift + edges.sources).ravel(), "targets": (shift + edges.targets).ravel(), "kinds": np.tile(edges.kinds, len(x))}
        gathered, backward = sentence_graph(params, x.reshape(-1, x.shape[-1]), **ends)
        active, active_backward = gelu(gathered.reshape(x.shape))

        def back(dboth):
            dx, dactive = np.split(dboth, 2, axis=-1)
            dparams, dgathered = backward(active_backward(dactive).reshape(gathered.shape))
            return dparams, dx + dgathered.reshape(x.shape)

        return np.concatenate([x, active], axis=-1), back

    def init(rng, width):
        own = init_sentence_graph(rng, width, num_heads=HEADS, kinds=3)
        own = own._replace(kind=rng.normal(size=(3, HEADS)).astype(np.float32))
        heads = init_layer_norm(rng, 2 * width), init_feed_forward(rng, 2 * width, d_hidden=2 * width), init_attentive_pooling(rng, 2 * width)
        return (init_block(rng, width), None, own, *heads)

    return Reader(init, parts(block, first, along, layer_norm, feed_forward, attentive_pooling), wide=2)
