"""The soft cap by itself, and in attention, where it comes before bias and mask."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.soft_cap import soft_cap, soft_capped_attention
from minitransformers.foundation import check_gradients

X = 3 * np.random.default_rng(0).normal(size=(2, 3, 5))

pytestmark = pytest.mark.usefixtures("few_or_many_queries")


@pytest.mark.parametrize("cap", [0.5, 2.0, 50.0])
def test_it_is_the_formula_and_its_gradient_is_autograd_s(cap):
    def formula(x):
        power = anp.exp(2 * x / cap)
        return cap * (power - 1) / (power + 1)

    out, backward = soft_cap(X, cap=cap)
    dout = np.random.default_rng(1).normal(size=X.shape)
    np.testing.assert_allclose(out, formula(X), rtol=0, atol=1e-10)
    np.testing.assert_allclose(backward(dout), autograd.grad(lambda x: anp.sum(dout * formula(x)))(X), rtol=0, atol=1e-10)


def test_it_is_odd_increasing_and_inside_the_cap():
    x = np.linspace(-10, 10, 101)
    out = soft_cap(x, cap=2.0)[0]
    assert np.array_equal(soft_cap(-x, cap=2.0)[0], -out)
    assert np.all(np.diff(out) > 0) and np.all(np.abs(out) < 2)


def test_its_slope_at_zero_is_one():
    assert soft_cap(np.zeros(3), cap=0.7)[1](np.ones(3)) == pytest.approx(1)


def test_small_scores_hardly_change():
    x = np.linspace(-3, 3, 61)                               # up to a tenth of the cap
    assert np.all(np.abs(soft_cap(x, cap=30.0)[0] - x) <= np.abs(x) ** 3 / (3 * 30.0**2) + 1e-15)


def test_the_largest_score_stays_the_largest():
    assert np.array_equal(soft_cap(X, cap=2.0)[0].argmax(-1), X.argmax(-1))


def test_far_beyond_the_cap_only_rounding_reaches_it():
    out, backward = soft_cap(np.array([3e38, -3e38], np.float32), cap=50.0)
    assert out.tolist() == [50.0, -50.0] and backward(np.ones(2, np.float32)).tolist() == [0.0, 0.0]


def test_the_checker_refuses_the_gradient_of_a_clip():
    def wrong(x):
        return soft_cap(x, cap=2.0)[0], lambda dout: dout * (np.abs(x) < 2)

    assert not check_gradients(wrong, X).passed


@pytest.mark.parity
def test_it_is_what_pytorch_computes():
    torch = pytest.importorskip("torch")
    x = torch.tensor(X, requires_grad=True)
    theirs = torch.tanh(x / 2.0) * 2.0                       # as Gemma 2 writes it
    out, backward = soft_cap(X, cap=2.0)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    theirs.backward(torch.tensor(np.cos(X)))
    np.testing.assert_allclose(backward(np.cos(X)), x.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("cap", [1e39, 1e-46])
def test_a_cap_that_the_dtype_does_not_hold_is_refused(cap):
    with pytest.raises(ValueError, match="cap: got"):
        soft_cap(np.ones(3, np.float32), cap=cap)


def case(seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(3, n, d)) for n, d in ((4, 5), (6, 5), (6, 2)))
    mask = rng.random((3, 4, 6)) < 0.6
    mask[-1, 2] = False                                      # a query that may attend to nothing
    return q, k, v, rng.normal(size=(3, 4, 6)), mask


def textbook(q, k, v, bias, mask, scale, cap):
    """One query at a time over the keys that it may see: scale, cap, then the bias."""
    heads = []
    for h in range(len(q)):
        rows = []
        for i in range(q.shape[1]):
            seen = np.flatnonzero(mask[h, i])
            powers = [anp.exp(cap * anp.tanh(scale * anp.sum(q[h, i] * k[h, j]) / cap) + bias[h, i, j]) for j in seen]
            rows.append(sum((p * v[h, j] for p, j in zip(powers, seen, strict=True)), 0 * v[h, 0]) / (sum(powers) if powers else 1))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


@pytest.mark.parametrize("cap", [0.7, 3.0])
@pytest.mark.parametrize("scale", [None, 0.3, -1.5])
def test_in_attention_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(scale, cap):
    *args, mask = case()
    out, backward = soft_capped_attention(None, *args, mask=mask, scale=scale, cap=cap)
    dout, factor = np.random.default_rng(1).normal(size=out.shape), 5**-0.5 if scale is None else scale
    np.testing.assert_allclose(out, textbook(*args, mask, factor, cap), rtol=0, atol=1e-10)
    nothing, *gradients = backward(dout)
    assert nothing is None
    expected = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, mask, factor, cap)), (0, 1, 2, 3))(*args)
    for own, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def weights(q, k, bias=None, **config):
    return soft_capped_attention(None, q, k, np.eye(k.shape[-2]), bias, **config)[0]


def test_the_cap_comes_before_the_mask_so_that_nothing_leaks():
    q, k, _, _, mask = case()
    found = weights(50 * q, k, mask=mask, cap=0.5)
    assert not found[~mask].any()
    assert np.all(found[mask] > 0)                           # scores within ±0.5: no key that is seen is drowned


def test_the_cap_comes_before_the_bias_which_keeps_its_full_effect():
    q, k, _, bias, mask = case()
    found = weights(50 * q, k, 20 * bias, cap=0.5)
    ratio = np.log(found[0, 0, 1] / found[0, 0, 2])
    assert abs(ratio - 20 * (bias[0, 0, 1] - bias[0, 0, 2])) <= 1 + 1e-9
    hidden = weights(50 * q, k, np.where(mask, bias, -np.inf), cap=0.5)
    np.testing.assert_allclose(hidden, weights(50 * q, k, bias, mask=mask, cap=0.5), rtol=0, atol=1e-14)


def test_a_huge_cap_is_none_at_all():
    q, k, v, bias, mask = case()
    capped = soft_capped_attention(None, q, k, v, bias, mask=mask, cap=1e6)[0]
    np.testing.assert_allclose(capped, scaled_dot_product_attention(q, k, v, bias, mask=mask)[0], rtol=0, atol=1e-11)


def test_it_learns_nothing():
    with pytest.raises(ValueError, match="params: got"):
        soft_capped_attention(np.ones(2), *case()[:3], cap=1.0)


def test_the_checker_refuses_an_attention_that_forgets_the_slope_of_the_cap():
    def wrong(q, k, v):
        out, backward = soft_capped_attention(None, q, k, v, cap=1.0)
        capped = soft_cap(q @ k.swapaxes(-1, -2) * 5**-0.5, cap=1.0)[0]
        w = np.exp(capped) / np.exp(capped).sum(-1, keepdims=True)

        def straight(dout):
            dscores = w * (dout @ v.swapaxes(-1, -2) - np.vecdot(dout, out)[..., None]) * 5**-0.5
            return dscores @ k, dscores.swapaxes(-1, -2) @ q, backward(dout)[3]

        return out, straight

    report = check_gradients(wrong, *case()[:3])
    assert [a.error > 1e-2 for a in report.arguments] == [True, True, False]


@pytest.mark.parity
def test_in_attention_it_is_gemma_2_s():
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    modeling = pytest.importorskip("transformers.models.gemma2.modeling_gemma2")
    rng = np.random.default_rng(0)
    q, k, v = (3 * rng.normal(size=(2, heads, 5, 6)) for heads in (4, 2, 2))
    groups = [a.reshape(2, 2, -1, 5, 6) for a in (q, k, v)]  # two query heads a group, keys and values not copied
    ours, backward = soft_capped_attention(None, *groups, mask=causal_mask(5), scale=0.4, cap=2.0)
    tensors = [torch.tensor(a, requires_grad=True) for a in (q, k, v)]
    hidden = torch.where(torch.tensor(causal_mask(5).copy()), 0.0, -torch.inf)[None, None].double()
    module = SimpleNamespace(num_key_value_groups=2, training=False, head_dim=6)
    # The softmax is in float32 there: 1e-5.
    theirs, _ = modeling.eager_attention_forward(module, *tensors, hidden, dropout=0.0, scaling=0.4, softcap=2.0)
    np.testing.assert_allclose(ours.reshape(2, 4, 5, 6), theirs.transpose(1, 2).detach(), rtol=0, atol=1e-5)
    dout = rng.normal(size=(2, 4, 5, 6))
    theirs.transpose(1, 2).backward(torch.tensor(dout))
    for own, tensor in zip(backward(dout.reshape(ours.shape))[1:4], tensors, strict=True):
        np.testing.assert_allclose(own.reshape(tensor.shape), tensor.grad, rtol=0, atol=2e-5)
