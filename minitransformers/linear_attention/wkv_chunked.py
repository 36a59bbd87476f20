"""WKV in chunks: every chunk takes its first step at once, then its second, so that few steps go over many positions.

The equations are those of wkv, and so are the numbers on the lines. Given the log-totals, all else is linear: (2) says
mean_t = (1 - write_t) mean_{t-1} + write_t v_t, and (12) and (13) are such recurrences with the time reversed. A recurrence is
solved in three passes over about sqrt(positions) chunks of as many positions:

    within      all chunks side by side from an empty start, a position of each at a time
    between     the state before each chunk, from what the one before it began with and added
    together    what a chunk began with, as far as it is left, is added to its positions

That is 2 sqrt(positions) steps in the place of positions, and twice the work in each. Source: Blelloch 1990, Prefix sums and their
applications, section 1.4; Peng et al. 2023, arXiv:2305.13048, note that the recurrence could be run as a parallel scan.
"""

from math import isqrt
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.sigmoid import sigmoid
from minitransformers.foundation import Backward, concept, positive
from minitransformers.linear_attention.wkv import WkvState, empty_past, example_call


@concept(
    title="WKV in chunks",
    source="Peng et al. 2023, arXiv:2305.13048, eq. 16; Blelloch 1990, Prefix sums and their applications, section 1.4",
    example=lambda rng: example_call(rng),
    roles=("recurrence",),
    form_of="wkv",
)
def wkv_chunked(
    decay: Annotated[Float[Array, "channels"], positive],
    bonus: Float[Array, "channels"],
    key: Float[Array, "*batch positions channels"],
    value: Float[Array, "*batch positions channels"],
    state: WkvState | None = None,
) -> tuple[tuple[Array, WkvState], Backward]:
    """What wkv gives, many times sooner on a long text; arguments, results and errors are its own."""
    k, v = (np.ascontiguousarray(np.moveaxis(a, -2, 0)) for a in (key, value))  # (positions, *batch, channels)
    past = empty_past(key) if state is None else state
    total, last_total = _log_totals(decay, k, past.log_total)  # before each position, and after the last  (3)
    write = sigmoid(k - (total - decay))[0]                  # (1)
    read = sigmoid(bonus + k - total)[0]                     # (4)
    mean, last_mean = _linear(1 - write, write * v, past.mean)  # (2)
    out = mean + read * (v - mean)                           # (5)

    def backward(dresult):
        dout, (dmean_last, dtotal_last) = dresult
        dy = np.moveaxis(dout, -2, 0)
        kept = 1 - write[::-1]
        dmean, dmean_first = _linear(kept, ((1 - read) * dy)[::-1], dmean_last)  # (12)
        dmean = dmean[::-1]                                  # after each position
        dread = read * (1 - read) * (v - mean) * dy          # (6)
        dwrite = write * (1 - write) * (v - mean) * dmean    # (7)
        dtotal, dtotal_first = _linear(kept, -(dread + dwrite)[::-1], dtotal_last)  # (13)
        dtotal = dtotal[::-1]
        dv = read * dy + write * dmean                       # (8)
        dk = dread + dwrite + write * dtotal                 # (9)
        axes = tuple(range(k.ndim - 1))
        dbonus = dread.sum(axes)                             # (10)
        ddecay = (dwrite - (1 - write) * dtotal).sum(axes)   # (11)
        dstate = None if state is None else WkvState(dmean_first, dtotal_first)
        return ddecay, dbonus, np.moveaxis(dk, 0, -2), np.moveaxis(dv, 0, -2), dstate

    return (np.moveaxis(out, 0, -2), WkvState(last_mean, last_total)), backward


def _linear(kept: Array, added: Array, start: Array) -> tuple[Array, Array]:
    """h before each step of h <- kept_t h + added_t, and after the last; time is the first axis."""
    size = isqrt(len(kept))
    kept_in, added_in, whole = _chunks(kept, size), _chunks(added, size), len(kept) // size * size
    within, left = np.empty_like(added_in), np.empty_like(kept_in)
    h, p = np.zeros_like(added_in[:, 0]), np.ones_like(kept_in[:, 0])
    for j in range(size):                                    # within the chunks, side by side
        within[:, j], left[:, j] = h, p
        h, p = kept_in[:, j] * h + added_in[:, j], kept_in[:, j] * p
    before = np.empty_like(h)
    for i in range(len(h)):                                  # between them
        before[i] = start
        start = p[i] * start + h[i]
    left *= before[:, None]
    within += left                                           # together
    states = [within.reshape(whole, *kept.shape[1:])]
    for t in range(whole, len(kept)):                        # fewer than a chunk remain
        states.append(start[None])
        start = kept[t] * start + added[t]
    return np.concatenate(states), start


def _log_totals(decay: Array, k: Array, start: Array) -> tuple[Array, Array]:
    """The same for total <- log(exp(total - decay) + exp(k_t))."""
    size = isqrt(len(k))
    chunks, whole = _chunks(k, size), len(k) // size * size
    within, total = np.empty_like(chunks), np.full_like(chunks[:, 0], -np.inf)
    for j in range(size):
        within[:, j] = total
        total = _log_sum(total - decay, chunks[:, j])
    before = np.empty_like(total)
    for i in range(len(total)):
        before[i] = start
        start = _log_sum(start - size * decay, total[i])
    ago = np.arange(1, size, dtype=k.dtype).reshape(-1, *[1] * (k.ndim - 1))
    within[:, 0] = before
    within[:, 1:] = _log_sum(within[:, 1:], before[:, None] - ago * decay)
    states = [within.reshape(k[:whole].shape)]
    for t in range(whole, len(k)):
        states.append(start[None])
        start = _log_sum(start - decay, k[t])
    return np.concatenate(states), start


def _log_sum(a: Array, b: Array) -> Array:
    """log(exp(a) + exp(b)), of which at most one is 0. np.logaddexp says the same, a number at a time, and is slower."""
    return np.maximum(a, b) - np.log(sigmoid(np.abs(a - b))[0])


def _chunks(rows: Array, size: int) -> Array:
    """The first positions as (chunks, size, ...); fewer than size are left over."""
    whole = len(rows) // size * size
    return rows[:whole].reshape(whole // size, size, *rows.shape[1:])
