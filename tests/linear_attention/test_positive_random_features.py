"""Positive random features: the formula, no bias, orthogonal draws, the variances of the paper, and what the stabiliser is for."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients, slot
from minitransformers.linear_attention.linear_attention import linear_attention
from minitransformers.linear_attention.positive_random_features import _drawn, orthogonal_projection, positive_random_features

X = np.random.default_rng(0).normal(size=(2, 5, 4))
W = np.random.default_rng(1).normal(size=(7, 4))


def formula(x, projection=W):
    """One feature at a time."""
    scaled = x / x.shape[-1] ** 0.25
    columns = [anp.exp(anp.sum(w * scaled, -1) - anp.sum(scaled * scaled, -1) / 2) for w in projection]
    return anp.stack(columns, -1) / len(projection) ** 0.5


def test_it_is_the_formula_and_its_gradient_is_autograd_s():
    features, backward = positive_random_features(X, projection=W)
    dout = np.random.default_rng(2).normal(size=features.shape)
    np.testing.assert_allclose(features, formula(X), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(dout), autograd.grad(lambda x: anp.sum(dout * formula(x)))(X), rtol=0, atol=1e-12)


def test_the_draw_of_a_seed_is_orthogonal_projection_s():
    drawn = orthogonal_projection(num_features=7, d_head=4, rng=np.random.default_rng(3))
    np.testing.assert_array_equal(positive_random_features(X, num_features=7, seed=3)[0], positive_random_features(X, projection=drawn)[0])


def test_a_seed_is_one_draw_and_another_seed_another():
    call = partial(positive_random_features, X, num_features=7)
    np.testing.assert_array_equal(call(seed=1)[0], call(seed=1)[0])
    assert np.abs(call(seed=1)[0] - call(seed=2)[0]).max() > 0.1
    np.testing.assert_array_equal(call()[0], call(seed=0)[0])
    assert positive_random_features(X)[0].shape == (2, 5, 256)


def test_float32_has_the_draw_of_float64_rounded():
    single = positive_random_features(X.astype(np.float32), num_features=7, seed=1)[0]
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, positive_random_features(X, num_features=7, seed=1)[0], rtol=1e-5)


# What an inner product of features is on average -----------------------------------------------------------------------------

SHORT = np.random.default_rng(4).normal(size=(3, 4)) * 0.4
# two queries and a key


def estimates(projections):
    """phi(q) . phi(k) for both queries, of projections (draws, features, 4): (draws, 2). One call serves all draws, as rows do not meet."""
    rows, _ = positive_random_features(SHORT, projection=projections.reshape(-1, 4))
    q, k = (part.reshape(-1, *projections.shape[:2]) * len(projections) ** 0.5 for part in (rows[:2], rows[2:]))
    return np.vecdot(q, k).T


def exact():
    return np.exp(SHORT[:2] @ SHORT[2] / 2)                         # sqrt(d_head) is 2


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_inner_product_of_features_is_the_softmax_s_exponential_on_average(orthogonal):
    rng, draws = np.random.default_rng(5), 20_000 if not orthogonal else 4_000
    if orthogonal:
        projections = np.stack([orthogonal_projection(num_features=6, d_head=4, rng=rng) for _ in range(draws)])
    else:
        projections = rng.normal(size=(draws, 6, 4))
    found = estimates(projections)
    error = found.std(0) / draws**0.5
    assert (np.abs(found.mean(0) - exact()) < 4 * error).all() and (error < 0.02 * exact()).all()


def test_its_variance_for_independent_draws_is_that_of_lemma_2():
    rng, m, draws = np.random.default_rng(6), 5, 100_000
    found = estimates(rng.normal(size=(draws, m, 4)))
    scaled = SHORT / 4**0.25
    length = ((scaled[:2] + scaled[2]) ** 2).sum(-1)
    expected = exact() ** 2 * np.exp(length) * (1 - np.exp(-length)) / m
    np.testing.assert_allclose(found.var(0), expected, rtol=0.1)


def test_orthogonal_draws_vary_less():
    rng, draws = np.random.default_rng(7), 5_000
    orthogonal = np.stack([orthogonal_projection(num_features=4, d_head=4, rng=rng) for _ in range(draws)])
    ratio = estimates(orthogonal).var(0) / estimates(rng.normal(size=(draws, 4, 4))).var(0)
    assert (ratio < 0.95).all()


def test_more_features_vary_less_one_for_one():
    rng, draws = np.random.default_rng(8), 40_000
    few, many = (estimates(rng.normal(size=(draws, m, 4))).var(0) for m in (4, 16))
    np.testing.assert_allclose(few / many, 4, rtol=0.2)


def test_rows_and_their_opposites_are_the_hyperbolic_features():
    """cosh in the place of exp: of w and -w together what is odd in w drops out of the estimate."""
    both = positive_random_features(SHORT, projection=np.concatenate([W, -W]))[0]
    scaled = SHORT / 4**0.25
    products = [np.cosh(W @ (scaled[i] + scaled[2])).mean() * np.exp(-(scaled[i] @ scaled[i] + scaled[2] @ scaled[2]) / 2) for i in (0, 1)]
    np.testing.assert_allclose(both[:2] @ both[2], products, rtol=1e-12)


# The draw --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_features", "d_head"), [(4, 4), (7, 3), (2, 5), (12, 4), (3, 1)])
def test_the_rows_of_a_block_are_orthogonal(num_features, d_head):
    projection = orthogonal_projection(num_features=num_features, d_head=d_head, rng=np.random.default_rng(9))
    assert projection.shape == (num_features, d_head)
    for start in range(0, num_features, d_head):
        block = projection[start : start + d_head]
        products = block @ block.T
        np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-12)
    if num_features > d_head > 1:
        assert np.abs(projection[0] @ projection[d_head]) > 1e-3  # blocks do not know of each other


def test_rows_are_gaussian_vectors_each():
    rng = np.random.default_rng(10)
    rows = np.concatenate([orthogonal_projection(num_features=3, d_head=3, rng=rng) for _ in range(4_000)])
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(3), atol=0.05)
    np.testing.assert_allclose((rows**4).mean(0), 3, rtol=0.1)
    np.testing.assert_allclose((rows**2).sum(-1).var(), 6, rtol=0.1)  # of chi squared with 3 degrees of freedom


def test_a_rotation_has_no_preferred_direction():
    """LAPACK's QR has one: without its signs the first row of a block is on average far from zero."""
    rng = np.random.default_rng(11)
    blocks = np.stack([orthogonal_projection(num_features=2, d_head=2, rng=rng) for _ in range(4_000)])
    assert np.abs(blocks.mean(0)).max() < 0.06


def test_the_same_generator_gives_the_same_draw():
    one, two = (orthogonal_projection(num_features=5, d_head=3, rng=np.random.default_rng(12)) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_it_draws_a_rotation_for_each_block_and_a_length_for_each_row():
    one, two = (np.random.default_rng(17) for _ in range(2))
    projection = orthogonal_projection(num_features=7, d_head=3, rng=one)
    two.normal(size=(3, 3, 3))
    np.testing.assert_allclose(np.linalg.norm(projection, axis=-1), np.linalg.norm(two.normal(size=(7, 3)), axis=-1), rtol=1e-12)
    assert one.normal() == two.normal()


def test_nobody_can_write_to_the_draw_that_calls_share():
    positive_random_features(X, num_features=7, seed=1)
    with pytest.raises(ValueError, match="read-only"):
        _drawn(7, 4, 1, X.dtype)[0] = 0


# The stabiliser --------------------------------------------------------------------------------------------------------------


def reference_features(x, *, query, eps, projection=W):
    """As the paper's code has it, the maximum a constant for the backward: of each query, or of all keys; eps is added."""
    scaled = x / x.shape[-1] ** 0.25
    exponents = scaled @ projection.T
    top = exponents.max(-1, keepdims=True) if query else exponents.max((-1, -2), keepdims=True)
    grown = np.exp(exponents - np.vecdot(scaled, scaled)[..., None] / 2 - top) / len(projection) ** 0.5

    def backward(dfeatures):
        d = dfeatures * grown
        return (d @ projection - d.sum(-1, keepdims=True) * scaled) / x.shape[-1] ** 0.25

    return grown + eps / len(projection) ** 0.5, backward


def attention_of_the_reference(query, key, value, *, eps):
    (q, q_backward), (k, k_backward) = reference_features(query, query=True, eps=eps), reference_features(key, query=False, eps=eps)
    (out, _), backward = linear_attention(None, q, k, value, feature_map=slot(lambda x: (x, lambda d: d)))

    def gradients(dout):
        _, dq, dk, dvalue, _ = backward((dout, None))
        return q_backward(dq), k_backward(dk), dvalue

    return out, gradients


QUERY, KEY, VALUE = 2 * np.random.default_rng(13).normal(size=(3, 6, 4))
own = partial(linear_attention, None, feature_map=slot(partial(positive_random_features, projection=W)))


def test_a_stabiliser_cancels_and_its_constant_gradient_is_exact_when_nothing_is_added():
    out, backward = attention_of_the_reference(QUERY, KEY, VALUE, eps=0.0)
    (expected, _), own_backward = own(QUERY, KEY, VALUE)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)
    for a, b in zip(backward(VALUE), own_backward((VALUE, None))[1:4], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_the_checker_refuses_the_constant_maximum_as_soon_as_something_is_added():
    assert check_gradients(partial(attention_of_the_reference, eps=0.0), QUERY, KEY, VALUE, second_opinion=False).passed
    report = check_gradients(partial(attention_of_the_reference, eps=1e-4), QUERY, KEY, VALUE, second_opinion=False)
    assert [argument.error > 1e-5 for argument in report.arguments] == [True, True, False]


def test_with_something_added_the_maximum_of_all_keys_tells_of_the_future_and_here_nothing_does():
    later = KEY.copy()
    later[-1] = 4 * W[0]
    told = [attention_of_the_reference(QUERY, key, VALUE, eps=1e-4)[0][:-1] for key in (KEY, later)]
    assert np.abs(told[0] - told[1]).max() > 1e-5
    np.testing.assert_array_equal(*(own(QUERY, key, VALUE)[0][0][:-1] for key in (KEY, later)))


def test_no_exponent_is_above_half_the_square_of_the_draw_s_length():
    rng = np.random.default_rng(14)
    x = np.concatenate([rng.normal(size=(200, 4)) * 10.0 ** rng.uniform(-2, 2, size=(200, 1)), W * 4**0.25])
    features, _ = positive_random_features(x, projection=W)
    bound = np.exp((W**2).sum(-1) / 2) / 7**0.5
    assert (features <= bound * (1 + 1e-12)).all()
    np.testing.assert_allclose(np.diag(features[200:]), bound, rtol=1e-12)  # reached where scaled x is the draw itself


def without_the_length(x):
    features, _ = positive_random_features(x, projection=W)
    return features, lambda dout: (dout * features) @ W / 4**0.25


def test_the_checker_refuses_a_gradient_that_forgets_the_length_of_x():
    assert not check_gradients(without_the_length, X).passed


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"projection: got shape \(7, 3\)"):
        positive_random_features(X, projection=W[:, :3])
    with pytest.raises(ValueError, match="num_features: got 0"):
        positive_random_features(X, num_features=0)
    with pytest.raises(ValueError, match="projection: got float32, wants float64"):
        positive_random_features(X, projection=W.astype(np.float32))


@pytest.mark.parity
@pytest.mark.parametrize("query", [True, False])
def test_parity_with_performer_pytorch(query):
    """Theirs carry the stabiliser, which is taken out again; with nothing added."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("performer_pytorch.performer_pytorch")
    x = np.random.default_rng(15).normal(size=(2, 3, 5, 4))
    given = torch.tensor(x, requires_grad=True)
    features = theirs.softmax_kernel(given, projection_matrix=torch.tensor(W), is_query=query, eps=0.0)
    exponents = x @ W.T / 4**0.25
    top = np.exp(exponents.max(-1, keepdims=True) if query else exponents.max((-1, -2), keepdims=True))
    dout = np.random.default_rng(16).normal(size=features.shape)
    features.backward(torch.tensor(dout))
    out, backward = positive_random_features(x, projection=W)
    np.testing.assert_allclose(out, features.detach() * top, rtol=1e-12)
    np.testing.assert_allclose(backward(dout / top), given.grad, rtol=0, atol=1e-12)
