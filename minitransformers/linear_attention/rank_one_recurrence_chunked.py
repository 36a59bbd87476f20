"""Rank-one recurrence in chunks: what a chunk finds from one triangular system, decayed pairs that meet between them, products of matrices.

Two ideas are put together. As in delta_rule_chunked, what a position finds depends on what those before it have found and written, and within
a chunk that is a linear system with ones on its diagonal, whose inverse does not depend on the state. As in gated_recurrence_chunked,
what has faded between two positions is split at a place between them, so that no factor is above 1, however fast rows fade. There are four
kinds of pairs: what is written and what is kept under a key, each met by a read and by a query. With <a_i, b_j> for the sum over the features
of a_i b_j and all decays between them, those of i itself for a query alone, and state what came before the chunk:

    (I - <read, write>) found = <read, key> value + read_since state
    out = <query, write> found + <query, key> value + query_since state
    state' = fade o state + write_until^T found + key_until^T value

_since has faded since the start of the chunk, _until what fades until its end, fade all of it. <read, .> has j < i, <query, .> j = i too. The
way back solves with the transposed matrix, from the last chunk to the first. The equations are those of rank_one_recurrence, and so are
the numbers on the lines. Sources: Yang, Wang, Zhang, Shen and Kim 2024, arXiv:2406.06484, section 3.2 (the system); Yang, Wang, Shen, Panda and
Kim 2023, arXiv:2312.06635, section 4 (decays within a chunk). An entry of the inverse is what a read finds, later, of a write: it is no
larger than the recurrence itself makes it, and where that stays bounded, so does the inverse.

Multiply-adds a position, chunks of Q: 2 Q (d_head + d_value) + Q^2 / 6 that are used, twice as many that are made, + 4 d_head d_value, and
a few times log2(Q) d_head products of elements. Kept: 5 Q + (11 + log2(Q)) d_head + 2 d_value numbers a position, and a state a chunk. Zeros
fill up the last chunk: they write nothing.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, at_most, concept
from minitransformers.linear_attention.delta_rule import state_before
from minitransformers.linear_attention.delta_rule_chunked import chunks_of, inverse, positions_of
from minitransformers.linear_attention.gated_recurrence_chunked import (
    add_to,
    crossed_since,
    crossed_until,
    fading_levels,
    first_halves,
    second_halves,
)
from minitransformers.linear_attention.rank_one_recurrence import REJECTS, example_call


@concept(
    title="Rank-one recurrence, chunked form",
    source="Yang, Wang, Zhang, Shen and Kim 2024, arXiv:2406.06484, section 3.2",
    example=lambda rng: example_call(rng, chunk=4),
    rejects=REJECTS,
    form_of="rank_one_recurrence",
)
def rank_one_recurrence_chunked(
    query: Float[Array, "*batch positions d_head"],
    key: Float[Array, "*batch positions d_head"],
    value: Float[Array, "*batch positions d_value"],
    log_decay: Annotated[Float[Array, "*batch positions d_head"], at_most(0)],
    read: Float[Array, "*batch positions d_head"],
    write: Float[Array, "*batch positions d_head"],
    state: Float[Array, "*batch d_head d_value"] | None = None,
    *,
    chunk: Annotated[int, at_least(1)] = 16,
) -> tuple[tuple[Array, Array], Backward]:
    """The recurrence in chunks of so many positions, rounded up to a power of two, each worked on by matrix products.

    chunk, at least 1, changes the speed and the rounding, nothing else. Arguments, results and errors are those of rank_one_recurrence.
    """
    positions = query.shape[-2]
    size = 1 << (min(chunk, positions) - 1).bit_length()     # of a chunk
    readers, keepers = (chunks_of(np.stack(pair), size) for pair in ((read, query), (write, key)))  # (chunks, 2, ..., size, d_head)
    v, decay = chunks_of(value, size), np.exp(chunks_of(log_decay, size))  # (1)
    *levels, (_, since, until) = fading_levels(decay, size)
    since, until, fade = _for_both(since), until[:, None], since[..., -1, :, None]

    weights = np.zeros((len(v), 2, 2, *v.shape[1:-1], size), v.dtype)  # (chunks, readers, keepers, ..., size, size)
    for half, since_middle, until_middle in levels:
        reads, kept = second_halves(readers, half) * _for_both(since_middle), first_halves(keepers, half) * until_middle[:, None]
        _between(weights, half)[...] = reads[:, :, None] @ kept[:, None].swapaxes(-1, -2)
    _diagonal(weights[:, 1])[...] = np.vecdot(readers[:, 1:], keepers)  # a query reads what its own position has done

    solved = inverse(-weights[:, 0, 0])
    reading, keeping, h = readers * since, keepers * until, state_before(state, key, value)
    taught, written = weights[:, 0, 1] @ v, keeping[:, 1].swapaxes(-1, -2) @ v
    found, before = np.empty_like(v), np.empty((len(v), *h.shape), v.dtype)
    for i in range(len(v)):
        before[i] = h
        found[i] = solved[i] @ (taught[i] + reading[i, 0] @ h)  # (2)
        h = fade[i] * h + written[i]
        h += keeping[i, 0].swapaxes(-1, -2) @ found[i]       # (3)
    out = positions_of(weights[:, 1, 0] @ found + weights[:, 1, 1] @ v + reading[:, 1] @ before, positions)  # (4)

    def backward(dresult):
        dout, dh = chunks_of(dresult[0], size), dresult[1]
        dasked, dfound = reading[:, 1].swapaxes(-1, -2) @ dout, weights[:, 1, 0].swapaxes(-1, -2) @ dout
        dafter = np.empty_like(before)
        for i in reversed(range(len(v))):
            dafter[i] = dh
            dfound[i] = solved[i].swapaxes(-1, -2) @ (dfound[i] + keeping[i, 0] @ dh)  # (10)
            dh = fade[i] * dh + dasked[i]                    # (5)
            dh += reading[i, 0].swapaxes(-1, -2) @ dfound[i]  # (13)
        dv = weights[:, 1, 1].swapaxes(-1, -2) @ dout + weights[:, 0, 1].swapaxes(-1, -2) @ dfound + keeping[:, 1] @ dafter  # (8)

        dread_out, kept_in = np.stack([dfound, dout], axis=1), np.stack([found, v], axis=1)
        dreading, dkeeping = dread_out @ before[:, None].swapaxes(-1, -2), kept_in @ dafter[:, None].swapaxes(-1, -2)
        passed = np.vecdot(fade * dafter, before)[..., None, :]  # what passes through a chunk has crossed each of its positions
        dfading = passed + _crossed_by_both(dreading * reading) + crossed_until((dkeeping * keeping).sum(1))
        dreaders, dkeepers = dreading * since, dkeeping * until
        dweights = dread_out[:, :, None] @ kept_in[:, None].swapaxes(-1, -2)
        dalone = _diagonal(dweights[:, 1])[..., None]
        dreaders[:, 1] += (dalone * keepers).sum(1)
        dkeepers += dalone * readers[:, 1:]
        for half, since_middle, until_middle in levels:
            fading, reads, kept = _for_both(since_middle), second_halves(readers, half), first_halves(keepers, half)
            dpairs = _between(dweights, half)
            dreads = (dpairs @ (kept * until_middle[:, None])[:, None]).sum(2) * fading
            dkept = (dpairs.swapaxes(-1, -2) @ (reads * fading)[:, :, None]).sum(1) * until_middle[:, None]
            add_to(second_halves(dreaders, half), dreads)
            add_to(first_halves(dkeepers, half), dkept)
            add_to(second_halves(dfading, half), _crossed_by_both(dreads * reads))
            add_to(first_halves(dfading, half), crossed_until((dkept * kept).sum(1)))
        dread, dquery = (positions_of(dreaders[:, i], positions) for i in range(2))  # (6), (11)
        dwrite, dkey = (positions_of(dkeepers[:, i], positions) for i in range(2))  # (7), (9)
        dlog_decay = positions_of(dfading, positions)        # (12)
        return dquery, dkey, positions_of(dv, positions), dlog_decay, dread, dwrite, None if state is None else dh

    return (out, h), backward


def _for_both(since: Float[Array, "chunks ... d"]) -> Float[Array, "chunks 2 ... d"]:
    """What is left since a place, for a read, which comes before its position fades, and for a query, which comes after."""
    before = np.concatenate([np.ones_like(since[..., :1, :]), since[..., :-1, :]], axis=-2)
    return np.stack([before, since], axis=1)


def _crossed_by_both(a: Float[Array, "chunks 2 ... size d"]) -> Float[Array, "chunks ... size d"]:
    """For each position the sum of what reads after it, and of what queries at it and after it."""
    after = np.tri(a.shape[-2], k=-1, dtype=a.dtype).T
    return after @ a[:, 0] + crossed_since(a[:, 1])


def _between(weights: Float[Array, "... size size"], half: int) -> Float[Array, "... blocks half half"]:
    """The pairs whose later position is in the second half of a block and whose earlier one in the first, a view."""
    blocks = weights.reshape(*weights.shape[:-2], -1, 2, half, weights.shape[-1] // (2 * half), 2, half)
    return np.einsum("...aiaj->...aij", blocks[..., 1, :, :, 0, :])


def _diagonal(weights: Float[Array, "... size size"]) -> Float[Array, "... size"]:
    """The pairs of a position with itself, a view."""
    return np.einsum("...ii->...i", weights)
