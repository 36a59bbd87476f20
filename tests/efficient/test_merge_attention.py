"""Merging: the textbook fractions, attention over split keys, any order, and queries that saw nothing."""

import itertools

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.efficient.merge_attention import merge_attention
from minitransformers.foundation import check_gradients

NOTHING = (np.zeros((2, 3, 5)), np.full((2, 3), -np.inf))


def part(seed, batch=(2,), queries=3, d_value=5, scale=2.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*batch, queries, d_value)), scale * rng.normal(size=(*batch, queries))


def upstream(seed=9, shape=(2, 3, 5)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=shape[:-1])


def textbook(out1, log_total1, out2, log_total2):
    """One query at a time: two numerators over one denominator."""
    outs, totals = [], []
    for t, i in itertools.product(range(out1.shape[0]), range(out1.shape[1])):
        sizes = anp.exp(log_total1[t, i]), anp.exp(log_total2[t, i])
        outs.append((sizes[0] * out1[t, i] + sizes[1] * out2[t, i]) / (sizes[0] + sizes[1]))
        totals.append(anp.log(sizes[0] + sizes[1]))
    return anp.reshape(anp.stack(outs), out1.shape), anp.reshape(anp.stack(totals), log_total1.shape)


def test_it_is_the_textbook_fraction_and_its_gradients_are_autograd_s():
    args, dout = (*part(0), *part(1)), upstream()
    result, backward = merge_attention(*args)
    for own, theirs in zip(result, textbook(*args), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)

    def weighed(*a):
        return sum(anp.sum(d * r) for d, r in zip(dout, textbook(*a), strict=True))

    for own, theirs in zip(backward(dout), autograd.grad(weighed, (0, 1, 2, 3))(*args), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def partial_attention(q, k, v):
    """(out, log_total) of one group of keys, dense."""
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    return scaled_dot_product_attention(q, k, v)[0], np.log(np.exp(scores).sum(-1))


@pytest.mark.parametrize("cut", range(1, 7))
def test_attention_over_split_keys_merges_into_the_whole(cut):
    rng = np.random.default_rng(2)
    q, k, v = (rng.normal(size=(2, n, d)) for n, d in ((3, 4), (7, 4), (7, 5)))
    merged, log_total = merge_attention(*partial_attention(q, k[:, :cut], v[:, :cut]), *partial_attention(q, k[:, cut:], v[:, cut:]))[0]
    whole = partial_attention(q, k, v)
    np.testing.assert_allclose(merged, whole[0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(log_total, whole[1], rtol=0, atol=1e-14)


def test_the_order_and_the_grouping_of_the_parts_change_nothing():
    parts = [part(seed) for seed in range(4)]

    def fold(parts):
        merged = parts[0]
        for other in parts[1:]:
            merged = merge_attention(*merged, *other)[0]
        return merged

    wanted = fold(parts)
    for order in itertools.permutations(parts):
        for own, theirs in zip(fold(order), wanted, strict=True):
            np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-14)
    tree = merge_attention(*merge_attention(*parts[0], *parts[1])[0], *merge_attention(*parts[2], *parts[3])[0])[0]
    for own, theirs in zip(tree, wanted, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("first", [True, False])
def test_what_saw_nothing_adds_nothing_to_the_last_bit(first):
    something, dout = part(3), upstream()
    args = (*NOTHING, *something) if first else (*something, *NOTHING)
    result, backward = merge_attention(*args)
    gradients = backward(dout)
    seen, unseen = (gradients[2:], gradients[:2]) if first else (gradients[:2], gradients[2:])
    for own, theirs in zip((*result, *seen), (*something, *dout), strict=True):
        np.testing.assert_array_equal(own, theirs)
    assert not unseen[0].any() and not unseen[1].any()


def test_nothing_and_nothing_is_nothing_and_sends_no_gradient():
    (out, log_total), backward = merge_attention(*NOTHING, *NOTHING)
    assert not out.any() and np.all(log_total == -np.inf)
    for gradient in backward(upstream()):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_some_queries_may_have_seen_nothing_beside_others_that_have():
    (out1, log_total1), (out2, log_total2) = part(4), part(5)
    blind1, blind2 = np.array([[1, 0, 1], [0, 0, 1]], bool), np.array([[0, 1, 1], [0, 0, 1]], bool)
    out1[blind1], out2[blind2], log_total1[blind1], log_total2[blind2] = 0, 0, -np.inf, -np.inf
    result, backward = merge_attention(out1, log_total1, out2, log_total2)
    dout = upstream()
    gradients = backward(dout)
    alone = np.isfinite(log_total1) & np.isfinite(log_total2)
    wanted, wanted_backward = merge_attention(*(a[alone][None] for a in (out1, log_total1, out2, log_total2)))
    for own, theirs in zip((*result, *gradients), (*wanted, *wanted_backward(tuple(d[alone][None] for d in dout))), strict=True):
        np.testing.assert_array_equal(own[alone], theirs[0])
        assert not np.isnan(own).any()
    assert np.array_equal(result[1] == -np.inf, blind1 & blind2)


def test_totals_far_apart_or_huge_neither_overflow_nor_vanish():
    for totals in ((900.0, 899.0), (-900.0, -899.0), (3e4, -3e4)):
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            (out, log_total), backward = merge_attention(
                np.ones((1, 2)), np.array([totals[0]]), np.full((1, 2), 3.0), np.array([totals[1]])
            )
            gradients = backward((np.ones((1, 2)), np.ones(1)))
        difference = totals[1] - totals[0]
        share = 1 / (1 + np.exp(difference)) if difference < 0 else 1 - 1 / (1 + np.exp(-difference))
        np.testing.assert_allclose(out, share + 3 * (1 - share), rtol=1e-12)
        np.testing.assert_allclose(log_total, np.logaddexp(*totals), rtol=1e-15)
        assert all(np.isfinite(g).all() for g in gradients)


def test_one_more_unit_of_upstream_on_the_total_goes_to_the_parts_by_their_shares():
    args = (*part(6), *part(7))
    dout1, dlog_total1, dout2, dlog_total2 = merge_attention(*args)[1]((np.zeros((2, 3, 5)), np.ones((2, 3))))
    np.testing.assert_allclose(dlog_total1 + dlog_total2, 1, rtol=0, atol=1e-15)
    assert not dout1.any() and not dout2.any()


def test_the_checker_refuses_a_backward_that_takes_the_shares_for_constants():
    def wrong(out1, log_total1, out2, log_total2):
        result, backward = merge_attention(out1, log_total1, out2, log_total2)

        def constant(dout):
            dout1, _, dout2, _ = backward(dout)
            _, dlog_total1, _, dlog_total2 = backward((np.zeros_like(dout[0]), dout[1]))
            return dout1, dlog_total1, dout2, dlog_total2

        return result, constant

    report = check_gradients(wrong, *part(0), *part(1))
    assert [a.error > 1e-2 for a in report.arguments] == [False, True, False, True]


@pytest.mark.parity
def test_it_is_what_pytorch_makes_of_a_logsumexp():
    torch = pytest.importorskip("torch")
    args, dout = (*part(0), *part(1)), upstream()
    (out, log_total), backward = merge_attention(*args)
    out1, log_total1, out2, log_total2 = tensors = [torch.tensor(a, requires_grad=True) for a in args]
    both = torch.stack([log_total1, log_total2])
    theirs = (torch.softmax(both, 0)[..., None] * torch.stack([out1, out2])).sum(0), torch.logsumexp(both, 0)
    np.testing.assert_allclose(out, theirs[0].detach(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(log_total, theirs[1].detach(), rtol=0, atol=1e-9)
    torch.autograd.backward(theirs, [torch.tensor(d) for d in dout])
    for own, tensor in zip(backward(dout), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9)
