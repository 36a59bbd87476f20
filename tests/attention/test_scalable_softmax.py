"""Scalable softmax: powers of n, focus that does not fade, and what its scale learns."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.attention.masks import causal_mask, sliding_window_mask
from minitransformers.attention.scalable_softmax import init_scalable_softmax, scalable_softmax
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
                float(n) ** (scale[h, 0] * scores[h, i, j]) * anp.exp(offset[h, 0] * scores[h, i, j]) if mask[h, i, j] else 0.0 * scores[h, i, j]
                for j in range(scores.shape[2])
            ]
            rows.append(anp.stack([p / (sum(powers) if n else 1.0) for p in powers]))
        heads.append(anp.stack(rows))
    return anp.stack(heads)


def case(seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((3, 4, 5)) < 0.6
    mask[1, 2] = False
    return rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 1)), rng.normal(size=(3, 1)), mask, rng.normal(size=(3, 4, 5))


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
    weights, backward = scalable_softmax(scores, scale, offset, mask=mask if masked else None)
    np.testing.assert_allclose(weights, textbook(scores, scale, offset, allowed), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda s, c, b: anp.sum(dweights * textbook(s, c, b, allowed)), (0, 1, 2))(scores, scale, offset)
    for own, theirs in zip(backward(dweights), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_what_is_not_given_is_a_scale_of_one_and_an_offset_of_zero():
    scores, scale, _, mask, dweights = case()
    weights, backward = scalable_softmax(scores, mask=mask)
    np.testing.assert_allclose(weights, textbook(scores, np.ones((3, 1)), np.zeros((3, 1)), mask), rtol=0, atol=1e-14)
    assert backward(dweights)[1:] == (None, None)
    np.testing.assert_array_equal(scalable_softmax(scores, scale, np.zeros((3, 1)), mask=mask)[0], scalable_softmax(scores, scale, mask=mask)[0])


@pytest.mark.parametrize(
    ("n", "softmax_s", "ours"),
    [(10, 0.9428, 0.9401), (100, 0.5999, 0.9951), (1000, 0.1293, 0.9996), (10**4, 0.0146, 1.0), (10**5, 0.0015, 1.0), (10**6, 0.0001, 1.0)],
)
def test_one_key_among_n_fades_in_a_softmax_and_not_here(n, softmax_s, ours):
    assert plain_softmax(one_in(n)).max() == pytest.approx(softmax_s, abs=5e-5)
    assert scalable_softmax(one_in(n), np.array([0.43]))[0].max() == pytest.approx(ours, abs=5e-5)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("n", [2, 10, 1000])
def test_the_largest_weight_lies_between_bounds_that_the_lead_and_the_spread_set(n, scale):
    for row in np.random.default_rng(n).normal(size=(20, n)) * 2:
        lead, spread = np.sort(row)[-1] - np.sort(row)[-2], np.ptp(row)
        largest = scalable_softmax(row[None], np.array([scale]))[0].max()
        low, high = (1 / (1 + (n - 1) * float(n) ** (-scale * gap)) for gap in (lead, spread))
        assert low - 1e-12 <= largest <= high + 1e-12


def test_a_lead_above_one_over_scale_wins_as_n_grows_and_one_below_it_loses():
    largest = {gap: [scalable_softmax(one_in(n, gap, 0.0), np.array([0.5]))[0].max() for n in (10, 100, 10**4, 10**6)] for gap in (1.0, 3.0)}
    assert np.all(np.diff(largest[3.0]) > 0) and largest[3.0][-1] > 0.99
    assert np.all(np.diff(largest[1.0]) < 0) and largest[1.0][-1] < 0.01


def test_it_is_a_softmax_where_scale_log_n_is_one_and_uniform_where_scale_is_zero():
    scores = case()[0]
    np.testing.assert_allclose(scalable_softmax(scores, np.full((3, 1), 1 / np.log(5)))[0], plain_softmax(scores), rtol=1e-13)
    np.testing.assert_allclose(scalable_softmax(scores, np.zeros((3, 1)))[0], 0.2, rtol=1e-14)
    np.testing.assert_allclose(scalable_softmax(scores, np.zeros((3, 1)), np.ones((3, 1)))[0], plain_softmax(scores), rtol=1e-13)


def test_taking_scale_log_n_off_instead_of_multiplying_would_change_nothing():
    scores = case()[0]
    np.testing.assert_allclose(plain_softmax(scores - 0.43 * np.log(5)), plain_softmax(scores), rtol=1e-13)
    assert np.abs(scalable_softmax(scores, np.full((3, 1), 0.43))[0] - plain_softmax(scores)).max() > 0.05


def test_n_is_counted_for_every_query_and_constant_in_a_window():
    scores = np.random.default_rng(1).normal(size=(6, 6))
    weights = scalable_softmax(scores, mask=causal_mask(6))[0]
    for i in range(6):
        np.testing.assert_allclose(weights[i, : i + 1], scalable_softmax(scores[i : i + 1, : i + 1])[0][0], rtol=1e-13)
    assert weights[0, 0] == 1
    window = scalable_softmax(scores, mask=sliding_window_mask(6, window=2))[0]
    np.testing.assert_allclose(window[3, 2:4], plain_softmax(np.log(2) * scores[3:4, 2:4])[0], rtol=1e-13)


def test_a_negative_scale_prefers_the_lowest_score():
    scores = np.array([[1.0, 3.0, -2.0]])
    assert scalable_softmax(scores, np.array([-2.0]))[0].argmax() == 2


def test_it_is_attention_whose_queries_are_scaled_and_trains_its_scale_there():
    rng = np.random.default_rng(2)
    q, k, v, dout = (rng.normal(size=(2, 5, 4)) for _ in range(4))
    scale, log_n = rng.normal(size=(2, 1)), np.log(np.arange(1, 6))
    out, backward = scaled_dot_product_attention(q, k, v, None, scale, mask=causal_mask(5), weighting=scalable_softmax)
    wanted, wanted_backward = scaled_dot_product_attention(q * (scale * log_n)[..., None], k, v, mask=causal_mask(5))
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-13)
    (dq, dk, dv, _, dscale), (dscaled, wanted_dk, wanted_dv, _) = backward(dout), wanted_backward(dout)
    np.testing.assert_allclose(dscale[:, 0], (dscaled * q * log_n[:, None]).sum((1, 2)), rtol=0, atol=1e-13)
    for own, theirs in ((dq, dscaled * (scale * log_n)[..., None]), (dk, wanted_dk), (dv, wanted_dv)):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(3, 1), (1, 4), (4,), (1,), (3, 4)])
def test_one_scale_for_many_rows_gets_the_sum_of_their_gradients(shape):
    scores, _, _, mask, dweights = case()
    scale, offset = np.random.default_rng(3).normal(size=(2, *shape))
    found = scalable_softmax(scores, scale, offset, mask=mask)[1](dweights)[1:]
    copies = (np.broadcast_to(a, (3, 4)).copy() for a in (scale, offset))
    for own, each in zip(found, scalable_softmax(scores, *copies, mask=mask)[1](dweights)[1:], strict=True):
        each = each.sum(0) if len(shape) == 1 else each
        np.testing.assert_allclose(own, each.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True), rtol=0, atol=1e-13)


def test_the_initial_scale_makes_the_mean_sharpness_one():
    (scale,) = init_scalable_softmax(np.random.default_rng(0), num_heads=3, context=1024)
    assert scale.shape == (3, 1) and scale.dtype == np.float32
    assert scale[0, 0] == pytest.approx(0.168, abs=5e-4)
    with pytest.raises(ValueError, match="context"):
        init_scalable_softmax(np.random.default_rng(0), num_heads=3, context=1)


def test_extreme_scores_stay_finite_in_float32():
    scores = np.array([[1e38, -1e38, 0], [1e38, 1e38, -1e38]], np.float32)
    weights, backward = scalable_softmax(scores)
    np.testing.assert_array_equal(weights, [[1, 0, 0], [0.5, 0.5, 0]])
    assert np.isfinite(backward(np.ones_like(scores))[0]).all()


def test_the_checker_refuses_a_backward_that_forgets_the_sharpness_or_counts_all_keys():
    scores, scale, _, mask, _ = case()

    def unsharpened(scores, scale):
        weights, backward = scalable_softmax(scores, scale, mask=mask)
        return weights, lambda dweights: (weights * (dweights - np.vecdot(dweights, weights)[..., None]), backward(dweights)[1])

    def one_n_for_all(scores, scale):
        weights, backward = scalable_softmax(scores, scale, mask=mask)

        def wrong(dweights):
            dlogits = weights * (dweights - np.vecdot(dweights, weights)[..., None])
            return backward(dweights)[0], np.log(5) * np.vecdot(dlogits, scores).sum(-1, keepdims=True)

        return weights, wrong

    assert check_gradients(unsharpened, scores, scale).worst.path == "scores"
    report = check_gradients(one_n_for_all, scores, scale)
    assert not report.passed and report.worst.path == "scale"


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    q, k, v, dout = (rng.normal(size=(2, 3, 5, 4)) for _ in range(4))
    scale, offset = rng.normal(size=(2, 3, 1))
    tensors = [torch.tensor(a, requires_grad=True) for a in (q, k, v, scale, offset)]
    tq, tk, tv, ts, tb = tensors
    sharpness = ts * torch.log(torch.arange(1, 6, dtype=torch.float64)) + tb
    logits = (sharpness[..., None] * (tq @ tk.transpose(-1, -2) / 2)).masked_fill(torch.tensor(~causal_mask(5)), -torch.inf)
    theirs = torch.softmax(logits, -1) @ tv
    theirs.backward(torch.tensor(dout))
    out, backward = scaled_dot_product_attention(q, k, v, None, scale, offset, mask=causal_mask(5), weighting=scalable_softmax)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    dq, dk, dv, _, dscale, doffset = backward(dout)
    for own, their in zip((dq, dk, dv, dscale, doffset), tensors, strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("changes", "named"), [({"num_heads": 0}, "num_heads"), ({"context": 1}, "context"), ({"context": 2.5}, "context")])
def test_a_start_needs_heads_and_keys(changes, named):
    with pytest.raises(ValueError, match=f"{named}: got"):
        init_scalable_softmax(np.random.default_rng(0), **{"num_heads": 2, "context": 4, **changes})
