"""What sections say of contestants: rates that are tried, rows of tables, growth, gradients by distance."""

import numpy as np
import pytest

from minitransformers.reporting import growth, listed, mean_nats, size_and_time, tried
from minitransformers.reporting.measures import gradient_by_distance
from minitransformers.reporting.networks import gru_layer, init_gru_layer, summed
from minitransformers.reporting.sparse_attention.by_content import ByClusters, by_hashes, by_place, pairs_seen


def drawn(name, rng, *, rate):
    return rng.integers(2**32)


def test_contestants_start_alike_or_each_from_a_start_of_its_own_or_from_several():
    alike = [of["loss"] for *_, of in tried(drawn, "ab", (1, 2), np.random.default_rng(0))]
    apart = [of["loss"] for *_, of in tried(drawn, "ab", (1, 2), np.random.default_rng(0), alike=False)]
    assert len(set(alike)) == 1 and len(set(apart)) == 4
    rng = np.random.default_rng(0)
    firsts = [drawn("a", np.random.default_rng(rng.integers(2**32)), rate=1) for _ in range(2)]
    (_, _, of), *_ = tried(drawn, "a", (1,), np.random.default_rng(0), alike=False, starts=2)
    assert of["loss"] == np.mean(firsts)


def test_names_and_what_each_reached():
    points = {"a": {1: np.array([1.0, 3.0]), 2: np.array([2.0])}, "b": {1: np.array([4.0]), 2: np.array([5.0])}}
    assert listed(points, ("a", "b"), 1, ".0f") == "a 2 ± 1, b 4"
    assert listed(points, ("a", "b"), [1, 2], ".0f") == "a 2 ± 1, 2; b 4, 5"
    assert size_and_time({"parameters": {"a": {"all": [7, 7]}}, "seconds": {"a": {"all": [1.0, 2.12]}}}, "a") == (7, 1.6)


def test_growth_is_of_the_largest_sizes():
    assert growth({1: 9.0, 2: 4.0, 4: 16.0, 8: 64.0}) == pytest.approx(2)


def test_mean_nats_counts_each_batch_alike():
    batches = [(np.zeros((n, 2)), np.zeros(n, int)) for n in (1, 5)]
    assert mean_nats(lambda ids: (ids, None), batches) == pytest.approx(np.log(2))


def test_gradients_by_distance_begin_with_the_last_place():
    table = np.eye(3)

    def model(x):                                            # each place counts half as much as the one behind it
        share = 0.5 ** np.arange(x.shape[1])[::-1]
        return np.einsum("ntw,t->nw", x, share)[:, None], lambda dlogits: (None, share[:, None] * dlogits)

    found = gradient_by_distance(model, table, [(np.array([[0, 1, 2]]), np.array([[1, 2, 0]]))])
    np.testing.assert_allclose(found, [1, 0.5, 0.25])


def test_parts_of_networks():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5))
    out, backward = summed(None, x)
    np.testing.assert_allclose(out, x.sum(1))
    assert backward(out)[1].shape == x.shape
    layer = init_gru_layer(rng, 4, 6, update=-2)
    assert gru_layer(layer, np.float32(x[:, 0, :, :4]))[0].shape == (2, 4, 4)
    assert (layer[1][0].input.bias[:6] == -2).all() and not (layer[1][0].input.bias[6:] == -2).any()


def test_pairs_that_are_seen_are_counted():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(2, 8, 4)).astype(np.float32)
    assert pairs_seen(by_place(np.ones((8, 8), bool)), shared, rng) == 7 / 8
    assert pairs_seen(by_place(np.eye(8, k=1, dtype=bool)), shared, rng) == 7 / 64
    assert 0 < pairs_seen(by_hashes(1, num_buckets=2, chunk=2), shared, rng) < 7 / 8
    clusters = ByClusters(rng, 2, 4, size=4)
    assert 0 < pairs_seen(clusters, shared, rng) < 7 / 8
    before = clusters.centroids
    clusters.follow()
    assert not np.array_equal(before, clusters.centroids)
