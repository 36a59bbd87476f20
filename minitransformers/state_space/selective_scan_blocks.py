"""Selective scan in blocks: time taken in pieces that fit in L2, whose states are not kept but made again on the way back.

The equations are those of selective_scan, and the lines below carry their numbers. What differs is the order of work:

    forward     a block at a time: (1) to (4), of whose states only the last is kept; it starts the next block
    backward    the blocks from the last to the first: (1) to (3) once more from the state kept, then (7) and (9) to (15);
                decay_0 adjoint_0 of a block, its (8), is the seed of (7) in the block before

So what is kept is as large as u and one state a block, and a block stays in L2 from its first line to its last. The groups
are an axis of their own, so that B and C meet all channels of one at once; and states stand before channels, since NumPy is
fast along a last axis that is long. Costs a second forward scan: a quarter of the backward's products. Source: Gu and Dao
2023, arXiv:2312.00752, section 3.3.2: the authors' kernel makes the states again, too.
"""

import math
from functools import partial
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.silu import silu
from minitransformers.foundation import Backward, at_least, concept, negative
from minitransformers.state_space.linear_scan import scan
from minitransformers.state_space.selective_scan import FOUR_GROUPS, example_call, split_channels

_IN_CACHE = 2**18  # numbers: a block of states, or the few arrays beside it, fits in L2


@concept(
    title="Selective scan in blocks",
    source="Gu and Dao 2023, arXiv:2312.00752, section 3.3.2",
    example=lambda rng: example_call(rng, chunk=2),
    form_of="selective_scan",
    rejects=[FOUR_GROUPS],
)
def selective_scan_blocks(
    u: Float[Array, "*batch positions d_inner"],
    delta: Annotated[Float[Array, "*batch positions d_inner"], at_least(0)],
    A: Annotated[Float[Array, "d_inner d_state"], negative],
    B: Float[Array, "*batch positions groups d_state"],
    C: Float[Array, "*batch positions groups d_state"],
    D: Float[Array, "d_inner"] | None = None,
    z: Float[Array, "*batch positions d_inner"] | None = None,
    state: Float[Array, "*batch d_inner d_state"] | None = None,
    *,
    form: Literal["sequential", "associative", "chunked"] = "sequential",
    chunk: Annotated[int, at_least(1)] = 64,
) -> tuple[tuple[Array, Array], Backward]:
    """What selective_scan gives, faster and in less memory; arguments, results and errors are its own.

    form is as in linear_scan: "sequential" takes blocks of ``chunk`` positions (fewer where states are very wide), the other two
    the whole length at once, "chunked" in chunks of ``chunk``. Neither changes a result.
    """

    groups, width = split_channels(B, u.shape[-1])
    positions, d_state, batch = u.shape[-2], A.shape[-1], math.prod(u.shape[:-2])

    def time_first(rows: Array) -> Array:                    # to (positions, batch, groups, width), of B and C d_state last
        return rows.reshape(batch, positions, groups, -1).swapaxes(0, 1)

    def batch_first(rows: Array, like: Array) -> Array:
        return rows.swapaxes(0, 1).reshape(like.shape)

    def states_first(states: Array) -> Array:                # (..., d_inner, d_state) to (..., groups, d_state, width)
        return states.reshape(-1, groups, width, d_state).swapaxes(-1, -2)

    def states_last(states: Array, like: tuple[int, ...]) -> Array:
        return states.swapaxes(-1, -2).reshape(like)

    u_, delta_, B_, C_ = time_first(u), time_first(delta), time_first(B), time_first(C)
    rates = np.ascontiguousarray(states_first(A)[0])         # (groups, d_state, width)
    inputs = delta_ * u_                                     # (positions, batch, groups, width)
    solve = partial(scan, form=form, chunk=chunk)
    blocks = _blocks(positions, batch * A.size, form=form, chunk=chunk)

    def states_of(part: slice, start: Array) -> tuple[Array, Array]:
        """decay and h of one block, given the state before it, both (block, batch, groups, d_state, width)."""
        with np.errstate(over="ignore"):                     # delta A = -inf is right: the decay is then 0
            decay = delta_[part, ..., None, :] * rates
        np.exp(decay, out=decay)                             # (1)
        drive = B_[part, ..., None] * inputs[part, ..., None, :]  # (2)
        return decay, solve(decay, drive, start)             # (3)

    starts = [np.zeros((batch, *rates.shape), u.dtype) if state is None else np.ascontiguousarray(states_first(state))]
    y = np.empty_like(inputs)
    for part in blocks:
        h = states_of(part, starts[-1])[1]
        y[part] = (C_[part, ..., None, :] @ h)[..., 0, :]    # (4)
        starts.append(h[-1].copy())                          # all that is kept of the block
    out = batch_first(y, u)
    if D is not None:
        out += D * u                                         # (4)
    ungated = out
    if z is not None:
        gate, gate_backward = silu(z)
        out = ungated * gate                                 # (5)
    last = states_last(starts[-1], (*u.shape[:-2], *A.shape))

    def backward(dresult):
        dout, dlast = dresult
        dz = None if z is None else gate_backward(dout * ungated)
        dy = dout if z is None else dout * gate              # (6)
        dy_ = time_first(dy)
        dinput, ddelta = np.zeros((2, *inputs.shape), u.dtype)
        dB, dC = np.zeros((2, *B_.shape), u.dtype)
        drates = np.zeros_like(rates)
        dstate = states_first(dlast)                         # what reaches the state after a block
        for part, start in zip(reversed(blocks), reversed(starts[:-1]), strict=True):
            decay, h = states_of(part, start)                # made again, not kept
            direct = C_[part, ..., None] * dy_[part, ..., None, :]
            shifted = np.concatenate([decay[1:], np.ones_like(decay[:1])])  # h_t reaches h_{t+1} through decay_{t+1}
            adjoint = solve(shifted[::-1], direct[::-1], dstate)[::-1]  # (7)
            dC[part] = (h @ dy_[part, ..., None])[..., 0]    # (9)
            dB[part] = (adjoint @ inputs[part, ..., None])[..., 0]  # (10)
            dinput[part] = (B_[part, ..., None, :] @ adjoint)[..., 0, :]  # (11)
            dexponent = adjoint
            dexponent *= decay
            dstate = dexponent[0].copy()                     # seeds the block before; of the first block it is  (8)
            dexponent[1:] *= h[:-1]
            dexponent[0] *= start                            # (12)
            drates += np.einsum("tbgnd,tbgd->gnd", dexponent, delta_[part])  # (15)
            dexponent *= rates
            ddelta[part] = dexponent.sum(axis=-2)            # the second term of  (14)
        ddelta += u_ * dinput                                # the first  (14)
        du = batch_first(delta_ * dinput, u)
        dD = None
        if D is not None:
            du += D * dy                                     # (13)
            dD = (u * dy).sum(tuple(range(u.ndim - 1)))      # (16)
        dstate_in = None if state is None else states_last(dstate, state.shape)
        dA = states_last(drates, A.shape)
        return du, batch_first(ddelta, u), dA, batch_first(dB, B), batch_first(dC, C), dD, dz, dstate_in

    return (out, last), backward


def _blocks(positions: int, lanes: int, *, form: str, chunk: int) -> list[slice]:
    """Time in blocks of at most chunk positions, fewer where their states would not fit in L2; whole for parallel forms."""
    block = min(chunk, max(1, _IN_CACHE // lanes)) if form == "sequential" else positions
    return [slice(start, min(start + block, positions)) for start in range(0, positions, block)]
