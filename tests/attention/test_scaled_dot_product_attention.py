"""Scaled dot-product attention, the plain form and the fast one: the textbook sum, and all that follows from it."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.scaled_dot_product_attention import attention_weights, scaled_dot_product_attention
from minitransformers.attention.scaled_dot_product_attention_fast import scaled_dot_product_attention_fast
from minitransformers.foundation import check_gradients

both = pytest.mark.parametrize("attention", [scaled_dot_product_attention, scaled_dot_product_attention_fast], ids=["plain", "fast"])


def textbook(q, k, v, bias, mask, scale):
    """One query at a time over the keys that it may see; arrays (heads, positions, d) without broadcasting."""
    heads = []
    for h in range(len(q)):
        rows = []
        for i in range(q.shape[1]):
            seen = [j for j in range(k.shape[1]) if mask[h, i, j]]
            if not seen:
                rows.append(0 * v[h, 0])
                continue
            scores = [scale * anp.sum(q[h, i] * k[h, j]) for j in seen]
            powers = [anp.exp(s + bias[h, i, j]) for s, j in zip(scores, seen, strict=True)]
            rows.append(sum(p * v[h, j] for p, j in zip(powers, seen, strict=True)) / sum(powers))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


def case(seed=0, heads=3, queries=4, keys=6, d_head=5, d_value=2):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(heads, n, d)) for n, d in ((queries, d_head), (keys, d_head), (keys, d_value)))
    bias, mask = rng.normal(size=(heads, queries, keys)), rng.random((heads, queries, keys)) < 0.6
    mask[-1, 2] = False                                      # a query that may attend to nothing
    return q, k, v, bias, mask


@both
@pytest.mark.parametrize("scale", [None, 0.3, -1.5])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(attention, scale):
    *args, mask = case()
    out, backward = attention(*args, mask=mask, scale=scale)
    dout = np.random.default_rng(1).normal(size=out.shape)

    def loss(*args):
        return anp.sum(dout * textbook(*args, mask, 5**-0.5 if scale is None else scale))

    np.testing.assert_allclose(out, textbook(*args, mask, 5**-0.5 if scale is None else scale), rtol=0, atol=1e-10)
    for own, theirs in zip(backward(dout), autograd.grad(loss, (0, 1, 2, 3))(*args), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


@both
def test_every_way_to_broadcast_equals_the_copies_and_sums_the_gradients_over_them(attention):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in ((4, 3, 4, 5), (1, 3, 6, 5), (2, 1, 1, 6, 7), (2, 4, 1, 1, 6))]
    copies = [np.broadcast_to(a, (2, 4, 3, *tail)).copy() for a, tail in zip(arrays, ((4, 5), (6, 5), (6, 7), (4, 6)), strict=True)]
    out, backward = attention(*arrays)
    wanted, full_backward = attention(*copies)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-13)
    dout = rng.normal(size=out.shape)
    for own, copied, a in zip(backward(dout), full_backward(dout), arrays, strict=True):
        summed = copied.sum(axis=tuple(range(copied.ndim - a.ndim)))
        summed = summed.sum(axis=tuple(i for i, n in enumerate(a.shape) if n == 1), keepdims=True)
        assert own.shape == a.shape
        np.testing.assert_allclose(own, summed, rtol=0, atol=1e-12)


@both
def test_a_mask_may_have_leading_axes_that_nothing_else_has(attention):
    q, k, v, _, mask = case(heads=1)
    mask = np.stack([mask[0], ~mask[0]])
    out, backward = attention(q[0], k[0], v[0], mask=mask)
    for own, one in zip(out, mask, strict=True):
        np.testing.assert_allclose(own, attention(q[0], k[0], v[0], mask=one)[0], rtol=0, atol=1e-14)
    assert [g.shape for g in backward(out)[:3]] == [q[0].shape, k[0].shape, v[0].shape]


def test_a_query_that_sees_one_key_reads_its_value_and_gets_a_gradient_of_exactly_zero():
    """In float32 as well: the two sides of (8) are the same number, where those of the fast form agree to rounding."""
    q, k, v, bias, mask = (a if a.dtype == bool else a.astype(np.float32) for a in case())
    mask[:, 1], mask[:, 3] = False, np.arange(6) == 4
    mask[0, 1, 2] = True
    out, backward = scaled_dot_product_attention(q, k, v, bias, mask=mask)
    dq, _, _, dbias = backward(np.random.default_rng(6).normal(size=out.shape).astype(np.float32))
    np.testing.assert_array_equal(out[:, 3], v[:, 4])
    alone = mask.sum(-1) == 1
    assert alone.sum() >= 4 and not dq[alone].any() and not dbias[alone].any()
    assert dq[mask.sum(-1) > 1].all()


def test_weights_of_a_query_sum_to_one_or_to_nothing_where_it_sees_nothing():
    q, k, _, bias, mask = case(heads=2)
    sums = attention_weights(q, k, bias, mask=mask).sum(-1)
    np.testing.assert_allclose(sums, mask.any(-1), rtol=0, atol=1e-14)
    assert sums[1, 2] == 0


@both
def test_a_query_that_sees_nothing_reads_zero_and_sends_no_gradient(attention):
    q, k, v, bias, mask = case()
    mask[:] = False
    for how in ({"mask": mask}, {"mask": None}):
        blocked = np.full_like(bias, -np.inf) if how["mask"] is None else bias
        out, backward = attention(q, k, v, blocked, **how)
        assert not out.any()
        assert not any(g.any() for g in backward(np.ones_like(out)))


@both
def test_a_bias_of_minus_infinity_is_the_same_as_a_mask_and_gets_no_gradient_there(attention):
    q, k, v, bias, mask = case()
    out, backward = attention(q, k, v, np.where(mask, bias, -np.inf))
    wanted, mask_backward = attention(q, k, v, bias, mask=mask)
    assert np.array_equal(out, wanted)
    for own, theirs in zip(backward(out), mask_backward(out), strict=True):
        assert np.array_equal(own, theirs)
    assert not backward(out)[3][~mask].any()


@both
def test_a_number_added_to_all_scores_of_a_query_changes_nothing(attention):
    q, k, v, bias, _ = case()
    out, backward = attention(q, k, v, bias)
    np.testing.assert_allclose(attention(q, k, v, bias + 5.0)[0], out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(backward(np.cos(out))[3].sum(-1), 0, atol=1e-14)     # hence the scores' gradients sum to zero


@both
def test_the_same_vector_added_to_every_key_changes_nothing(attention):
    q, k, v, _, _ = case()
    out, backward = attention(q, k, v)
    np.testing.assert_allclose(attention(q, k + np.arange(5.0), v)[0], out, rtol=0, atol=1e-13)
    np.testing.assert_allclose(backward(np.cos(out))[1].sum(-2), 0, atol=1e-14)     # a bias on the keys gets no gradient


@both
def test_the_order_of_the_keys_does_not_matter_and_that_of_the_queries_carries_over(attention):
    q, k, v, bias, mask = case()
    out = attention(q, k, v, bias, mask=mask)[0]
    keys, queries = np.random.default_rng(2).permutation(6), np.random.default_rng(3).permutation(4)
    moved = attention(q, k[:, keys], v[:, keys], bias[..., keys], mask=mask[..., keys])[0]
    np.testing.assert_allclose(moved, out, rtol=0, atol=1e-14)
    moved = attention(q[:, queries], k, v, bias[:, queries], mask=mask[:, queries])[0]
    np.testing.assert_allclose(moved, out[:, queries], rtol=0, atol=1e-14)


@both
def test_equal_keys_give_the_mean_of_the_values(attention):
    q, k, v, _, _ = case()
    out = attention(q, np.ones_like(k), v)[0]
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(-2, keepdims=True), out.shape), rtol=0, atol=1e-14)


@both
def test_the_output_lies_between_the_values_that_the_query_sees(attention):
    q, k, v, bias, mask = case()
    out = attention(3 * q, k, v, bias, mask=mask)[0]
    low, high = (f(np.where(mask[..., None], v[:, None], fill), -2) for f, fill in ((np.min, np.inf), (np.max, -np.inf)))
    sees = mask.any(-1)
    assert np.all((out >= low - 1e-12)[sees]) and np.all((out <= high + 1e-12)[sees])


@both
def test_the_future_has_no_influence_under_a_causal_mask_not_a_single_bit(attention):
    q, k, v = (np.random.default_rng(0).normal(size=(2, 7, 4)) for _ in range(3))
    out, backward = attention(q, k, v, mask=causal_mask(7))
    k2, v2 = k.copy(), v.copy()
    k2[:, 4:], v2[:, 4:] = 9.0, -7.0
    assert np.array_equal(attention(q, k2, v2, mask=causal_mask(7))[0][:, :4], out[:, :4])
    dout = np.zeros_like(out)
    dout[:, 3] = 1.0
    _, dk, dv, _ = backward(dout)
    assert not dk[:, 4:].any() and not dv[:, 4:].any()
    assert dk[:, :4].all() and dv[:, :4].all()


@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_of_ten_thousand_stay_finite(attention, dtype):
    q, k, v = (np.random.default_rng(i).normal(size=(3, 5)).astype(dtype) for i in range(3))
    out, backward = attention(100 * q, 100 * k, v, np.array([[0, -1e30, 1e4]], dtype))
    assert all(np.isfinite(a).all() for a in (out, *backward(v)))


@both
def test_a_fully_hidden_query_raises_no_warning_even_where_numpy_is_strict(attention):
    q, k, v, _, mask = case()
    with np.errstate(all="raise", under="ignore"):
        attention(q, k, v, mask=mask & False)[1](np.ones((3, 4, 2)))


def test_the_checker_refuses_a_softmax_backward_without_its_shared_term():
    def wrong(q, k, v):
        weights = attention_weights(q, k)

        def backward(dout):
            dscores = weights * (dout @ v.swapaxes(-1, -2)) * q.shape[-1] ** -0.5
            return dscores @ k, dscores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ dout

        return weights @ v, backward

    report = check_gradients(wrong, *case()[:3])
    assert not report.passed
    assert [a.error > 1e-2 for a in report.arguments] == [True, True, False]


def test_the_checker_names_a_forgotten_scale():
    def wrong(q, k, v):
        out, backward = scaled_dot_product_attention(q, k, v)
        return out, lambda dout: (backward(dout)[0] * 5**0.5, *backward(dout)[1:3])

    report = check_gradients(wrong, *case()[:3])
    assert not report.passed and "factor 0.447214 is missing" in report.worst.cause


@both
@pytest.mark.parity
@pytest.mark.parametrize("form", ["mask", "bias", "both", "neither"])
def test_it_is_what_pytorch_computes(attention, form):
    torch = pytest.importorskip("torch")
    q, k, v, bias, mask = case()
    bias, mask = bias if form in ("bias", "both") else None, mask if form in ("mask", "both") else None
    ours, backward = attention(q, k, v, bias, mask=mask)
    tensors = [None if a is None else torch.tensor(a, requires_grad=True) for a in (q, k, v, bias)]
    given = tensors[3] if mask is None else torch.tensor(mask)
    if form == "both":
        given = torch.where(given, tensors[3], -torch.inf)
    theirs = torch.nn.functional.scaled_dot_product_attention(*tensors[:3], attn_mask=given)
    np.testing.assert_allclose(ours, theirs.detach(), rtol=0, atol=1e-9)
    dout = np.random.default_rng(5).normal(size=ours.shape)
    theirs.backward(torch.tensor(dout))
    for own, tensor in zip(backward(dout), tensors, strict=True):
        if own is not None:
            np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9)
