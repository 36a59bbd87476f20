"""The judge is judged: wrong backwards of every kind must be refused with the right cause, right stiff ones accepted."""

import numpy as np
import pytest

from minitransformers import assert_gradients, check_gradients

X = np.random.default_rng(0).normal(size=(4, 5))
W = np.random.default_rng(1).normal(size=(5, 5))
B = np.random.default_rng(2).normal(size=5)


def affine(w, b, x):
    """x w + b, right."""
    return x @ w + b, lambda dout: (x.T @ dout, dout.sum(axis=0), dout @ w.T)


def spoiled(which, change):
    """affine with one of its three gradients changed."""

    def wrong(w, b, x):
        out, backward = affine(w, b, x)

        def wrong_backward(dout):
            grads = list(backward(dout))
            grads[which] = change(grads[which])
            return tuple(grads)

        return out, wrong_backward

    return wrong


def test_a_right_backward_passes_every_witness():
    report = check_gradients(affine, W, B, X)
    assert report.passed
    assert report.error < 1e-9
    assert report.order >= 1.8
    assert report.autograd is not None and report.autograd < 1e-12
    assert str(report).startswith("affine: passed")


@pytest.mark.parametrize(
    ("which", "change", "path", "cause"),
    [
        (0, lambda g: 2 * g, "w", "it is 2 times what it should be: a factor 0.5 is missing"),
        (0, lambda g: g / 2, "w", "a factor 2 is missing"),
        (1, lambda g: -g, "b", "its sign is flipped"),
        (0, lambda g: g.T, "w", "it is transposed"),
        (2, lambda g: 0 * g, "x", "it is zero"),
        (2, lambda g: g + np.nan, "x", "it is not finite"),
        (2, lambda g: g + g.mean(axis=-1, keepdims=True), "x", "the same along axis 1"),
        (0, lambda g: g + 0.1 * np.cos(g), "w", "a term is missing or extra"),
        (0, lambda g: np.where(np.arange(25).reshape(5, 5) == 7, g + 1e-4, g), "w", "1 of 25 elements are wrong"),
    ],
)
def test_wrong_gradients_are_refused_with_their_cause(which, change, path, cause):
    report = check_gradients(spoiled(which, change), W, B, X)
    assert not report.passed
    assert report.worst.path == path
    assert cause in report.worst.cause
    others = [a for a in report.arguments if a.path != path]
    assert all(a.error <= report.bound for a in others)


def test_dout_is_never_the_data_that_a_caller_draws_from_a_common_seed():
    # With dout = x the gradient x^T dout is symmetric, and its transpose passes.
    for seed in range(10):
        x = np.random.default_rng(seed).normal(size=(4, 5))
        assert not check_gradients(spoiled(0, lambda g: g.T), W, B, x).passed


def test_the_message_says_which_element_and_both_values():
    wrong = spoiled(0, lambda g: np.where(np.arange(25).reshape(5, 5) == 7, g + 0.5, g))
    with pytest.raises(AssertionError) as caught:
        assert_gradients(wrong, W, B, X)
    report = check_gradients(wrong, W, B, X)
    assert "gradient of w[1, 2] is wrong" in str(caught.value)
    assert report.worst.index == (1, 2)
    assert report.worst.analytic - report.worst.numeric == pytest.approx(0.5, abs=1e-8)
    assert f"{report.worst.numeric:.9g}" in str(caught.value)


def test_a_missing_sum_over_the_broadcast_axis_is_named():
    def forgot(b, x):
        return x + b, lambda dout: (dout, dout)

    report = check_gradients(forgot, B, X)
    assert not report.passed
    assert "the sum over the broadcast axis (0,) is missing" in report.worst.cause

    def kept_the_shape(b, x):
        return x + b, lambda dout: (dout[0], dout)

    assert not check_gradients(kept_the_shape, B, X).passed


def test_a_function_that_returns_its_argument_is_the_identity():
    # The output is then the array that the next difference writes to.
    assert check_gradients(lambda x: (x, lambda dout: dout), X).passed
    assert "a factor 2 is missing" in check_gradients(lambda x: (x, lambda dout: dout / 2), X).worst.cause


def test_a_missing_sum_inside_an_unchanged_shape_is_named():
    def row_sums(x):
        """Each output is the sum of its column, so each gradient needs the sum over rows of dout."""
        out = np.ones((4, 4)) @ x
        return out, lambda dout: dout

    report = check_gradients(row_sums, X)
    assert "the sum over the broadcast axis 0 is missing" in report.worst.cause


def test_gradients_in_the_wrong_order_are_named():
    def product(a, b):
        return a * b, lambda dout: (dout * a, dout * b)

    report = check_gradients(product, X, X + 1)
    assert "are the two returned in the wrong order?" in report.worst.cause


def test_gradients_of_the_wrong_number_or_structure_are_refused():
    assert "wants 2" in check_gradients(lambda a, b: (a + b, lambda dout: (dout,)), X, X).worst.cause
    nested = check_gradients(lambda pair: (pair[0] + pair[1], lambda dout: [dout, dout, dout]), [X, X])
    assert "structure" in nested.worst.cause


def test_all_ones_would_have_hidden_what_a_random_dout_shows():
    def softmax_without_its_shared_term(x):
        weights = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
        return weights, lambda dout: weights * (dout - dout.mean(axis=-1, keepdims=True))

    x = np.random.default_rng(3).normal(size=(3, 4))
    _, backward = softmax_without_its_shared_term(x)
    np.testing.assert_allclose(backward(np.ones_like(x)), 0, atol=1e-15)  # as the right gradient is
    assert not check_gradients(softmax_without_its_shared_term, x).passed


def softmax(x, wrong=0.0):
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)

    def backward(dout):
        return (1 + wrong) * weights * (dout - (dout * weights).sum(axis=-1, keepdims=True))

    return weights, backward


@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0, 1000.0])
def test_a_nearly_saturated_softmax_is_accepted_and_its_wrong_twin_refused(scale):
    x = scale * np.random.default_rng(4).normal(size=(3, 5))
    x[:, 0] = x.max(axis=-1) + 0.5  # two rivals at the top: saturated but alive
    x[:, 1] = x[:, 0] - 0.5
    assert check_gradients(softmax, x).passed
    assert not check_gradients(softmax, x, wrong=1e-4).passed


@pytest.mark.parametrize("size", [1e-8, 1e-12, 1e8])
def test_tiny_and_huge_gradients_are_judged_by_their_own_size(size):
    def scaled(x, *, wrong=0.0):
        return size * np.sin(x), lambda dout: (1 + wrong) * size * np.cos(x) * dout

    assert check_gradients(scaled, X).passed
    assert not check_gradients(scaled, X, wrong=1e-5).passed


def test_a_tiny_gradient_beside_a_large_output_is_still_judged():
    def nearly_constant(x, *, wrong=0.0):
        return 1.0 + 1e-8 * np.sin(x), lambda dout: (1 + wrong) * 1e-8 * np.cos(x) * dout

    assert check_gradients(nearly_constant, X).passed
    assert not check_gradients(nearly_constant, X, wrong=1.0).passed
    assert not check_gradients(nearly_constant, X, wrong=0.01).passed


def test_a_gradient_that_is_exactly_zero_is_accepted():
    def constant(x, y):
        return y + 0 * x, lambda dout: (np.zeros_like(x), dout)

    assert check_gradients(constant, X, X).passed


def test_a_gradient_invented_for_a_constant_is_refused():
    def constant(x, y):
        return y + 0 * x, lambda dout: (1e-6 * np.ones_like(x), dout)

    assert not check_gradients(constant, X, X).passed


def test_kinks_are_accepted_away_from_the_corner():
    def relu(x):
        return np.maximum(x, 0), lambda dout: dout * (x > 0)

    x = np.random.default_rng(5).normal(size=(20, 20))
    x[0, 0], x[1, 1] = 3e-5, -2e-4  # inside the widest step
    assert check_gradients(relu, x).passed


def test_steep_curvature_is_accepted():
    def steep(x):
        return np.tanh(200 * x), lambda dout: dout * 200 * (1 - np.tanh(200 * x) ** 2)

    assert check_gradients(steep, np.linspace(-0.01, 0.012, 7)).passed


def test_the_taylor_remainder_alone_catches_a_wrong_gradient():
    report = check_gradients(spoiled(0, lambda g: 1.001 * g), W, B, X)
    assert report.order < 1.5


def test_a_function_that_autograd_cannot_trace_is_judged_by_the_others():
    def with_out(x):
        out = np.empty(x.shape)
        np.sin(x, out=out)
        return out, lambda dout: dout * np.cos(x)

    report = check_gradients(with_out, X)
    assert report.passed
    assert report.autograd is None
    assert report.autograd_reason.startswith("not traceable")


def test_the_same_random_numbers_are_drawn_in_every_call():
    def noisy(x, *, rng):
        noise = rng.normal(size=x.shape)
        return x * noise, lambda dout: dout * noise

    generator = np.random.default_rng(6)
    before = generator.bit_generator.state
    assert check_gradients(noisy, X, rng=generator).passed
    assert generator.bit_generator.state == before


def test_outputs_may_be_tuples_and_arguments_trees():
    def both(pair, x):
        a, (b, none) = pair
        assert none is None
        out = (a * x, b + x)
        return out, lambda dout: ((dout[0] * x, [dout[1], None]), dout[0] * a + dout[1])

    report = check_gradients(both, (X, [X + 1, None]), X + 2)
    assert report.passed
    assert [a.path for a in report.arguments] == ["pair.0", "pair.1.0", "x"]


def test_scalars_are_arguments_too():
    def scale(a, x):
        return a * x, lambda dout: (np.sum(dout * x), dout * a)

    assert check_gradients(scale, np.array(2.0), X).passed


def test_single_precision_is_refused_because_differences_would_be_noise():
    with pytest.raises(ValueError, match="w: got float32, wants float64"):
        check_gradients(affine, W.astype(np.float32), B, X)


def test_arguments_are_left_as_they_were():
    w, b, x = W.copy(), B.copy(), X.copy()
    check_gradients(affine, w, b, x)
    for now, before in ((w, W), (b, B), (x, X)):
        np.testing.assert_array_equal(now, before)


def mistakes(rng, shape):
    """Errors that leave most of a gradient as it is, or cancel in a sum: one element, two that cancel, a row, a mean taken out."""
    one, two, row, dense = (np.zeros(shape) for _ in range(4))
    one.flat[rng.integers(one.size)] = 1
    a, b = rng.choice(two.size, 2, replace=False)
    two.flat[a], two.flat[b] = 1, -1
    row[rng.integers(shape[0])] = 1
    dense[:] = rng.normal(size=shape)
    yield from (one, two, row, dense - dense.mean())


@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-3])
def test_along_two_directions_no_mistake_is_lost_that_each_element_shows(size):
    rng = np.random.default_rng(7)
    largest = np.abs(affine(W, B, X)[1](np.ones((4, 5)))[0]).max()
    for _ in range(25):
        for mistake in mistakes(rng, W.shape):
            wrong = spoiled(0, lambda g, mistake=mistake: g + 3 * size * max(largest, np.abs(g).max()) * mistake)
            assert not check_gradients(wrong, W, B, X, rng_for_check=rng, second_opinion=False).passed


def test_an_argument_that_passes_is_moved_as_a_whole_and_one_that_fails_element_by_element():
    calls = [0, 0]

    def counted(w, x, *, wrong):
        calls[wrong] += 1
        return x @ w, lambda dout: ((1 + wrong) * (x.T @ dout), dout @ w.T)

    right, wrong = (check_gradients(counted, W, X, wrong=wrong, second_opinion=False) for wrong in (0, 1))
    assert [a.index for a in right.arguments] == [None, None]
    assert "along a direction" in str(right)
    assert right.error < 1e-9
    assert wrong.worst.path == "w" and wrong.worst.index is not None  # which element, and what it should be
    assert wrong.arguments[1].index is None
    assert calls[0] < 4 * 2 * 2 + 20
    assert calls[1] > 4 * W.size
    each = check_gradients(counted, W, X, wrong=0, directions=0, second_opinion=False)
    assert each.passed and all(a.index is not None for a in each.arguments)


def test_arrays_of_one_size_are_moved_together_and_a_wrong_one_among_them_is_found():
    calls = [0, 0, 0]
    layers = [np.random.default_rng(i).normal(size=(3, 3)) for i in range(30)]
    layers[11] *= 1e3                                        # its gradient is a thousandth of the others'
    mistakes = (0.0, 1e-5, 1e-5)

    sizes = [np.abs(layer).max() for layer in layers]

    def fixed(parts, *, wrong):
        calls[wrong] += 1
        out = sum(np.sin(p / size) for p, size in zip(parts, sizes, strict=True))

        def backward(dout):
            grads = [dout * np.cos(p / size) / size for p, size in zip(parts, sizes, strict=True)]
            grads[(0, 23, 11)[wrong]][1, 2] *= 1 + mistakes[wrong]
            return grads

        return out, backward

    right, one, small = (check_gradients(fixed, layers, wrong=wrong, second_opinion=False) for wrong in range(3))
    assert right.passed and calls[0] < 60                    # one array at a time: 240
    assert [a.path for a in one.arguments if not a.error <= one.bound] == ["parts.23"]
    assert [a.path for a in small.arguments if not a.error <= small.bound] == ["parts.11"]


def test_what_rounding_hides_along_a_direction_is_judged_element_by_element():
    def shifted(b, x):
        """A bias that moves all scores of a softmax alike: its gradient is 0, to rounding."""
        out, backward = softmax(x + b.sum())
        return out, lambda dout: (np.full(b.shape, backward(dout).sum()), backward(dout))

    report = check_gradients(shifted, B, X)
    assert report.passed
    assert report.arguments[0].index is not None
