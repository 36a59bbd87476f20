"""ScaleNorm: the textbook loops, lengths that are exact, its kinship with RMSNorm, and what happens under the floor."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.norms.rms_norm import RmsNorm, rms_norm
from minitransformers.norms.scale_norm import ScaleNorm, init_scale_norm, scale_norm


def textbook_scale_norm(g, x, eps):
    """One position at a time; the floor as a case."""
    rows = []
    for row in anp.reshape(x, (-1, x.shape[-1])):
        square = sum(value**2 for value in row)
        rows.append(g * row / anp.sqrt(square) if square > eps**2 else g * row / eps)
    return anp.reshape(anp.stack(rows), x.shape)


def random_call(rng, shape=(2, 3, 5)):
    return ScaleNorm(np.array(1.3)), rng.normal(size=shape) * 3 + 1, rng.normal(size=shape)


@pytest.mark.parametrize("eps", [1e-5, 4.0])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (1, 1, 1)])
def test_equals_the_textbook_loops_and_their_gradients(shape, eps):
    params, x, dout = random_call(np.random.default_rng(0), shape)
    if x.ndim > 1:
        x[0, 0] *= 1e-2
    out, backward = scale_norm(params, x, eps=eps)
    np.testing.assert_allclose(out, textbook_scale_norm(params.g, x, eps), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda g, x: anp.sum(dout * textbook_scale_norm(g, x, eps)), (0, 1))(params.g, x)
    (dg,), dx = backward(dout)
    np.testing.assert_allclose(dg, expected[0], rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, expected[1], rtol=0, atol=1e-11)


def test_every_position_gets_the_length_g():
    _, x, _ = random_call(np.random.default_rng(1))
    out, _ = scale_norm(ScaleNorm(np.array(-1.3)), x)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1.3, rtol=1e-14)


def test_scaling_a_position_changes_nothing():
    params, x, _ = random_call(np.random.default_rng(2))
    np.testing.assert_allclose(scale_norm(params, 7 * x)[0], scale_norm(params, x)[0], rtol=1e-13)


def test_turning_a_position_round_turns_the_output_round():
    params, x, _ = random_call(np.random.default_rng(3))
    np.testing.assert_array_equal(scale_norm(params, -x)[0], -scale_norm(params, x)[0])


def test_shifting_a_position_changes_the_output():
    params, x, _ = random_call(np.random.default_rng(4))
    assert np.abs(scale_norm(params, x + 4)[0] - scale_norm(params, x)[0]).max() > 0.1


def test_a_rotation_of_the_features_goes_through():
    rng = np.random.default_rng(5)
    params, x, _ = random_call(rng)
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    np.testing.assert_allclose(scale_norm(params, x @ rotation)[0], scale_norm(params, x)[0] @ rotation, atol=1e-14)


def test_the_gradient_has_no_part_along_x():
    params, x, dout = random_call(np.random.default_rng(6))
    _, dx = scale_norm(params, x)[1](dout)
    np.testing.assert_allclose(np.vecdot(dx, x), 0, atol=1e-13)


def test_a_fresh_one_is_rms_norm_with_gains_of_one():
    _, x, dout = random_call(np.random.default_rng(7))
    ours, backward = scale_norm(init_scale_norm(np.random.default_rng(0), 5, dtype=np.float64), x)
    theirs, their_backward = rms_norm(RmsNorm(np.ones(5)), x, eps=0.0)
    np.testing.assert_allclose(ours, theirs, atol=1e-14)
    (dg,), dx = backward(dout)
    (dgain,), their_dx = their_backward(dout)
    np.testing.assert_allclose(dx, their_dx, atol=1e-14)
    np.testing.assert_allclose(dg, dgain.sum() / np.sqrt(5), atol=1e-13)   # g is sqrt(5) gains that are one and the same


def test_under_the_floor_the_map_is_linear():
    params, _, _ = random_call(np.random.default_rng(8))
    x = np.random.default_rng(8).normal(size=(3, 5)) * 1e-3
    np.testing.assert_allclose(scale_norm(params, x, eps=0.5)[0], params.g * x / 0.5, rtol=1e-14)


def test_a_row_of_zeros_stays_zero_and_its_gradient_is_finite_and_large():
    params, _, dout = random_call(np.random.default_rng(9), (1, 5))
    out, backward = scale_norm(params, np.zeros((1, 5)), eps=1e-5)
    np.testing.assert_array_equal(out, 0)
    (dg,), dx = backward(dout)
    np.testing.assert_allclose(dx, params.g * dout * 1e5, rtol=1e-13)
    assert dg == 0


@pytest.mark.parametrize("eps", [1e-50, 1e50])
def test_an_eps_that_float32_rounds_to_zero_or_infinity_is_refused(eps):
    x = np.zeros((1, 5), np.float32)
    with pytest.raises(ValueError, match="eps: got"):
        scale_norm(init_scale_norm(np.random.default_rng(0), 5), x, eps=eps)
    scale_norm(init_scale_norm(np.random.default_rng(0), 5, dtype=np.float64), x.astype(np.float64), eps=eps)


def with_means_for_sums(params, x):
    out, backward = scale_norm(params, x)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    unit = x / length

    def wrong(dout):
        dunit = params.g * dout
        return backward(dout)[0], (dunit - unit * (unit * dunit).mean(-1, keepdims=True)) / length

    return out, wrong


def with_the_projection_everywhere(params, x, *, eps):
    size = np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), eps)
    out, backward = scale_norm(params, x, eps=eps)
    direction = x / np.linalg.norm(x, axis=-1, keepdims=True)

    def wrong(dout):
        dunit = params.g * dout
        return backward(dout)[0], (dunit - direction * (direction * dunit).sum(-1, keepdims=True)) / size

    return out, wrong


def test_the_checker_refuses_a_mean_where_a_sum_belongs():
    params, x, _ = random_call(np.random.default_rng(10))
    report = check_gradients(with_means_for_sums, params, x)
    assert not report.passed and report.worst.path == "x" and report.error > 1e-2


def test_the_checker_refuses_a_projection_under_the_floor():
    params, x, _ = random_call(np.random.default_rng(11))
    x[0, 0] *= 1e-2
    assert check_gradients(scale_norm, params, x, eps=0.5).passed
    report = check_gradients(with_the_projection_everywhere, params, x, eps=0.5)
    assert not report.passed and report.worst.path == "x" and report.error > 1e-2


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_float32_stays_finite_as_far_as_its_squares_do(size):
    rng = np.random.default_rng(12)
    x, dout = rng.normal(size=(2, 3, 64)), rng.normal(size=(2, 3, 64)).astype(np.float32)
    out, backward = scale_norm(init_scale_norm(rng, 64), (x * size).astype(np.float32))
    (dg,), dx = backward(dout)
    assert all(np.isfinite(a).all() for a in (out, dg, dx))
    if size > 1:
        np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 8, rtol=1e-5)


def test_the_range_ends_where_the_sum_of_squares_overflows():
    dtype = np.float32
    limit = np.sqrt(float(np.finfo(dtype).max) / 768)
    params, x = init_scale_norm(np.random.default_rng(0), 768, dtype=dtype), np.where(np.arange(768) % 2, limit, -limit)
    within, _ = scale_norm(params, (0.98 * x).astype(dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        beyond, _ = scale_norm(params, (1.02 * x).astype(dtype))
    assert within.dtype == dtype
    np.testing.assert_allclose(within, np.sign(x), rtol=2e-3)
    np.testing.assert_array_equal(beyond, 0)


def test_a_nan_is_passed_on():
    out, _ = scale_norm(ScaleNorm(np.array(1.0)), np.array([[1.0, np.nan], [1.0, 0.0]]))
    np.testing.assert_array_equal(np.isnan(out), [[True, True], [False, False]])


@pytest.mark.parity
def test_parity_with_torch_also_under_the_floor():
    torch = pytest.importorskip("torch")
    params, x, dout = random_call(np.random.default_rng(13))
    x[0, 0] *= 1e-2
    x[1, 2] = 0
    their_x, their_g = (torch.tensor(a, requires_grad=True) for a in (x, params.g))
    theirs = their_g * torch.nn.functional.normalize(their_x, dim=-1, eps=0.5)
    theirs.backward(torch.tensor(dout))
    out, backward = scale_norm(params, x, eps=0.5)
    (dg,), dx = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dg, their_g.grad.numpy(), rtol=0, atol=1e-13)
