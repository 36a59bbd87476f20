"""Longformer's layer: the textbook layer, Hugging Face's, and what its two sets of projections are for."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.masks import padding_mask
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention
from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients, trees
from minitransformers.sparse_attention.longformer_attention import (
    LongformerAttention,
    init_longformer_attention,
    longformer_attention,
)

HEADS = {"num_heads": 2}
PAIRS = (("query", "global_query"), ("key", "global_key"), ("value", "global_value"))


def case(n=9, seed=0, d_values=2):
    rng = np.random.default_rng(seed)
    shapes = (6, 4), (6, 4), (6, d_values), (6, 4), (6, 4), (6, d_values), (d_values, 6)
    params = LongformerAttention(*(Linear(rng.normal(size=s) / 2, rng.normal(size=s[1])) for s in shapes))
    return params, rng.normal(size=(2, n, 6))


def textbook(params, x, *, num_heads, window, global_positions, dilation, real):
    """One head and one position of one text at a time."""
    n, width = len(x), params.query.weight.shape[1] // num_heads
    q, k, v, gq, gk, gv = (x @ part.weight + part.bias for part in params[:6])
    rows = []
    for i in range(n):
        whole = i in global_positions
        a, b, c = (gq, gk, gv) if whole else (q, k, v)
        near = [dilation * steps for steps in range(window + 1)]
        seen = [j for j in range(n) if real[j] and (whole or j in global_positions or abs(i - j) in near)]
        heads = []
        for h in range(num_heads):
            feature, out = slice(h * width, (h + 1) * width), slice(h * v.shape[1] // num_heads, (h + 1) * v.shape[1] // num_heads)
            powers = [anp.exp(anp.dot(a[i, feature], b[j, feature]) / width**0.5) for j in seen]
            heads.append(sum(p * c[j, out] for p, j in zip(powers, seen, strict=True)) / sum(powers))
        rows.append(anp.concatenate(heads))
    return anp.stack(rows) @ params.output.weight + params.output.bias


@pytest.mark.parametrize("global_positions", [(), (0,), (5, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_it_is_the_textbook_layer_and_its_gradients_are_autograd_s(global_positions, dilation):
    params, x = case()
    settings = {"window": 2, "global_positions": global_positions, "dilation": dilation, **HEADS}
    lengths = np.array([9, 7])
    out, backward = longformer_attention(params, x, **settings, mask=padding_mask(lengths, 9))
    dout = np.random.default_rng(1).normal(size=out.shape)

    def whole(leaves, x):
        rebuilt = LongformerAttention(*(Linear(*leaves[2 * i : 2 * i + 2]) for i in range(7)))
        return [textbook(rebuilt, x[t], **settings, real=np.arange(9) < lengths[t]) for t in range(2)]

    leaves = [leaf for _, leaf in trees.leaves(params)]
    np.testing.assert_allclose(out, np.stack(whole(leaves, x)), rtol=0, atol=1e-12)
    loss = lambda leaves, x: sum(anp.sum(dout[t] * text) for t, text in enumerate(whole(leaves, x)))  # noqa: E731
    theirs = autograd.grad(loss, (0, 1))(leaves, x)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, theirs[1], rtol=0, atol=1e-11)
    for (path, own), other in zip(trees.leaves(dparams), theirs[0], strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-11, err_msg=path)


def test_global_projections_start_as_copies_of_the_local_ones():
    params = init_longformer_attention(np.random.default_rng(2), 6, num_heads=3)
    for local, other in PAIRS:
        one, two = getattr(params, local), getattr(params, other)
        assert one.weight is not two.weight and not np.shares_memory(one.weight, two.weight)
        np.testing.assert_array_equal(one.weight, two.weight)
    assert len({leaf.tobytes() for _, leaf in trees.leaves(params) if leaf.ndim == 2}) == 4
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}


def test_with_copies_and_every_position_global_it_is_multi_head_attention():
    params = init_longformer_attention(np.random.default_rng(3), 6, num_heads=2, dtype=np.float64)
    x = np.random.default_rng(4).normal(size=(2, 5, 6))
    dense = MultiHeadAttention(*(getattr(params, name) for name in MultiHeadAttention._fields[:4]))
    wanted, _ = multi_head_attention(dense, x, **HEADS, core=softmax_attention)
    for settings in ({"global_positions": range(5), "window": 1}, {"global_positions": (), "window": 4}):
        np.testing.assert_allclose(longformer_attention(params, x, **HEADS, **settings)[0], wanted, rtol=0, atol=1e-13)


def test_without_global_positions_their_projections_have_no_gradient():
    params, x = case()
    out, backward = longformer_attention(params, x, window=2, global_positions=(), **HEADS)
    dparams, _ = backward(out)
    assert not any(leaf.any() for name in ("global_query", "global_key", "global_value") for _, leaf in trees.leaves(getattr(dparams, name)))


def test_key_biases_have_no_gradient():
    """They add the same to all scores of a query, local and global."""
    params, x = case()
    dparams, _ = longformer_attention(params, x, window=2, global_positions=(3,), **HEADS)[1](np.cos(x))
    for part in (dparams.key, dparams.global_key):
        np.testing.assert_allclose(part.bias, 0, atol=1e-13)


def test_global_queries_are_asked_by_their_own_positions_alone():
    """One position in each of two texts: the gradient of the map is a sum of two outer products."""
    params, x = case()
    dparams, _ = longformer_attention(params, x, window=1, global_positions=(4,), **HEADS)[1](np.cos(x))
    assert np.linalg.matrix_rank(dparams.global_query.weight) == 2
    inputs = np.linalg.lstsq(x[:, 4].T, dparams.global_query.weight, rcond=None)[1]
    np.testing.assert_allclose(inputs, 0, atol=1e-20)


def test_the_checker_refuses_a_layer_that_loses_what_global_queries_say_of_x():
    params, x = case(n=4)

    def wrong(params, x):
        out, backward = longformer_attention(params, x, window=1, global_positions=(2,), **HEADS)
        part = params.global_query
        without = params._replace(global_query=Linear(0 * part.weight, x[0, 2] @ part.weight + part.bias))
        return out, lambda dout: (backward(dout)[0], longformer_attention(without, x, window=1, global_positions=(2,), **HEADS)[1](dout)[1])

    report = check_gradients(wrong, params, x[:1], second_opinion=False)
    assert [a.path for a in report.arguments if a.error > 1e-4] == ["x"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_heads": 3}, "num_heads: got 3"),
        ({"window": 0}, "window: got 0"),
        ({"dilation": 0}, "dilation: got 0"),
        ({"global_positions": (0, 9)}, r"global_positions: got \(0, 9\), wants different positions, from 0 to 8"),
        ({"global_positions": (3, 3)}, r"global_positions: got \(3, 3\)"),
        ({"global_positions": (-1,)}, r"global_positions\.0: got -1"),
        ({"global_positions": np.array([1.0])}, "global_positions: got float64"),
        ({"mask": np.ones((5, 1, 9), bool)}, "mask: got shape"),
        ({"mask": np.ones((4, 1, 1, 1, 9), bool)}, "mask: got shape"),
    ],
)
def test_what_cannot_be_is_refused(changes, named):
    params, x = case()
    with pytest.raises(ValueError, match=named):
        longformer_attention(params, x, **{"window": 2, "global_positions": (1,), **HEADS, **changes})


@pytest.mark.parity
@pytest.mark.parametrize("global_positions", [(), (0,), (1, 6, 7)])
def test_it_is_hugging_face_s_layer(global_positions, monkeypatch):
    """Theirs takes its softmax in float32 whatever comes in; here it stays in float64, so that the rest can be compared."""
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.longformer.modeling_longformer")
    softmax = torch.nn.functional.softmax
    in_float32 = []

    def unchanged(scores, dim, dtype=None):
        in_float32.append(dtype == torch.float32)
        return softmax(scores, dim=dim)

    monkeypatch.setattr(torch.nn.functional, "softmax", unchanged)
    rng = np.random.default_rng(5)
    params = LongformerAttention(*(Linear(rng.normal(size=(6, 6)) / 2, rng.normal(size=6)) for _ in range(6)), Linear(np.eye(6), None))
    x, lengths = rng.normal(size=(2, 12, 6)), np.array([12, 9])

    config = modeling.LongformerConfig(hidden_size=6, num_attention_heads=2, attention_window=[4], attention_probs_dropout_prob=0.0)
    layer = modeling.LongformerSelfAttention(config, layer_id=0).double()
    names = {"query": "query", "key": "key", "value": "value", "query_global": "global_query", "key_global": "global_key", "value_global": "global_value"}
    for theirs, ours in names.items():
        getattr(layer, theirs).weight.data = torch.tensor(getattr(params, ours).weight.T.copy())
        getattr(layer, theirs).bias.data = torch.tensor(getattr(params, ours).bias)
    real = np.arange(12) < lengths[:, None]
    chosen = np.isin(np.arange(12), global_positions)
    encoded = torch.tensor(np.where(real, np.where(chosen, 10000.0, 0.0), -10000.0))
    inputs = torch.tensor(x, requires_grad=True)
    (theirs,) = layer(
        inputs, attention_mask=encoded, is_index_masked=encoded < 0, is_index_global_attn=encoded > 0, is_global_attn=bool(chosen.any())
    )
    assert any(in_float32)

    settings = {"window": 2, "global_positions": global_positions, "mask": padding_mask(lengths, 12), **HEADS}
    out, backward = longformer_attention(params, x, **settings)
    np.testing.assert_allclose(out[real], theirs.detach().numpy()[real], rtol=0, atol=1e-9)
    dout = np.where(real[..., None], np.cos(out), 0)         # their padded rows are zero; ours look at the window
    theirs.backward(torch.tensor(dout))
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, inputs.grad, rtol=0, atol=1e-9)
    for other, ours in names.items():
        part = getattr(layer, other)
        if part.weight.grad is not None:
            np.testing.assert_allclose(getattr(dparams, ours).weight.T, part.weight.grad, rtol=0, atol=1e-9, err_msg=ours)
            np.testing.assert_allclose(getattr(dparams, ours).bias, part.bias.grad, rtol=0, atol=1e-9, err_msg=ours)
