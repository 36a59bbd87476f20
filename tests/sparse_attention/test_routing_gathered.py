"""Routing attention by gathering: what the plain form gives, for any choice of members, without the pairs that never meet."""

import tracemalloc

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.sparse_attention.routing import RoutingMembers, random_centroids, routing, routing_members
from minitransformers.sparse_attention.routing_gathered import routing_gathered


def assert_equal_forms(q, k, v, bias=None, *, atol=1e-12, **settings):
    (out, backward), (plain, plain_backward) = (form(None, q, k, v, bias, **settings) for form in (routing_gathered, routing))
    assert out.dtype == plain.dtype == q.dtype
    np.testing.assert_allclose(out, plain, rtol=0, atol=atol)
    dout = np.random.default_rng(1).normal(size=out.shape).astype(out.dtype)
    for own, theirs in zip(backward(dout)[1:], plain_backward(dout)[1:], strict=True):
        assert (own is None) == (theirs is None)
        if own is not None:
            assert own.dtype == q.dtype and own.shape == theirs.shape
            np.testing.assert_allclose(own, theirs, rtol=0, atol=atol)


def arrays(seed, query, key, d_value=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*query, 3)), rng.normal(size=(*key, 3)), rng.normal(size=(*key, d_value)), rng


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("size", [None, 1, 4, 50])
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (4, 9), (1, 9), (1, 1)])
def test_it_is_the_plain_form(queries, keys, size, causal):
    q, k, v, rng = arrays(0, (2, 2, queries), (2, 2, keys))
    assert_equal_forms(q, k, v, centroids=random_centroids(rng, 2, 3, 3), size=size, causal=causal)


@pytest.mark.parametrize("bias", [None, (2, 2, 6, 7), (2, 1, 6, 7), (6, 7), (2, 1, 7), (6, 1), (1, 1)])
@pytest.mark.parametrize("mask", [None, (2, 2, 6, 7), (2, 1, 1, 7), (6, 1), (1, 7)])
def test_masks_and_biases_are_picked_for_the_pairs_that_meet(bias, mask):
    q, k, v, rng = arrays(2, (2, 2, 6), (2, 2, 7))
    given = [None if shape is None else rng.normal(size=shape) for shape in (bias, mask)]
    mask = None if given[1] is None else given[1] < 0.7
    assert_equal_forms(q, k, v, given[0], centroids=random_centroids(rng, 2, 3, 3), mask=mask)


def test_masks_and_biases_of_two_queries_and_two_keys():
    q, k, v, rng = arrays(11, (2, 2), (2, 2))
    assert_equal_forms(q, k, v, rng.normal(size=(2, 2, 2)), centroids=random_centroids(rng, 2, 3), size=2, mask=np.array([[True, True], [False, True]]))


def test_grouped_queries_share_the_keys_of_their_group():
    q, k, v, rng = arrays(3, (2, 2, 3, 8), (2, 2, 1, 8))
    assert_equal_forms(q, k, v, centroids=random_centroids(rng, 2, 1, 3, 3))
    assert_equal_forms(q, k, v, centroids=random_centroids(rng, 2, 3, 3, 3))  # each query head has clusters of its own


def test_one_choice_may_serve_all_texts_and_heads():
    q, k, v, rng = arrays(4, (2, 2, 8), (2, 2, 8))
    members = routing_members(q[0, 0], k[0, 0], centroids=random_centroids(rng, 3, 3))
    assert_equal_forms(q, k, v, rng.normal(size=(2, 1, 8, 8)), members=members)


def test_a_bias_of_minus_infinity_forbids_and_who_sees_nothing_else_reads_zero_from_that_cluster():
    q, k, v, _ = arrays(5, (6,), (6,))
    bias = np.zeros((6, 6))
    bias[3] = -np.inf
    members = RoutingMembers(np.array([[2, 3], [3, 4]]), np.array([[0, 1], [1, 2]]))
    assert_equal_forms(q, k, v, bias, members=members)
    assert not routing_gathered(None, q, k, v, bias, members=members)[0][3].any()


def test_float32_agrees_with_the_plain_form():
    q, k, v, rng = (*(a.astype(np.float32) for a in arrays(6, (2, 9), (2, 9))[:3]), np.random.default_rng(6))
    assert_equal_forms(q, k, v, centroids=random_centroids(rng, 2, 3, 3, dtype=np.float32), atol=1e-5)


def textbook(q, k, v, members):
    """One query and one cluster at a time, looking back."""
    rows = []
    for i in range(len(q)):
        reads = []
        for own_queries, own_keys in zip(members.queries, members.keys, strict=True):
            seen = [j for j in own_keys if j <= i]
            if i in own_queries and seen:
                powers = [anp.exp(anp.dot(q[i], k[j]) / 3**0.5) for j in seen]
                reads.append(sum(p * v[j] for p, j in zip(powers, seen, strict=True)) / sum(powers))
        rows.append(sum(reads) / len(reads) if reads else 0 * v[0])
    return anp.stack(rows)


def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s():
    q, k, v, rng = arrays(7, (8,), (8,))
    members = routing_members(q, k, centroids=random_centroids(rng, 3, 3), size=4)
    out, backward = routing_gathered(None, q, k, v, members=members)
    np.testing.assert_allclose(out, textbook(q, k, v, members), rtol=0, atol=1e-10)
    dout = np.random.default_rng(8).normal(size=out.shape)
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, members)), (0, 1, 2))(q, k, v)
    for own, theirs in zip(backward(dout)[1:4], expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def peak(n):
    """Of forward and backward with sqrt(n) clusters, in bytes."""
    rng = np.random.default_rng(9)
    q, k, v = rng.standard_normal((3, n, 4), np.float32)
    centroids = random_centroids(rng, round(n**0.5), 4, dtype=np.float32)
    tracemalloc.start()
    out, backward = routing_gathered(None, q, k, v, centroids=centroids)
    backward(out)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_grows_with_the_length_to_the_power_1_5():
    peak(64)                                                 # what a first call imports
    short, long = peak(256), peak(4096)
    assert long < 1.1 * 16**1.5 * short
    assert long < 4096**2                                    # a byte a pair is already more


def test_the_checker_refuses_a_backward_that_writes_where_it_should_add():
    """A key that two clusters have taken receives from both: assignment in the place of the sum keeps one."""
    q, k, v, _ = arrays(10, (5,), (5,))
    members = RoutingMembers(np.array([[1, 2], [3, 4]]), np.array([[0, 1], [0, 2]]))

    def wrong(q, k, v):
        out, backward = routing_gathered(None, q, k, v, members=members)
        last = routing_gathered(None, q, k, v, members=RoutingMembers(*(m[1:] for m in members)))[1]

        def overwriting(dout):
            dq, dk, dv = backward(dout)[1:4]
            dk[0], dv[0] = (gradient[0] for gradient in last(dout)[2:4])
            return dq, dk, dv

        return out, overwriting

    assert [a.error > 1e-2 for a in check_gradients(wrong, q, k, v).arguments] == [False, True, True]
