"""Compressed attention: the textbook sum over means, who reads which of them, the ranking of blocks, and a few positions at a time."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import causal_attention
from minitransformers.foundation import check_gradients
from minitransformers.sparse_attention.compressed_attention import (
    compressed_attention,
    compressed_attention_step,
    most_read_blocks,
    rank_blocks,
    weights_of_blocks,
)


def arrays(n, queries=None, heads=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(heads, length, d)) for length, d in ((queries or n, 3), (n, 3), (n, 4))]


def powers_of(q, k, i, block):
    """exp of the scores of the query at position i of one head with the mean of each block that has ended."""
    return [anp.exp(anp.dot(q, anp.mean(k[b * block : (b + 1) * block], axis=0)) / len(q) ** 0.5) for b in range((i + 1) // block)]


def textbook(q, k, v, block):
    """One head and one query at a time; the queries are the last positions."""
    heads, ahead = [], k.shape[1] - q.shape[1]
    for h in range(len(q)):
        rows = []
        for i in range(q.shape[1]):
            powers = powers_of(q[h, i], k[h], ahead + i, block)
            rows.append(sum((p * anp.mean(v[h, b * block : (b + 1) * block], axis=0) for b, p in enumerate(powers)), 0 * v[h, 0]) / (sum(powers) or 1))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


@pytest.mark.parametrize(("n", "queries", "block"), [(11, 11, 2), (12, 12, 3), (11, 4, 3), (7, 7, 1), (4, 4, 5), (5, 5, 5), (1, 1, 2), (1, 1, 1)])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(n, queries, block):
    args = arrays(n, queries)
    out, backward = compressed_attention(*args, block=block)
    dout = np.random.default_rng(1).normal(size=out.shape)
    np.testing.assert_allclose(out, textbook(*args, block), rtol=0, atol=1e-10)
    if n < block:                                            # no block has ended: autograd has nothing to trace
        assert not out.any() and not any(gradient.any() for gradient in backward(dout))
        return
    theirs = autograd.grad(lambda a: anp.sum(dout * textbook(*a, block)))(tuple(args))
    for own, other in zip(backward(dout), theirs, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-10)


def test_in_blocks_of_one_it_is_causal_attention():
    args = arrays(9, 5)
    out, backward = compressed_attention(*args, block=1)
    dense, dense_backward = causal_attention(None, *args)
    np.testing.assert_allclose(out, dense, rtol=0, atol=1e-13)
    for own, theirs in zip(backward(out), dense_backward(out)[1:4], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_a_block_is_read_from_its_last_position_on():
    q, k, v = arrays(7)
    out, _ = compressed_attention(q, k, v, block=3)
    assert not out[:, :2].any()
    np.testing.assert_allclose(out[:, 2:5], np.broadcast_to(v[:, :3].mean(1, keepdims=True), (2, 3, 4)), rtol=0, atol=1e-14)  # one block: weight 1
    changed = v.copy()
    changed[:, 6] += 1
    np.testing.assert_array_equal(compressed_attention(q, k, changed, block=3)[0], out)


def test_all_positions_of_a_block_get_the_same_gradient_and_those_of_an_open_one_none():
    q, k, v = arrays(8)
    _, dkey, dvalue = compressed_attention(q, k, v, block=3)[1](np.ones((2, 8, 4)))
    for gradient in (dkey, dvalue):
        np.testing.assert_array_equal(gradient[:, 0], gradient[:, 2])
        assert gradient[:, 3].any() and not gradient[:, 6:].any()


def test_the_checker_refuses_a_mean_whose_gradient_is_that_of_a_sum():
    def wrong(q, k, v):
        out, backward = compressed_attention(q, k, v, block=3)
        return out, lambda dout: (backward(dout)[0], *(3 * d for d in backward(dout)[1:]))

    report = check_gradients(wrong, *arrays(8))
    assert [argument.error > 1e-2 for argument in report.arguments] == [False, True, True]


@pytest.mark.parametrize("sizes", [[1] * 11, [11], [2, 4, 1, 3, 1], [3, 3, 3, 2], [1, 9, 1]])
@pytest.mark.parametrize("block", [1, 3, 4, 20])
def test_a_few_positions_at_a_time_are_the_whole(sizes, block):
    q, k, v = arrays(11)
    state, outs, start = None, [], 0
    for size in sizes:
        now = slice(start, start + size)
        before = None if state is None else [a.copy() for a in state]
        out, after = compressed_attention_step(q[:, now], k[:, now], v[:, now], state, block=block)
        assert before is None or all(np.array_equal(*pair) for pair in zip(before, state, strict=True))
        outs.append(out)
        state, start = after, start + size
        assert state.mean_key.shape[1] == -(-start // block) and state.open_key.shape[1] == state.open_value.shape[1] == start % block
    np.testing.assert_allclose(np.concatenate(outs, axis=1), compressed_attention(q, k, v, block=block)[0], rtol=0, atol=1e-13)


def ranked(q, k, i, block, top):
    """The blocks of the queries of all heads at position i, by sorting one by one."""
    own, importance = i // block, {}
    for head in q:
        powers = powers_of(head, k, i, block)
        for b, p in enumerate(powers):
            importance[b] = importance.get(b, 0) + p / sum(powers)
    always = list(dict.fromkeys([own, max(own - 1, 0), 0]))
    return (always + sorted(set(range(own)) - set(always), key=lambda b: -importance[b]))[:top]


@pytest.mark.parametrize(("n", "queries", "block", "top"), [(23, 23, 2, 5), (23, 6, 3, 4), (12, 12, 3, 2), (9, 9, 1, 1), (7, 7, 2, 50), (2, 2, 3, 4), (1, 1, 1, 1)])
def test_the_blocks_are_those_that_all_heads_together_read_most(n, queries, block, top):
    q, k, _ = arrays(n, queries, heads=3)
    selected = most_read_blocks(q, k[0], block=block, top=top)
    assert selected.shape == (queries, min(top, -(-n // block)))
    for i in range(queries):
        wanted = ranked(q[:, i], k[0], n - queries + i, block, top)
        assert selected[i].tolist() == wanted + [-1] * (selected.shape[1] - len(wanted))


def test_it_is_the_weights_that_are_added_and_not_the_scores():
    """One head scores block 1 high and block 2 higher, to no use for block 1; the other one is mild, and prefers block 1."""
    key = np.zeros((12, 2))
    key[2:4], key[4:6] = [9.0, 0.5], [12.0, 0.0]
    query = np.array([[[9.0, 0.0]], [[0.0, 2.0]]])
    assert most_read_blocks(query, key, block=2, top=4).tolist() == [[5, 4, 0, 2]]
    assert most_read_blocks(query[1:], key, block=2, top=4).tolist() == [[5, 4, 0, 1]]


def test_a_longer_text_changes_no_choice():
    q, k, _ = arrays(20)
    whole = most_read_blocks(q, k[0], block=3, top=4)
    for n in (1, 4, 12, 19):
        part = most_read_blocks(q[:, :n], k[0, :n], block=3, top=4)
        np.testing.assert_array_equal(part, whole[:n, : part.shape[1]])
        assert (whole[:n, part.shape[1] :] == -1).all()


def test_weights_of_a_float32_text_with_huge_scores_are_finite():
    q, k, _ = (1e4 * a.astype(np.float32) for a in arrays(9))
    place = np.arange(9)
    weights = weights_of_blocks(q, k[0, ::2], place, 2)
    assert weights.dtype == np.float32 and np.isfinite(weights).all() and not weights[0].any()
    np.testing.assert_allclose(weights[1:].sum(-1), 2, rtol=1e-6)
    assert (rank_blocks(weights, place, 2, 3)[:, 0] == place // 2).all()


@pytest.mark.parametrize(("changes", "names"), [({"block": 0}, "block: got 0"), ({"query": np.ones((2, 7, 3))}, "query: got 7 queries, wants at most"), ({"key": np.ones((2, 6, 2))}, "got shape")])
def test_impossible_calls_are_refused_by_name(changes, names):
    q, k, v = arrays(6)
    call = {"query": q, "key": k, "value": v, "block": 2, **changes}
    with pytest.raises(ValueError, match=names):
        compressed_attention(call.pop("query"), call.pop("key"), call.pop("value"), **call)


@pytest.mark.parametrize(("changes", "names"), [({"top": 0}, "top: got 0"), ({"block": 0}, "block: got 0"), ({"query": np.ones((2, 7, 3))}, "query: got 7 queries")])
def test_impossible_choices_are_refused_by_name(changes, names):
    call = {"query": np.ones((2, 6, 3)), "key": np.ones((6, 3)), "block": 2, "top": 2, **changes}
    with pytest.raises(ValueError, match=names):
        most_read_blocks(call.pop("query"), call.pop("key"), **call)


@pytest.mark.parity
def test_agrees_with_pytorch_over_pooled_keys():
    torch = pytest.importorskip("torch")
    q, k, v = (torch.tensor(a, requires_grad=True) for a in arrays(12))
    pooled = [torch.nn.functional.avg_pool1d(a.transpose(1, 2), 3).transpose(1, 2) for a in (k, v)]
    seen = (torch.arange(1, 5) * 3 <= torch.arange(12)[:, None] + 1)[2:]
    theirs = torch.nn.functional.scaled_dot_product_attention(q[:, 2:], *pooled, attn_mask=seen)
    dout = np.random.default_rng(2).normal(size=theirs.shape)
    theirs.backward(torch.tensor(dout))
    own = [a.detach().numpy() for a in (q, k, v)]
    out, backward = compressed_attention(own[0][:, 2:], *own[1:], block=3)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    for gradient, other in zip(backward(dout), (q.grad[:, 2:], k.grad, v.grad), strict=True):
        np.testing.assert_allclose(gradient, other, rtol=0, atol=1e-9)
