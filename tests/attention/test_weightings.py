"""What every weighting promises, and what attention makes of it."""

import numpy as np
import pytest
from attention_cases import WEIGHTINGS, labelled

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.scaled_dot_product_attention_fast import scaled_dot_product_attention_fast
from minitransformers.attention.weighted_attention import weighted_attention
from minitransformers.foundation import slot

EVERY = [pytest.param(*row, id=name) for name, row in WEIGHTINGS.items()]
every = pytest.mark.parametrize(("weighting", "learn"), EVERY)


def test_every_weighting_of_the_chapter_is_here():
    assert set(WEIGHTINGS) == labelled("weighting")


def case(rng):
    q, k, v = (rng.normal(size=shape) for shape in ((2, 3, 4, 5), (2, 1, 6, 5), (2, 3, 6, 7)))
    mask = rng.random((1, 3, 4, 6)) < 0.7
    mask[0, 1, 2] = False
    return q, k, v, rng.normal(size=(3, 4, 6)), mask


def with_and_without(learn, heads):
    """What is learned, and None, which every weighting takes for its plain form."""
    params = learn(np.random.default_rng(11), heads)
    return (None,) if params is None else (None, params)


@every
def test_forbidden_keys_get_exactly_nothing_however_they_are_forbidden(weighting, learn):
    q, k, v, bias, mask = case(np.random.default_rng(1))
    scores = np.random.default_rng(2).normal(size=(2, 3, 4, 6))
    forbidden = np.broadcast_to(~mask, scores.shape)
    for params in with_and_without(learn, 3):
        weights, backward = weighting(params, scores, mask=mask)
        _, dscores = backward(np.cos(scores))
        assert not weights[forbidden].any() and not dscores[forbidden].any()
        assert not weights[:, 1, 2].any()                    # a query that sees nothing
        out = weighted_attention(params, q, k, v, bias, mask=mask, weighting=weighting)[0]
        hidden = weighted_attention(params, q, k, v, np.where(mask, bias, -np.inf), weighting=weighting)[0]
        np.testing.assert_allclose(hidden, out, atol=1e-14)
        assert not out[:, 1, 2].any()


@every
def test_a_forbidden_score_may_be_anything(weighting, learn):
    mask = causal_mask(5)
    scores = np.random.default_rng(3).normal(size=(2, 5, 5))
    other = np.where(mask, scores, 1e5)
    for params in with_and_without(learn, 2):
        np.testing.assert_array_equal(weighting(params, other, mask=mask)[0], weighting(params, scores, mask=mask)[0])


@every
def test_the_order_of_the_keys_does_not_matter(weighting, learn):
    rng = np.random.default_rng(4)
    scores, order = rng.normal(size=(2, 3, 6)), rng.permutation(6)
    for params in with_and_without(learn, 2):
        np.testing.assert_allclose(weighting(params, scores[..., order])[0], weighting(params, scores)[0][..., order], rtol=0, atol=1e-14)


@every
def test_no_mask_is_a_mask_that_allows_all(weighting, learn):
    scores = np.random.default_rng(5).normal(size=(2, 3, 6))
    for params in with_and_without(learn, 2):
        np.testing.assert_array_equal(weighting(params, scores)[0], weighting(params, scores, mask=np.ones((1, 6), bool))[0])


@every
def test_what_it_learns_for_each_head_is_the_same_for_heads_in_groups(weighting, learn):
    """Six heads on one axis, or as two groups of three: head g * 3 + i is number i of group g."""
    rng = np.random.default_rng(6)
    scores, dweights = rng.normal(size=(2, 2, 6, 4, 5))
    params = learn(rng, 6)
    weights, backward = weighting(params, scores)
    grouped, grouped_backward = weighting(params, scores.reshape(2, 2, 3, 4, 5))
    np.testing.assert_array_equal(grouped.reshape(weights.shape), weights)
    (dparams, dscores), (grouped_dparams, grouped_dscores) = backward(dweights), grouped_backward(dweights.reshape(grouped.shape))
    np.testing.assert_allclose(grouped_dscores.reshape(dscores.shape), dscores, rtol=0, atol=1e-14)
    for own, theirs in zip(dparams or (), grouped_dparams or (), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


@every
def test_one_number_for_all_heads_gets_the_sum_of_their_gradients(weighting, learn):
    rng = np.random.default_rng(7)
    scores, dweights = rng.normal(size=(2, 2, 3, 4, 5))
    params = learn(rng, 1)
    if params is None:
        return
    same = type(params)(*(np.repeat(part, 3) if len(part) == 1 else part for part in params))
    np.testing.assert_array_equal(weighting(params, scores)[0], weighting(same, scores)[0])
    each = weighting(same, scores)[1](dweights)[0]
    for part, own, parts in zip(params, weighting(params, scores)[1](dweights)[0], each, strict=True):
        assert own.shape == part.shape
        np.testing.assert_allclose(own, parts.sum(keepdims=True) if len(part) == 1 else parts, rtol=0, atol=1e-13)


@every
def test_more_heads_than_the_scores_have_are_refused_by_name(weighting, learn):
    params = learn(np.random.default_rng(8), 4)
    if params is not None and len(params[0]) == 4:
        with pytest.raises(ValueError, match=f"params.{params._fields[0]}: got 4 heads"):
            weighting(params, np.ones((5, 3, 2, 2)))


@pytest.mark.parametrize("name", ["softmax_off_by_one", "scalable_softmax", "sparsemax"])
def test_a_very_long_row_still_sums_to_one_in_float32(name):
    """In the order in which scores lie in memory, a running sum of 65,536 nearly equal numbers is off by 4e-4."""
    rng, keys = np.random.default_rng(8), 65_536
    q, k = rng.normal(size=(8, 4)).astype(np.float32), (1e-3 * rng.normal(size=(keys, 4))).astype(np.float32)
    sums = weighted_attention(None, q, k, np.ones((keys, 1), np.float32), weighting=WEIGHTINGS[name][0])[0]
    np.testing.assert_allclose(sums, 1, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, (_, learn) in WEIGHTINGS.items() if learn(np.random.default_rng(0), 2) is not None])
def test_what_a_weighting_learns_has_the_dtype_of_the_queries(name):
    weighting, learn = WEIGHTINGS[name]
    q, k, v = (np.ones((2, n, 3), np.float32) for n in (4, 5, 5))
    params = learn(np.random.default_rng(9), 2)
    for part in (params[0], np.ones(params[0].shape, np.int64)):
        with pytest.raises(ValueError, match=rf"params\.{params._fields[0]}"):
            weighted_attention(params._replace(**{params._fields[0]: part}), q, k, v, weighting=weighting)
    with pytest.raises(ValueError, match="params: got float"):
        weighted_attention(2.0, q, k, v, weighting=weighting)


@pytest.mark.parametrize("coefficients", [np.ones(0), np.ones((2, 2))])
def test_coefficients_are_checked_within_attention_too(coefficients):
    weighting, learn = WEIGHTINGS["polynomial_weights"]
    q, k, v = (np.ones((2, n, 3)) for n in (4, 5, 5))
    params = learn(np.random.default_rng(0), 2)._replace(coefficients=coefficients)
    with pytest.raises(ValueError, match="coefficients: got"):
        weighted_attention(params, q, k, v, weighting=weighting)


def test_what_was_learned_is_not_dropped_in_silence():
    q, k, v, _, _ = case(np.random.default_rng(10))
    params = WEIGHTINGS["scalable_softmax"][1](np.random.default_rng(0), 3)
    for name in ("sparsemax", "relu_weights"):
        with pytest.raises(ValueError, match=rf"params: got ScalableSoftmax, wants None: {name} learns nothing"):
            weighted_attention(params, q, k, v, weighting=WEIGHTINGS[name][0])
    with pytest.raises(ValueError, match="params: got ScalableSoftmax, wants None"):
        slot(scaled_dot_product_attention_fast)(params, q, k, v)
