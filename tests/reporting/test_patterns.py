"""Patterns as masks: each beside the mixer that it is laid out from, or counted by hand."""

from functools import partial

import numpy as np
import pytest

from minitransformers import (
    causal_attention,
    init_reformer_attention,
    lsh_attention,
    lsh_buckets,
    lsh_chunks,
    moba,
    reformer_attention,
    routing,
    softmax_attention,
)
from minitransformers.attention.masks import causal_mask
from minitransformers.foundation.gradients import assert_gradients
from minitransformers.reporting.patterns import (
    centroids_of,
    clustered,
    hashed,
    in_blocks,
    kept_weight,
    one_vector,
    read_through,
    shared_attention,
)
from minitransformers.sparse_attention.lsh_attention import unit_vectors
from minitransformers.sparse_attention.moba import moba_selection
from minitransformers.sparse_attention.routing import random_centroids


@pytest.fixture
def met():
    return np.random.default_rng(0).normal(size=(2, 2, 3, 12, 4))  # queries and keys of two texts and three heads


def test_a_hash_sees_who_shares_a_bucket_in_any_round_and_itself(met):
    seen = hashed(rounds=2, num_buckets=4, seed=5)(*met)
    of_query, of_key = (lsh_buckets(x, rounds=2, num_buckets=4, seed=5) for x in met)
    for text, head, i, j in np.ndindex(seen.shape):
        alike = any(of_query[text, head, r, i] == of_key[text, head, r, j] for r in range(2))
        assert seen[text, head, i, j] == (alike or i == j)


def test_moba_reads_through_the_blocks_that_it_chooses(met):
    value = np.random.default_rng(1).normal(size=met[0].shape)
    core = read_through(in_blocks(moba_selection, block=3, top=2))
    np.testing.assert_allclose(core(None, *met, value)[0], moba(None, *met, value, block=3, top=2)[0])


def test_one_cluster_alone_is_routing(met):
    centroids, value = random_centroids(np.random.default_rng(2), 3, 1, 4), np.random.default_rng(1).normal(size=met[0].shape)
    seen = clustered(centroids, size=7)
    assert (seen(*met).any(-1).sum(-1) == 7).all() and (seen(*met).any(-2).sum(-1) == 7).all()
    through, _ = read_through(seen)(None, *met, value)
    np.testing.assert_allclose(through, routing(None, *met, value, centroids=centroids, size=7)[0])


def test_several_clusters_see_what_any_of_them_sees(met):
    centroids = random_centroids(np.random.default_rng(2), 3, 4, 4)
    alone = [clustered(centroids[:, i : i + 1], size=5)(*met) for i in range(4)]
    np.testing.assert_array_equal(clustered(centroids, size=5)(*met), np.any(alone, axis=0))


def test_centroids_settle_in_the_middle_of_what_is_nearest(met):
    found = centroids_of(np.random.default_rng(3), *met, clusters=2, steps=30)
    for head in range(3):
        vectors = unit_vectors(met[:, :, head].reshape(-1, 4))[0]
        nearest = (vectors @ found[head].T).argmax(-1)
        for cluster in range(2):
            middle = vectors[nearest == cluster].mean(0)
            np.testing.assert_allclose(found[head, cluster], middle / np.linalg.norm(middle), atol=0.02)


def test_all_is_dense_attention(met):
    core, value = read_through(lambda query, key: np.ones((12, 12), bool)), np.random.default_rng(1).normal(size=met[0].shape)
    np.testing.assert_allclose(core(None, *met, value)[0], causal_attention(None, *met, value)[0])


def test_kept_weight_counts_and_adds_up():
    weights = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
    sees = np.array([[True, False, True], [False, False, False]])
    found = kept_weight(weights, sees, {"best": weights, "last": np.broadcast_to([0, 1, 2], (2, 3))})
    np.testing.assert_array_equal(found["count"], [2, 0])
    for name, expected in {"kept": [0.7, 0], "best": [0.8, 0], "last": [0.5, 0]}.items():
        np.testing.assert_allclose(found[name], expected)


def test_around_hashes_it_is_the_reformers_mixer():
    rng = np.random.default_rng(4)
    params, x = init_reformer_attention(rng, 6, num_heads=1, dtype=np.float64), rng.normal(size=(2, 8, 6))

    def attend(shared, value):
        return lsh_attention(shared, value, chunks=lsh_chunks(lsh_buckets(shared, rounds=2, num_buckets=4, seed=7), chunk=2))

    expected, _ = reformer_attention(params, x, num_heads=1, rounds=2, num_buckets=4, chunk=2, seed=7)
    np.testing.assert_allclose(shared_attention(params, x, attend=attend)[0], expected)
    assert_gradients(partial(shared_attention, attend=partial(one_vector, softmax_attention)), params, x)


def test_keys_of_one_vector_are_directions():
    shared, value = np.random.default_rng(5).normal(size=(2, 3, 5, 4))
    mask = causal_mask(5, 5)
    scores = np.where(mask, shared @ unit_vectors(shared)[0].swapaxes(-1, -2), -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(one_vector(softmax_attention, shared, value, mask=mask)[0], weights @ value)
