"""Scalable softmax: powers of n, focus that does not fade, and what its scale learns."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from attention_cases import assert_refuses_masks_that_do_not_fit, assert_takes_the_softmax_s_place

from minitransformers.attention.masks import causal_mask, sliding_window_mask
from minitransformers.attention.scalable_softmax import (
    ScalableSoftmax,
    init_scalable_softmax,
    scalable_softmax,
    scalable_softmax_attention,
)
from minitransformers.attention.scaled_dot_product_attention import scaled_dot_product_attention
from minitransformers.foundation import check_gradients


def textbook(scores, scale, offset, mask):
    """n^(s z) e^(b z) over its sum, one row of (heads, queries, keys) at a time."""
    heads = []
    for h in range(scores.shape[0]):
        rows = []
        for i in range(scores.shape[1]):
            n = sum(1 for j in range(scores.shape[2]) if mask[h, i, j])
            powers = [
                float(n) ** (scale[h] * scores[h, i, j]) * anp.exp(offset[h] * scores[h, i, j]) if mask[h, i, j] else 0.0 * scores[h, i, j]
                for j in range(scores.shape[2])
            ]
            rows.append(anp.stack([p / (sum(powers) if n else 1.0) for p in powers]))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


def case(seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((3, 4, 5)) < 0.6
    mask[1, 2] = False
    return rng.normal(size=(3, 4, 5)), rng.normal(size=3), rng.normal(size=3), mask, rng.normal(size=(3, 4, 5))


def plain_softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def one_in(n, high=3.0, low=-2.0):
    scores = np.full((1, n), low)
    scores[0, 0] = high
    return scores


@pytest.mark.parametrize("masked", [True, False])
def test_it_is_the_quotient_of_powers_of_n_and_its_gradients_are_autograd_s(masked):
    scores, scale, offset, mask, dweights = case()
    allowed = mask if masked else np.ones_like(mask)
    weights, backward = scalable_softmax(ScalableSoftmax(scale, offset), scores, mask=mask if masked else None)
    np.testing.assert_allclose(weights, textbook(scores, scale, offset, allowed), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda s, c, b: anp.sum(dweights * textbook(s, c, b, allowed)), (0, 1, 2))(scores, scale, offset)
    (dscale, doffset), dscores = backward(dweights)
    for own, theirs in zip((dscores, dscale, doffset), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_what_is_not_given_is_a_scale_of_one_and_an_offset_of_zero():
    scores, scale, _, mask, dweights = case()
    weights, backward = scalable_softmax(None, scores, mask=mask)
    np.testing.assert_allclose(weights, textbook(scores, np.ones(3), np.zeros(3), mask), rtol=0, atol=1e-14)
    assert backward(dweights)[0] is None
    without, without_backward = scalable_softmax(ScalableSoftmax(scale), scores, mask=mask)
    with_zeros, with_zeros_backward = scalable_softmax(ScalableSoftmax(scale, np.zeros(3)), scores, mask=mask)
    np.testing.assert_array_equal(with_zeros, without)
    assert without_backward(dweights)[0].offset is None
    np.testing.assert_array_equal(with_zeros_backward(dweights)[0].scale, without_backward(dweights)[0].scale)


@pytest.mark.parametrize(
    ("n", "softmax_s", "ours"),
    [(10, 0.9428, 0.9401), (100, 0.5999, 0.9951), (1000, 0.1293, 0.9996), (10**4, 0.0146, 1.0), (10**5, 0.0015, 1.0), (10**6, 0.0001, 1.0)],
)
def test_one_key_among_n_fades_in_a_softmax_and_not_here(n, softmax_s, ours):
    assert plain_softmax(one_in(n)).max() == pytest.approx(softmax_s, abs=5e-5)
    assert scalable_softmax(ScalableSoftmax(np.array([0.43])), one_in(n))[0].max() == pytest.approx(ours, abs=5e-5)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("n", [2, 10, 1000])
def test_the_largest_weight_lies_between_bounds_that_the_lead_and_the_spread_set(n, scale):
    for row in np.random.default_rng(n).normal(size=(20, n)) * 2:
        lead, spread = np.sort(row)[-1] - np.sort(row)[-2], np.ptp(row)
        largest = scalable_softmax(ScalableSoftmax(np.array([scale])), row[None])[0].max()
        low, high = (1 / (1 + (n - 1) * float(n) ** (-scale * gap)) for gap in (lead, spread))
        assert low - 1e-12 <= largest <= high + 1e-12


def test_a_lead_above_one_over_scale_wins_as_n_grows_and_one_below_it_loses():
    largest = {gap: [scalable_softmax(ScalableSoftmax(np.array([0.5])), one_in(n, gap, 0.0))[0].max() for n in (10, 100, 10**4, 10**6)] for gap in (1.0, 3.0)}
    assert np.all(np.diff(largest[3.0]) > 0) and largest[3.0][-1] > 0.99
    assert np.all(np.diff(largest[1.0]) < 0) and largest[1.0][-1] < 0.01


def test_it_is_a_softmax_where_scale_log_n_is_one_and_uniform_where_scale_is_zero():
    scores = case()[0]
    np.testing.assert_allclose(scalable_softmax(ScalableSoftmax(np.full(3, 1 / np.log(5))), scores)[0], plain_softmax(scores), rtol=1e-13)
    np.testing.assert_allclose(scalable_softmax(ScalableSoftmax(np.zeros(3)), scores)[0], 0.2, rtol=1e-14)
    np.testing.assert_allclose(scalable_softmax(ScalableSoftmax(np.zeros(3), np.ones(3)), scores)[0], plain_softmax(scores), rtol=1e-13)


def test_taking_scale_log_n_off_instead_of_multiplying_would_change_nothing():
    scores = case()[0]
    np.testing.assert_allclose(plain_softmax(scores - 0.43 * np.log(5)), plain_softmax(scores), rtol=1e-13)
    assert np.abs(scalable_softmax(ScalableSoftmax(np.full(3, 0.43)), scores)[0] - plain_softmax(scores)).max() > 0.05


def test_n_is_counted_for_every_query_and_constant_in_a_window():
    scores = np.random.default_rng(1).normal(size=(6, 6))
    weights = scalable_softmax(None, scores, mask=causal_mask(6))[0]
    for i in range(6):
        np.testing.assert_allclose(weights[i, : i + 1], scalable_softmax(None, scores[i : i + 1, : i + 1])[0][0], rtol=1e-13)
    assert weights[0, 0] == 1
    window = scalable_softmax(None, scores, mask=sliding_window_mask(6, window=2))[0]
    np.testing.assert_allclose(window[3, 2:4], plain_softmax(np.log(2) * scores[3:4, 2:4])[0], rtol=1e-13)


def test_a_negative_scale_prefers_the_lowest_score():
    scores = np.array([[1.0, 3.0, -2.0]])
    assert scalable_softmax(ScalableSoftmax(np.array([-2.0])), scores)[0].argmax() == 2


def test_it_is_attention_whose_queries_are_scaled_and_trains_its_scale_there():
    rng = np.random.default_rng(2)
    q, k, v, dout = (rng.normal(size=(2, 5, 4)) for _ in range(4))
    scale, log_n = rng.normal(size=2), np.log(np.arange(1, 6))
    out, backward = scalable_softmax_attention(ScalableSoftmax(scale), q, k, v, mask=causal_mask(5))
    sharpness = scale[:, None] * log_n
    wanted, wanted_backward = scaled_dot_product_attention(q * sharpness[..., None], k, v, mask=causal_mask(5))
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-13)
    ((dscale, _), dq, dk, dv, _), (dscaled, wanted_dk, wanted_dv, _) = backward(dout), wanted_backward(dout)
    np.testing.assert_allclose(dscale, (dscaled * q * log_n[:, None]).sum((1, 2)), rtol=0, atol=1e-13)
    for own, theirs in ((dq, dscaled * sharpness[..., None]), (dk, wanted_dk), (dv, wanted_dv)):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


def test_one_scale_for_many_rows_gets_the_sum_of_their_gradients():
    rng = np.random.default_rng(3)
    scores, dweights = rng.normal(size=(2, 2, 3, 4, 5))
    mask = rng.random((2, 3, 4, 5)) < 0.6
    for heads in (3, 1):
        params = ScalableSoftmax(*rng.normal(size=(2, heads)))
        found = scalable_softmax(params, scores, mask=mask)[1](dweights)[0]
        expected = np.zeros((2, heads))
        for b, h, i in np.ndindex(2, 3, 4):
            row, own = np.s_[b, h, i : i + 1], h % heads
            one = ScalableSoftmax(*(part[own : own + 1] for part in params))
            each = scalable_softmax(one, scores[row], mask=mask[row])[1](dweights[row])[0]
            expected[:, own] += [part[0] for part in each]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_the_initial_scale_makes_the_mean_sharpness_one():
    scale, offset = init_scalable_softmax(np.random.default_rng(0), num_heads=3, max_positions=1024)
    assert scale.shape == (3,) and scale.dtype == np.float32 and offset is None
    assert scale[0] == pytest.approx(0.168, abs=5e-4)
    with pytest.raises(ValueError, match="max_positions"):
        init_scalable_softmax(np.random.default_rng(0), num_heads=3, max_positions=1)


def test_extreme_scores_stay_finite_in_float32():
    scores = np.array([[1e38, -1e38, 0], [1e38, 1e38, -1e38]], np.float32)
    weights, backward = scalable_softmax(None, scores)
    np.testing.assert_array_equal(weights, [[1, 0, 0], [0.5, 0.5, 0]])
    assert np.isfinite(backward(np.ones_like(scores))[1]).all()


def test_the_checker_refuses_a_backward_that_forgets_the_sharpness_or_counts_all_keys():
    scores, scale, _, mask, _ = case()

    def unsharpened(params, scores):
        weights, backward = scalable_softmax(params, scores, mask=mask)
        return weights, lambda dweights: (backward(dweights)[0], weights * (dweights - np.vecdot(dweights, weights)[..., None]))

    def one_n_for_all(params, scores):
        weights, backward = scalable_softmax(params, scores, mask=mask)

        def wrong(dweights):
            dlogits = weights * (dweights - np.vecdot(dweights, weights)[..., None])
            return ScalableSoftmax(np.log(5) * np.vecdot(dlogits, scores).sum(-1)), backward(dweights)[1]

        return weights, wrong

    assert check_gradients(unsharpened, ScalableSoftmax(scale), scores).worst.path == "scores"
    report = check_gradients(one_n_for_all, ScalableSoftmax(scale), scores)
    assert not report.passed and report.worst.path == "params.scale"


def test_as_a_core_it_takes_the_softmax_s_place_under_scale_bias_and_mask():
    params = ScalableSoftmax(np.array([0.3, -1.0, 2.0]), np.array([1.0, 0.2, -0.4]))
    assert_takes_the_softmax_s_place(scalable_softmax_attention, scalable_softmax, params)


def test_a_mask_must_broadcast_to_the_scores():
    assert_refuses_masks_that_do_not_fit(scalable_softmax, ScalableSoftmax(np.ones(3)))


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    q, k, v, dout = (rng.normal(size=(2, 3, 5, 4)) for _ in range(4))
    scale, offset = rng.normal(size=(2, 3))
    tensors = [torch.tensor(a, requires_grad=True) for a in (q, k, v, scale, offset)]
    tq, tk, tv, ts, tb = tensors
    sharpness = ts[:, None] * torch.log(torch.arange(1, 6, dtype=torch.float64)) + tb[:, None]
    logits = (sharpness[..., None] * (tq @ tk.transpose(-1, -2) / 2)).masked_fill(torch.tensor(~causal_mask(5)), -torch.inf)
    theirs = torch.softmax(logits, -1) @ tv
    theirs.backward(torch.tensor(dout))
    out, backward = scalable_softmax_attention(ScalableSoftmax(scale, offset), q, k, v, mask=causal_mask(5))
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    (dscale, doffset), dq, dk, dv, _ = backward(dout)
    for own, their in zip((dq, dk, dv, dscale, doffset), tensors, strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("changes", "named"), [({"num_heads": 0}, "num_heads"), ({"max_positions": 1}, "max_positions"), ({"max_positions": 2.5}, "max_positions")])
def test_a_start_needs_heads_and_keys(changes, named):
    with pytest.raises(ValueError, match=f"{named}: got"):
        init_scalable_softmax(np.random.default_rng(0), **{"num_heads": 2, "max_positions": 4, **changes})
