"""Linear map: a weighted sum of features."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import check_gradients

rng = np.random.default_rng(1)
params, x = Linear(rng.normal(size=(5, 3)), rng.normal(size=3)), rng.normal(size=(2, 4, 5))
dout = rng.normal(size=(2, 4, 3))


def naive(weight, bias, x):
    rows = [[sum(row[i] * weight[i, j] for i in range(5)) + bias[j] for j in range(3)] for batch in x for row in batch]
    return anp.reshape(anp.array([anp.array(row) for row in rows]), (2, 4, 3))


def test_output_and_gradients_agree_with_loops():
    out, backward = linear(params, x)
    np.testing.assert_allclose(out, naive(*params, x), atol=1e-12)
    (dweight, dbias), dx = backward(dout)
    expected = autograd.grad(lambda args: anp.sum(dout * naive(*args)))((*params, x))
    for own, theirs in zip((dweight, dbias, dx), expected, strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-10)


def test_without_a_bias_the_map_is_linear_and_the_bias_has_no_gradient():
    weight_only, y = Linear(params.weight, None), rng.normal(size=x.shape)
    out, backward = linear(weight_only, 2 * x - 3 * y)
    np.testing.assert_allclose(out, 2 * linear(weight_only, x)[0] - 3 * linear(weight_only, y)[0], atol=1e-12)
    assert backward(dout)[0].bias is None


def test_one_vector_and_many_axes_are_the_same_product():
    np.testing.assert_allclose(linear(params, x[1, 2])[0], linear(params, x)[0][1, 2], atol=1e-14)
    np.testing.assert_array_equal(linear(params, x[:, None, :, None])[0][:, 0, :, 0], linear(params, x)[0])


def test_default_weights_keep_the_variance():
    wide = init_linear(np.random.default_rng(0), 400, 300, dtype=np.float64)
    out, _ = linear(wide, np.random.default_rng(1).normal(size=(200, 400)))
    assert abs(out.std() - 1) < 0.02
    assert init_linear(np.random.default_rng(0), 4, 3, bias=False).bias is None


def test_checker_refuses_a_transposed_weight_gradient():
    def transposed(params, x):
        out, backward = linear(params, x)

        def wrong(dout):
            (dweight, dbias), dx = backward(dout)
            return Linear(dweight.T, dbias), dx

        return out, wrong

    report = check_gradients(transposed, Linear(rng.normal(size=(3, 3)), rng.normal(size=3)), rng.normal(size=(4, 3)))
    assert not report.passed
    assert report.worst.path == "params.weight" and "transposed" in report.worst.cause


def test_checker_refuses_a_bias_gradient_averaged_over_positions():
    def averaged(params, x):
        out, backward = linear(params, x)

        def wrong(dout):
            (dweight, dbias), dx = backward(dout)
            return Linear(dweight, dbias / 8), dx

        return out, wrong

    report = check_gradients(averaged, params, x)
    assert not report.passed
    assert report.worst.path == "params.bias" and "a factor 8 is missing" in report.worst.cause


def test_float32_stays_finite_near_its_largest_number():
    out, backward = linear(Linear(np.full((2, 1), 1e19, np.float32), None), np.full((1, 2), 1e19, np.float32))
    (dweight, _), dx = backward(np.ones((1, 1), np.float32))
    assert all(np.isfinite(a).all() and a.dtype == np.float32 for a in (out, dweight, dx))


@pytest.mark.parity
def test_parity_with_pytorch():
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, params.weight.T.copy(), params.bias)]
    out, backward = linear(params, x)
    reference = torch.nn.functional.linear(*tensors)
    reference.backward(torch.tensor(dout))
    (dweight, dbias), dx = backward(dout)
    np.testing.assert_allclose(out, reference.detach(), atol=1e-9)
    for own, tensor in zip((dx, dweight.T, dbias), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, atol=1e-9)
