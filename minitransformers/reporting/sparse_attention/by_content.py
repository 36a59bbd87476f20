"""Attention that finds keys by content, beside masks that find them by place: ``attend(shared, value, rng=rng) -> out, backward``.

shared, (batch, positions, width), is both queries and keys, as in the Reformer; nobody sees itself; rng is for what draws its directions anew
at every call. ``pairs_seen`` shows how many pairs of positions such a function joins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.foundation import Backward
from minitransformers.reporting.sparse_attention.patterns import one_vector
from minitransformers.sparse_attention.lsh_attention import lsh_buckets, lsh_chunks
from minitransformers.sparse_attention.lsh_attention_sorted import lsh_attention_sorted
from minitransformers.sparse_attention.routing import random_centroids, update_centroids
from minitransformers.sparse_attention.routing_gathered import routing_gathered


def by_place(mask: Array) -> Callable:
    """Through a mask (positions, positions), whatever stands where."""
    return lambda shared, value, rng: one_vector(softmax_attention, shared, value, mask=mask & _others(shared))


def by_hashes(rounds: int, *, num_buckets: int, chunk: int) -> Callable:
    """With other hashes at every call; a key that several rounds find counts once, as in the paper."""

    def attend(shared: Array, value: Array, rng: np.random.Generator) -> tuple[Array, Backward]:
        buckets = lsh_buckets(shared, rounds=rounds, num_buckets=num_buckets, seed=int(rng.integers(2**32)))
        return lsh_attention_sorted(shared, value, chunks=lsh_chunks(buckets, chunk=chunk), causal=False, once=True)

    return attend


class ByClusters:
    """With centroids that follow the vectors that it was called with: ``follow`` is what watches a fit."""

    def __init__(self, rng: np.random.Generator, clusters: int, width: int, *, size: int) -> None:
        self.centroids, self.size = random_centroids(rng, clusters, width, dtype=np.float32), size

    def __call__(self, shared: Array, value: Array, rng: np.random.Generator) -> tuple[Array, Backward]:
        """Attention within clusters of the centroids as they are."""
        self.last = shared
        return one_vector(routing_gathered, shared, value, centroids=self.centroids, size=self.size, causal=False, mask=_others(shared))

    def follow(self, *_: Any) -> None:
        """Move the centroids towards the vectors of the last call."""
        self.centroids = update_centroids(self.centroids, self.last.reshape(-1, self.last.shape[-1]), decay=0.95)


def pairs_seen(attend: Callable, shared: Array, rng: np.random.Generator) -> float:
    """The share of all pairs that get a weight: values that are a one at one place show it, and short vectors make no weight tiny."""
    places = np.eye(shared.shape[-2], dtype=shared.dtype)
    weights, _ = attend(1e-3 * shared, np.broadcast_to(places, (len(shared), *places.shape)), rng=rng)
    return float(((weights > 0) & _others(shared)).mean())


def _others(shared: Array) -> Array:
    return ~np.eye(shared.shape[-2], dtype=bool)
