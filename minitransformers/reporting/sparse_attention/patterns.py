"""What sections on sparse attention share: patterns as masks, a model with dense attention and what they keep of its weights, a mixer.

A pattern is seen(query, key), a mask that broadcasts to (..., queries, keys). It does not look at order: what lies ahead is cut off
by whoever reads through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.core import causal_attention, softmax_attention
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.prepare import on_both
from minitransformers.basics.embedding import init_embedding
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.linear import init_linear, linear
from minitransformers.foundation import Backward
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.positional.rope_fast import rope_fast
from minitransformers.reporting.networks import behind_norm, network
from minitransformers.sparse_attention.lsh_attention import lsh_buckets, unit_vectors
from minitransformers.sparse_attention.reformer_attention import ReformerAttention
from minitransformers.sparse_attention.routing import random_centroids, routing_members, update_centroids

Seen = Callable[[Array, Array], Array]


def hashed(*, rounds: int, num_buckets: int, seed: int) -> Seen:
    """Queries and keys that fall into one bucket, cut by the same directions, in any round; and the own one."""

    def seen(query: Array, key: Array) -> Array:
        of_query, of_key = (lsh_buckets(x, rounds=rounds, num_buckets=num_buckets, seed=seed) for x in (query, key))
        return np.any(of_query[..., :, None] == of_key[..., None, :], axis=-3) | np.eye(query.shape[-2], dtype=bool)

    return seen


def in_blocks(choice: Callable, *, block: int, top: int) -> Seen:
    """The keys of the blocks that ``choice(query, key, block=block, top=top)`` names for each query, (..., queries, top)."""

    def seen(query: Array, key: Array) -> Array:
        chosen: Array = choice(query, key, block=block, top=top)
        return np.any(chosen[..., None] == np.arange(key.shape[-2]) // block, axis=-2)

    return seen


def clustered(centroids: Array, *, size: int) -> Seen:
    """Pairs that share a cluster, which takes the ``size`` queries and keys that are nearest to it."""

    def seen(query: Array, key: Array) -> Array:
        takes = []
        for own, x in zip(routing_members(query, key, centroids=centroids, size=size), (query, key), strict=True):
            taken = np.zeros((*own.shape[:-1], x.shape[-2]), bool)
            np.put_along_axis(taken, own, True, axis=-1)
            takes.append(taken)
        return np.asarray((takes[0][..., :, None] & takes[1][..., None, :]).any(-3))

    return seen


def centroids_of(rng: np.random.Generator, query: Array, key: Array, *, clusters: int, steps: int = 10) -> Array:
    """The centroids of each head after so many steps of k-means on its queries and keys, both (texts, heads, positions, d_head)."""
    heads, d_head = query.shape[1], query.shape[-1]
    vectors = np.concatenate([query, key], axis=-2).swapaxes(0, 1).reshape(heads, -1, d_head)
    centroids = random_centroids(rng, heads, clusters, d_head, dtype=query.dtype.type)
    for _ in range(steps):
        centroids = update_centroids(centroids, vectors, decay=0.0)
    return centroids


def read_through(seen: Seen) -> Callable:
    """The causal core that reads what is seen, and nothing else."""

    def core(params, query, key, value, bias=None, *, mask=None):
        return softmax_attention(params, query, key, value, bias, mask=seen(query, key) & causal_mask(query.shape[-2], key.shape[-2]))

    return core


def kept_weight(rng: np.random.Generator, query: Array, key: Array, seers: Mapping[str, Seen], *, first: int) -> dict[str, dict[str, Array]]:
    """How much of dense causal attention's weight each pattern lets through, a mean over the queries from ``first`` on: {name: {measure: number}}.

    "pairs" is the share of keys that it sees, "kept" that of the weight; "random", "nearest" and "best" are what as many keys of each query
    would keep, if they were chosen so.
    """
    positions = np.arange(query.shape[-2])
    earlier, ones = causal_mask(len(positions), len(positions)), np.eye(len(positions), dtype=query.dtype)
    weights = causal_attention(None, query, key, np.broadcast_to(ones, (*query.shape[:-1], len(positions))))[0]
    orders = {"random": rng.random(weights.shape), "nearest": np.broadcast_to(positions, weights.shape), "best": weights}
    sums = {name: _running(weights, np.where(earlier, order, -1.0)) for name, order in orders.items()}
    found = {}
    for name, seen in seers.items():
        sees = np.broadcast_to(seen(query, key) & earlier, weights.shape)
        count = sees.sum(-1, keepdims=True)
        shares = {"pairs": count[..., 0] / (positions + 1), "kept": (weights * sees).sum(-1)}
        shares |= {other: np.take_along_axis(of, count, axis=-1)[..., 0] for other, of in sums.items()}
        found[name] = {measure: of[..., first:].mean() for measure, of in shares.items()}
    return found


def _running(weights: Array, order: Array) -> Array:
    """(..., queries, keys + 1): the weight of the first 0, 1, 2, ... keys of each query, the largest of order first."""
    sums = np.cumsum(np.take_along_axis(weights, np.argsort(-order, axis=-1), axis=-1), axis=-1)
    return np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)


def init_dense(rng: np.random.Generator, vocabulary: int, d_model: int, *, num_layers: int, num_heads: int, std: float) -> list[Any]:
    """Words, pre-norm layers of attention and a feed-forward network of twice the width, a norm and a head."""
    layers = []
    for _ in range(num_layers):
        layers += [(init_layer_norm(rng, d_model), init_multi_head_attention(rng, d_model, num_heads=num_heads, std=std)),
                   (init_layer_norm(rng, d_model), init_feed_forward(rng, d_model, d_hidden=2 * d_model, std=std))]  # fmt: skip
    words = init_embedding(rng, vocabulary, d_model, std=std)
    return [words, *layers, init_layer_norm(rng, d_model), init_linear(rng, d_model, vocabulary, std=std)]


def dense(params: list[Any], ids: Array, *, num_heads: int, cores: Sequence[Callable] = ()) -> tuple[Array, Backward]:
    """That model, with RoPE. What stands for causal attention in each layer can be replaced when it has learned."""
    parts = []
    for core in cores or [causal_attention] * ((len(params) - 3) // 2):
        attend = partial(multi_head_attention, num_heads=num_heads, prepare=on_both(rope_fast), core=core)
        parts += [behind_norm(part, norm=layer_norm) for part in (attend, feed_forward)]
    return network(*parts, layer_norm, linear)(params, ids)


def met(params: list[Any], ids: Array, *, num_heads: int) -> list[tuple[Array, Array]]:
    """The queries and keys of each of its layers, turned, (texts, heads, positions, d_head)."""
    found = []

    def watched(params, query, key, value, bias=None, *, mask=None):
        found.append((query, key))
        return causal_attention(params, query, key, value, bias, mask=mask)

    dense(params, ids, num_heads=num_heads, cores=[watched] * ((len(params) - 3) // 2))
    return found


def shared_attention(params: ReformerAttention, x: Array, *, attend: Callable) -> tuple[Array, Backward]:
    """The mixer of the Reformer, with one head, around any ``attend(shared, value) -> out, backward`` of vectors that are query and key."""
    (shared, shared_backward), (value, value_backward) = linear(params.shared, x), linear(params.value, x)
    heads, attention_backward = attend(shared, value)
    out, output_backward = linear(params.output, heads)

    def backward(dout):
        doutput, dheads = output_backward(dout)
        dshared, dvalue = attention_backward(dheads)
        (dparams_shared, dx_shared), (dparams_value, dx_value) = shared_backward(dshared), value_backward(dvalue)
        return ReformerAttention(dparams_shared, dparams_value, doutput), dx_shared + dx_value

    return out, backward


def one_vector(core: Callable, shared: Array, value: Array, **settings) -> tuple[Array, Backward]:
    """A core whose keys are the directions of its queries, as the Reformer's are, without the division by the root of their length."""
    size = shared.shape[-1] ** 0.5
    unit, unit_backward = unit_vectors(shared)
    out, backward = core(None, shared, size * unit, value, **settings)

    def both(dout):
        _, dquery, dkey, dvalue, *_ = backward(dout)
        return dquery + unit_backward(size * dkey), dvalue

    return out, both
