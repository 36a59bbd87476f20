"""Causal Longformer attention: multi-head attention under the pattern, and a cache that forgets all but the window and the globals."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.grouped_query_attention import GroupedQueryAttention
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention
from minitransformers.attention.sliding_window_attention import sliding_window_attention
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients, trees, trusted
from minitransformers.sparse_attention.causal_longformer_attention import (
    causal_longformer_attention,
    causal_longformer_attention_step,
    init_causal_longformer_attention,
)

HEADS = {"num_heads": 2}
PATTERNS = [
    {"window": 2, "global_positions": (0,)},
    {"window": 1, "global_positions": (6, 3), "dilation": 3},
    {"window": 3, "dilation": 2},
    {"window": 50, "global_positions": (2, 1)},
]
every = pytest.mark.parametrize("pattern", PATTERNS, ids=str)


def case(n=11, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (6, 4), (6, 4), (6, 2), (2, 6)
    return MultiHeadAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes)), rng.normal(size=(2, n, 6))


def sees(i, j, *, window, global_positions=(), dilation=1):
    return j <= i and (j in global_positions or i - j in [dilation * steps for steps in range(window + 1)])


def textbook(leaves, x, bias, **pattern):
    """One head and one position of one text at a time."""
    q, k, v = (x @ leaves[i] + leaves[i + 1] for i in (0, 2, 4))
    texts = []
    for t in range(len(x)):
        rows = []
        for i in range(x.shape[1]):
            seen, heads = [j for j in range(x.shape[1]) if sees(i, j, **pattern)], []
            for h in range(2):
                scores = [anp.dot(q[t, i, 2 * h : 2 * h + 2], k[t, j, 2 * h : 2 * h + 2]) / 2**0.5 + bias[h, i, j] for j in seen]
                powers = [anp.exp(s) for s in scores]
                heads.append(sum(p * v[t, j, h : h + 1] for p, j in zip(powers, seen, strict=True)) / sum(powers))
            rows.append(anp.concatenate(heads))
        texts.append(anp.stack(rows))
    return anp.stack(texts) @ leaves[6] + leaves[7]


@every
def test_it_is_the_textbook_layer_and_its_gradients_are_autograd_s(pattern):
    params, x = case(n=8)
    bias = np.random.default_rng(1).normal(size=(2, 8, 8))
    out, backward = causal_longformer_attention(params, x, bias, **pattern, **HEADS)
    leaves = [leaf for _, leaf in trees.leaves(params)]
    np.testing.assert_allclose(out, textbook(leaves, x, bias, **pattern), rtol=0, atol=1e-12)
    dout = np.random.default_rng(2).normal(size=out.shape)
    theirs = autograd.grad(lambda *a: anp.sum(dout * textbook(*a, **pattern)), (0, 1, 2))(leaves, x, bias)
    dparams, dx, dbias = backward(dout)
    for own, other in zip([*(leaf for _, leaf in trees.leaves(dparams)), dx, dbias], [*theirs[0], *theirs[1:]], strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-11)


def decoded(params, x, sizes, *, bias=None, mask=None, **settings):
    """The outputs so many positions at a time, the states on the way, and rows of bias and mask as they come."""
    state, outs, states, start = None, [], [], 0
    for size in sizes:
        stop = start + size
        rows = {name: a[..., start:stop, :stop] if a.shape[-2] > 1 else a[..., :stop] for name, a in (("bias", bias), ("mask", mask)) if a is not None}
        out, state = causal_longformer_attention_step(params, x[:, start:stop], state, **rows, **settings)
        outs.append(out)
        states.append(state)
        start = stop
    return np.concatenate(outs, axis=1), states


@every
@pytest.mark.parametrize("sizes", [[1] * 11, [11], [4, 1, 1, 5], [2, 7, 2]], ids=str)
@pytest.mark.parametrize("given", ["nothing", "bias and mask", "padding"])
def test_steps_of_any_size_are_the_whole_pass(pattern, sizes, given):
    params, x = case()
    rng = np.random.default_rng(3)
    rows = {
        "nothing": {},
        "bias and mask": {"bias": rng.normal(size=(2, 11, 11)), "mask": rng.random((2, 1, 11, 11)) < 0.7},
        "padding": {"mask": np.array([[0] * 3 + [1] * 8, [1] * 11], bool)[:, None, None]},
    }[given]
    mask = rows.get("mask")
    whole, _ = causal_longformer_attention(params, x, rows.get("bias"), mask=mask, **pattern, **HEADS)
    out, _ = decoded(params, x, sizes, **rows, **pattern, **HEADS)
    np.testing.assert_allclose(out, whole, rtol=0, atol=1e-12)


def test_the_cache_stops_growing_and_keeps_what_is_global():
    params, x = case(n=40)
    settings = {"window": 2, "dilation": 2, "global_positions": (7, 1), **HEADS}
    _, states = decoded(params, x, [1] * 40, **settings)
    assert [state.length for state in states] == list(range(1, 41))
    assert [state.recent.keys.shape[-2] for state in states] == [min(i, 5) for i in range(1, 41)]
    assert [state.global_keys.shape[-2] for state in states] == [(i > 1) + (i > 7) for i in range(1, 41)]
    sizes = {state.bytes for state in states[8:]}
    assert sizes == {2 * 2 * (5 + 2) * (2 + 1) * 8}          # texts, heads, positions, widths of key and value, bytes
    assert states[-1].recent.room.capacity < 30


def test_a_state_can_be_continued_twice():
    params, x = case()
    settings = {"window": 2, "global_positions": (0, 8), **HEADS}
    _, states = decoded(params, x[:, :8], [8], **settings)
    one, _ = causal_longformer_attention_step(params, x[:, 8:9], states[-1], **settings)
    two, _ = causal_longformer_attention_step(params, x[:, 9:10], states[-1], **settings)
    again, _ = causal_longformer_attention_step(params, x[:, 8:9], states[-1], **settings)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 1e-3


def test_the_future_has_no_influence_and_no_gradient():
    params, x = case()
    settings = {"window": 2, "global_positions": (0, 9), **HEADS}
    out, backward = causal_longformer_attention(params, x, **settings)
    np.testing.assert_allclose(causal_longformer_attention(params, x[:, :6], **settings)[0], out[:, :6], rtol=0, atol=1e-13)
    dout = np.zeros_like(x)
    dout[:, 5] = 1
    _, dx, _ = backward(dout)
    assert np.flatnonzero(dx.any((0, 2))).tolist() == [0, 3, 4, 5]


def test_without_globals_it_is_sliding_window_attention():
    params, x = case()
    out, _ = causal_longformer_attention(params, x, window=3, **HEADS)
    grouped = GroupedQueryAttention(*params)
    wanted, _ = sliding_window_attention(grouped, x, window=4, **HEADS)  # which counts the own position
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("pattern", [{"window": 10}, {"window": 1, "global_positions": range(11)}])
def test_a_pattern_that_holds_all_is_causal_multi_head_attention(pattern):
    params, x = case()
    wanted, _ = multi_head_attention(params, x, **HEADS, core=softmax_attention, mask=causal_mask(11))
    np.testing.assert_allclose(causal_longformer_attention(params, x, **pattern, **HEADS)[0], wanted, rtol=0, atol=1e-13)


def test_fresh_parameters_are_those_of_multi_head_attention():
    params = init_causal_longformer_attention(np.random.default_rng(4), 6, num_heads=3, bias=False)
    assert isinstance(params, MultiHeadAttention) and params.query.weight.shape == (6, 6) and params.query.bias is None
    assert params.query.weight.dtype == np.float32


def test_the_checker_refuses_a_backward_that_sees_one_position_more():
    params, x = case(n=5)

    def wrong(params, x):
        out, _ = causal_longformer_attention(params, x, window=1, global_positions=(0,), **HEADS)
        return out, lambda dout: causal_longformer_attention(params, x, window=2, global_positions=(0,), **HEADS)[1](dout)[:2]

    assert not trusted(check_gradients)(wrong, params, x[:1], second_opinion=False).passed


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_heads": 3}, "num_heads: got 3"),
        ({"window": 0}, "window: got 0"),
        ({"dilation": 0}, "dilation: got 0"),
        ({"global_positions": (3, 3)}, r"global_positions: got \(3, 3\), wants different positions, from 0 on"),
        ({"global_positions": (-1,)}, r"global_positions\.0: got -1"),
        ({"global_positions": (0.5,)}, r"global_positions\.0: got 0\.5"),
        ({"mask": np.ones((5, 1, 11), bool)}, "mask: got shape"),
    ],
)
def test_what_cannot_be_is_refused(changes, named):
    params, x = case()
    with pytest.raises(ValueError, match=named):
        causal_longformer_attention(params, x, **{"window": 2, "global_positions": (1,), **HEADS, **changes})
