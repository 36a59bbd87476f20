"""A linear time-invariant system, in its two views: a recurrence that carries a state, and one long convolution.

dh/dt = A h + B u, y = C h + D u: a state h of N numbers takes in one channel u and gives out one channel y. Read every
``step`` it is a recurrence, which costs O(N^2) a position and keeps N numbers. Nothing in it depends on the input, so its
outputs are the inputs convolved with what it answers to a single pulse: O(n log n) for all n positions at once, and O(n N^2)
for the kernel, in log n matrix products. Source: Gu et al. 2021 (LSSL), arXiv:2110.13985, section 3; Gu, Goel and Re 2021
(S4), arXiv:2111.00396, eqs. 1-5. Differs from S4: A is dense and the kernel is built by doubling, not by a Cauchy sum; and D,
which S4 leaves out, is kept.

    Abar, Bbar = discretize(A, B, step)                                        (1)
    recurrent     h_t = Abar h_{t-1} + Bbar u_t, h_{-1} = 0                    (2)
                  y_t = C . h_t                                                (3)
    convolution   x_l = Abar^l Bbar, by doubling: x_{m+l} = Abar^m x_l, l < m  (4)
                  kernel_l = C . x_l                                           (5)
                  y = kernel * u                                               (6)
    out = y + D u                                                              (7)
    dD = sum of dout u, and du has a term D dout                               (8)
    recurrent     g_t = Abar^T g_{t+1} + C dout_t                              (9)
                  dAbar = sum g_t h_{t-1}^T, dBbar = sum g_t u_t               (10)
                  dC = sum dout_t h_t, du_t = Bbar . g_t                       (11)
    convolution   du, dkernel = gradients of the convolution                   (12)
                  dC = sum dkernel_l x_l, dx_l = C dkernel_l                   (13)
                  d(Abar^m) = sum over l of dx_{m+l} x_l^T, and its square's   (14)
                  dx_l has a term (Abar^m)^T dx_{m+l}                          (15)
    dA, dB, dstep = gradients of discretize at dAbar, dBbar                    (16)
"""

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, finite, positive
from minitransformers.state_space.discretize import discretize
from minitransformers.state_space.fft_convolution import fft_convolution


def _recurrent(Abar, Bbar, C, u):
    inputs = u.reshape(-1, u.shape[-1]).T                    # (positions, rows)
    states = inputs[..., None] * Bbar                        # (positions, rows, d_state)
    for t in range(1, len(states)):
        states[t] += states[t - 1] @ Abar.T                  # (2)
    y = (states @ C).T.reshape(u.shape)                      # (3)

    def backward(dy):
        douts = dy.reshape(-1, u.shape[-1]).T
        g = douts[..., None] * C
        for t in reversed(range(len(g) - 1)):
            g[t] += g[t + 1] @ Abar                          # the state is read, and it is carried on: two terms  (9)
        rows = g.reshape(-1, len(C))
        dAbar = g[1:].reshape(-1, len(C)).T @ states[:-1].reshape(-1, len(C))  # (10)
        dBbar = inputs.ravel() @ rows                        # (10)
        dC = douts.ravel() @ states.reshape(-1, len(C))      # (11)
        du = (g @ Bbar).T.reshape(u.shape)                   # (11)
        return dAbar, dBbar, dC, du

    return y, backward


def _pulse_response(Abar, Bbar, positions):
    """x (positions, d_state): the states after a single input of 1, and backward: dx -> dAbar, dBbar."""
    x, power, powers = Bbar[None], Abar, []                  # power is Abar^m, where m = len(x)
    while len(x) < positions:
        powers.append((len(x), power))
        x = np.concatenate([x, x[: positions - len(x)] @ power.T])  # (4)
        if len(x) < positions:
            power = power @ power

    def backward(dx):
        dpower = np.zeros_like(Abar)
        for m, power in reversed(powers):
            later = dx[m:]
            squared = dpower @ power.T + power.T @ dpower    # a square has two factors: two terms
            dpower = squared + later.T @ x[: len(later)]     # (14)
            dx = dx[:m].copy()
            dx[: len(later)] += later @ power                # (15)
        return dpower, dx[0]

    return x, backward


def _convolution(Abar, Bbar, C, u):
    x, x_backward = _pulse_response(Abar, Bbar, u.shape[-1])
    kernel = x @ C                                           # (5)
    y, convolution_backward = fft_convolution(u, kernel)     # (6)

    def backward(dy):
        du, dkernel = convolution_backward(dy)               # (12)
        dC, dx = dkernel @ x, dkernel[:, None] * C           # (13)
        return *x_backward(dx), dC, du

    return y, backward


_VIEWS = {"recurrent": _recurrent, "convolution": _convolution}


@concept(
    title="Linear time-invariant system",
    source="Gu et al. 2021 (LSSL), arXiv:2110.13985, section 3; Gu, Goel and Re 2021 (S4), arXiv:2111.00396, eqs. 1-5",
    example=lambda rng: example(
        rng.normal(size=(3, 3)) - 3 * np.eye(3), rng.normal(size=3), rng.normal(size=3), np.array(0.7), np.array(0.4),
        rng.normal(size=(2, 7)),
    ),
    rejects=[bad("step", A=np.eye(3), step=np.array(2.0), discretization="bilinear")],
)
def lti(
    A: Annotated[Float[Array, "d_state d_state"], finite],
    B: Annotated[Float[Array, "d_state"], finite],
    C: Float[Array, "d_state"],
    D: Float[Array, ""],
    step: Annotated[Float[Array, ""], positive],
    u: Float[Array, "... positions"],
    *,
    discretization: Literal["zoh", "bilinear"] = "zoh",
    view: Literal["convolution", "recurrent"] = "convolution",
) -> tuple[Array, Backward]:
    """Send every sequence of u, one channel each, through the one system that starts at rest.

    A and B are rates for each unit of time, step is in that unit and above 0. discretization is "zoh" or "bilinear", view is
    "convolution" or "recurrent": two ways to the same numbers. Any A is legal; where an eigenvalue has a positive real part
    the state grows exponentially, and where it has none of these the two views agree to rounding.
    Returns out, shaped like u, and backward: dout -> dA, dB, dC, dD, dstep, du.
    Raises ValueError when the axes do not fit, the step is not above 0, or 2 / step is an eigenvalue of A for "bilinear".
    """
    (Abar, Bbar), discretize_backward = discretize(A, B, step, method=discretization)  # (1)
    y, view_backward = _VIEWS[view](Abar, Bbar, C, u)
    out = y + D * u                                          # (7)

    def backward(dout):
        dAbar, dBbar, dC, du = view_backward(dout)
        dD = (dout * u).sum()                                # (8)
        du = du + D * dout                                   # u is read by the state and by D  (8)
        dA, dB, dstep = discretize_backward((dAbar, dBbar))  # (16)
        return dA, dB, dC, dD, dstep, du

    return out, backward
