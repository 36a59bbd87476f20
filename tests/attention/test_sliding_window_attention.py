"""Sliding-window attention: the naive loop, the dense mask, how far it reaches, and a cache that stops growing."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.grouped_query_attention import grouped_query_attention
from minitransformers.attention.masks import padding_mask, sliding_window_mask
from minitransformers.attention.prepare import on_both
from minitransformers.attention.sliding_window_attention import (
    init_sliding_window_attention,
    sliding_window_attention,
    sliding_window_attention_step,
)
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients, trees, trusted
from minitransformers.positional.rope import rope

HEADS = {"num_heads": 4}
GROUPS = {"num_heads": 4, "num_kv_heads": 2}


def case(n=9, seed=0):
    rng = np.random.default_rng(seed)
    return init_sliding_window_attention(rng, 8, **GROUPS, bias=True, dtype=np.float64), rng.normal(size=(2, n, 8))


def naive(leaves, x, window):
    """One sequence, one head, one position at a time, over the keys in its window."""
    w_q, b_q, w_k, b_k, w_v, b_v, w_o, b_o = leaves
    q, k, v = anp.dot(x, w_q) + b_q, anp.dot(x, w_k) + b_k, anp.dot(x, w_v) + b_v
    rows = []
    for i in range(len(x)):
        heads = []
        for h in range(4):
            own, shared = slice(2 * h, 2 * h + 2), slice(2 * (h // 2), 2 * (h // 2) + 2)
            near = range(max(0, i - window + 1), i + 1)
            powers = [anp.exp(anp.dot(q[i, own], k[j, shared]) / 2**0.5) for j in near]
            heads.append(sum(p * v[j, shared] for p, j in zip(powers, near, strict=True)) / sum(powers))
        rows.append(anp.dot(anp.concatenate(heads), w_o) + b_o)
    return anp.stack(rows)


def test_it_is_the_naive_loop_and_its_gradients_are_autograd_s():
    params, x = case()
    leaves = [leaf for _, leaf in trees.leaves(params)]
    out, backward = sliding_window_attention(params, x[0], window=4, **HEADS)
    np.testing.assert_allclose(out, naive(leaves, x[0], 4), rtol=0, atol=1e-10)
    dleaves, dx = autograd.grad(lambda leaves, x: anp.sum(np.cos(out) * naive(leaves, x, 4)), (0, 1))(leaves, x[0])
    dparams, own_dx, nothing = backward(np.cos(out))
    assert nothing is None
    np.testing.assert_allclose(own_dx, dx, rtol=0, atol=1e-10)
    for (_, own), theirs in zip(trees.leaves(dparams), dleaves, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("window", [1, 4, 9, 30])
def test_it_equals_grouped_query_attention_under_a_dense_mask(window):
    params, x = case()
    rng = np.random.default_rng(1)
    mask = sliding_window_mask(9, window=window)
    for bias, own in ((None, None), (rng.normal(size=(4, 9, 9)), padding_mask(np.array([9, 5]), 9))):
        out, backward = sliding_window_attention(params, x, bias, window=window, mask=own, **HEADS)
        allowed = mask if own is None else mask & own
        dense, dense_backward = grouped_query_attention(params, x, bias, mask=allowed, core=softmax_attention, **GROUPS)
        np.testing.assert_allclose(out, dense, rtol=0, atol=1e-12)
        for (path, mine), (_, theirs) in zip(trees.leaves(backward(x)), trees.leaves(dense_backward(x)), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12, err_msg=path)


@pytest.mark.parametrize(
    ("config", "learned"),
    [
        ({"core": partial(softmax_attention, scale=0.3)}, None),
        ({"prepare": on_both(rope)}, None),
        ({"core": softmax_off_by_one_attention}, SoftmaxOffByOne(np.arange(4.0))),
    ],
    ids=["scale", "rotation", "core"],
)
def test_prepare_and_core_reach_the_heads(config, learned):
    params, x = case()
    params = params._replace(core=learned)
    out, _ = sliding_window_attention(params, x, window=4, **HEADS, **config)
    dense, _ = grouped_query_attention(params, x, mask=sliding_window_mask(9, window=4), **GROUPS, **{"core": softmax_attention, **config})
    np.testing.assert_allclose(out, dense, rtol=0, atol=1e-12)
    assert np.abs(out - sliding_window_attention(params._replace(core=None), x, window=4, **HEADS)[0]).max() > 1e-2


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_the_parameters_say_how_many_heads_keys_have(num_kv_heads):
    rng = np.random.default_rng(2)
    params, x = init_sliding_window_attention(rng, 8, num_heads=4, num_kv_heads=num_kv_heads, dtype=np.float64), rng.normal(size=(2, 6, 8))
    out, _ = sliding_window_attention(params, x, num_heads=4, window=3)
    mask = sliding_window_mask(6, window=3)
    np.testing.assert_allclose(out, grouped_query_attention(params, x, num_heads=4, num_kv_heads=num_kv_heads, mask=mask)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("num_heads", "d_keys", "named"), [(4, 3, "params.key.weight"), (4, 1, "params.key.weight"), (3, 8, "num_heads"), (4, 6, "num_kv_heads")])
def test_keys_that_are_no_heads_are_refused(num_heads, d_keys, named):
    params, x = case()
    params = params._replace(key=Linear(np.ones((8, d_keys)), None), value=Linear(np.ones((8, d_keys)), None))
    with pytest.raises(ValueError, match=f"{named}: got"):
        sliding_window_attention(params, x, num_heads=num_heads, window=3)


def test_a_window_as_long_as_the_sequence_is_causal_attention():
    params, x = case()
    np.testing.assert_allclose(
        sliding_window_attention(params, x, window=9, **HEADS)[0], grouped_query_attention(params, x, **GROUPS)[0], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_reach_of_k_layers_is_k_windows_less_k_minus_one(layers):
    params, x = case(n=16)
    h, backwards = x, []
    for _ in range(layers):
        h, backward = sliding_window_attention(params, h, window=4, **HEADS)
        backwards.append(backward)
    dh = np.zeros_like(x)
    dh[:, -1] = 1.0
    for backward in reversed(backwards):
        _, dh, _ = backward(dh)
    influence = np.abs(dh).max((0, 2)) > 0                   # exactly zero beyond the reach, not small
    assert influence.tolist() == [j > 15 - (layers * 3 + 1) for j in range(16)]


def test_key_biases_get_no_gradient():
    params, x = case()
    dparams, _, _ = sliding_window_attention(params, x, window=3, **HEADS)[1](np.cos(x))
    np.testing.assert_allclose(dparams.key.bias, 0, atol=1e-14)


@pytest.mark.parametrize("chunks", [(1,) * 9, (4, 1, 1, 3), (9,)])
def test_decoding_from_a_rolling_cache_equals_the_full_pass(chunks):
    params, x = case()
    whole = sliding_window_attention(params, x, window=4, **HEADS)[0]
    state, parts = None, []
    for start, size in zip(np.cumsum((0, *chunks)), chunks, strict=False):
        part, state = sliding_window_attention_step(params, x[:, start : start + size], state, window=4, **HEADS)
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-12)
    assert state.keys.shape[-2] == min(9, 4 - 1 + chunks[-1])  # no more than the last positions appended may look at
    assert state.bytes == 2 * 2 * 2 * 4 * 2 * 8              # the window: arrays, texts, key heads, positions, width, bytes


def test_multi_head_is_the_default():
    rng = np.random.default_rng(0)
    params, x = init_sliding_window_attention(rng, 6, num_heads=3, dtype=np.float64), rng.normal(size=(5, 6))
    assert params.key.weight.shape == (6, 6)
    assert sliding_window_attention(params, x, num_heads=3, window=2)[0].shape == (5, 6)


def test_the_checker_refuses_a_backward_that_looks_one_key_too_far():
    params, x = case(n=5)

    def wrong(params, x):
        attend = partial(sliding_window_attention, **HEADS)
        return attend(params, x, window=3)[0], lambda dout: attend(params, x, window=4)[1](dout)[:2]

    assert not trusted(check_gradients)(wrong, params, x[:1], second_opinion=False).passed


@pytest.mark.parity
def test_it_is_mistral_s_attention():
    torch = pytest.importorskip("torch")
    mistral = pytest.importorskip("transformers.models.mistral.modeling_mistral")
    config = mistral.MistralConfig(hidden_size=8, num_attention_heads=4, num_key_value_heads=2, head_dim=2, sliding_window=3)
    config._attn_implementation = "sdpa"
    layer = mistral.MistralAttention(config, layer_idx=0).double()
    params, x = case()
    params = params._replace(**{name: getattr(params, name)._replace(bias=None) for name in params._fields[:4]})
    with torch.no_grad():
        for name, part in zip("qkvo", params[:4], strict=True):
            getattr(layer, f"{name}_proj").weight.copy_(torch.tensor(part.weight.T))
    inputs = torch.tensor(x, requires_grad=True)
    still = torch.ones(2, 9, 2, dtype=torch.float64), torch.zeros(2, 9, 2, dtype=torch.float64)  # a rotation by nothing
    mask = torch.tensor(sliding_window_mask(9, window=3).copy())[None, None]
    theirs, _ = layer(inputs, position_embeddings=still, attention_mask=mask)
    out, backward = sliding_window_attention(params, x, window=3, **HEADS)
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    theirs.backward(torch.tensor(np.cos(out)))
    dparams, dx, _ = backward(np.cos(out))
    np.testing.assert_allclose(dx, inputs.grad, rtol=0, atol=1e-9)
    for name, part in zip("qkvo", dparams[:4], strict=True):
        np.testing.assert_allclose(part.weight.T, getattr(layer, f"{name}_proj").weight.grad, rtol=0, atol=1e-9)


def stretched(gains, query, key, *, positions=None):
    """A prepare that is linear: a gain for each feature of a head's query, and of its key."""
    return (gains[0] * query, gains[1] * key), lambda dboth: (None, gains[0] * dboth[0], gains[1] * dboth[1])


def test_a_prepare_acts_on_each_head_in_the_order_of_the_chain():
    params, x = case()
    gains = tuple(np.random.default_rng(1).normal(size=(2, 2)))
    query, key = (
        Linear(part.weight * np.tile(gain, heads), part.bias * np.tile(gain, heads))
        for part, gain, heads in zip((params.query, params.key), gains, (4, 2), strict=True)
    )
    call = partial(sliding_window_attention, window=3, **HEADS)
    expected, _ = call(params._replace(query=query, key=key), x, prepare=on_both(rope))
    out, _ = call(params._replace(prepare=(gains, None)), x, prepare=partial(chain, parts=(stretched, on_both(rope))))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)
