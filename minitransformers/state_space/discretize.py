"""Discretisation: a system in continuous time, read at steps, is a recurrence; its matrices follow from A, B and the step.

dh/dt = A h + B u becomes h_t = Abar h_{t-1} + Bbar u_t. The zero-order hold ("zoh") is exact for an input that stays constant
during a step. The bilinear rule, also Tustin's, replaces the integral over a step by a trapezium and needs no exponential.
Sources: Van Loan 1978, IEEE Trans. Autom. Control 23(3), for (1) and (2); Tustin 1947, and Gu, Goel and Re 2021 (S4),
arXiv:2111.00396, eq. 3, for (4). Differs from the textbook's Bbar = A^-1 (exp(step A) - I) B: nothing is divided by A, so
an A that is singular (an integrator) is no exception. [P, p] is a matrix P with a column p beside it.

    zoh         Z = [[A, B / 2^k], [0, 0]], with the least k that makes step |B|_1 / 2^k less than 1   (1)
                [[Abar, Bbar / 2^k], [0, 1]] = exp(step Z)              (2)
    bilinear    M = I - step/2 A                                        (3)
                [Abar, Bbar] = M^-1 [I + step/2 A, step B]              (4)
    zoh         W = gradient of exp at [[dAbar, 2^k dBbar], [0, 0]]     (5)
                [dA, 2^k dB] = step times the upper rows of W           (6)
                dstep = sum of W Z                                      (7)
    bilinear    [P, p] = M^-T [dAbar, dBbar]                            (8)
                S = P + P Abar^T + p Bbar^T                             (9)
                dA = step/2 S, dB = step p                              (10)
                dstep = sum of S A / 2 + sum of p B                     (11)
"""

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, finite, invalid, positive
from minitransformers.state_space.matrix_exponential import matrix_exponential


def _beside(matrix, column):
    """[P, p]: (..., n, k) and (..., n) to (..., n, k + 1)."""
    return np.concatenate([matrix, column[..., None]], axis=-1)


def _with_zero_row(rows):
    return np.concatenate([rows, np.zeros_like(rows[..., :1, :])], axis=-2)


def _zero_order_hold(A, B, step):
    # Bbar is linear in B. A large B in Z would ask for squarings, and each costs Abar digits.
    k = np.frexp(step * np.abs(B).sum(-1))[1][..., None]
    Z = _with_zero_row(_beside(A, np.ldexp(B, -k)))          # (..., d_state + 1, d_state + 1)  (1)
    step = step[..., None, None]
    exponential, exponential_backward = matrix_exponential(step * Z)
    Abar, column = exponential[..., :-1, :-1], exponential[..., :-1, -1]
    out = _beside(Abar, np.ldexp(column, k))                 # (2)

    def backward(dout):
        dcolumn = np.ldexp(dout[..., -1], k)
        W = exponential_backward(_with_zero_row(_beside(dout[..., :-1], dcolumn)))  # (5)
        drows = step * W[..., :-1, :]
        dA, dB = drows[..., :-1], np.ldexp(drows[..., -1], -k)  # (6)
        dstep = (W * Z).sum((-2, -1))                        # 2^k cancels: no gradient of it  (7)
        return dA, dB, dstep

    return out, backward


def _bilinear(A, B, step):
    step = step[..., None, None]
    half, identity = step / 2 * A, np.eye(A.shape[-1], dtype=A.dtype)
    M = identity - half                                      # (3)
    try:
        out = np.linalg.solve(M, _beside(identity + half, step[..., 0] * B))  # (4)
    except np.linalg.LinAlgError:
        raise invalid("step", got="2 over an eigenvalue of A", wants="a step at which I - step/2 A has an inverse") from None

    def backward(dout):
        Pp = np.linalg.solve(M.swapaxes(-1, -2), dout)       # (8)
        P, p = Pp[..., :-1], Pp[..., -1]
        S = P + Pp @ out.swapaxes(-1, -2)                    # (9)
        dA, dB = step / 2 * S, step[..., 0] * p              # (10)
        dstep = (S * A).sum((-2, -1)) / 2 + np.vecdot(p, B)  # (11)
        return dA, dB, dstep

    return out, backward


_METHODS = {"zoh": _zero_order_hold, "bilinear": _bilinear}


@concept(
    title="Discretisation",
    source="Van Loan 1978, IEEE Trans. Autom. Control 23(3); Tustin 1947; Gu, Goel and Re 2021 (S4), arXiv:2111.00396, eq. 3",
    example=lambda rng: example(rng.normal(size=(2, 3, 3)) - 3 * np.eye(3), rng.normal(size=(2, 3)), rng.uniform(0.2, 0.9, size=2)),
    rejects=[bad("step", A=np.stack([np.eye(3)] * 2), step=np.array([0.5, 2.0]), method="bilinear")],
)
def discretize(
    A: Annotated[Float[Array, "*systems d_state d_state"], finite],
    B: Annotated[Float[Array, "*systems d_state"], finite],
    step: Annotated[Float[Array, "*systems"], positive],
    *,
    method: Literal["zoh", "bilinear"] = "zoh",
) -> tuple[tuple[Array, Array], Backward]:
    """The recurrence that a continuous system is when it is read every ``step``.

    A and B are rates for each unit of time, step is in that unit and above 0. method is "zoh" or "bilinear". Any A is legal:
    the recurrence is stable where the system is, for a growing system it grows.
    Returns (Abar, Bbar), shaped like A and B, and backward: (dAbar, dBbar) -> dA, dB, dstep.
    Raises ValueError when A is not square, the axes do not fit, a step is not above 0, or 2 / step is an eigenvalue of A for
    "bilinear".
    """
    out, rows_backward = _METHODS[method](A, B, step)

    def backward(dout):
        dAbar, dBbar = dout
        return rows_backward(_beside(dAbar, dBbar))

    return (out[..., :-1], out[..., -1]), backward
