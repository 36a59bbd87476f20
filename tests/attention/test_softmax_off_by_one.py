"""Softmax off by one: the textbook sum, the extra key that it is, and rows that may stay silent."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from attention_cases import assert_refuses_masks_that_do_not_fit, assert_takes_the_softmax_s_place

from minitransformers.attention.core import causal
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one, softmax_off_by_one_attention
from minitransformers.foundation import check_gradients


def textbook(scores, sink, mask):
    """One row of (heads, queries, keys) at a time, one logit a head."""
    heads = []
    for h in range(len(scores)):
        rows = []
        for i in range(scores.shape[1]):
            powers = [anp.exp(scores[h, i, j]) if mask[h, i, j] else 0.0 * scores[h, i, j] for j in range(scores.shape[2])]
            rows.append(anp.stack([p / (anp.exp(sink[h]) + sum(powers)) for p in powers]))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


def case(seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((3, 4, 5)) < 0.6
    mask[1, 2] = False
    return rng.normal(size=(3, 4, 5)), rng.normal(size=3), mask, rng.normal(size=(3, 4, 5))


@pytest.mark.parametrize("masked", [True, False])
def test_it_is_the_textbook_quotient_and_its_gradients_are_autograd_s(masked):
    scores, sink, mask, dweights = case()
    allowed = mask if masked else np.ones_like(mask)
    weights, backward = softmax_off_by_one(SoftmaxOffByOne(sink), scores, mask=mask if masked else None)
    np.testing.assert_allclose(weights, textbook(scores, sink, allowed), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda s, b: anp.sum(dweights * textbook(s, b, allowed)), (0, 1))(scores, sink)
    (dsink,), dscores = backward(dweights)
    np.testing.assert_allclose(dscores, expected[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(dsink, expected[1], rtol=0, atol=1e-13)


def test_it_is_a_softmax_with_one_more_key_that_has_the_logit_of_the_sink_and_the_value_zero():
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(3, n, 4)) for n in (2, 5, 5))
    sink, dout = rng.normal(size=3), rng.normal(size=(3, 2, 4))
    out, backward = softmax_off_by_one_attention(SoftmaxOffByOne(sink), q, k, v)
    more_k, more_v = (np.concatenate([a, np.zeros((3, 1, 4))], axis=1) for a in (k, v))
    bias = np.concatenate([np.zeros((3, 2, 5)), np.broadcast_to(sink[:, None, None], (3, 2, 1))], axis=-1)
    wanted, wanted_backward = scaled_dot_product_attention(q, more_k, more_v, bias)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-14)
    ((dsink,), dq, dk, dv, dbias), theirs = backward(dout), wanted_backward(dout)
    assert dbias is None
    for own, their in ((dq, theirs[0]), (dk, theirs[1][:, :5]), (dv, theirs[2][:, :5]), (dsink, theirs[3][..., 5].sum(-1))):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-13)


def test_without_a_sink_the_denominator_is_one_more():
    scores, _, _, _ = case()
    weights = softmax_off_by_one(None, scores)[0]
    np.testing.assert_allclose(weights, np.exp(scores) / (1 + np.exp(scores).sum(-1, keepdims=True)), rtol=1e-14)
    assert softmax_off_by_one(None, scores)[1](scores)[0] is None


def test_a_sink_far_below_the_scores_leaves_a_softmax():
    scores, _, mask, _ = case()
    mask[1, 2, 0] = True
    powers = np.exp(scores) * mask
    weights = softmax_off_by_one(SoftmaxOffByOne(np.full(3, -1e4)), scores, mask=mask)[0]
    np.testing.assert_allclose(weights, powers / powers.sum(-1, keepdims=True), rtol=0, atol=1e-15)


def test_a_head_that_finds_nothing_stays_silent_where_a_softmax_must_speak():
    scores = np.full((1, 8), -20.0)
    assert softmax_off_by_one(None, scores)[0].sum() < 2e-8


def test_a_number_added_to_all_scores_does_change_the_weights_unless_the_sink_moves_too():
    scores, sink, mask, _ = case()
    weights = softmax_off_by_one(SoftmaxOffByOne(sink), scores, mask=mask)[0]
    np.testing.assert_allclose(softmax_off_by_one(SoftmaxOffByOne(sink + 3), scores + 3, mask=mask)[0], weights, rtol=0, atol=1e-14)
    assert np.abs(softmax_off_by_one(SoftmaxOffByOne(sink), scores + 3, mask=mask)[0] - weights).max() > 0.1


def test_forbidden_keys_have_weight_and_gradient_exactly_zero_and_a_blind_query_too():
    scores, sink, mask, dweights = case()
    weights, backward = softmax_off_by_one(SoftmaxOffByOne(sink), scores, mask=mask)
    (dsink,), dscores = backward(dweights)
    assert not weights[~mask].any() and not dscores[~mask].any()
    assert not softmax_off_by_one(SoftmaxOffByOne(sink), scores, mask=np.zeros_like(mask))[1](dweights)[0].sink.any()
    assert np.isfinite(dsink).all()


def test_one_sink_for_many_rows_gets_the_sum_of_their_gradients():
    rng = np.random.default_rng(2)
    scores, dweights = rng.normal(size=(2, 2, 3, 4, 5))
    mask = rng.random((2, 3, 4, 5)) < 0.6
    for heads in (3, 1):
        sink = rng.normal(size=heads)
        found = softmax_off_by_one(SoftmaxOffByOne(sink), scores, mask=mask)[1](dweights)[0].sink
        expected = np.zeros(heads)
        for b, h, i in np.ndindex(2, 3, 4):
            row = np.s_[b, h, i : i + 1]
            one = SoftmaxOffByOne(sink[h % heads : h % heads + 1])
            expected[h % heads] += softmax_off_by_one(one, scores[row], mask=mask[row])[1](dweights[row])[0].sink[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_extreme_scores_stay_finite_in_float32():
    scores = np.array([[3e38, -3e38, 0], [-3e38, -3e38, -3e38]], np.float32)
    with np.errstate(over="ignore"):
        weights, backward = softmax_off_by_one(None, scores)
    np.testing.assert_array_equal(weights, [[1, 0, 0], [0, 0, 0]])
    assert np.isfinite(backward(np.ones_like(scores))[1]).all()


def without_the_sink_in_the_sum(params, scores):
    weights, _ = softmax_off_by_one(params, scores)

    def backward(dweights):
        mean = np.vecdot(dweights, weights) / weights.sum(-1)
        return SoftmaxOffByOne(-((1 - weights.sum(-1)) * mean).sum(-1)), weights * (dweights - mean[..., None])

    return weights, backward


def test_the_checker_refuses_a_shared_term_that_is_the_mean_over_the_keys():
    scores, sink, _, _ = case()
    report = check_gradients(without_the_sink_in_the_sum, SoftmaxOffByOne(sink), scores)
    assert not report.passed and report.error > 1e-2


def test_inside_multi_head_attention_it_holds_back_and_its_gradients_are_right():
    rng = np.random.default_rng(3)
    params = init_multi_head_attention(rng, 4, num_heads=2, bias=False, dtype=np.float64)
    for learned in (None, SoftmaxOffByOne(rng.normal(size=2))):
        core = causal(softmax_off_by_one_attention)
        report = check_gradients(multi_head_attention, params._replace(core=learned), rng.normal(size=(1, 3, 4)), num_heads=2, core=core)
        assert report.passed, report
    q, k = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    weights = softmax_off_by_one_attention(None, q, k, np.eye(3), mask=causal_mask(3))[0]
    assert np.all(weights.sum(-1) < 1) and not weights[..., ~causal_mask(3)].any()


def test_as_a_core_it_takes_the_softmax_s_place_under_scale_bias_and_mask():
    assert_takes_the_softmax_s_place(softmax_off_by_one_attention, softmax_off_by_one, SoftmaxOffByOne(np.array([0.3, -1.0, 2.0])))


def test_a_mask_must_broadcast_to_the_scores():
    assert_refuses_masks_that_do_not_fit(softmax_off_by_one, SoftmaxOffByOne(np.ones(3)))


@pytest.mark.parity
def test_parity_with_the_sinks_of_gpt_oss():
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    rng = np.random.default_rng(4)
    q, k, v = (rng.normal(size=(2, 3, 5, 4)) for _ in range(3))
    sink, dout = rng.normal(size=3), rng.normal(size=(2, 3, 5, 4))
    tensors = [torch.tensor(a, requires_grad=True) for a in (q, k, v, sink)]
    module = torch.nn.Module()
    module.sinks, module.num_key_value_groups, module.training = tensors[3], 1, False
    forbidden = torch.tensor(np.where(causal_mask(5), 0, -1e300))[None, None]
    theirs = modeling.eager_attention_forward(module, *tensors[:3], forbidden, scaling=0.5)[0].transpose(1, 2)
    theirs.backward(torch.tensor(dout))
    out, backward = softmax_off_by_one_attention(SoftmaxOffByOne(sink), q, k, v, mask=causal_mask(5))
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    (dsink,), dq, dk, dv, _ = backward(dout)
    for own, their in zip((dq, dk, dv, dsink), tensors, strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-9)
