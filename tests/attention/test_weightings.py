"""What every weighting promises, and what attention makes of it."""

import numpy as np
import pytest

from minitransformers import catalogue
from minitransformers.attention.cache import cached_attention
from minitransformers.attention.cross_attention import cross_attention, cross_attention_step, init_cross_attention
from minitransformers.attention.grouped_query_attention import grouped_query_attention, init_grouped_query_attention
from minitransformers.attention.masks import causal_mask, sliding_window_mask
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.attention.sliding_window_attention import (
    init_sliding_window_attention,
    sliding_window_attention,
    sliding_window_attention_step,
)
from minitransformers.foundation import check_gradients

EVERY = [pytest.param(entry.function, id=name) for name, entry in catalogue.concepts(role="weighting").items()]


def plain_softmax(scores, *, mask=None):
    powers = np.exp(scores) * (True if mask is None else mask)
    weights = powers / np.maximum(powers.sum(-1, keepdims=True), 1e-300)
    return weights, lambda dweights: weights * (dweights - (weights * dweights).sum(-1, keepdims=True))


def case(rng, v_batch=(2, 3)):
    q, k, v = (rng.normal(size=shape) for shape in ((2, 3, 4, 5), (2, 1, 6, 5), (*v_batch, 6, 7)))
    mask = rng.random((1, 3, 4, 6)) < 0.7
    mask[0, 1, 2] = False
    return q, k, v, rng.normal(size=(3, 4, 6)), mask


@pytest.mark.parametrize("v_batch", [(2, 3), (2, 1), (4, 2, 1)])
def test_the_softmax_as_a_weighting_is_the_softmax_that_attention_has(v_batch):
    *args, mask = case(np.random.default_rng(0), v_batch)
    (out, backward), (wanted, wanted_backward) = (scaled_dot_product_attention(*args, mask=mask, weighting=w) for w in (plain_softmax, None))
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-14)
    for own, theirs in zip(backward(np.cos(out)), wanted_backward(np.cos(out)), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


def test_what_a_weighting_learns_needs_a_weighting_and_each_score_a_weight():
    q, k, v, bias, _ = case(np.random.default_rng(0))
    with pytest.raises(ValueError, match="learned"):
        scaled_dot_product_attention(q, k, v, bias, np.ones(1))
    with pytest.raises(ValueError, match="weighting"):
        scaled_dot_product_attention(q, k, v, weighting=lambda scores, mask: (scores[..., :1], None))


def test_a_score_that_is_no_number_is_not_taken_for_a_forbidden_one():
    q, k, v, *_ = case(np.random.default_rng(0))
    q[0, 0, 0, 0] = np.nan
    assert np.isnan(scaled_dot_product_attention(q, k, v, weighting=plain_softmax)[0][0, 0, 0]).all()


@pytest.mark.parametrize("weighting", EVERY)
def test_forbidden_keys_get_exactly_nothing_however_they_are_forbidden(weighting):
    q, k, v, bias, mask = case(np.random.default_rng(1))
    scores = np.random.default_rng(2).normal(size=(2, 3, 4, 6))
    weights, backward = weighting(scores, mask=mask)
    found = backward(np.cos(scores))
    forbidden = np.broadcast_to(~mask, scores.shape)
    assert not weights[forbidden].any() and not (found[0] if isinstance(found, tuple) else found)[forbidden].any()
    assert not weights[:, 1, 2].any()                        # a query that sees nothing
    out = scaled_dot_product_attention(q, k, v, bias, mask=mask, weighting=weighting)[0]
    np.testing.assert_allclose(scaled_dot_product_attention(q, k, v, np.where(mask, bias, -np.inf), weighting=weighting)[0], out, atol=1e-14)
    assert not out[:, 1, 2].any()


@pytest.mark.parametrize("weighting", EVERY)
def test_a_forbidden_score_may_be_anything(weighting):
    mask = causal_mask(5)
    scores = np.random.default_rng(3).normal(size=(2, 5, 5))
    other = np.where(mask, scores, 1e5)
    np.testing.assert_array_equal(weighting(other, mask=mask)[0], weighting(scores, mask=mask)[0])


@pytest.mark.parametrize("weighting", EVERY)
def test_the_order_of_the_keys_does_not_matter(weighting):
    rng = np.random.default_rng(4)
    scores, order = rng.normal(size=(3, 6)), rng.permutation(6)
    np.testing.assert_allclose(weighting(scores[:, order])[0], weighting(scores)[0][:, order], rtol=0, atol=1e-14)


@pytest.mark.parametrize("weighting", EVERY)
def test_no_mask_is_a_mask_that_allows_all(weighting):
    scores = np.random.default_rng(5).normal(size=(3, 6))
    np.testing.assert_array_equal(weighting(scores)[0], weighting(scores, mask=np.ones((1, 6), bool))[0])


@pytest.mark.parametrize("weighting", EVERY)
@pytest.mark.parametrize("steps", [[1] * 7, [3, 1, 3], [7]])
def test_decoding_from_a_cache_is_the_full_causal_pass(weighting, steps):
    rng = np.random.default_rng(6)
    heads = {"num_heads": 4, "num_kv_heads": 2}
    params, x = init_grouped_query_attention(rng, 8, **heads, dtype=np.float64), rng.normal(size=(2, 7, 8))
    wanted = grouped_query_attention(params, x, **heads, weighting=weighting)[0]
    cache, outs, start = None, [], 0
    for new in steps:
        out, cache = cached_attention(params, x[:, start : start + new], cache, **heads, weighting=weighting)
        outs.append(out)
        start += new
    np.testing.assert_allclose(np.concatenate(outs, axis=1), wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("weighting", EVERY)
def test_the_gradients_of_multi_head_and_grouped_query_attention_are_right(weighting):
    rng = np.random.default_rng(7)
    x, bias = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 3))
    params = init_multi_head_attention(rng, 4, num_heads=2, dtype=np.float64)
    report = check_gradients(multi_head_attention, params, x, bias, num_heads=2, weighting=weighting)
    assert report.passed, report
    params = init_grouped_query_attention(rng, 4, num_heads=2, num_kv_heads=1, dtype=np.float64)
    report = check_gradients(grouped_query_attention, params, x, bias, num_heads=2, num_kv_heads=1, weighting=weighting)
    assert report.passed, report


@pytest.mark.parametrize("weighting", [None, "softmax_off_by_one", "scalable_softmax", "sparsemax"])
def test_a_very_long_row_still_sums_to_one_in_float32(weighting):
    """In the order in which scores lie in memory, a running sum of 65,536 nearly equal numbers is off by 4e-4."""
    rng, keys = np.random.default_rng(8), 65_536
    function = None if weighting is None else catalogue.find(weighting, role="weighting").function
    q, k = rng.normal(size=(8, 4)).astype(np.float32), (1e-3 * rng.normal(size=(keys, 4))).astype(np.float32)
    sums = scaled_dot_product_attention(q, k, np.ones((keys, 1), np.float32), weighting=function)[0]
    np.testing.assert_allclose(sums, 1, atol=1e-4)


@pytest.mark.parametrize("learned", [np.ones((2, 1)), np.ones((2, 1), np.int64), 2.0])
def test_what_a_weighting_learns_has_the_dtype_of_the_queries(learned):
    q, k, v = (np.ones((2, n, 3), np.float32) for n in (4, 5, 5))
    with pytest.raises(ValueError, match="learned: got"):
        scaled_dot_product_attention(q, k, v, None, learned, weighting=catalogue.find("scalable_softmax", role="weighting").function)


@pytest.mark.parametrize("coefficients", [np.ones(0), np.ones((2, 2))])
def test_coefficients_are_checked_within_attention_too(coefficients):
    q, k, v = (np.ones((2, n, 3)) for n in (4, 5, 5))
    with pytest.raises(ValueError, match="coefficients: got"):
        scaled_dot_product_attention(q, k, v, None, coefficients, weighting=catalogue.find("polynomial_attention", role="weighting").function)


def test_what_was_learned_for_a_weighting_is_not_dropped_in_silence():
    rng = np.random.default_rng(9)
    x, params = rng.normal(size=(5, 8)), init_multi_head_attention(rng, 8, num_heads=2, weighting="scalable_softmax", dtype=np.float64)
    grouped = init_grouped_query_attention(rng, 8, num_heads=2, num_kv_heads=1, weighting="scalable_softmax", dtype=np.float64)
    for call in (
        lambda: multi_head_attention(params, x, num_heads=2),
        lambda: multi_head_attention(params, x, num_heads=2, attend="gaussian_kernel_attention"),
        lambda: grouped_query_attention(grouped, x, num_heads=2, num_kv_heads=1, attend="gaussian_kernel_attention"),
        lambda: cached_attention(params, x, None, num_heads=2, num_kv_heads=2),
    ):
        with pytest.raises(ValueError, match="learned: got 1 arrays"):
            call()


def test_a_core_of_its_own_takes_no_weighting():
    params = init_multi_head_attention(np.random.default_rng(8), 4, num_heads=2)
    with pytest.raises(ValueError, match="attend"):
        multi_head_attention(params, np.ones((3, 4), np.float32), num_heads=2, attend=scaled_dot_product_attention, weighting=plain_softmax)


@pytest.mark.parametrize("name", catalogue.concepts(role="weighting"))
def test_a_window_takes_every_weighting(name):
    rng = np.random.default_rng(31)
    params = init_sliding_window_attention(rng, 6, num_heads=3, dtype=np.float64)
    x, dout = rng.normal(size=(2, 7, 6)), rng.normal(size=(2, 7, 6))
    mask = sliding_window_mask(7, 7, window=3)
    out, backward = sliding_window_attention(params, x, num_heads=3, window=3, weighting=name)
    full, full_backward = grouped_query_attention(params, x, num_heads=3, num_kv_heads=3, mask=mask, weighting=name)
    np.testing.assert_allclose(out, full, atol=1e-12)
    np.testing.assert_allclose(backward(dout)[1], full_backward(dout)[1], atol=1e-12)
    state, parts = None, []
    for i in range(7):
        part, state = sliding_window_attention_step(params, x[:, i : i + 1], state, num_heads=3, window=3, weighting=name)
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), out, atol=1e-12)


@pytest.mark.parametrize("name", catalogue.concepts(role="weighting"))
def test_cross_attention_takes_every_weighting(name):
    rng = np.random.default_rng(32)
    params = init_cross_attention(rng, 6, num_heads=2, dtype=np.float64)
    x, memory = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 5, 6))
    assert check_gradients(cross_attention, params, x, memory, num_heads=2, weighting=name, second_opinion=False).passed
    out, _ = cross_attention(params, x, memory, num_heads=2, weighting=name)
    stepped, _ = cross_attention_step(params, x, None, num_heads=2, memory=memory, weighting=name)
    np.testing.assert_allclose(stepped, out, atol=1e-12)
    assert np.abs(out - cross_attention(params, x, memory, num_heads=2)[0]).max() > 1e-3
