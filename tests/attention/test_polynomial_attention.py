"""Polynomial attention: powers one by one, signs, norms that grow as the theory says, and linear attention inside."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from attention_cases import assert_refuses_masks_that_do_not_fit, assert_takes_the_softmax_s_place

from minitransformers.attention.masks import causal_mask
from minitransformers.attention.polynomial_attention import PolynomialAttention, polynomial_attention, polynomial_weights
from minitransformers.foundation import check_gradients

CUBE, SQUARE, MIXED = (np.array(c, float) for c in ([0, 0, 0, 1], [0, 0, 1], [0, 1, 0, 1]))


def textbook(scores, cs, mask, decay=0.5):
    """One number of (queries, keys) at a time, power by power."""
    rows = []
    for i in range(scores.shape[0]):
        n = sum(1 for j in range(scores.shape[1]) if mask[i, j])
        row = []
        for j in range(scores.shape[1]):
            value, power = 0.0, 1.0
            for m in range(len(cs)):
                value, power = value + cs[m] * power, power * scores[i, j]
            row.append(value / n**decay if mask[i, j] else 0.0 * scores[i, j])
        rows.append(anp.stack(row))
    return anp.stack(rows)


def case(seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((4, 6)) < 0.7
    mask[2], mask[3] = False, np.arange(6) == 4              # a query that sees nothing, one that sees a single key
    return rng.normal(size=(4, 6)), mask, rng.normal(size=(4, 6))


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("cs", [CUBE, SQUARE, MIXED, np.array([0.7]), np.array([0.3, -1.2, 0.5, 0.1, -0.2])])
def test_it_is_the_textbook_polynomial_and_its_gradients_are_autograd_s(cs, masked, decay):
    scores, mask, dweights = case()
    allowed = mask if masked else np.ones_like(mask)
    weights, backward = polynomial_weights(PolynomialAttention(cs), scores, mask=mask if masked else None, decay=decay)
    np.testing.assert_allclose(weights, textbook(scores, cs, allowed, decay), rtol=0, atol=1e-13)
    expected = autograd.grad(lambda s, c: anp.sum(dweights * textbook(s, c, allowed, decay)), (0, 1))(scores, cs)
    (dcs,), dscores = backward(dweights)
    np.testing.assert_allclose(dscores, expected[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(dcs, expected[1], rtol=0, atol=1e-12)


def test_without_coefficients_it_is_the_cube_over_the_root_of_the_number_of_keys():
    scores, mask, dweights = case()
    np.testing.assert_allclose(polynomial_weights(None, scores)[0], scores**3 / np.sqrt(6), rtol=1e-13)
    (nothing, dscores), given = (polynomial_weights(params, scores, mask=mask)[1](dweights) for params in (None, PolynomialAttention(CUBE)))
    assert nothing is None
    np.testing.assert_array_equal(dscores, given[1])


def test_odd_powers_keep_the_sign_of_a_query_and_even_powers_lose_it():
    q, k, v = (np.random.default_rng(1).normal(size=(3, 4)) for _ in range(3))
    cube, square = (lambda q, c=c: polynomial_attention(PolynomialAttention(c), q, k, v)[0] for c in (MIXED, SQUARE))
    np.testing.assert_allclose(cube(-q), -cube(q), rtol=0, atol=1e-14)
    np.testing.assert_allclose(square(-q), square(q), rtol=0, atol=1e-14)


def test_keys_do_not_compete():
    scores, _, _ = case()
    raised = scores.copy()
    raised[:, 2] += 5
    np.testing.assert_array_equal(*(np.delete(polynomial_weights(None, s)[0], 2, axis=-1) for s in (raised, scores)))


def test_degree_one_without_a_mask_is_linear_attention_whose_products_can_be_reordered():
    rng = np.random.default_rng(2)
    q, k, v = rng.normal(size=(5, 4)), rng.normal(size=(7, 4)), rng.normal(size=(7, 3))
    out = polynomial_attention(PolynomialAttention(np.array([0.0, 1.0])), q, k, v)[0]
    np.testing.assert_allclose(out, q @ (k.T @ v) / np.sqrt(7 * 4), rtol=0, atol=1e-13)


def test_a_number_added_to_all_scores_changes_the_weights_unlike_in_a_softmax():
    scores, _, _ = case()
    assert np.abs(polynomial_weights(None, scores + 1)[0] - polynomial_weights(None, scores)[0]).max() > 0.1


def test_a_constant_term_does_not_leak_into_forbidden_keys():
    scores, mask, _ = case()
    weights = polynomial_weights(PolynomialAttention(np.array([2.0, 0.0])), scores, mask=mask)[0]
    assert not weights[~mask].any() and np.all(weights[mask] > 0)


def test_a_row_of_a_softmax_has_norm_at_most_one_and_its_jacobian_at_most_one_half():
    # Theorem: the norm of n rows is at most sqrt(n), that of the derivative at most 2 sqrt(n); the second is loose.
    rng = np.random.default_rng(3)
    for spread in (0.1, 1.0, 10.0):
        scores = rng.normal(size=(50, 6)) * spread
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        assert np.linalg.norm(p) <= np.sqrt(50)
        jacobians = p[..., None] * np.eye(6) - p[:, :, None] * p[:, None, :]
        assert np.linalg.norm(jacobians, axis=(1, 2)).max() <= 0.5 + 1e-12


@pytest.mark.parametrize(("decay", "slope"), [(0.0, 1.0), (0.5, 0.5)])
def test_the_norm_of_the_cube_grows_like_n_and_with_the_decay_like_its_root(decay, slope):
    rng, sizes, norms = np.random.default_rng(4), [64, 128, 256, 512], []
    w_q, w_k = rng.normal(size=(2, 64, 32)) / 8
    for n in sizes:
        x = rng.normal(size=(n, 64))
        norms.append(np.linalg.norm(polynomial_weights(None, (x @ w_q) @ (x @ w_k).T / np.sqrt(32), decay=decay)[0]))
    assert abs(np.polyfit(np.log(sizes), np.log(norms), 1)[0] - slope) < 0.15


def test_forbidden_scores_of_any_size_stay_out_of_the_powers():
    scores = np.array([[1.0, 1e30], [1.0, 2.0]], np.float32)
    weights, backward = polynomial_weights(None, scores, mask=causal_mask(2))
    assert np.isfinite(weights).all() and np.isfinite(backward(weights)[1]).all()


def test_the_checker_refuses_a_backward_that_forgets_the_scaling_or_is_one_power_off():
    scores, _, _ = case()

    def unscaled(scores):
        return polynomial_weights(None, scores)[0], lambda dweights: dweights * 3 * scores**2

    def one_power_off(scores):
        return polynomial_weights(None, scores)[0], lambda dweights: dweights * 3 * scores**3 / np.sqrt(scores.shape[-1])

    assert not check_gradients(unscaled, scores).passed
    assert not check_gradients(one_power_off, scores).passed


def test_the_checker_refuses_a_constant_term_that_learns_from_forbidden_keys():
    scores, mask, _ = case()

    def wrong(params, scores):
        weights, backward = polynomial_weights(params, scores, mask=mask)
        return weights, lambda dweights: (polynomial_weights(params, scores)[1](dweights)[0], backward(dweights)[1])

    report = check_gradients(wrong, PolynomialAttention(np.array([0.5, 1.0])), scores)
    assert not report.passed and report.worst.path == "params.coefficients"


@pytest.mark.parametrize("decay", [0.5, 0.8])
def test_as_a_core_it_takes_the_softmax_s_place_under_scale_bias_and_mask(decay):
    core, weighting = (partial(form, decay=decay) for form in (polynomial_attention, polynomial_weights))
    assert_takes_the_softmax_s_place(core, weighting, PolynomialAttention(np.array([0.3, -1.0, 2.0])))


def test_a_mask_must_broadcast_to_the_scores():
    assert_refuses_masks_that_do_not_fit(polynomial_weights, None)


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    q, k, v, dout = (rng.normal(size=(2, 3, 5, 4)) for _ in range(4))
    cs = rng.normal(size=4)
    tensors = [torch.tensor(a, requires_grad=True) for a in (q, k, v, cs)]
    tq, tk, tv, tc = tensors
    scores = tq @ tk.transpose(-1, -2) / 2
    value = tc[0] + tc[1] * scores + tc[2] * scores**2 + tc[3] * scores**3
    counts = torch.arange(1, 6, dtype=torch.float64)[:, None]
    theirs = (value / counts.sqrt()).masked_fill(torch.tensor(~causal_mask(5)), 0) @ tv
    theirs.backward(torch.tensor(dout))
    out, backward = polynomial_attention(PolynomialAttention(cs), q, k, v, mask=causal_mask(5))
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-9)
    (dcs,), dq, dk, dv, _ = backward(dout)
    for own, their in zip((dq, dk, dv, dcs), tensors, strict=True):
        np.testing.assert_allclose(own, their.grad.numpy(), rtol=0, atol=1e-9)
