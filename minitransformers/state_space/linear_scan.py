"""Linear scan: h_t = decay_t h_{t-1} + drive_t at every t, in one of three orders of work.

The recurrence looks serial, but two of its steps make a step of the same kind: after (a1, x1) comes (a2, x2), together
(a2 a1, a2 x1 + x2). This composition is associative, so the steps may be bracketed in any way. Sources: Blelloch 1990,
Prefix Sums and Their Applications, section 1.4; Martin and Cundy 2017, arXiv:1709.04057 (its use in recurrent
networks). Multiplications for each lane at length L and chunk Q, and how many operations wait for one another:

    sequential     L     L               one position after the other
    associative    3 L   3 log2(L)       pairs, pairs of pairs, and down again
    chunked        3 L   2 Q + L / Q     all chunks in lockstep, then what each passes on

    h_t = decay_t h_{t-1} + drive_t                          (1)
    pair: decay = decay_t decay_{t-1}, drive = decay_t drive_{t-1} + drive_t         (2)
    h at odd t = the scan of the pairs; at even t by (1) from its neighbour          (3)
    in a chunk: product_t = decay_t product_{t-1}, local_t = decay_t local_{t-1} + drive_t,   product_0 = decay_0   (4)
    carry_c = h at the end of chunk c = product carry_{c-1} + local                  (5)
    h_t = product_t carry_{c-1} + local_t                                            (6)
    adjoint_t = dstates_t + decay_{t+1} adjoint_{t+1}        (7)
    ddrive_t = adjoint_t                                     (8)
    ddecay_t = adjoint_t h_{t-1}                             (9)
    dstate = decay_0 adjoint_0                               (10)

(7) is (1) with time reversed and the decay shifted by one place: the backward of each form is the same form.
"""

from functools import partial
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, concept, example


def scan(decay: Array, drive: Array, state: Array, *, form: str = "sequential", chunk: int = 64) -> Array:
    """All states, time first: decay and drive (positions, ...), and state (...) before the first. No backward, no checks."""
    states = np.empty_like(drive)
    if form == "sequential":
        for decay_t, drive_t, out in zip(decay, drive, states, strict=True):
            np.multiply(decay_t, state, out=out)
            out += drive_t                                   # (1)
            state = out
        return states
    states[0] = decay[0] * state + drive[0]                  # the scan of the rest starts from nothing
    states[1:] = drive[1:]
    return _associative(decay, states) if form == "associative" else _chunked(decay, states, chunk)


def _associative(decay: Array, states: Array) -> Array:
    """Any length: pair up, scan half as many pairs, fill in between. states holds the drive and is written over."""
    if len(states) == 1:
        return states
    odd, even = slice(1, None, 2), slice(0, len(states) - 1, 2)
    pair_decay = decay[odd] * decay[even]
    pair_drive = decay[odd] * states[even] + states[odd]     # (2)
    states[odd] = _associative(pair_decay, pair_drive)
    states[2::2] += decay[2::2] * states[1:-1:2]             # (3)
    return states


def _chunked(decay: Array, drive: Array, chunk: int) -> Array:
    """Step j of all chunks at once: time is cut to (chunk, chunks, ...), so that a step is one contiguous block."""
    positions, lanes = len(drive), drive.shape[1:]
    chunk = min(chunk, positions)
    chunks = -(-positions // chunk)

    def cut(rows: Array) -> Array:                           # the tail of the last chunk is zeros, and is never read
        padded = np.zeros_like(rows, shape=(chunks * chunk, *lanes))
        padded[:positions] = rows
        return padded.reshape(chunks, chunk, *lanes).swapaxes(0, 1).copy()

    products, states = cut(decay), cut(drive)
    for j in range(1, chunk):
        states[j] += products[j] * states[j - 1]
        products[j] *= products[j - 1]                       # after the line above, which needs the bare decay  (4)
    carries = states[-1].copy()
    for c in range(1, chunks):
        carries[c] += products[-1, c] * carries[c - 1]       # (5)
    states[:, 1:] += products[:, 1:] * carries[:-1]          # (6)
    return states.swapaxes(0, 1).reshape(chunks * chunk, *lanes)[:positions]


@concept(
    title="Linear scan (sequential, associative, chunked)",
    source="Blelloch 1990, Prefix Sums and Their Applications, section 1.4; Martin and Cundy 2017, arXiv:1709.04057",
    example=lambda rng: example(rng.uniform(0.2, 1.2, size=(2, 5, 3)), rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 3))),
)
def linear_scan(
    decay: Float[Array, "*batch positions lanes"],
    drive: Float[Array, "*batch positions lanes"],
    state: Float[Array, "*batch lanes"] | None = None,
    *,
    form: Literal["sequential", "associative", "chunked"] = "sequential",
    chunk: Annotated[int, at_least(1)] = 64,
) -> tuple[Array, Backward]:
    """Every state of the recurrence; lanes run side by side and do not meet.

    state is what stands before the first position (None: zeros). form is "sequential", "associative" or "chunked", in
    chunks of ``chunk`` positions, at least 1, which need not divide the length. All give the same up to rounding, as long as
    no product of decays overflows: with decays above 1 that can happen where every state is finite, and the two parallel
    forms then give NaN (infinity times 0). "sequential" makes no products of decays and overflows only where a state does.
    Returns states, shaped like drive, and backward: dstates -> ddecay, ddrive, dstate.
    Raises ValueError for an unknown form, a chunk below 1, and axes that do not fit.
    """
    start = np.zeros_like(drive[..., 0, :]) if state is None else state
    decay_rows, drive_rows = (np.moveaxis(a, -2, 0) for a in (decay, drive))  # time first: a step is one slice
    solve = partial(scan, form=form, chunk=chunk)
    states = solve(decay_rows, drive_rows, start)            # (positions, ..., lanes)

    def backward(dstates):
        nothing = np.zeros_like(decay_rows[:1])
        shifted = np.concatenate([decay_rows[1:], nothing])  # state t reaches state t + 1 through decay t + 1
        dstates = np.moveaxis(dstates, -2, 0)
        adjoint = solve(shifted[::-1], dstates[::-1], nothing[0])[::-1]  # (7)
        ddrive = np.moveaxis(adjoint, 0, -2)                 # (8)
        ddecay = np.moveaxis(adjoint * np.concatenate([start[None], states[:-1]]), 0, -2)  # (9)
        dstate = decay_rows[0] * adjoint[0]                  # (10)
        return ddecay, ddrive, None if state is None else dstate

    return np.moveaxis(states, 0, -2), backward
