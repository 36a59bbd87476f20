"""Layer norm: the textbook loops, what it forgets of its input, the terms of its backward, and its extremes."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm


def textbook_layer_norm(gain, bias, x, eps):
    """One position at a time, one feature at a time."""
    rows = []
    for row in anp.reshape(x, (-1, x.shape[-1])):
        mean = sum(row[i] for i in range(len(gain))) / len(gain)
        variance = sum((row[i] - mean) ** 2 for i in range(len(gain))) / len(gain)
        rows.append(anp.stack([gain[i] * (row[i] - mean) / anp.sqrt(variance + eps) + bias[i] for i in range(len(gain))]))
    return anp.reshape(anp.stack(rows), x.shape)


def random_call(rng, shape=(2, 3, 5)):
    params = LayerNorm(rng.normal(size=shape[-1:]), rng.normal(size=shape[-1:]))
    return params, rng.normal(size=shape) * 3 + 1, rng.normal(size=shape)


def plain(d_model):
    return init_layer_norm(np.random.default_rng(0), d_model, dtype=np.float64)


@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (1, 1, 2)])
def test_equals_the_textbook_loops_and_their_gradients(shape, eps):
    params, x, dout = random_call(np.random.default_rng(0), shape)
    out, backward = layer_norm(params, x, eps=eps)
    np.testing.assert_allclose(out, textbook_layer_norm(*params, x, eps), rtol=0, atol=1e-12)
    loss = lambda gain, bias, x: anp.sum(dout * textbook_layer_norm(gain, bias, x, eps))  # noqa: E731
    expected = autograd.grad(loss, (0, 1, 2))(*params, x)
    (dgain, dbias), dx = backward(dout)
    for own, theirs in zip((dgain, dbias, dx), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11)


def test_every_position_gets_mean_zero_and_variance_one():
    _, x, _ = random_call(np.random.default_rng(1), (4, 7))
    out, _ = layer_norm(plain(7), x, eps=0.0)
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-15)
    np.testing.assert_allclose(out.var(-1), 1, rtol=1e-14)


def test_eps_takes_its_share_of_the_variance():
    _, x, _ = random_call(np.random.default_rng(2), (4, 7))
    out, _ = layer_norm(plain(7), x, eps=0.5)
    np.testing.assert_allclose(out.var(-1), x.var(-1) / (x.var(-1) + 0.5), rtol=1e-13)


@pytest.mark.parametrize("scale, shift", [(7.0, 0.0), (1.0, -4.0), (0.01, 2.0)])
def test_scaling_and_shifting_a_position_changes_nothing(scale, shift):
    params, x, _ = random_call(np.random.default_rng(3))
    np.testing.assert_allclose(layer_norm(params, scale * x + shift, eps=0.0)[0], layer_norm(params, x, eps=0.0)[0], atol=1e-13)


def test_a_negative_scale_turns_it_over():
    _, x, _ = random_call(np.random.default_rng(4))
    np.testing.assert_allclose(layer_norm(plain(5), -2 * x)[0], -layer_norm(plain(5), 2 * x)[0], rtol=1e-13)


def test_positions_do_not_see_each_other():
    params, x, _ = random_call(np.random.default_rng(5))
    changed = x.copy()
    changed[1, 2] += 10
    before, after = layer_norm(params, x)[0], layer_norm(params, changed)[0]
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1, :2], after[1, :2])


def test_the_gradient_has_no_part_that_a_shift_or_a_scale_would_undo():
    params, x, dout = random_call(np.random.default_rng(6))
    _, dx = layer_norm(params, x)[1](dout)
    np.testing.assert_allclose(dx.sum(-1), 0, atol=1e-14)                           # with eps too: a shift never matters
    _, dx = layer_norm(params, x, eps=0.0)[1](dout)
    np.testing.assert_allclose(np.vecdot(dx, x - x.mean(-1, keepdims=True)), 0, atol=1e-13)


def test_the_jacobian_lacks_two_directions():
    _, x, _ = random_call(np.random.default_rng(7), (6,))
    _, backward = layer_norm(plain(6), x, eps=0.0)
    jacobian = np.stack([backward(row)[1] for row in np.eye(6)])
    assert np.linalg.matrix_rank(jacobian, tol=1e-10) == 4
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-14)                    # with a gain of one it is a projection over std


def test_a_rotation_of_the_features_does_not_go_through():
    rng = np.random.default_rng(8)
    _, x, _ = random_call(rng)
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    assert np.abs(layer_norm(plain(5), x @ rotation)[0] - layer_norm(plain(5), x)[0] @ rotation).max() > 0.1


def test_a_constant_row_becomes_the_bias_and_its_gradient_is_finite():
    params, _, dout = random_call(np.random.default_rng(9), (1, 5))
    out, backward = layer_norm(params, np.full((1, 5), 3.0), eps=1e-5)
    np.testing.assert_array_equal(out[0], params.bias)
    dunit = params.gain * dout
    np.testing.assert_allclose(backward(dout)[1], (dunit - dunit.mean()) * 1e-5**-0.5, rtol=1e-12)


def wrong_layer_norm(params, x, *, without):
    """The right forward over a backward that lacks one of its terms."""
    out, _ = layer_norm(params, x)
    centred = x - x.mean(-1, keepdims=True)
    std = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    unit = centred / std

    def backward(dout):
        dunit = params.gain * dout
        mean = 0 if without == "mean" else dunit.mean(-1, keepdims=True)
        shared = 0 if without == "variance" else unit * (dunit * unit).mean(-1, keepdims=True)
        dgain = np.sum(dout * (centred if without == "std of dgain" else unit), axis=(0, 1))
        return LayerNorm(dgain, dout.sum((0, 1))), (dunit - mean - shared) / std

    return out, backward


def test_the_checker_refuses_a_backward_that_lacks_a_term():
    params, x, _ = random_call(np.random.default_rng(10))
    assert check_gradients(wrong_layer_norm, params, x, without="nothing").passed
    for term in ("mean", "variance", "std of dgain"):
        report = check_gradients(wrong_layer_norm, params, x, without=term)
        assert not report.passed and report.error > 1e-2, term
    report = check_gradients(wrong_layer_norm, params, x, without="mean")
    assert report.worst.path == "x" and "same along axis 2: a sum or a mean over that axis is missing" in report.worst.cause


def test_all_ones_dout_cannot_see_the_variance_term():
    # Why the checker draws dout at random: with a gain of one, mean(dunit * unit) is then the mean of unit, which is 0.
    _, x, _ = random_call(np.random.default_rng(11))
    _, dx = wrong_layer_norm(plain(5), x, without="variance")[1](np.ones_like(x))
    np.testing.assert_allclose(dx, layer_norm(plain(5), x)[1](np.ones_like(x))[1], atol=1e-14)


def test_a_large_mean_does_not_drown_the_variance():
    # In float32 at 1e4, mean(x^2) - mean^2 has lost every digit of a variance of 1; the two passes have not.
    rng = np.random.default_rng(12)
    x = (1e4 + rng.normal(size=(3, 64))).astype(np.float32)
    params = init_layer_norm(rng, 64)
    exact = layer_norm(plain(64), x.astype(np.float64))[0]
    np.testing.assert_allclose(layer_norm(params, x)[0], exact, atol=2e-6)
    one_pass = np.square(x).mean(-1, keepdims=True) - np.square(x.mean(-1, keepdims=True))
    assert np.abs(one_pass - x.var(-1, keepdims=True)).max() > 1


@pytest.mark.parametrize("value", [12345.67, 0.1, -3e7])
def test_a_constant_row_is_the_bias_in_float32_too(value):
    # The mean of 768 equal numbers, added up and divided, is off by its rounding: over sqrt(eps) that was 0.94.
    params = LayerNorm(np.ones(768, np.float32), np.linspace(-1, 1, 768, dtype=np.float32))
    out, _ = layer_norm(params, np.full((2, 768), value, np.float32))
    np.testing.assert_array_equal(out, np.broadcast_to(params.bias, out.shape))


@pytest.mark.parametrize("strided", [False, True])
def test_a_large_mean_takes_no_digits_from_what_is_left(strided):
    rng = np.random.default_rng(15)
    x = (1e6 + rng.normal(size=(4096, 3))).astype(np.float32).T
    x = x if strided else np.ascontiguousarray(x)
    exact = layer_norm(plain(4096), x.astype(np.float64))[0]
    np.testing.assert_allclose(layer_norm(init_layer_norm(rng, 4096), x)[0], exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("number", [np.float64, np.array])
def test_a_numpy_number_for_eps_does_not_widen_float32(number):
    x = np.ones((2, 3), np.float32)
    out, backward = layer_norm(init_layer_norm(np.random.default_rng(0), 3), x, eps=number(1e-6))
    (dgain, *_), dx = backward(x)
    assert {a.dtype for a in (out, dgain, dx)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_float32_stays_finite_as_far_as_its_squares_do(size):
    rng = np.random.default_rng(13)
    x, dout = rng.normal(size=(2, 3, 64)), rng.normal(size=(2, 3, 64)).astype(np.float32)
    out, backward = layer_norm(init_layer_norm(rng, 64), (x * size).astype(np.float32))
    (dgain, _), dx = backward(dout)
    assert all(np.isfinite(a).all() for a in (out, dgain, dx))
    if size > 1:
        np.testing.assert_allclose(out, layer_norm(plain(64), x, eps=0.0)[0], atol=1e-5)


def test_the_range_ends_where_the_sum_of_squares_overflows():
    dtype = np.float32
    limit = np.sqrt(float(np.finfo(dtype).max) / 768)
    params, x = init_layer_norm(np.random.default_rng(0), 768, dtype=dtype), np.where(np.arange(768) % 2, limit, -limit)
    within, _ = layer_norm(params, (0.98 * x).astype(dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        beyond, _ = layer_norm(params, (1.02 * x).astype(dtype))
    assert within.dtype == dtype
    np.testing.assert_allclose(within, np.sign(x), rtol=2e-3)
    np.testing.assert_array_equal(beyond, 0)


def test_not_a_number_goes_through_and_stays_in_its_row():
    x = np.ones((2, 3)) * np.arange(3)
    x[0, 1] = np.nan
    out, _ = layer_norm(plain(3), x)
    assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()


@pytest.mark.parity
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_parity_with_torch(eps):
    torch = pytest.importorskip("torch")
    params, x, dout = random_call(np.random.default_rng(14))
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, *params)]
    out = torch.nn.functional.layer_norm(theirs[0], (5,), theirs[1], theirs[2], eps)
    out.backward(torch.tensor(dout))
    own, backward = layer_norm(params, x, eps=eps)
    (dgain, dbias), dx = backward(dout)
    np.testing.assert_allclose(own, out.detach().numpy(), rtol=0, atol=1e-13)
    for ours, tensor in zip((dx, dgain, dbias), theirs, strict=True):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=0, atol=1e-13)
