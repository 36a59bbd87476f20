"""Eidetic memory: a few tokens of long ago kept verbatim, those that were hardest to predict.

An innovation test decides: a token whose prediction from the past fails badly cannot be made again from the past, so it is
worth its place. A choice has no derivative (almost everywhere it is zero), so nothing here has a backward. Source: Zancato
et al. 2024, arXiv:2407.06324 (B'MOJO), for the idea. What the paper leaves open is ours:

- The predictor. Each feature of x_t is predicted from the same feature of a recurrence's output one position before,
  f_{t-1}, times a gain fitted to the text so far by least squares. The denominator counts the present position as well,
  which bounds the prediction (Vovk 2001, Azoury and Warmuth 2001). No parameters: nothing has to train it.
- No threshold and no schedule: the memory holds the largest innovations of all that has left the window.
- Innovations are computed in float64, and those that agree to 12 bits count as equal. A text read at once and the same text
  read token by token differ in rounding: where a token occurs twice, that alone would decide which of the two stays.

    gain_t = sum_{s<t} f_{s-1} x_s / sum_{s<=t} f_{s-1}^2, for each feature   (1)
    innovation_t = |x_t - gain_t f_{t-1}|^2, rounded to 12 bits   (2)
    E_i = the ``memory`` largest innovations among j <= i - window, the earlier of equals   (3)

``eidetic_mask`` is (3) as it is defined, a sort of all positions. A token that was ever left out never comes back, so (3)
can be kept up to date by one sort a block of positions (``choose``), or by one comparison a position (``admit``); all three
are equal. Time of the last two O(positions (window + memory)), with a logarithm.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, finite, invalid, procedure

Window = Annotated[int, at_least(1)]  # in positions
Memory = Annotated[int, at_least(0)]  # in tokens


class Predictor(NamedTuple):
    """What the fit of the gains remembers: the recurrence's last output, and the two sums of (1). Always in float64."""

    last: Float64[Array, "*batch 1 d_model"]
    products: Float64[Array, "*batch 1 d_model"]
    squares: Float64[Array, "*batch 1 d_model"]


class Eidetic(NamedTuple):
    """The tokens kept: what is kept of each (a row a head), its innovation, its position."""

    rows: Float[Array, "*batch heads kept d_row"]
    innovation: Float[Array, "*batch kept"]
    position: Int[Array, "*batch kept"]


@procedure(
    title="Innovation",
    source="Zancato et al. 2024, arXiv:2407.06324; the predictor: Vovk 2001, International Statistical Review 69",
    example=lambda rng: example(*rng.normal(size=(2, 2, 6, 3))),
    rejects=[bad("before.last", before=Predictor(*np.ones((3, 2, 1, 4))))],
)
def innovation(
    x: Float[Array, "*batch positions d_model"], fading: Float[Array, "*batch positions d_model"], before: Predictor | None = None
) -> tuple[Float[Array, "*batch positions"], Predictor]:
    """How far each token is from its prediction, in units of x squared; and what the fit remembers of the text so far.

    fading is the recurrence's output. before is what the fit remembered of the positions before these, None at the start.
    """
    wide, past_of = x.astype(np.float64), fading.astype(np.float64)
    if before is None:
        before = Predictor(*np.zeros((3, *wide[..., :1, :].shape)))
    past = np.concatenate([before.last, past_of[..., :-1, :]], axis=-2)  # row t is f_{t-1}
    products = np.cumsum(np.concatenate([before.products, past * wide], axis=-2), axis=-2)
    squares = np.cumsum(np.concatenate([before.squares, past * past], axis=-2), axis=-2)
    gain = products[..., :-1, :] / np.maximum(squares[..., 1:, :], np.finfo(np.float64).tiny)  # 0 / 0 predicts 0  (1)
    error = wide - gain * past
    mantissa, exponent = np.frexp(np.vecdot(error, error))
    with np.errstate(over="ignore"):                         # 12 bits fit in float32, but not every exponent does
        found = np.ldexp(np.round(mantissa * 4096) / 4096, exponent).astype(x.dtype)  # (2)
    return found, Predictor(past_of[..., -1:, :], products[..., -1:, :], squares[..., -1:, :])


@procedure(
    title="Eidetic mask",
    source="Zancato et al. 2024, arXiv:2407.06324",
    example=lambda rng: example(rng.normal(size=(2, 7)), window=2, memory=2),
)
def eidetic_mask(
    innovation: Annotated[Float[Array, "*batch positions"], finite], *, window: Window, memory: Memory
) -> Bool[Array, "*batch positions positions"]:
    """True where query i, in its row, keeps token j, in its column: (3) as it is defined, in time and memory positions^2."""
    order = np.argsort(-innovation, axis=-1, kind="stable")[..., None, :]  # the largest first, of equals the earlier
    has_left = order <= np.arange(innovation.shape[-1])[:, None] - window  # (*batch, queries, positions in this order)
    first = has_left & (np.cumsum(has_left, axis=-1) <= memory)
    kept = np.empty_like(first)
    np.put_along_axis(kept, np.broadcast_to(order, first.shape), first, axis=-1)  # (3)
    return kept


@procedure(
    title="Choice of an eidetic memory, in blocks",
    source="Zancato et al. 2024, arXiv:2407.06324",
    example=lambda rng: example(rng.normal(size=(2, 7)), window=2, memory=2),
)
def choose(
    innovation: Annotated[Float[Array, "*batch positions"], finite], *, window: Window, memory: Memory
) -> tuple[Int[Array, "*batch blocks memory"], Bool[Array, "*batch blocks window both"]]:
    """(3) for every query, the queries in blocks of ``window``: places, and which of them each query has chosen.

    During a block only tokens of the block before leave the window, so E_i is a part of these and of the memory at the
    block's start. places are the positions in that memory, negative where it is not full yet; chosen has a column for
    each of them, then one for each token of the block before.
    """
    *batch, positions = innovation.shape
    held, held_innovation = np.full((*batch, memory), -1), np.full((*batch, memory), -np.inf, innovation.dtype)
    places, candidates = [], []
    for start in range(-window, positions - window, window):  # of the block before
        leaving = np.broadcast_to(np.arange(start, start + window), (*batch, window))
        values = innovation[..., start : start + window] if start >= 0 else np.full(leaving.shape, -np.inf, innovation.dtype)
        both, position = np.concatenate([held_innovation, values], axis=-1), np.concatenate([held, leaving], axis=-1)
        places.append(held)
        candidates.append(both)
        # They stand in the order of their positions, and a stable sort leaves the earlier of equals first.
        best = np.sort(np.argsort(-both, axis=-1, kind="stable")[..., :memory], axis=-1)
        held, held_innovation = np.take_along_axis(position, best, -1), np.take_along_axis(both, best, -1)
    values = np.stack(candidates, axis=-2)                   # (..., blocks, memory + window)
    order = np.argsort(-values, axis=-1, kind="stable")[..., None, :]
    # Query r of a block may choose among the memory and the first r + 1 tokens before: these have left its window.
    has_left = np.concatenate([np.ones((window, memory), bool), np.tri(window, dtype=bool)], axis=1)
    ranked = has_left[np.arange(window)[:, None], order]     # (..., blocks, window, memory + window), best first
    chosen = np.empty_like(ranked)
    np.put_along_axis(chosen, np.broadcast_to(order, ranked.shape), ranked & (np.cumsum(ranked, axis=-1) <= memory), axis=-1)  # (3)
    return np.stack(places, axis=-2), chosen & (values > -np.inf)[..., None, :]


@procedure(
    title="Choice of an eidetic memory, token by token",
    source="Zancato et al. 2024, arXiv:2407.06324",
    example=lambda rng: example(_kept(rng), rng.normal(size=(2, 2, 1, 5)), np.array([0.1, 3.0]), 7, memory=3),
    rejects=[bad("kept", memory=2)],
)
def admit(
    kept: Eidetic | None, row: Float[Array, "*batch heads 1 d_row"], innovation: Annotated[Float[Array, "*batch"], finite],
    position: Annotated[int, at_least(0)], *, memory: Memory,
) -> Eidetic | None:  # fmt: skip
    """The memory after one more token has left the window; None while it is empty.

    The token takes a free place, or that of the least innovation below its own.
    Raises ValueError when more tokens are kept than memory allows, or row is not one more of their kind.
    """
    if kept is None:
        kept = Eidetic(row[..., :0, :], innovation[..., None][..., :0], np.zeros((*innovation.shape, 0), int))
    if (held := kept.position.shape[-1]) > memory:
        raise invalid("kept", got=f"{held} tokens", wants=f"at most memory = {memory}")
    if held < memory:
        places = np.full((*innovation.shape, 1), position)
        return Eidetic(*(np.concatenate(pair, axis=axis) for *pair, axis in (
            (kept.rows, row, -2), (kept.innovation, innovation[..., None], -1), (kept.position, places, -1))))  # fmt: skip
    if memory == 0:
        return None
    least = kept.innovation.min(axis=-1, keepdims=True)
    last = np.where(kept.innovation == least, kept.position, -1).argmax(axis=-1)  # of equals the later goes first
    gives_way = (np.arange(memory) == last[..., None]) & (innovation[..., None] > least)  # (3)
    return Eidetic(
        np.where(gives_way[..., None, :, None], row, kept.rows),
        np.where(gives_way, innovation[..., None], kept.innovation),
        np.where(gives_way, position, kept.position),
    )


def _kept(rng: np.random.Generator) -> Eidetic:
    return Eidetic(rng.normal(size=(2, 2, 3, 5)), rng.uniform(1, 2, size=(2, 3)), np.array([[0, 2, 5], [1, 3, 4]]))
