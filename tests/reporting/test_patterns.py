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
from minitransformers.reporting.sparse_attention.patterns import (
    centroids_of,
    clustered,
    dense,
    hashed,
    in_blocks,
    init_dense,
    kept_weight,
    met,
    one_vector,
    read_through,
    shared_attention,
)
from minitransformers.sparse_attention.lsh_attention import unit_vectors
from minitransformers.sparse_attention.moba import moba_selection
from minitransformers.sparse_attention.routing import random_centroids


@pytest.fixture
def both():
    return np.random.default_rng(0).normal(size=(2, 2, 3, 12, 4))  # queries and keys of two texts and three heads


def test_a_hash_sees_who_shares_a_bucket_in_any_round_and_itself(both):
    seen = hashed(rounds=2, num_buckets=4, seed=5)(*both)
    of_query, of_key = (lsh_buckets(x, rounds=2, num_buckets=4, seed=5) for x in both)
    for text, head, i, j in np.ndindex(seen.shape):
        alike = any(of_query[text, head, r, i] == of_key[text, head, r, j] for r in range(2))
        assert seen[text, head, i, j] == (alike or i == j)


def test_moba_reads_through_the_blocks_that_it_chooses(both):
    value = np.random.default_rng(1).normal(size=both[0].shape)
    core = read_through(in_blocks(moba_selection, block=3, top=2))
    np.testing.assert_allclose(core(None, *both, value)[0], moba(None, *both, value, block=3, top=2)[0])


def test_one_cluster_alone_is_routing(both):
    centroids, value = random_centroids(np.random.default_rng(2), 3, 1, 4), np.random.default_rng(1).normal(size=both[0].shape)
    seen = clustered(centroids, size=7)
    assert (seen(*both).any(-1).sum(-1) == 7).all() and (seen(*both).any(-2).sum(-1) == 7).all()
    through, _ = read_through(seen)(None, *both, value)
    np.testing.assert_allclose(through, routing(None, *both, value, centroids=centroids, size=7)[0])


def test_several_clusters_see_what_any_of_them_sees(both):
    centroids = random_centroids(np.random.default_rng(2), 3, 4, 4)
    alone = [clustered(centroids[:, i : i + 1], size=5)(*both) for i in range(4)]
    np.testing.assert_array_equal(clustered(centroids, size=5)(*both), np.any(alone, axis=0))


def test_centroids_settle_in_the_middle_of_what_is_nearest(both):
    found = centroids_of(np.random.default_rng(3), *both, clusters=2, steps=30)
    for head in range(3):
        vectors = unit_vectors(both[:, :, head].reshape(-1, 4))[0]
        nearest = (vectors @ found[head].T).argmax(-1)
        for cluster in range(2):
            middle = vectors[nearest == cluster].mean(0)
            np.testing.assert_allclose(found[head, cluster], middle / np.linalg.norm(middle), atol=0.02)


def test_all_is_dense_attention(both):
    core, value = read_through(lambda query, key: np.ones((12, 12), bool)), np.random.default_rng(1).normal(size=both[0].shape)
    np.testing.assert_allclose(core(None, *both, value)[0], causal_attention(None, *both, value)[0])


def test_kept_weight_counts_and_adds_up(both):
    query, key = both
    weights = causal_attention(None, query, key, np.broadcast_to(np.eye(12), (*query.shape[:-1], 12)))[0]
    tail = np.arange(12) > np.arange(12)[:, None] - 3
    patterns = {"itself": lambda query, key: np.eye(12, dtype=bool), "tail": lambda query, key: tail, "all": lambda query, key: np.array(True)}
    found = kept_weight(np.random.default_rng(1), query, key, patterns, first=4)
    alone, three = weights.diagonal(axis1=-2, axis2=-1)[..., 4:], (weights * tail)[..., 4:, :].sum(-1)
    assert found["itself"]["kept"] == pytest.approx(alone.mean()) == pytest.approx(found["itself"]["nearest"])
    assert found["itself"]["best"] == pytest.approx(weights.max(-1)[..., 4:].mean())
    assert found["tail"]["kept"] == pytest.approx(three.mean()) == pytest.approx(found["tail"]["nearest"])
    assert found["tail"]["best"] == pytest.approx(np.sort(weights, axis=-1)[..., 4:, -3:].sum(-1).mean())
    assert found["tail"]["pairs"] == pytest.approx((3 / np.arange(5, 13)).mean())
    assert found["itself"]["random"] < found["tail"]["random"] < found["tail"]["best"]
    assert found["all"] == pytest.approx(dict.fromkeys(found["all"], 1.0))


def test_a_dense_model_whose_cores_are_watched_or_replaced():
    rng = np.random.default_rng(6)
    params = init_dense(rng, 7, 8, num_layers=2, num_heads=2, std=0.3)
    ids = rng.integers(7, size=(3, 5))
    logits, backward = dense(params, ids, num_heads=2)
    seen = met(params, ids, num_heads=2)
    assert logits.shape == (3, 5, 7) and [(query.shape, key.shape) for query, key in seen] == [((3, 2, 5, 4), (3, 2, 5, 4))] * 2
    every = read_through(lambda query, key: np.ones((5, 5), bool))
    np.testing.assert_allclose(dense(params, ids, num_heads=2, cores=[every, every])[0], logits, rtol=1e-5)
    alone = read_through(lambda query, key: np.eye(5, dtype=bool))
    assert np.abs(dense(params, ids, num_heads=2, cores=[every, alone])[0] - logits).max() > 1e-3
    assert len(backward(logits)) == len(params)


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
