"""HiPPO-LegS: its entries, its spectrum, normal plus low rank, and that it remembers a function by Legendre polynomials."""

import numpy as np
import pytest

from minitransformers.state_space.hippo import hippo_legs


def test_the_first_entries():
    A, B = hippo_legs(3)
    r3, r5, r15 = np.sqrt([3, 5, 15])
    np.testing.assert_allclose(A, [[-1, 0, 0], [-r3, -2, 0], [-r5, -r15, -3]], rtol=1e-15)
    np.testing.assert_allclose(B, [1, r3, r5], rtol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_it_is_normal_plus_low_rank(n):
    A, B = hippo_legs(n)
    p = np.sqrt(np.arange(n) + 0.5)
    np.testing.assert_allclose(p, B / np.sqrt(2), rtol=1e-15)
    skew = A + np.outer(p, p) + np.eye(n) / 2
    np.testing.assert_allclose(skew, -skew.T, atol=1e-13)


def test_its_eigenvalues_are_minus_one_to_minus_n():
    np.testing.assert_array_equal(np.sort(-np.linalg.eigvals(hippo_legs(6)[0]).real), np.arange(1.0, 7.0))


def test_the_scaled_system_holds_the_legendre_coefficients_of_what_it_read():
    """t dc/dt = A c + B f, in steps of the bilinear rule, reads f(s) = s^2 on [0, 1] into c."""
    (A, B), n, steps = hippo_legs(5), 5, 2000
    c = np.zeros(n)
    for k in range(steps):
        rate = 1 / (k + 1)
        f = ((k + 0.5) / steps) ** 2
        c = np.linalg.solve(np.eye(n) - rate / 2 * A, (np.eye(n) + rate / 2 * A) @ c + rate * B * f)
    # On [0, 1] s^2 = 1/3 P_0 + 1/2 P_1 + 1/6 P_2 of 2s - 1; c_n is the coefficient over sqrt(2n + 1).
    np.testing.assert_allclose(c, [1 / 3, 1 / 2 / np.sqrt(3), 1 / 6 / np.sqrt(5), 0, 0], atol=2e-3)


def test_dtype_and_bad_sizes():
    assert {a.dtype for a in hippo_legs(3, dtype=np.float32)} == {np.dtype(np.float32)}
    for d_state in (0, 2.5):
        with pytest.raises(ValueError, match=f"d_state: got {d_state}"):
            hippo_legs(d_state)
