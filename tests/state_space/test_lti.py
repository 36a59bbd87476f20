"""LTI: the recurrence written out, two views of one map, the properties of every linear time-invariant system, and SciPy."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.state_space.hippo import hippo_legs
from minitransformers.state_space.lti import lti

WAYS = [(d, v) for d in ("zoh", "bilinear") for v in ("recurrent", "convolution")]


def recurrence_written_out(A, B, C, D, step, u, discretization):
    """One sequence; the rules by their textbook formulas."""
    identity = anp.eye(len(A))
    if discretization == "bilinear":
        inverse = anp.linalg.inv(identity - step / 2 * A)
        Abar, Bbar = anp.dot(inverse, identity + step / 2 * A), step * anp.dot(inverse, B)
    else:
        Abar, integral, term = identity, step * identity, identity
        for k in range(1, 30):
            term = anp.dot(term, step * A) / k
            Abar, integral = Abar + term, integral + step * term / (k + 1)
        Bbar = anp.dot(integral, B)
    h, outs = anp.zeros(len(A)), []
    for t in range(len(u)):
        h = anp.dot(Abar, h) + Bbar * u[t]
        outs.append(anp.dot(C, h) + D * u[t])
    return anp.stack(outs)


def random_call(rng, n=3, shape=(2, 7)):
    A = rng.normal(size=(n, n)) - 2 * np.eye(n)
    return A, rng.normal(size=n), rng.normal(size=n), np.array(0.7), np.array(0.3), rng.normal(size=shape)


@pytest.mark.parametrize("length", [1, 2, 7, 8])
@pytest.mark.parametrize(("discretization", "view"), WAYS)
def test_equals_the_recurrence_written_out_and_its_gradients(discretization, view, length):
    rng = np.random.default_rng(0)
    *system, u = random_call(rng, shape=(2, length))
    out, backward = lti(*system, u, discretization=discretization, view=view)
    dout = rng.normal(size=u.shape)

    def loss(*args):
        return sum(anp.sum(dout[i] * recurrence_written_out(*args[:-1], args[-1][i], discretization)) for i in range(2))

    for i in range(2):
        np.testing.assert_allclose(out[i], recurrence_written_out(*system, u[i], discretization), atol=1e-12)
    for own, oracle in zip(backward(dout), autograd.grad(loss, tuple(range(6)))(*system, u), strict=True):
        np.testing.assert_allclose(own, oracle, atol=1e-11)


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
@pytest.mark.parametrize("length", [1, 5, 64, 100])
def test_recurrence_and_convolution_are_one_map(discretization, length):
    rng = np.random.default_rng(1)
    A, B = hippo_legs(8)
    call = A, B, rng.normal(size=8), np.array(0.3), np.array(0.05), rng.normal(size=(3, 2, length))
    dout = rng.normal(size=(3, 2, length))
    one, one_backward = lti(*call, view="recurrent", discretization=discretization)
    two, two_backward = lti(*call, view="convolution", discretization=discretization)
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-12 * np.abs(one).max())
    for a, b in zip(one_backward(dout), two_backward(dout), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(a).max())


def test_bilinear_and_hold_come_together():
    """Over a fixed time, with an input that holds still within the coarse steps, the gap falls with the square of the step."""
    rng = np.random.default_rng(2)
    *system, _, u = random_call(rng, shape=(16,))
    gaps = []
    for fold in (4, 8, 16):
        fine = np.repeat(u, fold)
        ways = [lti(*system, np.array(0.3 / fold), fine, discretization=d)[0][fold - 1 :: fold] for d in ("zoh", "bilinear")]
        gaps.append(np.abs(ways[0] - ways[1]).max())
    assert 3.7 < gaps[0] / gaps[1] < 4.3 and 3.7 < gaps[1] / gaps[2] < 4.3


@pytest.mark.parametrize("view", ["recurrent", "convolution"])
def test_a_shifted_input_gives_the_shifted_output(view):
    *system, u = random_call(np.random.default_rng(3), shape=(9,))
    shifted = np.concatenate([np.zeros(3), u[:-3]])
    out, moved = lti(*system, u, view=view)[0], lti(*system, shifted, view=view)[0]
    np.testing.assert_allclose(moved, np.concatenate([np.zeros(3), out[:-3]]), atol=1e-14)


@pytest.mark.parametrize("view", ["recurrent", "convolution"])
def test_it_is_linear_in_the_input(view):
    rng = np.random.default_rng(4)
    *system, u = random_call(rng, shape=(9,))
    v = rng.normal(size=9)
    both = lti(*system, 2 * u - 3 * v, view=view)[0]
    np.testing.assert_allclose(both, 2 * lti(*system, u, view=view)[0] - 3 * lti(*system, v, view=view)[0], atol=1e-13)


@pytest.mark.parametrize("view", ["recurrent", "convolution"])
def test_no_output_sees_a_later_input(view):
    *system, u = random_call(np.random.default_rng(5), shape=(9,))
    _, backward = lti(*system, u, view=view)
    for t in (0, 4, 8):
        np.testing.assert_allclose(backward(np.eye(9)[t])[-1][t + 1 :], 0, atol=1e-14)


def test_a_pulse_gives_the_kernel_of_a_single_decay():
    """N = 1: y_t = C Bbar Abar^t."""
    one = np.ones(1)
    out, _ = lti(-one[:, None], one, 2 * one, np.array(0.0), np.array(np.log(2)), np.eye(5)[0])
    np.testing.assert_allclose(out, 2 * 0.5 * 0.5 ** np.arange(5.0), rtol=1e-14)


def test_a_system_that_reads_nothing_passes_d_times_the_input():
    *_, D, step, u = random_call(np.random.default_rng(6))
    out, backward = lti(-np.eye(3), np.zeros(3), np.ones(3), D, step, u)
    np.testing.assert_allclose(out, D * u, atol=1e-15)
    np.testing.assert_allclose(backward(u)[3], (u * u).sum())


@pytest.mark.parametrize("view", ["recurrent", "convolution"])
def test_a_growing_system_grows_as_it_should(view):
    one = np.ones(1)
    out, _ = lti(0.5 * one[:, None], one, one, np.array(0.0), np.array(1.0), np.eye(20)[0], view=view)
    np.testing.assert_allclose(out[1:] / out[:-1], np.exp(0.5), rtol=1e-8)


def with_a_kernel_that_is_constant(A, B, C, D, step, u):
    """The states are read, but that Abar stands in them in every power is forgotten."""
    out, backward = lti(A, B, C, D, step, u, view="recurrent")

    def wrong(dout):
        _, dB, dC, dD, dstep, du = backward(dout)
        return np.zeros_like(A), dB, dC, dD, dstep, du

    return out, wrong


def without_the_carried_gradient(A, B, C, D, step, u):
    """The gradient as if each state were read once, and fed no later one."""
    out, backward = lti(A, B, C, D, step, u, view="recurrent")

    def wrong(dout):
        *grads, _ = backward(dout)
        one = np.eye(u.shape[-1])[0]
        kernel = lti(A, B, C, D, step, one)[0]
        return *grads, kernel[0] * dout

    return out, wrong


@pytest.mark.parametrize(("wrong", "path"), [(with_a_kernel_that_is_constant, "A"), (without_the_carried_gradient, "u")])
def test_the_checker_refuses(wrong, path):
    report = check_gradients(wrong, *random_call(np.random.default_rng(7)))
    assert not report.passed and report.worst.path == path and report.error > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize(("discretization", "view"), WAYS)
def test_parity_with_scipy(discretization, view):
    """dlsim reads the state before it takes in the input: its output is ours with C Abar for C, and C Bbar added to D."""
    signal = pytest.importorskip("scipy.signal")
    A, B, C, D, step, u = random_call(np.random.default_rng(8), n=4, shape=(12,))
    Abar, Bbar, *_ = signal.cont2discrete((A, B[:, None], C[None], np.array([[D]])), float(step), method=discretization)
    _, theirs, _ = signal.dlsim((Abar, Bbar, C[None] @ Abar, D + C[None] @ Bbar, 1.0), u)
    out, _ = lti(A, B, C, D, step, u, discretization=discretization, view=view)
    np.testing.assert_allclose(out, theirs[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("view", ["recurrent", "convolution"])
def test_parity_of_the_gradients_with_torch(view):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(9)
    call = random_call(rng)
    A, B, C, D, step, u = (torch.tensor(a, requires_grad=True) for a in call)
    half, identity = step / 2 * A, torch.eye(3, dtype=torch.float64)
    Abar, Bbar = torch.linalg.solve(identity - half, identity + half), torch.linalg.solve(identity - half, step * B)
    h, outs = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(7):
        h = h @ Abar.T + u[:, t, None] * Bbar
        outs.append(h @ C + D * u[:, t])
    dout = rng.normal(size=(2, 7))
    torch.stack(outs, -1).backward(torch.tensor(dout))
    _, backward = lti(*call, discretization="bilinear", view=view)
    for own, theirs in zip(backward(dout), (A, B, C, D, step, u), strict=True):
        np.testing.assert_allclose(own, theirs.grad.numpy(), rtol=0, atol=1e-12)
