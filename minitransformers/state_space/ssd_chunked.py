"""SSD in chunks: attention within a chunk, a recurrence between chunks. The form for training.

The quadratic form is made of matrix products and costs positions^2; the recurrent one costs positions and has no matrix products.
Cut the sequence into chunks of Q: what a position reads of its own chunk comes by the first, what it reads of all before by the
state that the second passes on. Source: Dao and Gu 2024, arXiv:2405.21060, section 6 and listing 1. Differs from the listing: any
length, an initial state, one loop that passes the state on while a chunk is in the cache, and a backward by hand.

Within a chunk of positions 0 .. Q - 1, with h the state before it, h' the one after, o the product of elements and @ the
matrix product, for each head (B and C are those of its group):

    L = exp(segsum(log_decay))                               (1)
    carry_i = exp(log_decay_0 + ... + log_decay_i)           (2)
    M = L o (C @ B^T)                                        (3)
    y = M @ x + carry o (C @ h^T)                            (4)
    h' = (L_last o x)^T @ B + carry_last h                   (5)
    dx = M^T @ dy + L_last o (B @ dh'^T)                     (6)
    dscores = sum over the heads of a group of L o (dy @ x^T)                             (7)
    dC = dscores @ B + sum over the heads of (carry o dy) @ h                             (8)
    dB = dscores^T @ C + sum over the heads of (L_last o x) @ dh'                         (9)
    dh = (carry o dy)^T @ C + carry_last dh'                 (10)
    crossing_ij = (dM o M)_ij, with L_{last,j} <x_j B_j^T, dh'> added to the last row     (11)
    starting_i = carry_i <dy_i, h C_i>, with carry_last <h, dh'> added to the last        (12)
    dlog_decay_k = sum of crossing_ij over j < k <= i, + sum of starting_i over i >= k    (13)

dM = dy @ x^T. (11) to (13) add what a decay has done, term by term: each term carries that decay as a factor. A shorter line
gives the same on paper and subtracts what it does not (see the page): behind a reset float32 loses the gradient in it.
Multiply-adds a position and head: Q d_state / r + Q d_head + 2 d_state d_head, r = heads of a group; memory for the backward
Q + Q / r + d_head d_state / Q numbers: L, the scores C @ B^T, and the states between chunks.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, at_most, concept
from minitransformers.state_space.semiseparable import segsum, sum_over_crossings
from minitransformers.state_space.ssd_recurrent import THREE_GROUPS, check_groups, example_call, ssd_recurrent


@concept(
    title="SSD, chunked form",
    source="Dao and Gu 2024, arXiv:2405.21060, section 6, listing 1",
    example=lambda rng: example_call(rng, chunk=2),
    rejects=[THREE_GROUPS],
)
def ssd_chunked(
    x: Float[Array, "*batch positions heads d_head"],
    log_decay: Annotated[Float[Array, "*batch positions heads"], at_most(0)],
    B: Float[Array, "*batch positions groups d_state"],
    C: Float[Array, "*batch positions groups d_state"],
    state: Float[Array, "*batch heads d_head d_state"] | None = None,
    *,
    chunk: Annotated[int, at_least(1)] = 32,
) -> tuple[tuple[Array, Array], Backward]:
    """The recurrence in chunks of so many positions, each worked on by matrix products; the last may be shorter.

    chunk, at least 1, changes the speed and the rounding, nothing else. A single position is one step of the recurrence.
    Arguments, results and errors are those of ssd_recurrent.
    """
    *batch, positions, heads, d_head = x.shape
    if positions == 1:
        return ssd_recurrent(x, log_decay, B, C, state)
    groups, d_state = check_groups(B, heads)

    def by_head(a):                                          # (..., Q, heads, d) to (..., groups, r, Q, d), a view
        return a.swapaxes(-2, -3).reshape(*batch, groups, -1, a.shape[-3], a.shape[-1])

    def by_position(a):                                      # and back
        return a.reshape(*batch, -1, *a.shape[-2:]).swapaxes(-2, -3)

    h = np.zeros((*batch, heads, d_head, d_state), x.dtype) if state is None else state
    h = h.reshape(*batch, groups, -1, d_head, d_state)
    y, chunks = np.empty_like(x), []
    for start in range(0, positions, chunk):
        at = np.s_[..., start : start + chunk, :, :]
        here, key, query = (by_head(a[at]) for a in (x, B, C))  # B and C have one head a group: it is broadcast
        alpha = by_head(log_decay[at[:-1]][..., None])[..., 0]  # (..., groups, r, Q)
        L = np.exp(segsum(alpha))                            # (..., groups, r, Q, Q)  (1)
        carry = np.exp(np.cumsum(alpha, axis=-1))[..., None]  # (..., groups, r, Q, 1)  (2)
        scores = query @ key.swapaxes(-1, -2)                # (..., groups, 1, Q, Q)
        M = L * scores                                       # (3)
        out = carry * (query @ h.swapaxes(-1, -2))           # from before the chunk
        out += M @ here                                      # from within it  (4)
        y[at] = by_position(out)
        last, fade = L[..., -1, :, None], carry[..., -1:, :]  # what the chunk's end still has of each input, and of h
        chunks.append((at, L, scores, carry, h))
        h = fade * h
        h += (last * here).swapaxes(-1, -2) @ key            # (5)

    def backward(dout):
        dy, dh = dout[0], dout[1].reshape(*batch, groups, -1, d_head, d_state)
        dx, dlog_decay, dB, dC = (np.empty_like(a) for a in (x, log_decay, B, C))
        for at, L, scores, carry, h in reversed(chunks):
            here, key, query, dhere = (by_head(a[at]) for a in (x, B, C, dy))
            last, fade = L[..., -1, :, None], carry[..., -1:, :]
            dinput = last * (key @ dh.swapaxes(-1, -2))
            dinput += (L * scores).swapaxes(-1, -2) @ dhere  # (6)
            dM = dhere @ here.swapaxes(-1, -2)
            dM *= L                                          # by the scores now: dM o M is this times scores
            dscores = dM.sum(-3, keepdims=True)              # (7)
            dread = carry * dhere
            read = dread @ h                                 # (..., groups, r, Q, d_state), each head's part of dC
            dC[at] = by_position(dscores @ key + read.sum(-3, keepdims=True))  # (8)
            stored = last * here @ dh                        # and of dB
            dB[at] = by_position(dscores.swapaxes(-1, -2) @ query + stored.sum(-3, keepdims=True))  # (9)
            crossing = np.multiply(dM, scores, out=dM)
            crossing[..., -1, :] += np.vecdot(stored, key)   # (11)
            starting = np.vecdot(read, query)
            dh = fade * dh
            starting[..., -1] += (dh * h).sum((-1, -2))      # (12)
            dh += dread.swapaxes(-1, -2) @ query             # (10)
            dalpha = sum_over_crossings(crossing) + np.cumsum(starting[..., ::-1], axis=-1)[..., ::-1]  # (13)
            dx[at], dlog_decay[at[:-1]] = by_position(dinput), by_position(dalpha[..., None])[..., 0]
        return dx, dlog_decay, dB, dC, None if state is None else dh.reshape(state.shape)

    return (y, h.reshape(*batch, heads, d_head, d_state)), backward
