"""Eidetic memory: a few tokens of long ago kept verbatim, those that were hardest to predict.

An innovation test decides: a token whose prediction from the past fails badly cannot be had again from the past, so it is
worth its place. A choice has no derivative (almost everywhere it is zero), so nothing here has a backward; all of it is
computed in float64, whatever comes in. Source: Zancato et al. 2024, arXiv:2407.06324 (B'MOJO), for the idea. What the
paper leaves open is ours:

- The predictor. Each feature of x_t is predicted from the same feature of a recurrence's output one position before,
  f_{t-1}, times a gain fitted to the text so far by least squares. The denominator counts the present position as well,
  which bounds the prediction (Vovk 2001, Azoury and Warmuth 2001). No parameters: nothing has to train it.
- No threshold and no schedule: the memory holds the largest innovations of all that has left the window.
- Innovations that agree to 12 bits count as equal. A text read at once and the same text read token by token differ in
  rounding: where a token occurs twice, that alone would decide which of the two stays.

    gain_t = sum_{s<t} f_{s-1} x_s / sum_{s<=t} f_{s-1}^2, for each feature   (1)
    innovation_t = |x_t - gain_t f_{t-1}|^2, rounded to 12 bits   (2)
    E_i = the ``memory`` largest innovations among j <= i - window, the earlier of equals   (3)

A token that was ever left out never comes back, so (3) can be kept up to date by one comparison a position (``admit``),
or by one sort a block of positions (``choose``); the two are equal. Time O(positions (window + memory)), with a logarithm.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array


class Predictor(NamedTuple):
    """What the fit of the gains remembers: the recurrence's last output, and the two sums of (1)."""

    last: Float[Array, "*batch 1 d_model"]
    products: Float[Array, "*batch 1 d_model"]
    squares: Float[Array, "*batch 1 d_model"]


class Eidetic(NamedTuple):
    """The tokens kept: what is kept of each (a row a head), its innovation, its position."""

    rows: Float[Array, "*batch heads kept d_row"]
    innovation: Float[Array, "*batch kept"]
    position: Int[Array, "*batch kept"]


def innovation(
    x: Float[Array, "*batch positions d_model"], fading: Float[Array, "*batch positions d_model"], before: Predictor | None = None
) -> tuple[Float[Array, "*batch positions"], Predictor]:
    """How far each token is from its prediction, in units of x squared; and what the fit remembers of the text so far."""
    x, fading = x.astype(np.float64), fading.astype(np.float64)
    if before is None:
        before = Predictor(*np.zeros((3, *x[..., :1, :].shape)))
    past = np.concatenate([before.last, fading[..., :-1, :]], axis=-2)  # row t is f_{t-1}
    products = np.cumsum(np.concatenate([before.products, past * x], axis=-2), axis=-2)
    squares = np.cumsum(np.concatenate([before.squares, past * past], axis=-2), axis=-2)
    gain = products[..., :-1, :] / np.maximum(squares[..., 1:, :], np.finfo(np.float64).tiny)  # 0 / 0 predicts 0  (1)
    error = x - gain * past
    mantissa, exponent = np.frexp(np.vecdot(error, error))
    found = np.ldexp(np.round(mantissa * 4096) / 4096, exponent)  # (2)
    return found, Predictor(fading[..., -1:, :], products[..., -1:, :], squares[..., -1:, :])


def choose(
    innovation: Float[Array, "*batch positions"], *, window: int, memory: int
) -> tuple[Int[Array, "*batch blocks memory"], Bool[Array, "*batch blocks window both"]]:
    """(3) for every query, the queries in blocks of ``window``: places, and which of them each query has chosen.

    During a block only tokens of the block before leave the window, so E_i is a part of these and of the memory at the
    block's start. places are the positions in that memory, negative where it is not full yet; chosen has a column for
    each of them, then one for each token of the block before.
    """
    *batch, n = innovation.shape
    held, held_innovation = np.full((*batch, memory), -1), np.full((*batch, memory), -np.inf)
    places, candidates = [], []
    for start in range(-window, n - window, window):         # of the block before
        leaving = np.broadcast_to(np.arange(start, start + window), (*batch, window))
        values = innovation[..., start : start + window] if start >= 0 else np.full(leaving.shape, -np.inf)
        both, positions = np.concatenate([held_innovation, values], axis=-1), np.concatenate([held, leaving], axis=-1)
        places.append(held)
        candidates.append(both)
        # They stand in the order of their positions, and a stable sort leaves the earlier of equals first.
        best = np.sort(np.argsort(-both, axis=-1, kind="stable")[..., :memory], axis=-1)
        held, held_innovation = np.take_along_axis(positions, best, -1), np.take_along_axis(both, best, -1)
    values = np.stack(candidates, axis=-2)                   # (..., blocks, memory + window)
    order = np.argsort(-values, axis=-1, kind="stable")[..., None, :]
    # Query r of a block may choose among the memory and the first r + 1 tokens before: these have left its window.
    left = np.concatenate([np.ones((window, memory), bool), np.tri(window, dtype=bool)], axis=1)
    ranked = left[np.arange(window)[:, None], order]         # (..., blocks, window, memory + window), best first
    chosen = np.empty_like(ranked)
    np.put_along_axis(chosen, np.broadcast_to(order, ranked.shape), ranked & (np.cumsum(ranked, axis=-1) <= memory), axis=-1)  # (3)
    return np.stack(places, axis=-2), chosen & np.isfinite(values)[..., None, :]


def admit(
    kept: Eidetic, row: Float[Array, "*batch heads 1 d_row"], innovation: Float[Array, "*batch"], position: int, *, memory: int
) -> Eidetic:
    """The memory after one more token has left the window: it takes a free place, or that of the least innovation below its own."""
    if kept.position.shape[-1] < memory:
        places = np.full((*innovation.shape, 1), position)
        return Eidetic(*(np.concatenate(pair, axis=axis) for *pair, axis in (
            (kept.rows, row, -2), (kept.innovation, innovation[..., None], -1), (kept.position, places, -1))))  # fmt: skip
    if memory == 0:
        return kept
    least = kept.innovation.min(axis=-1, keepdims=True)
    last = np.where(kept.innovation == least, kept.position, -1).argmax(axis=-1)  # of equals the later goes first
    gives_way = (np.arange(memory) == last[..., None]) & (innovation[..., None] > least)  # (3)
    return Eidetic(
        np.where(gives_way[..., None, :, None], row, kept.rows),
        np.where(gives_way, innovation[..., None], kept.innovation),
        np.where(gives_way, position, kept.position),
    )
