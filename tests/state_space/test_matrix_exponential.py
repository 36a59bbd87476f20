"""The matrix exponential: the power series, what exponentials must satisfy, a derivative that is a block, and SciPy."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.state_space.matrix_exponential import matrix_exponential


def power_series(A, terms=60):
    """Term after term, no scaling: right where the norm is a few units."""
    total = term = anp.eye(A.shape[-1]) + 0 * A
    for k in range(1, terms):
        term = anp.matmul(term, A) / k
        total = total + term
    return total


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 4, 3, 3)])
@pytest.mark.parametrize("size", [0.01, 1.0, 3.0])
def test_equals_the_power_series_and_its_gradients(shape, size):
    rng = np.random.default_rng(0)
    A, dout = size * rng.normal(size=shape), rng.normal(size=shape)
    out, backward = matrix_exponential(A)
    expected = autograd.grad(lambda A: anp.sum(dout * power_series(A)))(A)
    np.testing.assert_allclose(out, power_series(A), atol=1e-11 * np.abs(out).max())
    np.testing.assert_allclose(backward(dout), expected, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize("length", [1e-3, 1.0, 5.37, 5.38, 300.0])
def test_a_matrix_with_eigenvalues_that_are_known(length):
    """Below the least scaling, at its edge, and nine squarings above it."""
    vectors, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    values = -length * np.array([1.0, 0.3, 0.1, 0.0])
    out, _ = matrix_exponential(vectors * values @ vectors.T)
    np.testing.assert_allclose(out, vectors * np.exp(values) @ vectors.T, atol=2e-14 * max(1, length))


def test_one_by_one_is_the_exponential_of_a_number():
    for a in (-40.0, -1.0, 0.0, 2.5, 20.0):
        out, backward = matrix_exponential(np.array([[a]]))
        np.testing.assert_allclose(out, np.exp([[a]]), rtol=1e-13)
        np.testing.assert_allclose(backward(np.ones((1, 1))), np.exp([[a]]), rtol=1e-13)


def test_zero_gives_the_identity_and_a_nilpotent_matrix_a_polynomial():
    np.testing.assert_array_equal(matrix_exponential(np.zeros((3, 3)))[0], np.eye(3))
    shift = np.diag([2.0, 5.0], 1)
    np.testing.assert_allclose(matrix_exponential(shift)[0], [[1, 2, 5], [0, 1, 5], [0, 0, 1]], rtol=1e-15)


def test_the_exponential_of_minus_a_is_the_inverse():
    A = np.random.default_rng(2).normal(size=(2, 3, 3)) * 2
    np.testing.assert_allclose(matrix_exponential(A)[0] @ matrix_exponential(-A)[0], np.broadcast_to(np.eye(3), A.shape), atol=1e-10)


def test_a_skew_matrix_gives_a_rotation():
    A = np.random.default_rng(3).normal(size=(5, 5)) * 3
    out, _ = matrix_exponential(A - A.T)
    np.testing.assert_allclose(out @ out.T, np.eye(5), atol=1e-13)
    np.testing.assert_allclose(np.linalg.det(out), 1, rtol=1e-13)


def test_the_determinant_is_the_exponential_of_the_trace():
    A = np.random.default_rng(4).normal(size=(4, 4))
    np.testing.assert_allclose(np.linalg.det(matrix_exponential(A)[0]), np.exp(np.trace(A)), rtol=1e-12)


def test_commuting_matrices_add_and_others_do_not():
    A = np.random.default_rng(5).normal(size=(3, 3))
    E = matrix_exponential
    np.testing.assert_allclose(E(A)[0] @ E(A @ A)[0], E(A + A @ A)[0], rtol=1e-9)
    assert np.abs(E(A)[0] @ E(A.T)[0] - E(A + A.T)[0]).max() > 0.1


def test_the_gradient_of_a_matrix_that_commutes_with_dout_is_that_of_numbers():
    """Where A and dout share their eigenvectors, nothing of the order of factors is left."""
    A = np.random.default_rng(6).normal(size=(3, 3))
    out, backward = matrix_exponential(A)
    np.testing.assert_allclose(backward(np.eye(3)), out.T, rtol=1e-12)
    np.testing.assert_allclose(backward(A.T @ A.T), out.T @ A.T @ A.T, rtol=1e-11)


def test_the_gradient_is_linear_in_dout_at_every_size():
    rng = np.random.default_rng(7)
    A, dout = rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
    _, backward = matrix_exponential(A)
    for size in (1e-200, 1e-8, 1e8, 1e200):
        np.testing.assert_allclose(backward(size * dout) / size, backward(dout), rtol=1e-12)
    np.testing.assert_array_equal(backward(np.zeros((3, 3))), 0)


def test_a_matrix_is_not_disturbed_by_its_neighbours_in_a_batch():
    """Squarings are counted for each: a large neighbour neither rounds a small matrix nor makes it overflow."""
    A = np.stack([np.array([[0.0, 1.0], [0.0, 3.0]]), np.array([[-700.0, 1.0], [0.0, -900.0]])])
    with np.errstate(all="raise", under="ignore"):
        out, _ = matrix_exponential(A)
    np.testing.assert_array_equal(out[0], matrix_exponential(A[0])[0])
    np.testing.assert_array_equal(out[1], matrix_exponential(A[1])[0])


@pytest.mark.parametrize("size", [0.5, 8.0, 100.0])
def test_float32_is_right_to_its_last_digits(size):
    A = np.random.default_rng(8).normal(size=(4, 4)) * size / 4 - size * np.eye(4)
    exact, single = matrix_exponential(A)[0], matrix_exponential(A.astype(np.float32))[0]
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, exact, atol=3e-7 * max(1, size) * np.abs(exact).max())


def with_the_scalar_rule(A):
    """d exp(A) = exp(A) dA: right for numbers, wrong where A and dA do not commute."""
    out, _ = matrix_exponential(A)
    return out, lambda dout: out.swapaxes(-1, -2) @ dout


def test_the_checker_refuses_the_rule_for_numbers():
    A = np.random.default_rng(9).normal(size=(3, 3))
    report = check_gradients(with_the_scalar_rule, A)
    assert not report.passed and report.error > 1e-2


@pytest.mark.parity
@pytest.mark.parametrize("size", [0.1, 2.0, 30.0])
def test_parity_with_scipy(size):
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(10)
    A = rng.normal(size=(5, 5)) * size / 5 - size * np.eye(5)
    dout = rng.normal(size=A.shape)
    out, backward = matrix_exponential(A)
    np.testing.assert_allclose(out, linalg.expm(A), rtol=0, atol=1e-13)
    np.testing.assert_allclose(backward(dout), linalg.expm_frechet(A.T, dout, compute_expm=False), rtol=0, atol=1e-13)


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    A, dout = rng.normal(size=(2, 4, 4)), rng.normal(size=(2, 4, 4))
    theirs = torch.tensor(A, requires_grad=True)
    their_out = torch.linalg.matrix_exp(theirs)
    their_out.backward(torch.tensor(dout))
    out, backward = matrix_exponential(A)
    np.testing.assert_allclose(out, their_out.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(backward(dout), theirs.grad.numpy(), rtol=0, atol=1e-11)
