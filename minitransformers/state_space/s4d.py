"""S4D: a state-space layer whose matrix A is diagonal and complex, so that its kernel is a sum of damped waves.

Every channel is a linear system of its own (see lti) with d_state = 2 modes numbers of state: modes complex numbers, each
standing for itself and its conjugate, which is why every sum below is twice its real part. Source: Gu, Gupta, Goel and Re
2022 (S4D), arXiv:2206.11893, sections 3 and 4; its authors' code sets B = 1, as here. Differs from that code: the
kernel is a product of two short tables (position l = q i + j, hence e^(lam l) = e^(lam q i) e^(lam j)), which needs
O(modes sqrt(positions)) memory a channel instead of O(modes positions); the activation and the linear maps around the layer
are left to a model's other parts. Stable by construction: the real part of A is minus an exponential.

g(z) = dL/dRe z + i dL/dIm z is the gradient of a complex number; for w = f(z) holomorphic it is g(z) = conj(f'(z)) g(w).

    A = -exp(log_A_real) + i A_imag, step = exp(log_step), lam = step A   (1)
    gain = (e^lam - 1) / A                                               (2)
    c = C gain                                                           (3)
    convolution   kernel_l = 2 Re sum over modes of c e^(lam l)          (4)
                  y = kernel * x                                         (5)
    recurrent     h_t = e^lam h_{t-1} + x_t, h_{-1} = 0                  (6)
                  y_t = 2 Re sum over modes of c h_t                     (7)
    out = y + D x                                                        (8)
    dD = sum of dout x, and dx has a term D dout                         (9)
    convolution   dx, dkernel = gradients of the convolution             (10)
                  g(c) = 2 sum over l of dkernel_l conj(e^(lam l))       (11)
                  g(lam) = conj(c) 2 sum over l of l dkernel_l conj(e^(lam l))   (12)
    recurrent     g_t = conj(e^lam) g_{t+1} + 2 conj(c) dout_t           (13)
                  dx_t = Re sum over modes of g_t                        (14)
                  g(c) = 2 sum over t of dout_t conj(h_t)                (15)
                  g(lam) = conj(e^lam) sum over t of g_t conj(h_{t-1})   (16)
    g(C) = conj(gain) g(c)                                               (17)
    g(lam) has a term conj(C e^lam / A) g(c)                             (18)
    g(A) = step g(lam) - conj(c / A) g(c)                                (19)
    dlog_step = step sum over modes of Re(conj(A) g(lam))                (20)
    dlog_A_real = Re A Re g(A), dA_imag = Im g(A)                        (21)
"""

import math
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Complex, Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, finite, invalid, positive, trusted
from minitransformers.foundation.ranges import Range
from minitransformers.state_space.fft_convolution import fft_convolution
from minitransformers.state_space.hippo import hippo_legs

# What a logarithm here may be: its exponential, taken in double precision, is finite. It may be 0.
_LARGEST = math.log(np.finfo(np.float64).max)
_logarithm = Range("whose exponential is finite", lambda low, high: bool(-math.inf < low and high < _LARGEST), (800.0, math.nan, math.inf))


class S4D(NamedTuple):
    """One diagonal system a channel, in real numbers. C holds real and imaginary parts; log_step is of a time, A of rates."""

    log_step: Annotated[Float[Array, "d_model"], _logarithm]
    log_A_real: Annotated[Float[Array, "d_model modes"], _logarithm]
    A_imag: Annotated[Float[Array, "d_model modes"], finite]
    C: Float[Array, "d_model modes 2"]
    D: Float[Array, "d_model"]


def _start_of_A(kind: str, d_state: int) -> tuple[Array, Array]:
    """The real parts, without their sign, and the imaginary parts of A."""
    n = np.arange(d_state // 2)
    half = np.full(len(n), 0.5)
    if kind == "lin":
        return half, math.pi * n
    if kind == "inv":
        return half, d_state / math.pi * (d_state / (2 * n + 1) - 1)
    if kind == "legs":
        A, B = hippo_legs(d_state)
        skew = A + np.outer(B, B) / 2 + np.eye(d_state) / 2   # eigenvalues come in pairs +-iw
        return half, np.linalg.eigvalsh(-1j * skew)[d_state // 2 :]
    return n + 1.0, np.zeros(len(n))                         # "real"


@checked
def init_s4d(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, d_state: Annotated[int, at_least(2)] = 64,
    kind: Literal["lin", "inv", "legs", "real"] = "lin", step_min: Annotated[float, positive] = 1e-3,
    step_max: Annotated[float, positive] = 0.1, dtype: type = np.float32,
) -> S4D:  # fmt: skip
    """A of one of four kinds, the same in every channel; steps spread evenly by their logarithm; C and D normal.

    "lin", "inv" and "legs" (the normal part of HiPPO-LegS) are complex (S4D, section 4). "real" (Gu and Dao 2023, Mamba,
    arXiv:2312.00752, section 3.6) decays without waves, and stays real when it is trained: the gradients of its imaginary
    parts are 0.
    Raises ValueError when d_state is odd, kind is unknown, or not 0 < step_min <= step_max.
    """
    if d_state % 2:
        raise invalid("d_state", got=d_state, wants="an even number: modes come in conjugate pairs")
    if step_min > step_max:
        raise invalid("step_min", got=step_min, wants=f"at most step_max = {step_max}")
    decay, wave = (np.tile(part, (d_model, 1)) for part in _start_of_A(kind, d_state))
    log_step = rng.uniform(math.log(step_min), math.log(step_max), size=d_model)
    C = rng.standard_normal((*decay.shape, 2)) * math.sqrt(0.5)
    if kind == "real":
        C *= np.array([math.sqrt(2), 0.0])
    D = rng.standard_normal(d_model)
    return S4D(*(part.astype(dtype) for part in (log_step, np.log(decay), wave, C, D)))


def _modes(params: S4D):
    """A, lam, gain, C and step in double precision: lam l is an angle of thousands of radians, and there are few of them.

    Raises ValueError where an A is 0, or not finite times its step.
    """
    log_step, log_A_real, A_imag, C, _ = (part.astype(np.float64) for part in params)
    with np.errstate(over="ignore", invalid="ignore"):
        step, A = np.exp(log_step)[:, None], -np.exp(log_A_real) + 1j * A_imag
        lam = step * A                                       # (d_model, modes)  (1)
    if not A.all():
        raise invalid("params.log_A_real", got="a rate of 0 where A_imag is 0", wants="an A that is not 0")
    if not np.isfinite(lam).all():
        raise invalid("params.log_step", got=f"steps up to {step.max():.3g} of rates up to {np.abs(A).max():.3g}", wants="finite products")
    gain = np.expm1(lam) / A                                 # exp(lam) - 1 would lose the digits of a small step  (2)
    return A, lam, gain, C[..., 0] + 1j * C[..., 1], step


def _convolution(lam, c, x):
    """x is (..., positions, d_model)."""
    positions, dtype = x.shape[-2], np.result_type(x.dtype, np.complex64)
    width = math.isqrt(positions - 1) + 1                    # q: the tables have about the root of the length
    i, j = width * np.arange(-(-positions // width)), np.arange(width)
    coarse, fine = (np.exp(lam[..., None] * l).astype(dtype) for l in (i, j))  # (d_model, modes, len(i)), (.., len(j))
    weighted = c.astype(dtype)[..., None] * coarse
    kernel = 2 * (weighted.mT @ fine).real                   # (d_model, len(i), len(j))  (4)
    kernel = kernel.reshape(len(lam), -1)[:, :positions]
    y, convolution_backward = fft_convolution(x.swapaxes(-1, -2), kernel)  # (5)

    def backward(dy):
        dx, dkernel = convolution_backward(dy.swapaxes(-1, -2))  # (10)
        folded = np.zeros((len(lam), len(i), len(j)), x.dtype)
        folded.reshape(len(lam), -1)[:, :positions] = dkernel
        sums = folded @ fine.conj().mT                       # over j, for each i: (d_model, len(i), modes)
        moments = folded @ (j.astype(x.dtype) * fine.conj()).mT + i.astype(x.dtype)[:, None] * sums  # the same with l = i + j
        dc = 2 * (coarse.conj().mT * sums).sum(-2)           # (11)
        dlam = 2 * c.conj() * (coarse.conj().mT * moments).sum(-2)  # (12)
        return dlam, dc, dx.swapaxes(-1, -2)

    return y.swapaxes(-1, -2), backward


def _recurrent(lam, c, x):
    dtype = np.result_type(x.dtype, np.complex64)
    decay, c = np.exp(lam).astype(dtype), c.astype(dtype)
    inputs = x.reshape(-1, *x.shape[-2:]).swapaxes(0, 1)     # (positions, rows, d_model)
    states = np.repeat(inputs[..., None].astype(dtype), lam.shape[-1], axis=-1)
    for t in range(1, len(states)):
        states[t] += decay * states[t - 1]                   # (6)
    y = 2 * (states * c).sum(-1).real                        # (7)

    def backward(dy):
        douts = dy.reshape(-1, *x.shape[-2:]).swapaxes(0, 1)
        g = 2 * c.conj() * douts[..., None]
        for t in reversed(range(len(g) - 1)):
            g[t] += decay.conj() * g[t + 1]                  # (13)
        dx = g.sum(-1).real.swapaxes(0, 1).reshape(x.shape)  # (14)
        dc = 2 * (douts[..., None] * states.conj()).sum((0, 1))  # (15)
        dlam = decay.conj() * (g[1:] * states[:-1].conj()).sum((0, 1))  # (16)
        return dlam, dc, dx

    return y.swapaxes(0, 1).reshape(x.shape), backward


_VIEWS = {"convolution": _convolution, "recurrent": _recurrent}


@trusted
def s4d_step(
    params: S4D, x: Float[Array, "... new d_model"], state: Complex[Array, "... d_model modes"] | None
) -> tuple[Array, Array]:
    """The outputs of a few new positions, given the state that those before left; ``state`` is None at the start.

    Returns out, shaped like x, and the new state: modes complex numbers a channel, however long the past. Forward only.
    Raises ValueError where x or the state does not fit the parameters.
    """
    if x.shape[-1:] != params.D.shape or x.shape[-2] < 1:
        raise invalid("x", got=f"shape {x.shape}", wants=f"at least 1 position of {len(params.D)} features")
    _, lam, gain, C, _ = _modes(params)
    dtype = np.result_type(x.dtype, np.complex64)
    decay, c = np.exp(lam).astype(dtype), (C * gain).astype(dtype)
    state = np.zeros((*x.shape[:-2], *lam.shape), dtype) if state is None else state
    if state.shape != (*x.shape[:-2], *lam.shape):
        raise invalid("state", got=f"shape {state.shape}", wants=f"{(*x.shape[:-2], *lam.shape)}, the batch of x and the modes")
    out = params.D * x
    for t in range(x.shape[-2]):
        state = decay * state + x[..., t, :, None]
        out[..., t, :] += 2 * (c * state).sum(-1).real
    return out, state


@concept(
    title="S4D",
    source="Gu, Gupta, Goel and Re 2022, arXiv:2206.11893, sections 3 and 4",
    example=lambda rng: _example(rng),
    roles=("mixer",),
    rejects=[
        bad("params.log_A_real", params=S4D(np.zeros(3), np.full((3, 2), -800.0), np.zeros((3, 2)), np.ones((3, 2, 2)), np.ones(3))),
        bad("params.log_step", params=S4D(np.full(3, 700.0), np.full((3, 2), 700.0), np.ones((3, 2)), np.ones((3, 2, 2)), np.ones(3))),
    ],
    step=s4d_step,
)
def s4d(
    params: S4D, x: Float[Array, "... positions d_model"], *, view: Literal["convolution", "recurrent"] = "convolution"
) -> tuple[Array, Backward]:
    """Send every channel of x through a diagonal linear system of its own, which starts at rest. Causal.

    view is "convolution" (all positions at once, by FFT) or "recurrent" (one after the other): two ways to the same numbers.
    Returns out, shaped like x, and backward: dout -> S4D of gradients, dx.
    Raises ValueError when the axes do not fit, or a step, a rate or a frequency is not finite or an A is 0.
    """
    A, lam, gain, C, step = _modes(params)
    c = C * gain                                             # (3)
    y, view_backward = _VIEWS[view](lam, c, x)
    out = y + params.D * x                                   # (8)

    def backward(dout):
        dlam, dc, dx = view_backward(dout)
        dD = (dout * x).reshape(-1, x.shape[-1]).sum(0)      # (9)
        dx = dx + params.D * dout                            # (9)
        dC = gain.conj() * dc                                # (17)
        dlam = dlam + (C * np.exp(lam) / A).conj() * dc      # lam is in the kernel and in the gain  (18)
        dA = step * dlam - (c / A).conj() * dc               # (19)
        dlog_step = (step * (A.conj() * dlam).real).sum(-1)  # (20)
        dlog_A_real, dA_imag = A.real * dA.real, dA.imag     # (21)
        grads = S4D(dlog_step, dlog_A_real, dA_imag, np.stack([dC.real, dC.imag], axis=-1), dD)
        return S4D(*(part.astype(x.dtype) for part in grads)), dx

    return out, backward


def _example(rng):
    log_step, log_A_real = rng.uniform(-2.0, -0.5, size=3), rng.uniform(-1.0, -0.2, size=(3, 2))
    params = S4D(log_step, log_A_real, rng.uniform(0.5, 3.0, size=(3, 2)), rng.normal(size=(3, 2, 2)), rng.normal(size=3))
    return example(params, rng.normal(size=(2, 7, 3)))
