"""Dynamic Tanh: the textbook loops, features that never meet, what it does not forget, and its saturation."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.norms.dynamic_tanh import DynamicTanh, dynamic_tanh, init_dynamic_tanh
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm


def textbook_dynamic_tanh(alpha, gain, bias, x):
    """One position at a time, one feature at a time, tanh by its definition."""
    rows = []
    for row in anp.reshape(x, (-1, x.shape[-1])):
        up, down = anp.exp(alpha * row), anp.exp(-alpha * row)
        rows.append(anp.stack([gain[i] * (up[i] - down[i]) / (up[i] + down[i]) + bias[i] for i in range(len(gain))]))
    return anp.reshape(anp.stack(rows), x.shape)


def random_call(rng, shape=(2, 3, 5)):
    params = DynamicTanh(np.array(0.8), rng.normal(size=shape[-1:]), rng.normal(size=shape[-1:]))
    return params, rng.normal(size=shape), rng.normal(size=shape)


def plain(d_model, **config):
    return init_dynamic_tanh(np.random.default_rng(0), d_model, dtype=np.float64, **config)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (1, 1, 1)])
def test_equals_the_textbook_loops_and_their_gradients(shape):
    params, x, dout = random_call(np.random.default_rng(0), shape)
    out, backward = dynamic_tanh(params, x)
    np.testing.assert_allclose(out, textbook_dynamic_tanh(*params, x), rtol=0, atol=1e-12)
    loss = lambda *args: anp.sum(dout * textbook_dynamic_tanh(*args))  # noqa: E731
    expected = autograd.grad(loss, (0, 1, 2, 3))(*params, x)
    dparams, dx = backward(dout)
    for own, theirs in zip((*dparams, dx), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-12)


def test_a_feature_depends_on_no_other_feature():
    params, x, _ = random_call(np.random.default_rng(1), (5,))
    _, backward = dynamic_tanh(params, x)
    jacobian = np.stack([backward(row)[1] for row in np.eye(5)])
    np.testing.assert_array_equal(jacobian, np.diag(np.diag(jacobian)))
    assert np.abs(np.diag(jacobian)).min() > 0
    _, layer_norm_backward = layer_norm(init_layer_norm(np.random.default_rng(0), 5, dtype=np.float64), x)
    assert np.abs(layer_norm_backward(np.eye(5)[0])[1][1:]).min() > 1e-3   # where a layer norm couples them all


def test_near_zero_it_is_a_straight_line():
    x = np.random.default_rng(2).normal(size=(3, 5)) * 1e-4
    np.testing.assert_allclose(dynamic_tanh(plain(5, alpha=0.5), x)[0], 0.5 * x, rtol=1e-7)


def test_scaling_a_position_changes_the_output_unlike_every_norm():
    params, x, _ = random_call(np.random.default_rng(3))
    assert np.abs(dynamic_tanh(params, 2 * x)[0] - dynamic_tanh(params, x)[0]).max() > 0.1


def test_shifting_a_position_changes_the_output_unlike_layer_norm():
    params, x, _ = random_call(np.random.default_rng(4))
    assert np.abs(dynamic_tanh(params, x + 1)[0] - dynamic_tanh(params, x)[0]).max() > 0.1


def test_a_rotation_of_the_features_does_not_go_through():
    rng = np.random.default_rng(5)
    _, x, _ = random_call(rng)
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    assert np.abs(dynamic_tanh(plain(5), x @ rotation)[0] - dynamic_tanh(plain(5), x)[0] @ rotation).max() > 0.01


def test_what_scales_x_can_be_undone_by_alpha():
    params, x, dout = random_call(np.random.default_rng(6))
    out, backward = dynamic_tanh(params, x)
    slower, slower_backward = dynamic_tanh(params._replace(alpha=params.alpha / 4), 4 * x)
    np.testing.assert_allclose(slower, out, rtol=1e-14)
    np.testing.assert_allclose(slower_backward(dout)[0].alpha, 4 * backward(dout)[0].alpha, rtol=1e-13)


def test_no_output_leaves_the_band_of_the_gain():
    params, x, _ = random_call(np.random.default_rng(7))
    out, _ = dynamic_tanh(params, 50 * x)
    assert np.all(np.abs(out - params.bias) <= np.abs(params.gain))


def with_a_slope_that_is_not_squared(params, x):
    out, backward = dynamic_tanh(params, x)
    squashed = np.tanh(params.alpha * x)
    return out, lambda dout: (backward(dout)[0], params.alpha * params.gain * dout * (1 - np.abs(squashed)))


def with_alpha_taken_for_a_constant(params, x):
    out, backward = dynamic_tanh(params, x)
    return out, lambda dout: (backward(dout)[0]._replace(alpha=np.zeros(())), backward(dout)[1])


@pytest.mark.parametrize(("wrong", "where"), [(with_a_slope_that_is_not_squared, "x"), (with_alpha_taken_for_a_constant, "params.alpha")])
def test_the_checker_refuses(wrong, where):
    params, x, _ = random_call(np.random.default_rng(8))
    report = check_gradients(wrong, params, x)
    assert not report.passed and report.worst.path == where and report.error > 1e-2


def test_zeros_become_the_bias_and_their_gradient_is_finite():
    params, _, dout = random_call(np.random.default_rng(9))
    out, backward = dynamic_tanh(params, np.zeros((2, 3, 5)))
    np.testing.assert_array_equal(out, np.broadcast_to(params.bias, out.shape))
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, params.alpha * params.gain * dout, rtol=1e-15)
    assert dparams.alpha == 0


def test_a_saturated_feature_sends_no_gradient_even_at_the_end_of_float32():
    x = np.array([[3e38, -3e38, 100.0]], np.float32)
    out, backward = dynamic_tanh(init_dynamic_tanh(np.random.default_rng(0), 3), x)
    dparams, dx = backward(np.ones_like(x))
    np.testing.assert_array_equal(out, [[1, -1, 1]])
    np.testing.assert_array_equal(dx, 0)
    assert dparams.alpha == 0


def test_a_nan_is_passed_on_to_its_feature_alone():
    out, _ = dynamic_tanh(plain(3), np.array([1.0, np.nan, 2.0]))
    np.testing.assert_array_equal(np.isnan(out), [False, True, False])


@pytest.mark.parametrize("alpha", [0.0, -0.5, float("nan"), float("inf")])
def test_a_slope_that_is_not_positive_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha: got"):
        plain(3, alpha=alpha)


@pytest.mark.parametrize("alpha", [1e-50, 1e50])
def test_a_slope_that_float32_rounds_to_zero_or_infinity_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha: got"):
        init_dynamic_tanh(np.random.default_rng(0), 3, alpha=alpha)
    assert plain(3, alpha=alpha).alpha == alpha


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    params, x, dout = random_call(np.random.default_rng(10))
    alpha, gain, bias, theirs_x = (torch.tensor(a, requires_grad=True) for a in (*params, x))
    theirs = torch.tanh(alpha * theirs_x) * gain + bias      # as the authors' module has it
    theirs.backward(torch.tensor(dout))
    out, backward = dynamic_tanh(params, x)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    for own, tensor in zip((*dparams, dx), (alpha, gain, bias, theirs_x), strict=True):
        np.testing.assert_allclose(own, tensor.grad.numpy(), rtol=0, atol=1e-13)
