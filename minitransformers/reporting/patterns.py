"""What sections on sparse attention share: patterns as masks, what they keep of dense attention's weights, and a mixer around any of them.

A pattern is seen(query, key), a mask that broadcasts to (..., queries, keys). It does not look at order: what lies ahead is cut off
by whoever reads through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.masks import causal_mask
from minitransformers.basics.linear import linear
from minitransformers.foundation import Backward
from minitransformers.sparse_attention.lsh_attention import lsh_buckets, unit_vectors
from minitransformers.sparse_attention.reformer_attention import ReformerAttention
from minitransformers.sparse_attention.routing import random_centroids, routing_members, update_centroids

Seen = Callable[[Array, Array], Array]


def hashed(*, rounds: int, num_buckets: int, seed: int) -> Seen:
    """Queries and keys that fall into one bucket, cut by the same directions, in any round; and the own one."""

    def seen(query: Array, key: Array) -> Array:
        of_query, of_key = (lsh_buckets(x, rounds=rounds, num_buckets=num_buckets, seed=seed) for x in (query, key))
        met: Array = (of_query[..., :, None] == of_key[..., None, :]).any(-3)
        return met | np.eye(query.shape[-2], dtype=bool)

    return seen


def in_blocks(choice: Callable, *, block: int, top: int) -> Seen:
    """The keys of the blocks that ``choice(query, key, block=block, top=top)`` names for each query, (..., queries, top)."""
    return lambda query, key: (choice(query, key, block=block, top=top)[..., None] == np.arange(key.shape[-2]) // block).any(-2)


def clustered(centroids: Array, *, size: int) -> Seen:
    """Pairs that share a cluster, which takes the ``size`` queries and keys that are nearest to it."""

    def seen(query: Array, key: Array) -> Array:
        takes = []
        for own, x in zip(routing_members(query, key, centroids=centroids, size=size), (query, key), strict=True):
            taken = np.zeros((*own.shape[:-1], x.shape[-2]), bool)
            np.put_along_axis(taken, own, True, axis=-1)
            takes.append(taken)
        return (takes[0][..., :, None] & takes[1][..., None, :]).any(-3)

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


def kept_weight(weights: Array, sees: Array, orders: Mapping[str, Array]) -> dict[str, Array]:
    """For each query how many keys it sees ("count"), the weight on them ("kept"), and, by name, the weight on as many of the largest order."""
    count = sees.sum(-1, keepdims=True)
    found = {"count": count[..., 0], "kept": (weights * sees).sum(-1)}
    for name, order in orders.items():
        sums = np.cumsum(np.take_along_axis(weights, np.argsort(-order, axis=-1), axis=-1), axis=-1)
        sums = np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)  # of the first 0, 1, 2, ... keys
        found[name] = np.take_along_axis(sums, count, axis=-1)[..., 0]
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
