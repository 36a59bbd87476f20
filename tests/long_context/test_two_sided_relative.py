"""Relative positions that look both ways: one score for each pair, and Transformer-XL's where the future is hidden."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from xl_textbook import wave

from minitransformers import Linear, check_gradients, trees
from minitransformers.attention.grouped_query_attention import grouped_query_attention, init_grouped_query_attention
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.multi_head_attention import (
    MultiHeadAttention,
    init_multi_head_attention,
    multi_head_attention,
)
from minitransformers.long_context.attention_with_memory import attention_with_memory
from minitransformers.long_context.two_sided_relative import two_sided_relative
from minitransformers.norms.layer_norm import LayerNorm, layer_norm
from minitransformers.positional.transformer_xl_relative import (
    TransformerXlRelative,
    init_transformer_xl_relative,
    transformer_xl_relative,
)

RNG = np.random.default_rng(0)
PARAMS = TransformerXlRelative(RNG.normal(size=(3, 4, 5)), RNG.normal(size=(3, 5)), RNG.normal(size=(3, 5)))
QUERY, KEY, VALUE, BIAS = (RNG.normal(size=shape) for shape in ((2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 7), (1, 3, 4, 6)))
MASK, DOUT = RNG.random((2, 1, 4, 6)) < 0.8, RNG.normal(size=(2, 3, 4, 7))


def pair_by_pair(distance, u, w, query, key, value, bias=None, mask=None):
    """Four terms for each query and each key, as section 3.3 of the paper has them."""
    texts = []
    before = key.shape[2] - query.shape[2]
    for text in range(query.shape[0]):
        heads = []
        for h in range(query.shape[1]):
            rows = []
            for i in range(query.shape[2]):
                scores, seen = [], []
                for j in range(key.shape[2]):
                    if mask is not None and not mask[text, 0, i, j]:
                        continue
                    q, k, r = query[text, h, i], key[text, h, j], wave(i + before - j, distance.shape[1]) @ distance[h]
                    score = (anp.sum(q * k) + anp.sum(q * r) + anp.sum(u[h] * k) + anp.sum(w[h] * r)) / query.shape[3] ** 0.5
                    scores.append(score if bias is None else score + bias[0, h, i, j])
                    seen.append(value[text, h, j])
                exps = [anp.exp(score) for score in scores]
                rows.append(sum(e * v for e, v in zip(exps, seen, strict=True)) / sum(exps))
            heads.append(anp.stack(rows))
        texts.append(anp.stack(heads))
    return anp.stack(texts)


def test_it_is_four_terms_for_each_pair_and_its_gradients_are_autograd_s():
    out, backward = two_sided_relative(PARAMS, QUERY, KEY, VALUE, BIAS, mask=MASK)
    arguments = (*PARAMS, QUERY, KEY, VALUE, BIAS)
    np.testing.assert_allclose(out, pair_by_pair(*arguments, mask=MASK), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda *args: anp.sum(DOUT * pair_by_pair(*args, mask=MASK)), tuple(range(7)))(*arguments)
    dparams, *others = backward(DOUT)
    for own, theirs in zip((*dparams, *others), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 4), (4, 4), (3, 6)])
def test_any_number_of_queries_may_stand_at_the_end_of_the_keys(queries, keys):
    query, key, value = RNG.normal(size=(1, 3, queries, 5)), RNG.normal(size=(1, 3, keys, 5)), RNG.normal(size=(1, 3, keys, 7))
    out, _ = two_sided_relative(PARAMS, query, key, value)
    np.testing.assert_allclose(out, pair_by_pair(*PARAMS, query, key, value), rtol=0, atol=1e-12)
    report = check_gradients(two_sided_relative, PARAMS, query, key, value)
    assert report.passed, str(report)


def test_where_the_future_is_hidden_it_is_transformer_xl_s():
    out, backward = two_sided_relative(PARAMS, QUERY, KEY, VALUE, BIAS, mask=causal_mask(4, 6))
    other, other_backward = transformer_xl_relative(PARAMS, QUERY, KEY, VALUE, BIAS)
    np.testing.assert_allclose(out, other, rtol=0, atol=1e-13)
    for (path, own), (_, theirs) in zip(trees.leaves(backward(DOUT)), trees.leaves(other_backward(DOUT)), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12, err_msg=path)


def test_a_query_sees_what_is_yet_to_come():
    later = VALUE.copy()
    later[..., -1, :] += 1
    out, changed = (two_sided_relative(PARAMS, QUERY, KEY, value)[0] for value in (VALUE, later))
    assert (np.abs(changed - out).max(-1) > 0).all()


def test_it_tells_before_from_behind():
    """The middle one of three equal keys has the same to its left and to its right, but not the same distance."""
    query, key = np.zeros((1, 1, 3, 2)), np.zeros((1, 1, 3, 2))
    params = TransformerXlRelative(np.array([[[1.0, 0.0], [0.0, 0.0]]]), np.zeros((1, 2)), np.array([[1.0, 0.0]]))  # w meets sin(distance)
    weights, _ = two_sided_relative(params, query, key, np.eye(3)[None, None])
    expected = np.exp(np.sin([1, 0, -1]) / 2**0.5)
    np.testing.assert_allclose(weights[0, 0, 1], expected / expected.sum(), rtol=0, atol=1e-14)


def test_equal_distances_have_equal_scores_wherever_they_are():
    same = np.broadcast_to(QUERY[:, :, :1], QUERY.shape), np.broadcast_to(KEY[:, :, :1], (2, 3, 6, 5))
    weights, _ = two_sided_relative(PARAMS, *same, np.broadcast_to(np.eye(6), (2, 3, 6, 6)))
    scores = np.log(weights)
    np.testing.assert_allclose(scores[..., 1:, 1:] - scores[..., 1:, 1:2], scores[..., :-1, :-1] - scores[..., :-1, :1], rtol=0, atol=1e-12)


def test_it_is_a_core_of_multi_head_and_of_grouped_attention():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 8))
    for init, attention, settings in (
        (init_multi_head_attention, multi_head_attention, {"num_heads": 4}),
        (init_grouped_query_attention, grouped_query_attention, {"num_heads": 4, "num_kv_heads": 2}),
    ):
        params = init(rng, 8, **settings, dtype=np.float64)._replace(core=init_transformer_xl_relative(rng, 8, num_heads=4, std=0.5, dtype=np.float64))
        report = check_gradients(partial(attention, core=two_sided_relative, **settings), params, x)
        assert report.passed, str(report)


def test_a_query_that_may_see_nothing_reads_zero_and_sends_nothing():
    mask = np.ones((4, 6), bool)
    mask[1] = False
    out, backward = two_sided_relative(PARAMS, QUERY, KEY, VALUE, mask=mask)
    assert not out[..., 1, :].any()
    only = np.zeros_like(DOUT)
    only[..., 1, :] = 1
    assert not any(leaf.any() for _, leaf in trees.leaves(backward(only)))


@pytest.mark.parametrize("forgotten", ["the shift", "the query that meets distances", "that distance has a sign"])
def test_the_check_refuses_a_backward_that_forgets(forgotten):
    def wrong(params, query, key, value):
        out, backward = two_sided_relative(params, query, key, value)

        def careless(dout):
            dparams, dquery, dkey, dvalue, _ = backward(dout)
            if forgotten == "the shift":
                dparams = dparams._replace(distance=dparams.distance[:, ::-1])
            elif forgotten == "that distance has a sign":
                dparams = dparams._replace(distance=np.concatenate([-dparams.distance[:, :2], dparams.distance[:, 2:]], axis=1))
            else:
                dquery = dquery - dparams.w[:, None] / query.shape[-2]
            return dparams, dquery, dkey, dvalue

        return out, careless

    assert not check_gradients(wrong, PARAMS, QUERY, KEY, VALUE).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="query: got 4 queries, wants at most as many as keys, 3"):
        two_sided_relative(PARAMS, QUERY, KEY[:, :, :3], VALUE[:, :, :3])
    with pytest.raises(ValueError, match=r"params\.distance: got 3 sinusoids"):
        two_sided_relative(PARAMS._replace(distance=np.ones((3, 3, 5))), QUERY, KEY, VALUE)
    with pytest.raises(ValueError, match=r"params\.distance"):
        two_sided_relative(TransformerXlRelative(np.ones((2, 4, 5)), np.ones((2, 5)), np.ones((2, 5))), QUERY, KEY, VALUE)
    with pytest.raises(ValueError, match="mask"):
        two_sided_relative(PARAMS, QUERY, KEY, VALUE, mask=np.ones((2, 1, 4, 5), bool))
    with pytest.raises(ValueError, match="mask"):
        two_sided_relative(PARAMS, QUERY, KEY, VALUE, mask=np.ones((2, 2, 4, 6), bool))
    with pytest.raises(ValueError, match="bias"):
        two_sided_relative(PARAMS, QUERY, KEY, VALUE, np.full((4, 6), np.inf))


@pytest.mark.parity
def test_with_a_memory_it_is_the_attention_of_xlnet():
    """Outputs and gradients of Hugging Face's XLNet, whose encoder looks both ways over memory and segment; its norm is left at 1 and 0."""
    torch = pytest.importorskip("torch")
    xlnet = pytest.importorskip("transformers.models.xlnet.modeling_xlnet")
    config = xlnet.XLNetConfig(d_model=8, n_head=2, d_inner=4, dropout=0.0, layer_norm_eps=1e-5)
    theirs = xlnet.XLNetRelativeAttention(config).double()
    rng = np.random.default_rng(3)
    x, memory, dout = (rng.normal(size=shape) for shape in ((3, 4, 8), (3, 5, 8), (3, 4, 8)))
    weights = {name: rng.normal(size=(8, 2, 4)) / 2 for name in "qkvor"} | {name: rng.normal(size=(2, 4)) for name in ("r_w_bias", "r_r_bias")}
    with torch.no_grad():
        for name, weight in weights.items():
            getattr(theirs, name).copy_(torch.tensor(weight))
    h, mems = (torch.tensor(a.swapaxes(0, 1), requires_grad=True) for a in (x, memory))  # positions first
    angle = np.outer(np.arange(9, -4, -1), 10_000.0 ** (-np.arange(0, 8, 2) / 8))
    r = torch.tensor(np.concatenate([np.sin(angle), np.cos(angle)], axis=-1))[:, None].expand(-1, 3, -1)
    out = theirs(h, None, None, None, r, None, mems=mems)[0]
    (out * torch.tensor(dout.swapaxes(0, 1))).sum().backward()

    def as_matrix(name):
        return Linear(weights[name].reshape(8, 8), None)

    core = TransformerXlRelative(weights["r"].swapaxes(0, 1), weights["r_w_bias"], weights["r_r_bias"])
    params = MultiHeadAttention(*map(as_matrix, "qkv"), Linear(weights["o"].reshape(8, 8).T, None))._replace(core=core)
    added, backward = attention_with_memory(params, x, memory, num_heads=2, core=two_sided_relative)
    normed, norm_backward = layer_norm(LayerNorm(np.ones(8), np.zeros(8)), x + added)
    np.testing.assert_allclose(normed, out.detach().numpy().swapaxes(0, 1), rtol=0, atol=1e-9)
    dsum = norm_backward(dout)[1]
    dparams, dx, dmemory = backward(dsum)
    pairs = [(dx + dsum, h.grad.numpy().swapaxes(0, 1)), (dmemory, mems.grad.numpy().swapaxes(0, 1))]
    pairs += [(own.weight.reshape(8, 2, 4), getattr(theirs, name).grad.numpy()) for name, own in zip("qkv", dparams[:3], strict=True)]
    pairs += [(dparams.output.weight.T.reshape(8, 2, 4), theirs.o.grad.numpy()), (dparams.core.distance.swapaxes(0, 1), theirs.r.grad.numpy())]
    pairs += [(dparams.core.u, theirs.r_w_bias.grad.numpy()), (dparams.core.w, theirs.r_r_bias.grad.numpy())]
    for own, other in pairs:
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-9)
