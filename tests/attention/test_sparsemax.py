"""Sparsemax: every possible support, the nearest point of the simplex, exact zeros, ties and extremes."""

import itertools

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from attention_cases import assert_refuses_masks_that_do_not_fit, assert_takes_the_softmax_s_place

from minitransformers.attention import sparsemax as module
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.sparsemax import sparsemax, sparsemax_attention
from minitransformers.foundation import check_gradients, slot


def by_trying_every_support(row):
    """The nearest point of the simplex: of all sets of keys, the one whose projection is allowed and nearest."""
    best, nearest = None, np.inf
    for size in range(1, len(row) + 1):
        for support in itertools.combinations(range(len(row)), size):
            mean = sum(row[j] for j in support) / size
            point = [row[j] - mean + 1 / size if j in support else 0.0 * row[j] for j in range(len(row))]
            values = [float(getattr(p, "_value", p)) for p in point]
            distance = sum((p - float(getattr(r, "_value", r))) ** 2 for p, r in zip(values, row, strict=True))
            if min(values) >= 0 and distance < nearest:
                best, nearest = point, distance
    return best


def by_sorting(row):
    """Martins and Astudillo's algorithm 1, one number after the other."""
    total, threshold = 0.0, None
    for rank, u in enumerate(sorted(row, reverse=True), start=1):
        total += u
        if 1 + rank * u > total:
            threshold = (total - 1) / rank
    return [max(a - threshold, 0.0) for a in row]


def textbook(scores, mask):
    rows = []
    for i in range(len(scores)):
        seen = [j for j in range(scores.shape[1]) if mask[i, j]]
        point = dict(zip(seen, by_trying_every_support([scores[i, j] for j in seen]), strict=True)) if seen else {}
        rows.append(anp.stack([point.get(j, 0.0 * scores[i, j]) for j in range(scores.shape[1])]))
    return anp.stack(rows)


def case(seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((4, 5)) < 0.7
    mask[2] = False
    return rng.normal(size=(4, 5)), mask, rng.normal(size=(4, 5))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_it_is_the_nearest_point_of_all_supports_and_its_gradient_is_autograd_s(masked, spread):
    scores, mask, dweights = case()
    scores = scores * spread
    allowed = mask if masked else np.ones_like(mask)
    weights, backward = sparsemax(scores, mask=mask if masked else None)
    np.testing.assert_allclose(weights, textbook(scores, allowed), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda s: anp.sum(dweights * textbook(s, allowed)))(scores)
    np.testing.assert_allclose(backward(dweights), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_it_is_the_algorithm_with_a_sort(n):
    for row in np.random.default_rng(n).normal(size=(20, n)) * 2:
        np.testing.assert_allclose(sparsemax(row[None])[0][0], by_sorting(row.tolist()), rtol=0, atol=1e-14)


def test_no_point_of_the_simplex_is_nearer():
    optimize = pytest.importorskip("scipy.optimize")
    row = np.array([0.9, 0.3, -0.4, 0.7])
    found = optimize.minimize(
        lambda p: ((p - row) ** 2).sum(), np.full(4, 0.25), jac=lambda p: 2 * (p - row), bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": lambda p: np.ones(4)}, method="SLSQP", tol=1e-14,
    )  # fmt: skip
    np.testing.assert_allclose(sparsemax(row[None])[0][0], found.x, atol=1e-7)


def test_rows_sum_to_one_and_hold_exact_zeros():
    scores = np.random.default_rng(1).normal(size=(50, 20)) * 2
    weights = sparsemax(scores)[0]
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=1e-14)
    assert weights.min() == 0 and (weights == 0).mean() > 0.8


def test_a_number_added_to_a_row_changes_nothing_and_the_gradient_of_a_row_sums_to_zero():
    scores, mask, dweights = case()
    np.testing.assert_allclose(sparsemax(scores + 1e3, mask=mask)[0], sparsemax(scores, mask=mask)[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(sparsemax(scores, mask=mask)[1](dweights).sum(-1), 0, atol=1e-14)


def test_two_keys_are_a_straight_line_between_zero_and_one():
    t = np.linspace(-2, 2, 41)
    weights = sparsemax(np.stack([t, 0 * t], axis=-1))[0]
    np.testing.assert_allclose(weights[:, 0], np.clip((t + 1) / 2, 0, 1), rtol=0, atol=1e-15)


def test_equal_scores_share_equally_and_a_lead_of_one_takes_all():
    np.testing.assert_allclose(sparsemax(np.zeros((1, 4)))[0], 0.25, rtol=1e-15)
    np.testing.assert_allclose(sparsemax(np.array([[5.0, 5.0, 0.0]]))[0], [[0.5, 0.5, 0]], rtol=1e-15)
    np.testing.assert_array_equal(sparsemax(np.array([[1.0, 0.0, 0.0]]))[0], [[1, 0, 0]])


def test_a_point_of_the_simplex_is_its_own_projection():
    point = np.random.default_rng(2).dirichlet(np.ones(6), size=3)
    np.testing.assert_allclose(sparsemax(point)[0], point, rtol=0, atol=1e-15)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_key_on_the_threshold_does_not_come_and_go_for_ever(dtype):
    """Rounded up, the threshold drops such a key; without it, it is rounded down and takes it in again."""
    below = -np.random.default_rng(6).random((1000, 6)).astype(dtype) / 2
    below[:, 0] = 0
    below[:, 5] = (below[:, :5].sum(-1) - 1) / 5             # exactly what the threshold of the others is, but for rounding
    weights = sparsemax(below)[0]
    np.testing.assert_allclose(weights.sum(-1), 1, atol=8 * np.finfo(dtype).eps)
    np.testing.assert_allclose(weights[:, 5], 0, atol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("spread", [0.01, 0.3, 3.0])
def test_long_rows_in_either_order_of_memory_are_the_algorithm_with_a_sort(spread):
    scores = spread * np.random.default_rng(7).normal(size=(3, 200))
    expected = [by_sorting(row.tolist()) for row in scores]
    for given in (scores, np.asfortranarray(scores)):
        np.testing.assert_allclose(sparsemax(given)[0], expected, rtol=0, atol=1e-14)


def test_keys_outside_the_support_get_no_gradient():
    scores, _, dweights = case()
    weights, backward = sparsemax(3 * scores)
    assert not backward(dweights)[weights == 0].any()


def test_a_long_row_keeps_its_sum_in_float32():
    scores = np.random.default_rng(3).normal(size=(2, 4096)).astype(np.float32) * np.float32(0.001)
    np.testing.assert_allclose(sparsemax(scores)[0].sum(-1), 1, atol=1e-3)


def test_a_bound_of_nearly_equal_scores_does_not_pass_the_threshold_by_rounding():
    """As (sum of excess^2 - 1) / sum of excess - 1 it would: the difference of two numbers near 1, for one near 1e-5."""
    scores = 1e-5 * np.random.default_rng(0).normal(size=(65_536, 2)).T
    weights = sparsemax(scores.astype(np.float32))[0]
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-4)
    np.testing.assert_allclose(weights, sparsemax(scores)[0], atol=1e-4 * weights.max())


def test_the_few_rows_that_take_more_rounds_go_on_by_themselves_and_end_as_they_would_alone():
    scores = 8 * np.random.default_rng(8).normal(size=(4, 40, 60))
    scores[1, 3] /= 80
    scores[2, [7, 30]] /= 20
    weights, backward = sparsemax(scores)
    dscores = backward(np.cos(scores))
    for row in np.ndindex(4, 40):
        alone, backward_alone = sparsemax(scores[row][None])
        np.testing.assert_allclose(weights[row], alone[0], rtol=0, atol=1e-15)
        np.testing.assert_allclose(weights[row], by_sorting(scores[row].tolist()), rtol=0, atol=1e-14)
        np.testing.assert_allclose(dscores[row], backward_alone(np.cos(scores[row])[None])[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 5.0])
def test_the_rounds_begin_below_the_threshold_and_as_near_to_it_as_two_sums_tell(spread, monkeypatch):
    """b = scores - largest, cut at -1, and e = b + 1: (sum of b e - 1) / sum of e, which for equal scores is the threshold."""
    seen, settle = [], module._settle
    monkeypatch.setattr(module, "_settle", lambda below, bound: seen.append((below.copy(), bound)) or settle(below, bound))
    scores, mask, _ = case(6)
    sparsemax(spread * scores, mask=mask)
    below, bound = seen[0]
    threshold = settle(below, bound)[2]
    for b, found, own in zip(below, bound[:, 0], threshold[:, 0], strict=True):
        expected = (sum(x * (x + 1) for x in b) - 1) / max(sum(x + 1 for x in b), 1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
        assert -1 <= found <= own + 1e-14
        assert spread > 0 or abs(found - own) < 1e-14


def test_extreme_scores_stay_finite_in_float32():
    scores = np.array([[3e38, -3e38, 0], [1e30, 1e30, -1e30]], np.float32)
    with np.errstate(over="ignore"):
        weights, backward = sparsemax(scores)
    np.testing.assert_array_equal(weights, [[1, 0, 0], [0.5, 0.5, 0]])
    assert np.isfinite(backward(np.ones_like(scores))).all()
    np.testing.assert_array_equal(sparsemax(np.array([[0, -3e38, -3e38]], np.float32))[0], [[1, 0, 0]])


def test_the_checker_refuses_a_mean_over_all_keys_and_the_backward_of_a_softmax():
    scores = 2 * case()[0]

    def over_all(scores):
        weights, _ = sparsemax(scores)
        return weights, lambda dweights: np.where(weights > 0, dweights - dweights.mean(-1, keepdims=True), 0)

    def softmax_s(scores):
        weights, _ = sparsemax(scores)
        return weights, lambda dweights: weights * (dweights - np.vecdot(dweights, weights)[..., None])

    assert not check_gradients(over_all, scores).passed
    assert not check_gradients(softmax_s, scores).passed


def test_as_a_core_it_takes_the_softmax_s_place_under_scale_bias_and_mask():
    assert_takes_the_softmax_s_place(sparsemax_attention, slot(sparsemax), None)


def test_a_mask_must_broadcast_to_the_scores():
    assert_refuses_masks_that_do_not_fit(slot(sparsemax), None)


@pytest.mark.parity
def test_parity_with_torch_through_attention():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    q, k, v, dout = (rng.normal(size=(2, 3, 5, 4)) for _ in range(4))
    tq, tk, tv = (torch.tensor(a, requires_grad=True) for a in (q, k, v))
    scores = (tq @ tk.transpose(-1, -2) / 2).masked_fill(torch.tensor(~causal_mask(5)), -1e4)
    ordered = scores.sort(-1, descending=True).values
    ranks = torch.arange(1, 6, dtype=torch.float64)
    support = (1 + ranks * ordered > ordered.cumsum(-1)).sum(-1, keepdim=True)
    threshold = (ordered.cumsum(-1).gather(-1, support - 1) - 1) / support
    theirs = torch.relu(scores - threshold) @ tv
    theirs.backward(torch.tensor(dout))
    out, backward = sparsemax_attention(None, q, k, v, mask=causal_mask(5))
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    for own, their in zip(backward(dout)[1:4], (tq, tk, tv), strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-9)


@pytest.mark.parity
def test_parity_with_the_package_entmax():
    torch, entmax = pytest.importorskip("torch"), pytest.importorskip("entmax")
    scores, dweights = (np.random.default_rng(5).normal(size=(3, 4, 7)) for _ in range(2))
    theirs_in = torch.tensor(scores, requires_grad=True)
    theirs = entmax.sparsemax(theirs_in, dim=-1)
    theirs.backward(torch.tensor(dweights))
    weights, backward = sparsemax(scores)
    np.testing.assert_allclose(weights, theirs.detach().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(dweights), theirs_in.grad.numpy(), rtol=0, atol=1e-12)
