"""Discretisation: the integral itself, a system without an inverse, the order of the gap between the rules, and SciPy."""

import itertools

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.state_space.discretize import discretize
from minitransformers.state_space.hippo import hippo_legs


def textbook(A, B, step, method):
    """One system: inverses for the bilinear rule; for the hold, the power series of exp and of its integral."""
    identity = anp.eye(len(A))
    if method == "bilinear":
        inverse = anp.linalg.inv(identity - step / 2 * A)
        return anp.dot(inverse, identity + step / 2 * A), step * anp.dot(inverse, B)
    Abar, integral, term = identity, step * identity, identity
    for k in range(1, 40):
        term = anp.dot(term, step * A) / k
        Abar, integral = Abar + term, integral + step * term / (k + 1)
    return Abar, anp.dot(integral, B)


def random_system(rng, *batch, n=3):
    return rng.normal(size=(*batch, n, n)) - np.eye(n), rng.normal(size=(*batch, n)), rng.uniform(0.2, 0.9, size=batch)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_equals_the_textbook_and_its_gradients(method, n):
    rng = np.random.default_rng(0)
    A, B, step = random_system(rng, n=n)
    step = np.array(step)
    (Abar, Bbar), backward = discretize(A, B, step, method=method)
    expected = textbook(A, B, step, method)
    np.testing.assert_allclose(Abar, expected[0], atol=1e-13)
    np.testing.assert_allclose(Bbar, expected[1], atol=1e-13)
    dout = rng.normal(size=(n, n)), rng.normal(size=n)
    grads = autograd.grad(lambda *args: sum(anp.sum(d * o) for d, o in zip(dout, textbook(*args, method), strict=True)), (0, 1, 2))(A, B, step)
    for own, oracle in zip(backward(dout), grads, strict=True):
        np.testing.assert_allclose(own, oracle, atol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-6), (np.float64, 1e-13)])
@pytest.mark.parametrize("size", [1e-8, 1e8, 2.0**60])
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_a_large_B_makes_a_large_Bbar_and_changes_nothing_else(method, size, dtype, tolerance):
    A, B, step = (a.astype(dtype) for a in random_system(np.random.default_rng(7), 2))
    dAbar, dBbar = (np.random.default_rng(8).normal(size=a.shape).astype(dtype) for a in (A, B))
    (Abar, Bbar), backward = discretize(A, B * dtype(size), step, method=method)
    (dA, dB, dstep), expected, exact = backward((dAbar, dBbar / dtype(size))), [], []
    for i in range(2):
        system = [a[i].astype(np.float64) for a in (A, B, step)]
        exact.append(textbook(*system, method))
        expected.append(discretize(*system, method=method)[1]((dAbar[i].astype(np.float64), dBbar[i].astype(np.float64))))
    for own, theirs in zip((Abar, Bbar / dtype(size)), zip(*exact, strict=True), strict=True):
        assert own.dtype == dtype
        np.testing.assert_allclose(own, theirs, rtol=0, atol=tolerance)
    for own, theirs in zip((dA, dB * dtype(size), dstep), zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=5 * tolerance)


def test_a_long_step_of_a_slow_system_keeps_its_decays():
    A, B, step = (np.array(a, np.float32) for a in ([[-1e-8, 0], [0, -2e-8]], [1, -1], 1e8))
    (Abar, Bbar), _ = discretize(A, B, step)
    np.testing.assert_allclose(np.diag(Abar), np.exp([-1, -2]), rtol=1e-6)
    np.testing.assert_allclose(Bbar, 1e8 * (1 - np.exp([-1, -2])) / [1, -2], rtol=1e-6)


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_every_system_of_a_batch_has_its_own_step(method):
    A, B, step = random_system(np.random.default_rng(1), 2, 4)
    (Abar, Bbar), _ = discretize(A, B, step, method=method)
    (one, two), _ = discretize(A[1, 2], B[1, 2], np.array(step[1, 2]), method=method)
    np.testing.assert_allclose(Abar[1, 2], one, atol=1e-14)
    np.testing.assert_allclose(Bbar[1, 2], two, atol=1e-14)


def test_the_hold_is_exact_for_a_constant_input():
    """Many tiny steps of the differential equation arrive where one step of the recurrence does."""
    A, B, _ = random_system(np.random.default_rng(2))
    h, fine = np.array([1.0, -2.0, 0.5]), 20_000
    (Abar, Bbar), _ = discretize(A, B, np.array(0.7))
    expected = Abar @ h + Bbar
    for _ in range(fine):                                    # the midpoint rule: its error falls with the square of the step
        half = h + 0.35 / fine * (A @ h + B)
        h = h + 0.7 / fine * (A @ half + B)
    np.testing.assert_allclose(h, expected, atol=1e-8)


def test_an_integrator_has_no_inverse_and_needs_none():
    """Place and speed: A is singular, and the textbook's A^-1 (exp(A) - I) B is 0/0."""
    A, B = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([0.0, 1.0])
    for method in ("zoh", "bilinear"):
        (Abar, Bbar), _ = discretize(A, B, np.array(3.0), method=method)
        np.testing.assert_allclose(Abar, [[1, 3], [0, 1]], atol=1e-14)
        np.testing.assert_allclose(Bbar, [4.5, 3], atol=1e-14)  # half of a t^2, and a t


def test_the_gap_between_the_rules_falls_eightfold_when_the_step_is_halved():
    A, B = hippo_legs(4)
    gaps = []
    for step in (0.01, 0.005, 0.0025):
        one, two = (discretize(A, B, np.array(step), method=method)[0][0] for method in ("zoh", "bilinear"))
        gaps.append(np.abs(one - two).max())
    for wide, narrow in itertools.pairwise(gaps):
        assert 7.5 < wide / narrow < 8.2


def test_two_half_steps_of_the_hold_are_one_whole_step():
    A, B, step = random_system(np.random.default_rng(3))
    (Abar, Bbar), _ = discretize(A, B, np.array(step))
    (half, take), _ = discretize(A, B, np.array(step / 2))
    np.testing.assert_allclose(half @ half, Abar, atol=1e-14)
    np.testing.assert_allclose(half @ take + take, Bbar, atol=1e-14)


@pytest.mark.parametrize("step", [0.1, 3.0, 1000.0])
def test_both_rules_keep_a_stable_system_stable(step):
    A, B = hippo_legs(6)
    for method in ("zoh", "bilinear"):
        (Abar, _), _ = discretize(A, B, np.array(step), method=method)
        assert np.abs(np.linalg.eigvals(Abar)).max() < 1


def test_a_growing_system_is_legal_and_grows():
    (Abar, _), _ = discretize(np.array([[0.5]]), np.ones(1), np.array(0.1))
    np.testing.assert_allclose(Abar, np.exp([[0.05]]), rtol=1e-14)


def without_the_term_of_the_solution(A, B, step):
    """The gradient of the right-hand side alone: that A stands in the matrix to be inverted, too, is forgotten."""
    out, backward = discretize(A, B, step, method="bilinear")

    def wrong(dout):
        M = np.eye(len(A)) - step / 2 * A
        return step / 2 * np.linalg.solve(M.T, dout[0]), *backward(dout)[1:]

    return out, wrong


def test_the_checker_refuses_a_solve_whose_matrix_is_taken_for_constant():
    A, B, step = random_system(np.random.default_rng(4))
    report = check_gradients(without_the_term_of_the_solution, A, B, np.array(step))
    assert not report.passed and report.worst.path == "A" and report.error > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_parity_with_scipy(method):
    signal = pytest.importorskip("scipy.signal")
    A, B, step = random_system(np.random.default_rng(5), n=5)
    (Abar, Bbar), _ = discretize(A, B, np.array(step), method=method)
    theirs = signal.cont2discrete((A, B[:, None], np.ones((1, 5)), np.zeros((1, 1))), float(step), method=method)
    np.testing.assert_allclose(Abar, theirs[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(Bbar, theirs[1][:, 0], rtol=0, atol=1e-13)


@pytest.mark.parity
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_parity_of_the_gradients_with_torch(method):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    A, B, step = random_system(rng, 2)
    tA, tB, tstep = (torch.tensor(a, requires_grad=True) for a in (A, B, step))
    if method == "zoh":
        E = torch.matrix_exp(tstep[:, None, None] * torch.nn.functional.pad(torch.cat([tA, tB[..., None]], -1), (0, 0, 0, 1)))
        theirs = E[:, :3, :3], E[:, :3, 3]
    else:
        half, identity = tstep[:, None, None] / 2 * tA, torch.eye(3, dtype=torch.float64)
        theirs = (torch.linalg.solve(identity - half, identity + half),
                  torch.linalg.solve(identity - half, (tstep[:, None] * tB)[..., None])[..., 0])  # fmt: skip
    dout = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 3))
    sum((torch.tensor(d) * o).sum() for d, o in zip(dout, theirs, strict=True)).backward()
    for own, other in zip(discretize(A, B, step, method=method)[1](dout), (tA, tB, tstep), strict=True):
        np.testing.assert_allclose(own, other.grad.numpy(), rtol=0, atol=1e-12)
