"""Routing attention: who is in a cluster, how centroids follow, and attention inside clusters in its plain form."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import causal_attention
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import check_gradients
from minitransformers.sparse_attention.routing import (
    RoutingMembers,
    random_centroids,
    routing,
    routing_members,
    update_centroids,
)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def case(seed=0, queries=6, keys=7, clusters=3):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(n, d)) for n, d in ((queries, 3), (keys, 3), (keys, 2)))
    mask = rng.random((queries, keys)) < 0.8
    return q, k, v, rng.normal(size=(queries, keys)), mask, random_centroids(rng, clusters, 3)


def textbook(q, k, v, bias, mask, members, causal):
    """One query and one cluster at a time."""
    shift, rows = len(k) - len(q), []
    for i in range(len(q)):
        reads = []
        for own_queries, own_keys in zip(members.queries, members.keys, strict=True):
            if i in own_queries:
                seen = [j for j in own_keys if mask[i, j] and (j <= i + shift or not causal)]
                powers = [anp.exp(anp.dot(q[i], k[j]) / 3**0.5 + bias[i, j]) for j in seen]
                if seen:
                    reads.append(sum(p * v[j] for p, j in zip(powers, seen, strict=True)) / sum(powers))
        rows.append(sum(reads) / len(reads) if reads else 0 * v[0])
    return anp.stack(rows)


# Members and centroids -----------------------------------------------------------------------------------------------


def test_each_cluster_takes_the_vectors_that_point_most_nearly_its_way():
    rng = np.random.default_rng(1)
    q, k, centroids = rng.normal(size=(2, 9, 4)), rng.normal(size=(2, 8, 4)), random_centroids(rng, 2, 3, 4)
    found = routing_members(q, k, centroids=centroids, size=2)
    for x, own in ((q, found.queries), (k, found.keys)):
        assert own.shape == (2, 3, 2)
        for head, c in np.ndindex(2, 3):
            cosines = [float(unit(t) @ centroids[head, c]) for t in x[head]]
            assert list(own[head, c]) == sorted(sorted(range(len(cosines)), key=lambda i: -cosines[i])[:2])


def test_of_many_vectors_none_outside_is_nearer_than_one_inside():
    rng = np.random.default_rng(21)
    x, centroids = rng.normal(size=(500, 4)), random_centroids(rng, 5, 4)
    for size in (1, 2, 60, 500):
        near = unit(x) @ centroids.T
        for c, own in enumerate(routing_members(x, x, centroids=centroids, size=size).queries):
            assert sorted(own) == sorted(np.argsort(-near[:, c])[:size])


def test_a_longer_vector_is_no_nearer_and_equal_queries_and_keys_have_equal_members():
    rng = np.random.default_rng(2)
    q, centroids = rng.normal(size=(9, 4)), random_centroids(rng, 3, 4)
    found = routing_members(q, q * rng.uniform(0.1, 9, size=(9, 1)), centroids=centroids)
    np.testing.assert_array_equal(found.queries, found.keys)


def test_without_a_size_clusters_share_the_keys_and_small_texts_have_all_in_all():
    rng = np.random.default_rng(3)
    x, centroids = rng.normal(size=(10, 4)), random_centroids(rng, 3, 4)
    assert routing_members(x[:6], x, centroids=centroids).keys.shape == (3, 4)
    everywhere = routing_members(x[:1], x[:2], centroids=centroids, size=50)
    assert everywhere.queries.tolist() == [[0]] * 3 and everywhere.keys.tolist() == [[0, 1]] * 3


def test_centroids_move_towards_the_mean_of_what_is_nearest_to_them():
    rng = np.random.default_rng(4)
    centroids, x = random_centroids(rng, 3, 4), rng.normal(size=(20, 4))
    new = update_centroids(centroids, x, decay=0.8)
    nearest = [int(np.argmax([unit(t) @ c for c in centroids])) for t in x]
    for c in range(3):
        mean = unit(sum(unit(t) for t, own in zip(x, nearest, strict=True) if own == c))
        np.testing.assert_allclose(new[c], unit(0.8 * centroids[c] + 0.2 * mean), rtol=0, atol=1e-14)


def test_a_centroid_that_is_nearest_to_none_stays_and_heads_do_not_mix():
    rng = np.random.default_rng(5)
    centroids, x = np.stack([np.eye(3), -np.eye(3)]), np.abs(rng.normal(size=(2, 5, 3))) + [9, 0, 0]
    new = update_centroids(centroids, np.stack([x[0], x[1]]), decay=0.0)
    np.testing.assert_array_equal(new[0, 1:], centroids[0, 1:])
    np.testing.assert_allclose(new[0, 0], unit(unit(x[0]).sum(0)), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(new[1], update_centroids(centroids[1], x[1], decay=0.0))


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_no_update_takes_vectors_further_from_their_centroids(decay):
    rng = np.random.default_rng(6)
    x, centroids, fit = unit(rng.normal(size=(60, 5))), random_centroids(rng, 6, 5), []
    for _ in range(12):
        fit.append((x @ centroids.T).max(-1).sum())
        centroids = update_centroids(centroids, x, decay=decay)
    assert np.all(np.diff(fit) >= -1e-12) and fit[-1] > fit[0] + 1


def test_random_centroids_are_of_length_one_in_every_dtype():
    found = random_centroids(np.random.default_rng(7), 2, 5, 3, dtype=np.float32)
    assert found.dtype == np.float32 and found.shape == (2, 5, 3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=0, atol=1e-6)


# Attention -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(causal):
    *arrays, mask, centroids = case(8)
    members = routing_members(*arrays[:2], centroids=centroids, size=3)
    out, backward = routing(None, *arrays, members=members, causal=causal, mask=mask)
    np.testing.assert_allclose(out, textbook(*arrays, mask, members, causal), rtol=0, atol=1e-10)
    dout = np.random.default_rng(9).normal(size=out.shape)
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, mask, members, causal)), (0, 1, 2, 3))(*arrays)
    nothing, *gradients = backward(dout)
    assert nothing is None
    for own, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def test_centroids_choose_the_members():
    q, k, v, _, _, centroids = case(10)
    members = routing_members(q, k, centroids=centroids, size=2)
    np.testing.assert_array_equal(routing(None, q, k, v, centroids=centroids, size=2)[0], routing(None, q, k, v, members=members)[0])


@pytest.mark.parametrize("causal", [True, False])
def test_one_cluster_of_all_is_dense_attention(causal):
    q, k, v, bias, mask, _ = case(11)
    out = routing(None, q, k, v, bias, centroids=np.eye(3)[:1], causal=causal, mask=mask)[0]
    everything = np.tril(np.ones((6, 7), bool), 1) if causal else np.ones((6, 7), bool)
    np.testing.assert_allclose(out, scaled_dot_product_attention(q, k, v, bias, mask=mask & everything)[0], rtol=0, atol=1e-14)


def test_a_query_in_no_cluster_reads_zero_and_sends_no_gradient():
    q, k, v, *_ = case(12)
    out, backward = routing(None, q, k, v, members=RoutingMembers(np.array([[0, 2], [2, 4]]), np.array([[0, 1], [0, 3]])))
    assert not out[[1, 3, 5]].any() and out[[0, 2, 4]].all()
    assert not backward(np.ones_like(out))[1][[1, 3, 5]].any()


def test_a_query_in_two_clusters_reads_their_mean_and_one_without_a_key_does_not_count():
    q, k, v, *_ = case(13, queries=7)
    out = routing(None, q, k, v, members=RoutingMembers(np.array([[2], [2], [2]]), np.array([[0], [1], [5]])))[0]
    np.testing.assert_allclose(out[2], (v[0] + v[1]) / 2, rtol=0, atol=1e-14)  # the third cluster's key comes later


def test_under_causal_no_gradient_comes_from_the_future_but_the_choice_does():
    rng = np.random.default_rng(14)
    q, k, v = rng.normal(size=(3, 12, 4))
    centroids = random_centroids(rng, 3, 4)
    out, backward = routing(None, q, k, v, centroids=centroids)
    dout = np.zeros_like(out)
    dout[:5] = 1
    assert not any(gradient[5:].any() for gradient in backward(dout)[1:4])
    shorter = routing(None, q[:8], k[:8], v[:8], centroids=centroids)[0]
    assert np.abs(shorter - out[:8]).max() > 1e-3            # so there is no step that equals the whole


def test_it_stands_in_the_place_of_a_core():
    """With a cluster of all for each head, multi-head attention is what it is with the dense core."""
    rng = np.random.default_rng(15)
    params, x = init_multi_head_attention(rng, 6, num_heads=2, dtype=np.float64), rng.normal(size=(2, 5, 6))
    def core(*args, **config):
        return routing(*args, centroids=unit(np.ones((2, 1, 3))), **config)

    (out, backward), (wanted, wanted_backward) = (multi_head_attention(params, x, num_heads=2, core=c) for c in (core, causal_attention))
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-13)
    np.testing.assert_allclose(backward(x)[1], wanted_backward(x)[1], rtol=0, atol=1e-12)


def test_the_checker_refuses_a_backward_that_forgets_the_mean():
    q, k, v, *_ = case(16)
    members = RoutingMembers(np.array([[0, 2], [2, 4], [2, 5]]), np.array([[0, 1], [1, 3], [0, 3]]))

    def wrong(q, k, v):
        out, backward = routing(None, q, k, v, members=members)
        times = np.array([1, 1, 3, 1, 1, 1])[:, None]
        return out, lambda dout: backward(times * dout)[1:4]

    assert all(a.error > 1e-2 for a in check_gradients(wrong, q, k, v).arguments)


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("size: got 0", {"size": 0}),
        ("members: got centroids or a size besides", {"members": RoutingMembers(*np.zeros((2, 3, 1), int)), "centroids": np.eye(3)}),
        ("members: got centroids or a size besides", {"members": RoutingMembers(*np.zeros((2, 3, 1), int)), "size": 1}),
        ("members: got positions 9 to 9", {"members": RoutingMembers(np.array([[9]]), np.array([[0]]))}),
        ("members: got positions 7 to 7", {"members": RoutingMembers(np.array([[0]]), np.array([[7]]))}),
        ("members: got positions -1 to -1", {"members": RoutingMembers(np.array([[0]]), np.array([[-1]]))}),
        ("members: got positions twice", {"members": RoutingMembers(np.array([[2, 2]]), np.array([[0, 1]]))}),
        ("members: got positions twice", {"members": RoutingMembers(np.array([[0, 1]]), np.array([[2, 1]]))}),
        ("members.queries: got float64", {"members": RoutingMembers(np.zeros((1, 1)), np.zeros((1, 1), int))}),
    ],
)
def test_what_cannot_be_is_refused_by_name(named, changes):
    q, k, v, _, _, centroids = case(17)
    with pytest.raises(ValueError, match=named):
        routing(None, q, k, v, **({} if "members" in changes else {"centroids": centroids}), **changes)


@pytest.mark.parametrize(
    ("named", "centroids"),
    [
        ("centroids: got neither", None),
        ("centroids: got lengths from 2 to 2", 2 * np.eye(3)),
        ("centroids: got lengths from 0 to 1", np.diag([1.0, 1.0, 0.0])),
        ("centroids: got shape", np.eye(4)),
    ],
)
def test_centroids_that_cannot_be_are_refused(named, centroids):
    with pytest.raises(ValueError, match=named):
        routing(None, *case(18)[:3], centroids=centroids)


def test_more_queries_than_keys_and_decays_outside_of_0_to_1_are_refused():
    q, k, v, _, _, centroids = case(18, queries=8)
    with pytest.raises(ValueError, match="query: got 8 queries, wants at most as many as keys, 7"):
        routing(None, q, k, v, centroids=centroids)
    with pytest.raises(ValueError, match=r"decay: got 1\.5"):
        update_centroids(centroids, q, decay=1.5)


# Others' -------------------------------------------------------------------------------------------------------------


@pytest.mark.parity
def test_it_is_routing_transformer_s_when_nothing_looks_back():
    """Theirs adds 1e-5 to the number of clusters that a query is in; under a causal mask it puts a learned key into each besides."""
    torch = pytest.importorskip("torch")
    module_of = pytest.importorskip("routing_transformer.routing_transformer")
    rng = np.random.default_rng(19)
    q, k, v = rng.normal(size=(3, 2, 2, 9, 4))
    centroids = random_centroids(rng, 2, 3, 4)
    module = module_of.KmeansAttention(3, 3, 2, 4, causal=False).double().eval()
    tensors = [torch.tensor(a, requires_grad=True) for a in (q, k, v)]
    with torch.no_grad():
        module.kmeans.means.copy_(torch.tensor(centroids))
        module.kmeans.initted.fill_(True)
    exact = module_of.scatter_mean
    module_of.scatter_mean = lambda src, t, index, dim: exact(src, t, index, dim, eps=1e-30)
    try:
        wanted, _ = module(*tensors)
    finally:
        module_of.scatter_mean = exact
    out, backward = routing(None, q, k, v, centroids=centroids, size=3, causal=False)
    np.testing.assert_allclose(out, wanted.detach(), rtol=0, atol=1e-9)
    dout = rng.normal(size=out.shape)
    wanted.backward(torch.tensor(dout))
    for own, tensor in zip(backward(dout)[1:4], tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9)


@pytest.mark.parity
def test_a_whole_step_of_k_means_is_routing_transformer_s():
    torch = pytest.importorskip("torch")
    module_of = pytest.importorskip("routing_transformer.routing_transformer")
    rng = np.random.default_rng(20)
    x, centroids = unit(rng.normal(size=(2, 9, 4))), random_centroids(rng, 2, 8, 4)
    wanted = module_of.kmeans_iter(torch.tensor(x)[None], torch.tensor(centroids))
    np.testing.assert_allclose(update_centroids(centroids, x, decay=0.0), wanted, rtol=0, atol=1e-9)
