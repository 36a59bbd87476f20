"""Gaussian-kernel attention: distances one by one, what moving everything changes, and its kinship with the softmax."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import causal
from minitransformers.attention.gaussian_kernel_attention import (
    GaussianKernel,
    gaussian_kernel_attention,
    normalized_gaussian_kernel_attention,
)
from minitransformers.attention.grouped_query_attention import grouped_query_attention, init_grouped_query_attention
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import check_gradients


def attention(normalize):
    return normalized_gaussian_kernel_attention if normalize else gaussian_kernel_attention


def textbook(bandwidth, q, k, v, bias, mask, normalize):
    """One pair of a query and a key at a time; arrays (heads, positions, d) without broadcasting."""
    heads = []
    for h in range(len(q)):
        rows = []
        for i in range(q.shape[1]):
            seen = [j for j in range(k.shape[1]) if mask[h, i, j]]
            kernel = [anp.exp(-anp.sum((q[h, i] - k[h, j]) ** 2) / (2 * bandwidth[h]) + bias[h, i, j]) for j in seen]
            total = sum(kernel) if normalize and seen else 1.0
            rows.append(sum((p / total * v[h, j] for p, j in zip(kernel, seen, strict=True)), 0.0 * v[h, 0]))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


def case(seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((3, 4, 6)) < 0.6
    mask[1, 2] = False
    q, k, v = (rng.normal(size=shape) for shape in ((3, 4, 5), (3, 6, 5), (3, 6, 2)))
    return GaussianKernel(np.exp(rng.normal(size=3))), q, k, v, mask, rng.normal(size=(3, 4, 2))


def kernel(q, k, *, normalize=False):
    return attention(normalize)(None, q, k, np.eye(k.shape[-2]))[0]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_textbook_kernel_and_its_gradients_are_autograd_s(biased, masked, normalize):
    params, q, k, v, mask, dout = case()
    allowed = mask if masked else np.ones_like(mask)
    bias = np.random.default_rng(6).normal(size=mask.shape)
    given = bias if biased else np.zeros_like(bias)
    out, backward = attention(normalize)(params, q, k, v, bias if biased else None, mask=mask if masked else None)
    args = (params.bandwidth, q, k, v, given)
    np.testing.assert_allclose(out, textbook(*args, allowed, normalize), rtol=0, atol=1e-13)
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, allowed, normalize)), (0, 1, 2, 3, 4))(*args)
    (dbandwidth,), *gradients = backward(dout)
    assert biased or gradients.pop() is None
    for own, theirs in zip((dbandwidth, *gradients), expected if biased else expected[:4], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_bias_of_minus_infinity_is_the_same_as_a_mask(normalize):
    params, q, k, v, mask, dout = case()
    bias = np.random.default_rng(6).normal(size=mask.shape)
    out, backward = attention(normalize)(params, q, k, v, np.where(mask, bias, -np.inf))
    wanted, mask_backward = attention(normalize)(params, q, k, v, bias, mask=mask)
    np.testing.assert_array_equal(out, wanted)
    (own_bandwidth, *own), (bandwidth, *theirs) = backward(dout), mask_backward(dout)
    for a, b in zip((*own_bandwidth, *own), (*bandwidth, *theirs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not backward(dout)[4][~mask].any()


def test_without_a_bandwidth_it_is_the_root_of_the_width_of_a_head():
    _, q, k, v, _, dout = case()
    out, backward = gaussian_kernel_attention(None, q, k, v)
    given, given_backward = gaussian_kernel_attention(GaussianKernel(np.full(3, np.sqrt(5))), q, k, v)
    np.testing.assert_allclose(out, given, rtol=1e-14)
    assert backward(dout)[0] is None
    np.testing.assert_allclose(backward(dout)[1], given_backward(dout)[1], rtol=0, atol=1e-15)


def test_a_weight_is_at_most_one_and_one_only_where_query_and_key_are_the_same():
    _, q, k, *_ = case()
    k[:, 2] = q[:, 1]
    weights = kernel(q, k)
    assert np.all(weights > 0) and np.all(weights <= 1)
    np.testing.assert_allclose(weights[:, 1, 2], 1, rtol=1e-14)
    weights[:, 1, 2] = 0
    assert weights.max() < 0.95


def test_rounding_of_long_vectors_does_not_make_a_weight_above_one():
    x = 1e4 * np.random.default_rng(5).normal(size=(50, 5)).astype(np.float32)
    weights = gaussian_kernel_attention(GaussianKernel(np.ones(1, np.float32)), x, x, np.eye(50, dtype=np.float32))[0]
    assert weights.max() <= 1


@pytest.mark.parametrize("normalize", [False, True])
def test_moving_all_queries_and_keys_by_one_vector_changes_nothing_so_their_gradients_sum_to_zero(normalize):
    params, q, k, v, mask, dout = case()
    out, backward = attention(normalize)(params, q, k, v, mask=mask)
    shift = np.arange(5.0)
    moved = attention(normalize)(params, q + shift, k + shift, v, mask=mask)[0]
    np.testing.assert_allclose(moved, out, rtol=0, atol=1e-12)
    _, dq, dk, *_ = backward(dout)
    np.testing.assert_allclose(dq.sum(1) + dk.sum(1), 0, atol=1e-13)


def test_shared_queries_and_keys_give_a_symmetric_kernel_without_negative_eigenvalues():
    x = np.random.default_rng(1).normal(size=(7, 3))
    weights = kernel(x, x)
    np.testing.assert_allclose(weights, weights.T, rtol=0, atol=1e-15)
    assert np.linalg.eigvalsh(weights).min() >= -1e-12


def test_normalised_over_keys_of_equal_length_it_is_the_softmax():
    _, q, k, v, *_ = case()
    k = k / np.linalg.norm(k, axis=-1, keepdims=True) * 1.7
    wanted = scaled_dot_product_attention(q, k, v)[0]
    np.testing.assert_allclose(normalized_gaussian_kernel_attention(None, q, k, v)[0], wanted, rtol=0, atol=1e-13)


def test_a_long_key_attracts_a_softmax_and_not_the_kernel():
    _, q, k, *_ = case()
    far = k.copy()
    far[:, 0] = 20 * q[:, 0]
    softmax_s = scaled_dot_product_attention(q, far, np.broadcast_to(np.eye(6), (3, 6, 6)).copy())[0][:, 0, 0]
    assert np.all(softmax_s > 0.99) and np.all(kernel(q, far, normalize=True)[:, 0, 0] < 0.01)


def test_without_normalisation_the_output_grows_with_the_number_of_keys():
    _, q, k, v, *_ = case()
    doubled = np.concatenate([k, k], 1), np.concatenate([v, v], 1)
    np.testing.assert_allclose(gaussian_kernel_attention(None, q, *doubled)[0], 2 * gaussian_kernel_attention(None, q, k, v)[0], rtol=1e-12)
    once = normalized_gaussian_kernel_attention(None, q, k, v)[0]
    np.testing.assert_allclose(normalized_gaussian_kernel_attention(None, q, *doubled)[0], once, rtol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_what_is_forbidden_counts_for_nothing_and_a_blind_query_reads_zero(normalize):
    params, q, k, v, mask, dout = case()
    assert not attention(normalize)(params, q, k, v, mask=mask)[0][1, 2].any()
    none = np.zeros_like(mask)
    out, backward = attention(normalize)(params, q, k, v, mask=none)
    (dbandwidth,), *gradients, _ = backward(dout)
    assert not out.any() and not any(g.any() for g in (dbandwidth, *gradients))


@pytest.mark.parametrize("normalize", [False, True])
def test_every_way_to_broadcast_equals_the_copies_and_sums_the_gradients(normalize):
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=shape) for shape in ((4, 3, 2, 5), (1, 3, 6, 5), (2, 1, 1, 6, 7), (4, 1, 1, 6))]
    shapes = ((2, 4, 3, 2, 5), (2, 4, 3, 6, 5), (2, 4, 3, 6, 7), (2, 4, 3, 2, 6))
    copies = [np.broadcast_to(a, shape).copy() for a, shape in zip(arrays, shapes, strict=True)]
    for heads in (3, 1):
        params = GaussianKernel(np.exp(rng.normal(size=heads)))
        out, backward = attention(normalize)(params, *arrays)
        wanted, wanted_backward = attention(normalize)(GaussianKernel(np.broadcast_to(params.bandwidth, 3).copy()), *copies)
        np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-13)
        dout = rng.normal(size=out.shape)
        ((dbandwidth,), *found), ((each,), *theirs) = backward(dout), wanted_backward(dout)
        np.testing.assert_allclose(dbandwidth, each if heads == 3 else each.sum(keepdims=True), rtol=0, atol=1e-12)
        for own, copied, a in zip(found, theirs, arrays, strict=True):
            summed = copied.sum(axis=tuple(range(copied.ndim - a.ndim)))
            summed = summed.sum(axis=tuple(i for i, n in enumerate(a.shape) if n == 1), keepdims=True)
            assert own.shape == a.shape
            np.testing.assert_allclose(own, summed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bias_only_adds_or_forbids(bad, normalize):
    _, q, k, v, mask, _ = case()
    bias = np.where(mask, 0.0, bad)
    with pytest.raises(ValueError, match="bias: got NaN or"):
        attention(normalize)(None, q, k, v, bias)


def test_it_is_a_core_that_grouped_query_attention_takes():
    rng = np.random.default_rng(3)
    params = init_grouped_query_attention(rng, 4, num_heads=2, num_kv_heads=1, dtype=np.float64)
    params, x = params._replace(core=GaussianKernel(np.exp(rng.normal(size=2)))), rng.normal(size=(1, 3, 4))
    report = check_gradients(grouped_query_attention, params, x, num_heads=2, num_kv_heads=1, core=causal(gaussian_kernel_attention))
    assert report.passed, report
    assert "params.core.bandwidth" in [argument.path for argument in report.arguments]


@pytest.mark.parametrize("normalize", [False, True])
def test_far_apart_in_float32_all_is_finite(normalize):
    q, k, v, dout = (a.astype(np.float32) for a in (*case()[1:4], case()[5]))
    out, backward = attention(normalize)(None, 1e15 * q, 1e15 * k, v)
    assert all(np.isfinite(a).all() for a in (out, *backward(dout)[1:4]))
    assert out.any() == normalize                            # the kernel is 0 at this distance, its quotient is not


def test_the_checker_refuses_a_backward_that_takes_the_lengths_for_constants():
    _, q, k, v, *_ = case()

    def wrong(q, k):
        out, _ = gaussian_kernel_attention(None, q, k, v)
        weights = kernel(q, k)

        def backward(dout):
            pull = weights * (dout @ v.swapaxes(-1, -2)) / np.sqrt(5)
            return pull @ k, pull.swapaxes(-1, -2) @ q

        return out, backward

    report = check_gradients(wrong, q, k)
    assert not report.passed and report.error > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("normalize", [False, True])
def test_parity_with_torch(normalize):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    q, k, v, dout = (rng.normal(size=(2, 3, 5, 4)) for _ in range(4))
    bandwidth, bias = np.exp(rng.normal(size=3)), rng.normal(size=(3, 5, 5))
    tensors = [torch.tensor(a, requires_grad=True) for a in (bandwidth, q, k, v, bias)]
    tb, tq, tk, tv, added = tensors
    squares = ((tq[..., :, None, :] - tk[..., None, :, :]) ** 2).sum(-1)
    logits = (-squares / (2 * tb[:, None, None]) + added).masked_fill(torch.tensor(~causal_mask(5)), -torch.inf)
    theirs = (torch.softmax(logits, -1) if normalize else torch.exp(logits)) @ tv
    theirs.backward(torch.tensor(dout))
    out, backward = attention(normalize)(GaussianKernel(bandwidth), q, k, v, bias, mask=causal_mask(5))
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    (dbandwidth,), *gradients = backward(dout)
    for own, their in zip((dbandwidth, *gradients), tensors, strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-9)
