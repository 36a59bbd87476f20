"""FFT convolution: the sum written out, nothing from the future and nothing from round the circle, and PyTorch."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.state_space.fft_convolution import fft_convolution


def sum_written_out(x, kernel):
    """out_t = sum over l of kernel_l x_{t-l}, a position at a time."""
    outs = []
    for t in range(x.shape[-1]):
        reach = min(t + 1, kernel.shape[-1])
        outs.append(sum(kernel[..., l] * x[..., t - l] for l in range(reach)))
    return anp.stack(outs, axis=-1)


SHAPES = [((7,), (5,)), ((2, 3, 7), (3, 5)), ((3, 7), (2, 3, 7)), ((2, 1, 4), (3, 9)), ((5, 1), (5, 1)), ((1,), (3,)), ((6,), (1,))]


@pytest.mark.parametrize(("x_shape", "kernel_shape"), SHAPES)
def test_equals_the_sum_written_out_and_its_gradients(x_shape, kernel_shape):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=x_shape), rng.normal(size=kernel_shape)
    out, backward = fft_convolution(x, kernel)
    expected = sum_written_out(x, kernel)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, atol=1e-13)
    dout = rng.normal(size=out.shape)
    grads = autograd.grad(lambda x, kernel: anp.sum(dout * sum_written_out(x, kernel)), (0, 1))(x, kernel)
    for own, oracle in zip(backward(dout), grads, strict=True):
        assert own.shape == oracle.shape
        np.testing.assert_allclose(own, oracle, atol=1e-12)


@pytest.mark.parametrize("length", [2, 5, 8, 31, 64, 97])
def test_nothing_comes_from_the_future_nor_round_the_circle(length):
    """The last input reaches only the last output: a transform that is one too short would put it on the first."""
    x = np.zeros(length)
    x[-1] = 1.0
    kernel = np.random.default_rng(1).normal(size=length)
    out, _ = fft_convolution(x, kernel)
    np.testing.assert_allclose(out[:-1], 0, atol=1e-14)
    np.testing.assert_allclose(out[-1], kernel[0], atol=1e-14)


def test_no_gradient_flows_into_the_future():
    rng = np.random.default_rng(2)
    _, backward = fft_convolution(rng.normal(size=9), rng.normal(size=9))
    dout = np.zeros(9)
    dout[3] = 1.0
    dx, dkernel = backward(dout)
    np.testing.assert_allclose(dx[4:], 0, atol=1e-14)
    np.testing.assert_allclose(dkernel[4:], 0, atol=1e-14)


def test_a_pulse_gives_the_kernel_and_a_kernel_of_one_gives_the_input():
    rng = np.random.default_rng(3)
    a, pulse = rng.normal(size=6), np.eye(6)[0]
    np.testing.assert_allclose(fft_convolution(pulse, a)[0], a, atol=1e-14)
    np.testing.assert_allclose(fft_convolution(a, pulse)[0], a, atol=1e-14)


def test_a_tap_at_k_is_a_delay_by_k():
    x = np.random.default_rng(4).normal(size=8)
    out, _ = fft_convolution(x, np.eye(8)[3])
    np.testing.assert_allclose(out, np.concatenate([np.zeros(3), x[:5]]), atol=1e-14)


def test_input_and_kernel_may_be_exchanged():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 7)), rng.normal(size=(2, 7))
    np.testing.assert_allclose(fft_convolution(a, b)[0], fft_convolution(b, a)[0], atol=1e-14)


def test_float32_stays_float32_and_is_as_good_as_a_sum():
    rng = np.random.default_rng(6)
    x, kernel = rng.normal(size=1000), rng.normal(size=1000)
    out, backward = fft_convolution(x.astype(np.float32), kernel.astype(np.float32))
    assert out.dtype == np.float32 and all(g.dtype == np.float32 for g in backward(out))
    exact = fft_convolution(x, kernel)[0]
    assert np.abs(out - exact).max() < 2e-6 * np.abs(exact).max()


def without_the_conjugate(x, kernel):
    """The gradient of a convolution as if it were one more convolution forward in time."""
    out, backward = fft_convolution(x, kernel)
    return out, lambda dout: (fft_convolution(dout, kernel)[0], backward(dout)[1])


def test_the_checker_refuses_a_spectrum_that_is_not_conjugated():
    rng = np.random.default_rng(7)
    report = check_gradients(without_the_conjugate, rng.normal(size=7), rng.normal(size=7))
    assert not report.passed and report.worst.path == "x" and report.error > 1e-2


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    x, kernel, dout = rng.normal(size=(2, 3, 11)), rng.normal(size=(3, 11)), rng.normal(size=(2, 3, 11))
    their_x, their_kernel = (torch.tensor(a, requires_grad=True) for a in (x, kernel))
    theirs = torch.fft.irfft(torch.fft.rfft(their_x, n=22) * torch.fft.rfft(their_kernel, n=22), n=22)[..., :11]
    theirs.backward(torch.tensor(dout))
    out, backward = fft_convolution(x, kernel)
    dx, dkernel = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dkernel, their_kernel.grad.numpy(), rtol=0, atol=1e-13)


@pytest.mark.parity
def test_parity_with_torch_conv1d():
    """No transform on their side: a sliding window, turned round."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(9)
    x, kernel, dout = rng.normal(size=(2, 3, 11)), rng.normal(size=(3, 4)), rng.normal(size=(2, 3, 11))
    their_x, their_kernel = (torch.tensor(a, requires_grad=True) for a in (x, kernel))
    padded = torch.nn.functional.pad(their_x, (3, 0))
    theirs = torch.nn.functional.conv1d(padded, their_kernel.flip(-1)[:, None], groups=3)
    theirs.backward(torch.tensor(dout))
    out, backward = fft_convolution(x, kernel)
    dx, dkernel = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dkernel, their_kernel.grad.numpy(), rtol=0, atol=1e-13)
