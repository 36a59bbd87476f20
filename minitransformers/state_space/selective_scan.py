"""Selective scan (S6): a linear recurrence that chooses, at each position, what to keep and what to take in.

Source: Gu and Dao 2023, arXiv:2312.00752, algorithm 2. Channel d keeps d_state numbers h; the step delta decides how
fast they fade, B what is written to them, C what is read. All three come from the input: that is the selection. Follows
the authors' code, where the paper differs: the drive is Euler's delta B u, not the zero-order hold's
(exp(delta A) - 1) / A B u; the two agree to first order in delta. delta is positive already (softplus stands outside).

u, delta, z are (positions, channels), B, C (positions, states), A (channels, states), D (channels); h, decay, drive and
adjoint are (states, channels) at each position t.

    decay_t = exp(delta_t A)                                 (1)
    drive_t = B_t (delta_t u_t)                              (2)
    h_t = decay_t h_{t-1} + drive_t                          (3)
    y_t = sum over states of C_t h_t, plus D u_t             (4)
    out_t = y_t silu(z_t)                                    (5)
    dy_t = dout_t silu(z_t), dz_t = dout_t y_t silu'(z_t)    (6)
    adjoint_t = C_t dy_t + decay_{t+1} adjoint_{t+1}         (7)
    dstate = decay_0 adjoint_0                               (8)
    dC_t = sum over channels of h_t dy_t                     (9)
    dB_t = sum over channels of adjoint_t (delta_t u_t)      (10)
    dinput_t = sum over states of adjoint_t B_t              (11)
    dexponent_t = adjoint_t decay_t h_{t-1}                  (12)
    du_t = delta_t dinput_t + D dy_t                         (13)
    ddelta_t = u_t dinput_t + sum over states of A dexponent_t   (14)
    dA = sum over t of delta_t dexponent_t                   (15)
    dD = sum over t of u_t dy_t                              (16)

adjoint_t is the gradient of h_t, all that comes later included: (7) is (3) with time reversed and the decay shifted by
one place. The seed of (7) at the end is the gradient of the last state.

Time is taken in blocks that fit in the cache. Only the states between blocks are kept; the backward makes the states
inside a block again from the one before it, as the authors' kernel does. So memory is that of u and one state a block.
"""

from functools import partial

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.silu import silu
from minitransformers.foundation import bad, concept, example, invalid
from minitransformers.state_space.linear_scan import check_form, scan

_IN_CACHE = 2**18  # numbers: a block of states, or the few arrays beside it, is at home in a core's cache


def _blocks(n: int, lanes: int, *, form: str, chunk: int) -> list[slice]:
    """Time in blocks of at most chunk positions, fewer where their states would leave the cache; whole for parallel forms."""
    block = min(chunk, max(1, _IN_CACHE // lanes)) if form == "sequential" else n
    return [slice(start, min(start + block, n)) for start in range(0, n, block)]


def _example(rng):
    u, z, delta = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 3)), rng.uniform(0.2, 1.5, size=(2, 5, 3))
    A, D, B, C = -rng.uniform(0.3, 2.0, size=(3, 4)), rng.normal(size=3), rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 4))
    return example(u, delta, A, B, C, D, z, rng.normal(size=(2, 3, 4)), chunk=2)


@concept(
    title="Selective scan (S6)",
    source="Gu and Dao 2023, arXiv:2312.00752, algorithm 2",
    example=_example,
    rejects=[
        bad(delta=np.full((2, 5, 3), -0.1)),
        bad(delta=np.full((2, 5, 3), np.nan)),
        bad(delta=np.full((2, 5, 3), np.inf)),
        bad(A=np.zeros((3, 4))),
        bad(A=np.full((3, 4), np.nan)),
        bad(A=np.full((3, 4), -np.inf)),
        bad("A", A=-np.ones((3, 5))),
        bad("u", u=np.ones((2, 0, 3)), delta=np.ones((2, 0, 3))),
        bad(delta=np.ones((2, 4, 3))),
        bad(B=np.ones((2, 6, 4))),
        bad(C=np.ones((2, 5, 3))),
        bad(C=np.ones((3, 5, 4))),
        bad(D=np.ones(4)),
        bad(z=np.ones((2, 5, 4))),
        bad(state=np.ones((2, 4, 3))),
        bad(form="parallel"),
        bad(chunk=0),
        bad(chunk=2.5),
    ],
)
def selective_scan(
    u: Float[Array, "*batch positions d_inner"],
    delta: Float[Array, "*batch positions d_inner"],
    A: Float[Array, "d_inner d_state"],
    B: Float[Array, "*batch positions d_state"],
    C: Float[Array, "*batch positions d_state"],
    D: Float[Array, "d_inner"] | None = None,
    z: Float[Array, "*batch positions d_inner"] | None = None,
    state: Float[Array, "*batch d_inner d_state"] | None = None,
    *,
    form: str = "sequential",
    chunk: int = 64,
):
    """Read u through a state that fades by exp(delta A), is written along B and read along C.

    delta, in units of time, is at least 0 (0 is softplus underflown: the position is passed over); A, per unit of time,
    is below 0, so that nothing grows. z gates the output where given, D passes u by the state, state stands before the
    first position (None: zeros). form is as in linear_scan: "sequential" takes blocks of ``chunk`` positions, the other
    two the whole length at once, "chunked" in chunks of ``chunk``. chunk is at least 1 and changes no result; blocks of
    very wide states are shorter than it.
    Returns (out, state), out shaped like u and the state after the last position, and backward: (dout, dstate) -> one
    gradient each, None for what was None.
    Raises ValueError for a delta that is negative or not finite, an A that is not negative and finite, an unknown form, a
    chunk below 1 and axes that do not fit.
    """
    check_form(form, chunk)
    for name, array, fits, wants in (
        ("delta", delta, np.min(delta) >= 0 and np.max(delta) < np.inf, "finite steps of at least 0, as softplus makes them"),
        ("A", A, np.max(A) < 0 and np.min(A) > -np.inf, "finite entries below 0, or the state grows"),
    ):                                                       # NaN is its array's least and largest number, and fits nowhere
        if not fits:
            raise invalid(name, got=f"numbers from {np.min(array):.3g} to {np.max(array):.3g}", wants=wants)

    def time_first(rows: Array) -> Array:                    # (..., n, width) to (n, batch, width)
        return rows.reshape(-1, *rows.shape[-2:]).swapaxes(0, 1)

    def batch_first(rows: Array, like: Array) -> Array:
        return rows.swapaxes(0, 1).reshape(like.shape)

    # States come before channels inside: the long axis is last, where NumPy is fast.
    u_, delta_, B_, C_ = time_first(u), time_first(delta), time_first(B), time_first(C)
    rates = np.ascontiguousarray(A.T)                        # (d_state, d_inner)
    n, batch, _ = u_.shape
    inputs = delta_ * u_                                     # (n, batch, d_inner)
    solve = partial(scan, form=form, chunk=chunk)
    blocks = _blocks(n, batch * A.size, form=form, chunk=chunk)

    def states_of(part: slice, start: Array) -> tuple[Array, Array]:
        """decay and h of one block, given the state before it, both (block, batch, d_state, d_inner)."""
        with np.errstate(over="ignore"):                     # delta A = -inf is right: the decay is then 0
            decay = delta_[part, :, None, :] * rates
        np.exp(decay, out=decay)                             # (1)
        drive = B_[part, :, :, None] * inputs[part, :, None, :]  # (2)
        return decay, solve(decay, drive, start)             # (3)

    if state is None:
        starts = [np.zeros((batch, *rates.shape), u.dtype)]
    else:
        starts = [np.ascontiguousarray(state.reshape(batch, *A.shape).swapaxes(-1, -2))]
    y = np.empty_like(inputs)
    for part in blocks:
        h = states_of(part, starts[-1])[1]
        y[part] = (C_[part, :, None, :] @ h)[:, :, 0]        # (4)
        starts.append(h[-1].copy())                          # all that is kept of the block
    if D is not None:
        y += D * u_                                          # (4)
    out = batch_first(y, u)
    ungated = out
    if z is not None:
        gate, gate_backward = silu(z)
        out = ungated * gate                                 # (5)
    last = starts[-1].swapaxes(-1, -2).reshape(*u.shape[:-2], *A.shape)

    def backward(dresult):
        dout, dlast = dresult
        dz = None if z is None else gate_backward(dout * ungated)
        dy = time_first(dout if z is None else dout * gate)  # (6)
        dinput, ddelta = np.zeros((2, *inputs.shape), u.dtype)
        dB, dC = np.zeros((2, *B_.shape), u.dtype)
        drates = np.zeros_like(rates)
        dstate = dlast.reshape(batch, *A.shape).swapaxes(-1, -2)  # what the future says of the state after a block
        for part, start in zip(reversed(blocks), reversed(starts[:-1]), strict=True):
            decay, h = states_of(part, start)                # made again, not kept
            direct = C_[part, :, :, None] * dy[part, :, None, :]  # what y_t says of h_t
            shifted = np.concatenate([decay[1:], np.ones_like(decay[:1])])  # h_t reaches h_{t+1} through decay_{t+1}
            adjoint = solve(shifted[::-1], direct[::-1], dstate)[::-1]  # (7)
            dC[part] = (h @ dy[part, :, :, None])[..., 0]    # channels share C and B: their gradients add  (9)
            dB[part] = (adjoint @ inputs[part, :, :, None])[..., 0]  # (10)
            dinput[part] = (B_[part, :, None, :] @ adjoint)[:, :, 0]  # (11)
            dexponent = adjoint
            dexponent *= decay
            dstate = dexponent[0].copy()                     # seeds the block before; of the first block it is  (8)
            dexponent[1:] *= h[:-1]
            dexponent[0] *= start                            # (12)
            drates += np.einsum("tbnd,tbd->nd", dexponent, delta_[part])  # (15)
            dexponent *= rates
            ddelta[part] = dexponent.sum(axis=-2)            # the second term of  (14)
        # delta stands in the decay and in the drive: two terms. u stands in the drive and beside the state.
        ddelta += u_ * dinput                                # the first  (14)
        du = delta_ * dinput
        if D is not None:
            du += D * dy                                     # (13)
        dD = None if D is None else np.sum(u_ * dy, axis=(0, 1))  # (16)
        dstate_in = None if state is None else dstate.swapaxes(-1, -2).reshape(state.shape)
        return (
            batch_first(du, u), batch_first(ddelta, u), drates.T, batch_first(dB, B), batch_first(dC, C), dD, dz, dstate_in,
        )  # fmt: skip

    return (out, last), backward
