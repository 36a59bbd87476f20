"""Gathered attention: the sum over the pairs of all pieces, one pair at a time, and what every pattern rests on."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import check_gradients
from minitransformers.sparse_attention.gathered_attention import Piece, gathered_attention, last_queries

ALL = np.ones((1, 1, 1), bool)


def random_piece(rng, queries, keys, *, blocks, columns, share=0.7):
    """Every query in one of the blocks, in random order, the last block filled up; keys drawn anew for each block."""
    size = -(-queries // blocks)
    rows = np.full(blocks * size, -1)
    rows[:queries] = rng.permutation(queries)
    chosen = np.where(rng.random((blocks, columns)) < 0.2, -1, rng.integers(keys, size=(blocks, columns)))
    return Piece(rows.reshape(blocks, size), chosen, rng.random((blocks, size, columns)) < share)


def two_pieces(seed=0, queries=7, keys=9):
    rng = np.random.default_rng(seed)
    few = Piece(rng.permutation(queries)[None, :4], rng.permutation(keys)[None, :3], rng.random((1, 4, 1)) < 0.8)
    return random_piece(rng, queries, keys, blocks=3, columns=4), few


def pairs(pieces):
    """(query, key) of every pair, as often as it is seen."""
    for piece in pieces:
        blocks, rows, columns = len(piece.rows), piece.rows.shape[1], piece.columns.shape[1]
        seen = np.broadcast_to(piece.seen, (blocks, rows, columns))
        for b, r, c in zip(*np.nonzero(seen), strict=True):
            if piece.rows[b, r] >= 0 and piece.columns[b, c] >= 0:
                yield int(piece.rows[b, r]), int(piece.columns[b, c])


def times_seen(pieces, queries, keys):
    counts = np.zeros((queries, keys), int)
    for i, j in pairs(pieces):
        counts[i, j] += 1
    return counts


def textbook(q, k, v, bias, pieces, mask):
    """One query at a time: a softmax over the list of its pairs."""
    rows = []
    for i in range(len(q)):
        keys = [j for row, j in pairs(pieces) if row == i and mask[i, j]]
        powers = [anp.exp(anp.dot(q[i], k[j]) / q.shape[1] ** 0.5 + bias[i, j]) for j in keys]
        rows.append(sum(p * v[j] for p, j in zip(powers, keys, strict=True)) / sum(powers) if keys else anp.zeros(v.shape[1]))
    return anp.stack(rows)


def arrays(queries=7, keys=9, seed=1, lead=()):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(*lead, *shape)) for shape in ((queries, 3), (keys, 3), (keys, 4), (queries, keys))]


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(seed):
    args, pieces, mask = arrays(), two_pieces(seed), np.random.default_rng(seed).random((7, 9)) < 0.8
    out, backward = gathered_attention(None, *args, pieces=pieces, mask=mask)
    dout = np.random.default_rng(2).normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(*args, pieces, mask), rtol=0, atol=1e-12)
    theirs = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, pieces, mask)), (0, 1, 2, 3))(*args)
    for own, other in zip(backward(dout)[1:], theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-12)


def test_pieces_that_do_not_overlap_are_a_mask():
    args = arrays(seed=3, lead=(2, 3))
    sees = np.random.default_rng(4).random((7, 9)) < 0.5
    order = np.random.default_rng(5).permutation(9)
    pieces = [Piece(np.arange(7)[None], part[None], sees[None, :, part]) for part in (order[:4], order[4:])]
    out, backward = gathered_attention(None, *args, pieces=pieces)
    dense, dense_backward = scaled_dot_product_attention(*args, mask=sees)
    np.testing.assert_allclose(out, dense, rtol=0, atol=1e-13)
    for own, theirs in zip(backward(np.cos(out))[1:], dense_backward(np.cos(out)), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


def test_a_pair_that_two_pieces_hold_counts_twice():
    """As if its score were larger by log 2."""
    q, k, v, _ = arrays(seed=6)
    whole = Piece(np.arange(7)[None], np.arange(9)[None], ALL)
    again = Piece(np.array([[3, 5]]), np.array([[2, 8]]), ALL)
    doubled = np.log(times_seen([whole, again], 7, 9))
    assert doubled.max() == np.log(2)
    out, _ = gathered_attention(None, q, k, v, pieces=[whole, again])
    np.testing.assert_allclose(out, scaled_dot_product_attention(q, k, v, doubled)[0], rtol=0, atol=1e-13)


BIASES = {"none": None, "each": (2, 1, 7, 9), "a key": (3, 1, 9), "a query": (7, 1), "a head": (3, 1, 1), "more axes": (4, 1, 1, 7, 9)}
MASKS = {"none": None, "each": (2, 3, 7, 9), "a key": (2, 1, 1, 9), "a query": (7, 1), "more axes": (4, 1, 1, 1, 9)}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("bias", BIASES)
def test_a_bias_and_a_mask_of_any_shape_are_picked_at_the_pairs(bias, mask):
    rng = np.random.default_rng(7)
    q, k, v = (rng.normal(size=shape) for shape in ((2, 3, 7, 3), (2, 1, 9, 3), (3, 9, 4)))
    bias = None if BIASES[bias] is None else rng.normal(size=BIASES[bias])
    mask = None if MASKS[mask] is None else rng.random(MASKS[mask]) < 0.7
    pieces = two_pieces(8)
    seen = times_seen(pieces, 7, 9)
    twice = np.where(seen > 1, np.log(np.maximum(seen, 1)), 0.0)
    allowed = (seen > 0) if mask is None else (seen > 0) & mask
    out, backward = gathered_attention(None, q, k, v, bias, pieces=pieces, mask=mask)
    dense, dense_backward = scaled_dot_product_attention(q, k, v, twice if bias is None else bias + twice, mask=allowed)
    np.testing.assert_allclose(out, dense, rtol=0, atol=1e-12)
    dout = rng.normal(size=out.shape)
    *gradients, dbias = backward(dout)[1:]
    *expected, dwhole = dense_backward(dout)
    for own, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)
    if bias is None:
        assert dbias is None
    else:
        axes = tuple(range(dwhole.ndim - bias.ndim)), tuple(i for i, n in enumerate(bias.shape) if n == 1)
        np.testing.assert_allclose(dbias, dwhole.sum(axes[0]).sum(axes[1], keepdims=True), rtol=0, atol=1e-12)


def test_what_sees_nothing_reads_zero_and_sends_no_gradient():
    """Query 0 stands in no piece, query 1 sees none of its keys, and the bias forbids what query 2 might see."""
    q, k, v, bias = arrays(queries=4, keys=5, seed=9)
    bias[2] = -np.inf
    piece = Piece(np.array([[1, 2, 3]]), np.arange(5)[None], np.array([[[0], [1], [1]]], bool))
    out, backward = gathered_attention(None, q, k, v, bias, pieces=[piece])
    np.testing.assert_array_equal(out[:3], 0)
    assert np.abs(out[3]).min() > 0
    _, dq, dk, dv, dbias = backward(np.ones_like(out))
    for gradient in (dq, dbias):
        np.testing.assert_array_equal(gradient[:3], 0)
    _, _, dk_last, dv_last, _ = gathered_attention(None, q, k, v, bias, pieces=[piece])[1](np.eye(4)[3:].T * np.ones(4))
    np.testing.assert_allclose(dk, dk_last, rtol=0, atol=1e-14)
    np.testing.assert_allclose(dv, dv_last, rtol=0, atol=1e-14)


def test_scores_as_large_as_float32_holds_do_no_harm():
    rng = np.random.default_rng(10)
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in ((7, 3), (9, 3), (9, 4)))
    pieces = two_pieces(11)
    out, backward = gathered_attention(None, 1e18 * q, 1e18 * k, v, pieces=pieces)
    assert all(np.isfinite(a).all() for a in (out, *backward(out)[1:4]))


@pytest.mark.parametrize("queries", [1, 3, 9])
def test_the_last_queries_take_the_keys_that_one_of_them_sees(queries):
    sees = np.random.default_rng(12).random((queries, 9)) < 0.3
    sees[:, 4], sees[0, 2] = False, True
    piece = last_queries(sees)
    assert 4 not in piece.columns and 2 in piece.columns
    q, k, v, _ = arrays(queries=queries, seed=13)
    out, _ = gathered_attention(None, q, k, v, pieces=[piece])
    np.testing.assert_allclose(out, softmax_attention(None, q, k, v, mask=sees)[0], rtol=0, atol=1e-13)


def test_last_queries_that_see_nothing_read_zero():
    q, k, v, _ = arrays(queries=2, seed=14)
    out, backward = gathered_attention(None, q, k, v, pieces=[last_queries(np.zeros((2, 9), bool))])
    assert not any(a.any() for a in (out, *backward(np.ones_like(out))[1:4]))


@pytest.mark.parametrize("forgotten", ["the second reader", "total"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    """What it invites: a key that several blocks read keeps the gradient of one of them; the sum has no gradient."""
    q, k, v, _ = arrays(queries=4, keys=5, seed=15)
    first, second = (Piece(np.array([rows]), np.array([[1, 2, 3]]), ALL) for rows in ([0, 1], [2, 3]))

    def wrong(q, k, v):
        out, backward = gathered_attention(None, q, k, v, pieces=[first, second])

        def careless(dout):
            if forgotten == "total":
                weights = scaled_dot_product_attention(q, k, np.eye(5), mask=times_seen([first, second], 4, 5) > 0)[0]
                dscores = weights * (dout @ v.T) / 3**0.5
                return dscores @ k, dscores.T @ q, backward(dout)[3]
            _, dq, _, _, _ = backward(dout)
            _, _, dk, dv, _ = backward(np.where(np.arange(4)[:, None] < 2, 0, dout))
            return dq, dk, dv

        return out, careless

    report = check_gradients(wrong, q, k, v, second_opinion=False)
    assert not report.passed and report.error > 1e-2


@pytest.mark.parametrize(
    ("pieces", "named"),
    [
        ((), "pieces: got none"),
        ((Piece(np.array([[0, 7]]), np.array([[0]]), ALL),), r"pieces\.0\.rows: got 0 to 7, wants 0 to 6"),
        ((Piece(np.array([[0]]), np.array([[0, 9]]), ALL),), r"pieces\.0\.columns: got 0 to 9, wants 0 to 8"),
        ((Piece(np.array([[0]]), np.array([[-2]]), ALL),), r"pieces\.0\.columns: got -2"),
        ((*two_pieces(), Piece(np.array([[3], [3]]), np.array([[0], [1]]), ALL)), r"pieces\.2\.rows: got a query in two places"),
        ((Piece(np.array([[0.0]]), np.array([[0]]), ALL),), r"pieces\.0\.rows: got float64"),
        ((Piece(np.array([[0]]), np.array([[0], [1]]), ALL),), r"pieces\.0\.columns: got shape"),
        ((Piece(np.array([[0]]), np.array([[0]]), np.ones((1, 1, 2), bool)),), r"pieces\.0\.seen: got shape"),
    ],
)
def test_pieces_of_what_there_is_not_are_refused(pieces, named):
    q, k, v, _ = arrays()
    with pytest.raises(ValueError, match=named):
        gathered_attention(None, q, k, v, pieces=pieces)


def test_learned_parameters_are_not_dropped_in_silence():
    q, k, v, _ = arrays()
    with pytest.raises(ValueError, match="params: got"):
        gathered_attention(np.ones(3), q, k, v, pieces=two_pieces())
