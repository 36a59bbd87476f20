"""Gated recurrence in chunks: a state between chunks, and within a chunk pairs that meet at a place between them.

What position i reads of an earlier j has faded by decay_{j+1} o ... o decay_i. On paper that is one factor of i and one of j,
exp(sum up to i) and exp(-sum up to j), and the second overflows. Take a place m between the two instead: the query has decay_m o ... o
decay_i, the key decay_{j+1} o ... o decay_{m-1}, and both are at most 1.

    weights_ij = (scaled_i o since_i)^T (key_j o until_j),   i in the second half of a block, j in the first

since_i is what is left at i of what crossed the middle of the block, until_j what is left of j when it gets there. Blocks are of 2, 4,
8, ... positions up to a chunk. Any two positions of a chunk stand in different halves of exactly one of them; so each size is one batch
of matrix products, without a mask, and the products of decays of one size come from the size before by one multiplication. What is
from before the chunk comes by the state, with the since and until of the chunk as a whole. The equations are those of
gated_recurrence, and so are the numbers on the lines. The gradient of a decay adds up, for each size, what has crossed its position.

Source: Yang, Wang, Shen, Panda and Kim 2023, arXiv:2312.06635, section 4. Differs from the paper: there chunks have chunks within, and in
the innermost each pair takes its own product; here halves go down to single positions. And no gradient is a difference of two
sums, as the gates' is there: float32 loses it behind a decay near 0. Multiply-adds a position and head, chunks of Q:
Q (d_head + d_value) / 2 + 2 d_head d_value, and a few times log2(Q) d_head products of elements. Zeros fill up the last chunk.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, at_most, concept
from minitransformers.linear_attention.gated_recurrence import example_call
from minitransformers.linear_attention.retention import state_before


@concept(
    title="Gated recurrence, chunked form",
    source="Yang, Wang, Shen, Panda and Kim 2023, arXiv:2312.06635, section 4",
    example=lambda rng: example_call(rng, chunk=4),
    form_of="gated_recurrence",
)
def gated_recurrence_chunked(
    query: Float[Array, "*batch heads positions d_head"],
    key: Float[Array, "*batch heads positions d_head"],
    value: Float[Array, "*batch heads positions d_value"],
    log_decay: Annotated[Float[Array, "*batch heads positions d_head"], at_most(0)],
    state: Float[Array, "*batch heads d_head d_value"] | None = None,
    *,
    chunk: Annotated[int, at_least(1)] = 16,
) -> tuple[tuple[Array, Array], Backward]:
    """The recurrence in chunks of so many positions, rounded up to a power of two, each worked on by matrix products.

    chunk, at least 1, changes the speed and the rounding, nothing else. Arguments, results and errors are those of gated_recurrence.
    """
    positions, d_head = query.shape[-2:]
    scale = d_head**-0.5
    size = 1 << (min(chunk, positions) - 1).bit_length()     # of a chunk

    def padded(a):
        rest = -positions % size
        return np.concatenate([a, np.zeros_like(a, shape=(*a.shape[:-2], rest, a.shape[-1]))], axis=-2) if rest else a

    def chunks(a):                                           # (..., positions, d) to (..., chunks, size, d), a view
        return a.reshape(*a.shape[:-2], -1, size, a.shape[-1])

    q, k, v = padded(scale * query), padded(key), padded(value)  # (1)
    decay = np.exp(padded(log_decay))                        # (2)
    *levels, (_, since, until) = fading_levels(decay, size)
    alone = np.vecdot(q, k)[..., None]                       # a position and itself: nothing has faded
    padded_out, pairs = alone * v, []
    for half, since_middle, until_middle in levels:
        reading, keeping = second_halves(q, half) * since_middle, first_halves(k, half) * until_middle
        weights = reading @ keeping.swapaxes(-1, -2)         # (..., blocks, half, half)
        add_to(second_halves(padded_out, half), weights @ first_halves(v, half))
        pairs.append(weights)

    reading, keeping, fade = chunks(q * since), chunks(k * until), chunks(since)[..., -1, :, None]
    written = keeping.swapaxes(-1, -2) @ chunks(v)           # (..., chunks, d_head, d_value)
    out_chunks, h, states = chunks(padded_out), state_before(state, key, value), []
    for c in range(out_chunks.shape[-3]):
        out_chunks[..., c, :, :] += reading[..., c, :, :] @ h  # (4)
        states.append(h)
        h = fade[..., c, :, :] * h
        h += written[..., c, :, :]                           # (3)
    out = padded_out[..., :positions, :]

    def backward(dresult):
        dout, dh = padded(dresult[0]), dresult[1]
        dreading, dkeeping, dv, dfading = (np.empty_like(a) for a in (reading, keeping, chunks(v), reading))
        for c in reversed(range(len(states))):
            here, h = np.s_[..., c, :, :], states[c]
            dreading[here] = chunks(dout)[here] @ h.swapaxes(-1, -2)
            dkeeping[here] = chunks(v)[here] @ dh.swapaxes(-1, -2)
            dv[here] = keeping[here] @ dh
            dh = fade[here] * dh
            dfading[here] = np.vecdot(dh, h)[..., None, :]   # what passes through the chunk has crossed each of its positions
            dh += reading[here].swapaxes(-1, -2) @ chunks(dout)[here]  # (5)
        dfading += crossed_since(dreading * reading) + crossed_until(dkeeping * keeping)
        dq, dk = dreading.reshape(q.shape) * since, dkeeping.reshape(k.shape) * until
        dv, dfading = dv.reshape(v.shape), dfading.reshape(q.shape)
        dalone = np.vecdot(dout, v)[..., None]
        dq += dalone * k
        dk += dalone * q
        dv += alone * dout
        for (half, since_middle, until_middle), weights in zip(levels, pairs, strict=True):
            reads, kept = second_halves(q, half) * since_middle, first_halves(k, half) * until_middle
            dlater = second_halves(dout, half)
            dweights = dlater @ first_halves(v, half).swapaxes(-1, -2)
            dreads, dkept = dweights @ kept, dweights.swapaxes(-1, -2) @ reads
            add_to(first_halves(dv, half), weights.swapaxes(-1, -2) @ dlater)
            add_to(second_halves(dq, half), dreads * since_middle)
            add_to(first_halves(dk, half), dkept * until_middle)
            add_to(second_halves(dfading, half), crossed_since(dreads * reads))
            add_to(first_halves(dfading, half), crossed_until(dkept * kept))
        dquery = scale * dq[..., :positions, :]              # (6)
        dkey = dk[..., :positions, :]                        # (7)
        dvalue = dv[..., :positions, :]                      # (8)
        dlog_decay = dfading[..., :positions, :]             # (9)
        return dquery, dkey, dvalue, dlog_decay, None if state is None else dh

    return (out, h), backward


def first_halves(a: Float[Array, "... positions d"], half: int) -> Float[Array, "... blocks half d"]:
    """The first half of each block of 2 half positions, a view."""
    return a.reshape(*a.shape[:-2], -1, 2, half, a.shape[-1])[..., 0, :, :]


def second_halves(a: Float[Array, "... positions d"], half: int) -> Float[Array, "... blocks half d"]:
    """The second half of each."""
    return a.reshape(*a.shape[:-2], -1, 2, half, a.shape[-1])[..., 1, :, :]


def add_to(part: Array, term: Array) -> None:
    """Add to a part of an array, which the part is a view of."""
    part += term


def fading_levels(decay: Float[Array, "... positions d"], chunk: int) -> list[tuple[int, Array, Array]]:
    """For halves of 1, 2, 4, ... positions what the second is left with since the middle, and the first until the middle.

    Last comes the chunk as a whole: since its start, and until its end.
    """
    since, until, levels, half = decay.copy(), np.ones_like(decay), [], 1
    while half < chunk:
        since_middle, until_middle = second_halves(since, half), first_halves(until, half)
        levels.append((half, since_middle.copy(), until_middle.copy()))
        until_middle *= since_middle[..., -1:, :]            # on to the end of the block
        since_middle *= first_halves(since, half)[..., -1:, :]     # and since its start
        half *= 2
    return [*levels, (chunk, since, until)]


def crossed_since(a: Float[Array, "... size d"]) -> Array:
    """For each position the sum of a at it and after it: what was read there has crossed it."""
    return np.tri(a.shape[-2], dtype=a.dtype).T @ a


def crossed_until(a: Float[Array, "... size d"]) -> Array:
    """For each position the sum of a before it: what was kept from there has crossed it."""
    return np.tri(a.shape[-2], k=-1, dtype=a.dtype) @ a
