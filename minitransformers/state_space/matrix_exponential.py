"""The matrix exponential: what a linear system dh/dt = A h does to h in one unit of time.

Source: scaling and squaring with a diagonal Pade approximant, Higham 2005, "The scaling and squaring method for the
matrix exponential revisited", SIAM J. Matrix Anal. Appl. 26(4), table 2.3 for m = 13 and its theta; the block that holds
the derivative, Najfeld and Havel 1995, Adv. Appl. Math. 16, section 4. Differs from Higham: one degree for each dtype (m = 13,
or 7 in float32) instead of the cheapest of five, and plain powers. Costs about m/2 + s products and one solve of N x N
forward, the same of 2N x 2N backward: eight times the forward.

    small = A / 2^s, with the least s >= 0 that makes its 1-norm less than theta              (1)
    c_k = (m over k) / (2m (2m - 1) ... (2m - k + 1)), so c_0 = 1 and c_1 = 1/2               (2)
    even = sum of c_k small^k over even k <= m, odd = the same over odd k                     (3)
    root = (even - odd)^-1 (even + odd)                                                       (4)
    out = root^(2^s), by s squarings                                                          (5)
    block = [[A^T, dout / r], [0, A^T]], where r is the 1-norm of dout                        (6)
    dA = r times the upper right part of exp(block)                                           (7)
"""

from math import comb, perm
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, example, finite

# By bytes a number: the degree m, and the largest norm at which it is right to the last digit.
_DEGREE = {4: (7, 3.925724783138660), 8: (13, 5.371920351148152)}


def exponential(A):
    """exp(A) without a backward, of matrices that are known to be square and finite."""
    degree, theta = _DEGREE[A.itemsize]
    # norm / theta = f 2^e with f < 1, so e squarings suffice; each matrix of a batch gets its own number.
    squarings = np.maximum(np.frexp(_norm(A) / theta)[1], 0)
    small = np.ldexp(A, -squarings[..., None, None])         # (1)
    c = [comb(degree, k) / perm(2 * degree, k) for k in range(degree + 1)]  # (2)
    square = power = small @ small
    identity = np.eye(A.shape[-1], dtype=A.dtype)
    even, odd = identity + c[2] * square, c[1] * identity + c[3] * square
    for k in range(4, degree, 2):
        power = power @ square                               # small^k
        even, odd = even + c[k] * power, odd + c[k + 1] * power  # (3)
    odd = small @ odd
    root = np.linalg.solve(even - odd, even + odd)           # (4)
    for done in range(np.max(squarings)):
        more = done < squarings                              # squaring the others, too, could overflow
        root[more] = root[more] @ root[more]                 # (5)
    return root


def _norm(A):
    """The 1-norm: the largest sum of a column."""
    return np.abs(A).sum(-2).max(-1)


@concept(
    title="Matrix exponential",
    source="Higham 2005, SIAM J. Matrix Anal. Appl. 26(4), table 2.3; Najfeld and Havel 1995, Adv. Appl. Math. 16",
    # Norms on both sides of theta.
    example=lambda rng: example(rng.normal(size=(2, 3, 3)) - np.array([[2.5], [9.0]])[..., None] * np.eye(3)),
)
def matrix_exponential(A: Annotated[Float[Array, "... d_state d_state"], finite]) -> tuple[Array, Backward]:
    """exp(A) = I + A + A^2/2 + A^3/6 + ... of each square matrix.

    A is dimensionless: a rate times a time. A number of exp(A) that exceeds the dtype overflows, as exp of a number does.
    Returns out, shaped like A, and backward: dout -> dA.
    Raises ValueError when A is not square or not finite.
    """
    out = exponential(A)

    def backward(dout):
        # The upper right part is linear in dout: at norm 1 it asks for no squarings of its own.
        norm = _norm(dout)[..., None, None]
        transposed, unit = A.swapaxes(-1, -2), dout / np.where(norm > 0, norm, 1)
        block = np.block([[transposed, unit], [np.zeros_like(A), transposed]])  # (..., 2 d_state, 2 d_state)  (6)
        n = A.shape[-1]
        return norm * exponential(block)[..., :n, n:]        # (7)

    return out, backward
