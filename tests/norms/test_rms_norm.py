"""RMSNorm: the textbook loops, what it forgets and what it keeps, its kinship with layer norm, and its extremes."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.norms.rms_norm import RmsNorm, init_rms_norm, rms_norm


def textbook_rms_norm(gain, x, eps, offset=0.0):
    """One position at a time, one feature at a time."""
    rows = []
    for row in anp.reshape(x, (-1, x.shape[-1])):
        mean_square = sum(row[i] ** 2 for i in range(len(gain))) / len(gain)
        rows.append(anp.stack([(gain[i] + offset) * row[i] / anp.sqrt(mean_square + eps) for i in range(len(gain))]))
    return anp.reshape(anp.stack(rows), x.shape)


def random_call(rng, shape=(2, 3, 5)):
    return RmsNorm(rng.normal(size=shape[-1:])), rng.normal(size=shape) * 3 + 1, rng.normal(size=shape)


def plain(d_model):
    return init_rms_norm(np.random.default_rng(0), d_model, dtype=np.float64)


@pytest.mark.parametrize("eps, offset", [(1e-6, 0.0), (0.1, 0.0), (1e-6, 1.0)])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (1, 1, 1)])
def test_equals_the_textbook_loops_and_their_gradients(shape, eps, offset):
    params, x, dout = random_call(np.random.default_rng(0), shape)
    out, backward = rms_norm(params, x, eps=eps, offset=offset)
    np.testing.assert_allclose(out, textbook_rms_norm(params.gain, x, eps, offset), rtol=0, atol=1e-12)
    loss = lambda gain, x: anp.sum(dout * textbook_rms_norm(gain, x, eps, offset))  # noqa: E731
    expected = autograd.grad(loss, (0, 1))(params.gain, x)
    (dgain,), dx = backward(dout)
    np.testing.assert_allclose(dgain, expected[0], rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, expected[1], rtol=0, atol=1e-11)


def test_every_position_gets_the_length_sqrt_d():
    _, x, _ = random_call(np.random.default_rng(1))
    out, _ = rms_norm(plain(5), x, eps=0.0)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.sqrt(5), rtol=1e-14)


def test_scaling_a_position_changes_nothing():
    params, x, _ = random_call(np.random.default_rng(2))
    np.testing.assert_allclose(rms_norm(params, 7 * x, eps=0.0)[0], rms_norm(params, x, eps=0.0)[0], rtol=1e-13)


def test_shifting_a_position_changes_the_output_unlike_layer_norm():
    params, x, _ = random_call(np.random.default_rng(3))
    assert np.abs(rms_norm(params, x + 4)[0] - rms_norm(params, x)[0]).max() > 0.1


def test_a_rotation_of_the_features_goes_through():
    rng = np.random.default_rng(4)
    _, x, _ = random_call(rng)
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    np.testing.assert_allclose(rms_norm(plain(5), x @ rotation)[0], rms_norm(plain(5), x)[0] @ rotation, atol=1e-14)


def test_equals_layer_norm_where_the_mean_is_zero():
    rng = np.random.default_rng(5)
    _, x, dout = random_call(rng)
    x, dout = x - x.mean(-1, keepdims=True), dout - dout.mean(-1, keepdims=True)
    ours, backward = rms_norm(plain(5), x, eps=1e-5)
    theirs, their_backward = layer_norm(init_layer_norm(rng, 5, dtype=np.float64), x, eps=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-14)
    np.testing.assert_allclose(backward(dout)[1], their_backward(dout)[1], atol=1e-14)


def test_the_gradient_has_no_part_along_x():
    params, x, dout = random_call(np.random.default_rng(6))
    _, dx = rms_norm(params, x, eps=0.0)[1](dout)
    np.testing.assert_allclose(np.vecdot(dx, x), 0, atol=1e-13)


def test_gemma_gain_is_a_distance_from_one():
    rng = np.random.default_rng(7)
    params, x, dout = random_call(rng)
    gemma = RmsNorm(params.gain - 1)
    (out, backward), (expected, expected_backward) = rms_norm(gemma, x, offset=1.0), rms_norm(params, x)
    np.testing.assert_allclose(out, expected, atol=1e-14)
    np.testing.assert_allclose(backward(dout)[0].gain, expected_backward(dout)[0].gain, atol=1e-14)
    np.testing.assert_array_equal(init_rms_norm(rng, 3, offset=1.0).gain, [0, 0, 0])
    np.testing.assert_array_equal(init_rms_norm(rng, 3).gain, [1, 1, 1])


def without_the_shared_term(params, x):
    out, _ = rms_norm(params, x)
    rms = np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    return out, lambda dout: (RmsNorm((dout * x / rms).sum((0, 1))), params.gain * dout / rms)


def test_the_checker_refuses_a_backward_that_takes_the_rms_for_a_constant():
    params, x, _ = random_call(np.random.default_rng(8))
    report = check_gradients(without_the_shared_term, params, x)
    assert not report.passed and report.worst.path == "x" and report.error > 1e-2


def test_a_row_of_zeros_stays_zero_and_its_gradient_is_finite_and_large():
    params, _, dout = random_call(np.random.default_rng(9), (1, 5))
    out, backward = rms_norm(params, np.zeros((1, 5)), eps=1e-6)
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_allclose(backward(dout)[1], params.gain * dout * 1e3, rtol=1e-13)


@pytest.mark.parametrize("number", [np.float64, np.array])
def test_a_numpy_number_for_eps_does_not_widen_float32(number):
    x = np.ones((2, 3), np.float32)
    out, backward = rms_norm(init_rms_norm(np.random.default_rng(0), 3), x, eps=number(1e-6))
    (dgain, *_), dx = backward(x)
    assert {a.dtype for a in (out, dgain, dx)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_float32_stays_finite_as_far_as_its_squares_do(size):
    rng = np.random.default_rng(10)
    x, dout = rng.normal(size=(2, 3, 64)), rng.normal(size=(2, 3, 64)).astype(np.float32)
    out, backward = rms_norm(init_rms_norm(rng, 64), (x * size).astype(np.float32))
    (dgain,), dx = backward(dout)
    assert all(np.isfinite(a).all() for a in (out, dgain, dx))
    if size > 1:
        np.testing.assert_allclose(out, rms_norm(plain(64), x, eps=0.0)[0], atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_parity_with_torch(eps):
    torch = pytest.importorskip("torch")
    params, x, dout = random_call(np.random.default_rng(11))
    their_x, their_gain = (torch.tensor(a, requires_grad=True) for a in (x, params.gain))
    theirs = torch.nn.functional.rms_norm(their_x, (5,), their_gain, eps)
    theirs.backward(torch.tensor(dout))
    out, backward = rms_norm(params, x, eps=eps)
    (dgain,), dx = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dgain, their_gain.grad.numpy(), rtol=0, atol=1e-13)


@pytest.mark.parity
@pytest.mark.parametrize("family, name, offset", [("llama", "LlamaRMSNorm", 0.0), ("t5", "T5LayerNorm", 0.0), ("gemma", "GemmaRMSNorm", 1.0)])
def test_parity_with_hugging_face(family, name, offset):
    # These compute in float32 whatever comes in, so they agree to float32. T5's "layer norm" is an RMS norm.
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import importlib

    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    params, x, dout = random_call(np.random.default_rng(12))
    theirs = getattr(module, name)(5, eps=1e-6).double()
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(params.gain))
    their_x = torch.tensor(x, requires_grad=True)
    their_out = theirs(their_x)
    their_out.double().backward(torch.tensor(dout))
    out, backward = rms_norm(params, x, eps=1e-6, offset=offset)
    (dgain,), dx = backward(dout)
    np.testing.assert_allclose(out, their_out.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), atol=2e-6)
    np.testing.assert_allclose(dgain, theirs.weight.grad.numpy(), atol=2e-6)
