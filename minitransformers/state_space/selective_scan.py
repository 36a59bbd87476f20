"""Selective scan (S6): a linear recurrence that chooses, at each position, what to keep and what to take in.

Source: Gu and Dao 2023, arXiv:2312.00752, algorithm 2. Channel d keeps d_state numbers h; the step delta decides how
fast they fade, B what is written to them, C what is read. All three come from the input: that is the selection. Follows
the authors' code, where the paper differs: the drive is Euler's delta B u, not the zero-order hold's
(exp(delta A) - 1) / A B u; the two agree to first order in delta. delta is positive already (softplus stands outside).

u, delta, z are (positions, channels), B, C (positions, groups, states), A (channels, states), D (channels); h, decay, drive
and adjoint are (channels, states) at each position t. Neighbouring channels share B and C: with r = channels / groups,
channel d writes and reads by those of group g = d // r. Mamba has one group.

    decay_t = exp(delta_t A)                                 (1)
    drive_t = B_t[g] (delta_t u_t)                           (2)
    h_t = decay_t h_{t-1} + drive_t                          (3)
    y_t = sum over states of C_t[g] h_t, plus D u_t          (4)
    out_t = y_t silu(z_t)                                    (5)
    dy_t = dout_t silu(z_t), dz_t = dout_t y_t silu'(z_t)    (6)
    adjoint_t = C_t[g] dy_t + decay_{t+1} adjoint_{t+1}      (7)
    dstate = decay_0 adjoint_0                               (8)
    dC_t = sum over the channels of a group of h_t dy_t      (9)
    dB_t = sum over the channels of a group of adjoint_t (delta_t u_t)   (10)
    dinput_t = sum over states of adjoint_t B_t[g]           (11)
    dexponent_t = adjoint_t decay_t h_{t-1}                  (12)
    du_t = delta_t dinput_t + D dy_t                         (13)
    ddelta_t = u_t dinput_t + sum over states of A dexponent_t   (14)
    dA = sum over t of delta_t dexponent_t                   (15)
    dD = sum over t of u_t dy_t                              (16)

adjoint_t is the gradient of h_t, all that comes later included: (7) is (3) with time reversed and the decay shifted by
one place. The seed of (7) at the end is the gradient of the last state.

This is the plain form: all decays and all states are kept, each d_state times as large as u. selective_scan_blocks is the
same map, faster and in the memory of a few arrays like u; Mamba uses it.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.silu import silu
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid, negative

FOUR_GROUPS = bad("B", B=np.ones((2, 5, 4, 4)), C=np.ones((2, 5, 4, 4)))  # for six channels: both forms refuse it


@concept(
    title="Selective scan (S6)",
    source="Gu and Dao 2023, arXiv:2312.00752, algorithm 2",
    example=lambda rng: example_call(rng),
    rejects=[FOUR_GROUPS],
)
def selective_scan(
    u: Float[Array, "*batch positions d_inner"],
    delta: Annotated[Float[Array, "*batch positions d_inner"], at_least(0)],
    A: Annotated[Float[Array, "d_inner d_state"], negative],
    B: Float[Array, "*batch positions groups d_state"],
    C: Float[Array, "*batch positions groups d_state"],
    D: Float[Array, "d_inner"] | None = None,
    z: Float[Array, "*batch positions d_inner"] | None = None,
    state: Float[Array, "*batch d_inner d_state"] | None = None,
) -> tuple[tuple[Array, Array], Backward]:
    """Read u through a state that fades by exp(delta A), is written along B and read along C.

    delta, in units of time, is at least 0 (0 is softplus underflown: the position is passed over); A, per unit of time,
    is below 0, so that nothing grows. D adds u itself to what is read, z gates the output, state stands before the first
    position; None leaves each of them out.
    Returns (out, state), out shaped like u and the state after the last position, and backward: (dout, dstate) -> one
    gradient each, None for what was None.
    Raises ValueError for a delta below 0, an A that is not, groups that do not divide the channels, and axes that do not fit.
    """
    positions, inputs = u.shape[-2], delta * u
    groups, width = split_channels(B, u.shape[-1])
    by_group = (*u.shape[:-1], groups, width, A.shape[-1])
    # B[g] and C[g] of each channel, (..., positions, d_inner, d_state); those of a single group are not copied.
    write, read = (np.broadcast_to(part[..., None, :], by_group).reshape(*u.shape, -1) for part in (B, C))
    with np.errstate(over="ignore"):                         # delta A = -inf is right: the decay is then 0
        decay = np.exp(delta[..., None] * A)                 # (..., positions, d_inner, d_state)  (1)
    drive = write * inputs[..., None]                        # (2)
    states = [np.zeros((*u.shape[:-2], *A.shape), u.dtype) if state is None else state]
    for t in range(positions):
        states.append(decay[..., t, :, :] * states[-1] + drive[..., t, :, :])  # (3)
    all_states = np.stack(states, axis=-3)                   # (..., 1 + positions, d_inner, d_state)
    before, h = all_states[..., :-1, :, :], all_states[..., 1:, :, :]
    y = np.vecdot(h, read)
    if D is not None:
        y = y + D * u                                        # (4)
    out = y
    if z is not None:
        gate, gate_backward = silu(z)
        out = y * gate                                       # (5)

    def backward(dresult):
        dy, dlast = dresult
        dz = None
        if z is not None:
            dy, dz = dy * gate, gate_backward(dy * y)        # (6)
        direct = read * dy[..., None]                        # what reaches h_t through y_t
        future, adjoints = dlast, []                         # what reaches it through h_{t+1}
        for t in reversed(range(positions)):
            adjoints.append(direct[..., t, :, :] + future)   # (7)
            future = decay[..., t, :, :] * adjoints[-1]
        dstate = None if state is None else future           # (8)
        adjoint = np.stack(adjoints[::-1], axis=-3)
        dC = (h * dy[..., None]).reshape(by_group).sum(-2)   # a group shares C and B: the gradients of its channels add  (9)
        dB = (adjoint * inputs[..., None]).reshape(by_group).sum(-2)  # (10)
        dinput = np.vecdot(adjoint, write)                   # (11)
        dexponent = adjoint * decay * before                 # (12)
        du = delta * dinput
        if D is not None:
            du = du + D * dy                                 # u is in the drive and beside the state: two terms  (13)
        ddelta = u * dinput + np.vecdot(dexponent, A)        # delta is in the drive and in the decay: two terms  (14)
        axes = tuple(range(u.ndim - 1))                      # batch and positions
        dA = (delta[..., None] * dexponent).sum(axes)        # (15)
        dD = None if D is None else (u * dy).sum(axes)       # (16)
        return du, ddelta, dA, dB, dC, dD, dz, dstate

    return (out, states[-1]), backward


def split_channels(B: Array, channels: int) -> tuple[int, int]:
    """The number of groups, and how many channels are in each. Raises ValueError where the groups do not divide the channels."""
    groups = B.shape[-2]
    if channels % groups:
        raise invalid("B", got=f"{groups} groups", wants=f"a number of groups that divides the {channels} channels")
    return groups, channels // groups


def example_call(rng: np.random.Generator, **config):
    """The small call of both forms: 6 channels in 3 groups, with skip, gate and an initial state."""
    u, z, delta = rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 5, 6)), rng.uniform(0.2, 1.5, size=(2, 5, 6))
    A, D, B, C = -rng.uniform(0.3, 2.0, size=(6, 4)), rng.normal(size=6), rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(2, 5, 3, 4))
    return example(u, delta, A, B, C, D, z, rng.normal(size=(2, 6, 4)), **config)
