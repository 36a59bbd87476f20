"""Linformer: mixtures of keys written out, what they become at full rank, and what they cannot do."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import causal
from minitransformers.attention.grouped_query_attention import grouped_query_attention, init_grouped_query_attention
from minitransformers.attention.masks import padding_mask
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import assert_gradients, check_gradients
from minitransformers.linear_attention.linformer import Linformer, init_linformer, linformer


def case(seed=0, heads=3, shared=False):
    rng = np.random.default_rng(seed)
    params = Linformer(rng.normal(size=(heads, 2, 7)), None if shared else rng.normal(size=(heads, 2, 7)))
    q, k, v = (rng.normal(size=(2, 3, n, d)) for n, d in ((4, 5), (6, 5), (6, 2)))
    return params, q, k, v, padding_mask(np.array([4, 6]), 6)


def textbook(E, F, q, k, v, mask, scale):
    """One head and one query at a time, every mixture a sum over the positions that are seen."""
    texts = []
    for b in range(len(q)):
        heads = []
        for h in range(q.shape[1]):
            e, f = E[h % len(E)], F[h % len(F)]
            seen = np.flatnonzero(mask[b, 0, 0])
            keys = [sum(e[r, j] * k[b, h, j] for j in seen) for r in range(e.shape[0])]
            values = [sum(f[r, j] * v[b, h, j] for j in seen) for r in range(e.shape[0])]
            rows = []
            for i in range(q.shape[2]):
                powers = [anp.exp(scale * anp.sum(q[b, h, i] * key)) for key in keys]
                rows.append(sum(p * value for p, value in zip(powers, values, strict=True)) / sum(powers))
            heads.append(anp.stack(rows))
        texts.append(anp.stack(heads))
    return anp.stack(texts)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("scale", [None, -0.7])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(heads, shared, scale):
    params, q, k, v, mask = case(heads=heads, shared=shared)
    out, backward = linformer(params, q, k, v, mask=mask, scale=scale)
    factor, dout = 5**-0.5 if scale is None else scale, np.random.default_rng(1).normal(size=out.shape)

    def naive(E, F, *qkv):
        return textbook(E, E if shared else F, *qkv, mask, factor)

    args = (params.key, params.key if shared else params.value, q, k, v)
    np.testing.assert_allclose(out, naive(*args), rtol=0, atol=1e-10)
    dE, dF, *expected = autograd.grad(lambda *a: anp.sum(dout * naive(*a)), (0, 1, 2, 3, 4))(*args)
    dparams, *gradients, dbias = backward(dout)
    assert dbias is None and (dparams.value is None) == shared
    np.testing.assert_allclose(dparams.key, dE, rtol=0, atol=1e-10)
    if not shared:
        np.testing.assert_allclose(dparams.value, dF, rtol=0, atol=1e-10)
    for own, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def test_with_a_mixture_for_each_key_it_is_attention():
    _, q, k, v, _ = case()
    one_each = Linformer(np.eye(6)[None], None)
    np.testing.assert_allclose(linformer(one_each, q, k, v)[0], scaled_dot_product_attention(q, k, v)[0], rtol=0, atol=1e-12)


def test_the_order_of_the_mixtures_does_not_matter():
    params, q, k, v, mask = case()
    turned = Linformer(params.key[:, ::-1], params.value[:, ::-1])
    np.testing.assert_allclose(linformer(turned, q, k, v, mask=mask)[0], linformer(params, q, k, v, mask=mask)[0], rtol=0, atol=1e-14)


def test_mixtures_that_are_means_of_blocks_are_pooled_keys():
    _, q, k, v, _ = case()
    pooled = (a.reshape(2, 3, 2, 3, -1).mean(-2) for a in (k, v))
    means = Linformer(np.kron(np.eye(2), np.full((1, 3), 1 / 3))[None], None)
    np.testing.assert_allclose(linformer(means, q, k, v)[0], scaled_dot_product_attention(q, *pooled)[0], rtol=0, atol=1e-14)


def test_weights_of_a_query_sum_to_one_over_the_mixtures():
    params, q, k, v, _ = case()
    ones = Linformer(params.key, np.full_like(params.value, 1 / 6))  # every mixture of equal values is that value
    np.testing.assert_allclose(linformer(ones, q, k, np.ones_like(v))[0], 1, rtol=1e-13)


def test_what_is_padding_changes_nothing_and_gets_no_gradient():
    params, q, k, v, mask = case()
    other_k, other_v = (np.where(mask.swapaxes(-1, -2), a, 1e3) for a in (k, v))
    out, backward = linformer(params, q, other_k, other_v, mask=mask)
    np.testing.assert_allclose(out, linformer(params, q, k, v, mask=mask)[0], rtol=0, atol=1e-12)
    _, _, dkey, dvalue, _ = backward(np.cos(out))
    assert not dkey[0, :, 4:].any() and not dvalue[0, :, 4:].any()


def test_a_shorter_text_uses_and_teaches_the_first_columns_only():
    params, q, k, v, _ = case()
    out, backward = linformer(params, q, k[:, :, :3], v[:, :, :3])
    first = Linformer(params.key[..., :3], params.value[..., :3])
    np.testing.assert_array_equal(out, linformer(first, q, k[:, :, :3], v[:, :, :3])[0])
    dparams = backward(np.cos(out))[0]
    assert dparams.key[..., :3].all() and not dparams.key[..., 3:].any()


def test_a_matrix_for_keys_and_values_gets_the_sum_of_both_gradients():
    params, q, k, v, mask = case()
    one, two = Linformer(params.key, None), Linformer(params.key, params.key)
    out, backward = linformer(one, q, k, v, mask=mask)
    apart = linformer(two, q, k, v, mask=mask)[1](np.cos(out))[0]
    np.testing.assert_allclose(backward(np.cos(out))[0].key, apart.key + apart.value, rtol=0, atol=1e-13)


@pytest.mark.parametrize("heads", [1, 4])
def test_it_is_a_core_of_multi_head_and_grouped_query_attention(heads):
    rng = np.random.default_rng(0)
    learned, x = init_linformer(rng, max_positions=7, rank=2, num_heads=heads, dtype=np.float64), rng.normal(size=(2, 5, 8))
    many = init_multi_head_attention(rng, 8, num_heads=4, std=0.4, dtype=np.float64)._replace(core=learned)
    assert_gradients(multi_head_attention, many, x, num_heads=4, core=linformer)
    few = init_grouped_query_attention(rng, 8, num_heads=4, num_kv_heads=2, std=0.4, dtype=np.float64)._replace(core=learned)
    assert_gradients(grouped_query_attention, few, x, num_heads=4, num_kv_heads=2, core=linformer)


def test_it_cannot_look_back_only():
    rng = np.random.default_rng(0)
    params = init_multi_head_attention(rng, 8, num_heads=4)._replace(core=init_linformer(rng, max_positions=7, rank=2))
    with pytest.raises(ValueError, match="mask: got a row for each of 5 queries"):
        multi_head_attention(params, rng.normal(size=(5, 8)).astype(np.float32), num_heads=4, core=causal(linformer))


def test_the_start_is_uniform_within_one_over_the_root_of_the_rank():
    params = init_linformer(np.random.default_rng(0), max_positions=500, rank=16, num_heads=2)
    assert params.key.shape == params.value.shape == (2, 16, 500) and params.key.dtype == np.float32
    assert 0.249 < np.abs(params.key).max() <= 0.25 and abs(params.key.mean()) < 0.01
    assert init_linformer(np.random.default_rng(0), max_positions=5, rank=2, shared=True).value is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(bias=np.ones((4, 6))), "bias: got numbers"),
        (dict(mask=np.ones((4, 6), bool)), "mask: got a row"),
        (dict(params=Linformer(np.ones((1, 2, 5)), None)), "params.key: got mixtures of 5 positions"),
        (dict(params=Linformer(np.ones((2, 2, 7)), None)), "params.key: got 2 heads"),
    ],
)
def test_what_does_not_fit_is_named(changes, named):
    params, query, key, value, _ = case()
    with pytest.raises(ValueError, match=named):
        linformer(**{"params": params, "query": query, "key": key, "value": value} | changes)


def test_a_rank_above_the_length_is_refused():
    with pytest.raises(ValueError, match="rank: got 8, wants at most max_positions = 7"):
        init_linformer(np.random.default_rng(0), max_positions=7, rank=8)


def test_the_checker_refuses_a_shared_matrix_that_learns_from_the_keys_alone():
    params, q, k, v, mask = case(shared=True)

    def wrong(params, q, k, v):
        out, backward = linformer(params, q, k, v, mask=mask)
        return out, lambda dout: (linformer(Linformer(params.key, params.key), q, k, v, mask=mask)[1](dout)[0]._replace(value=None), *backward(dout)[1:4])

    report = check_gradients(wrong, params, q, k, v)
    assert [a.error > 1e-2 for a in report.arguments] == [True, False, False, False]


@pytest.mark.parity
def test_it_is_what_pytorch_computes():
    torch = pytest.importorskip("torch")
    params, q, k, v, mask = case()
    E, F, *qkv = tensors = [torch.tensor(a, requires_grad=True) for a in (*params, q, k, v)]
    seen = torch.tensor(mask).mT
    theirs = torch.nn.functional.scaled_dot_product_attention(qkv[0], E[..., :6] @ (qkv[1] * seen), F[..., :6] @ (qkv[2] * seen))
    out, backward = linformer(params, q, k, v, mask=mask)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    theirs.backward(torch.tensor(np.cos(out)))
    dparams, *gradients, _ = backward(np.cos(out))
    for own, tensor in zip((*dparams, *gradients), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9)


@pytest.mark.parity
def test_it_is_the_package_linformer():
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("linformer")
    layer = package.LinformerSelfAttention(dim=6, seq_len=5, k=2, heads=2, dim_head=3).double()
    x = np.random.default_rng(0).normal(size=(2, 5, 6))

    def weights(linear):
        return linear.weight.detach().numpy().T

    q, k, v = ((x @ weights(m)).reshape(2, 5, 2, 3).swapaxes(1, 2) for m in (layer.to_q, layer.to_k, layer.to_v))
    params = Linformer(layer.proj_k.detach().numpy().T[None].copy(), layer.proj_v.detach().numpy().T[None].copy())
    heads = linformer(params, q, k, v)[0].swapaxes(1, 2).reshape(2, 5, 6)
    theirs = layer(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(heads @ weights(layer.to_out) + layer.to_out.bias.detach().numpy(), theirs, rtol=0, atol=1e-9)
