"""SSD in chunks: attention within a chunk, a recurrence between chunks. The form for training.

The quadratic form is made of matrix products and costs n^2; the recurrent one costs n and has no matrix products. Cut the sequence
into chunks of Q: what a position hears from its own chunk comes by the first, what it hears from before by the state that
the second hands on. Source: Dao and Gu 2024, arXiv:2405.21060, section 6 and listing 1. Differs from the listing: any length, an
initial state, one loop that hands the state on while a chunk is in the cache, and a backward by hand.

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
    dsums_i = <dy_i, y_i> - <dx_i, x_i>, and + <dh', h'> at the last i                    (10)
    dlog_decay_k = dsums_k + ... + dsums_{Q-1}               (11)
    dh = (carry o dy)^T @ C + carry_last dh'                 (12)

(10) is the whole gradient of L, carry and their uses; no Q x Q array is summed for it. Time n (Q d_state / r + Q d_head +
2 d_state d_head) multiply-adds a head, r = heads of a group; memory for the backward n Q + n d_head d_state / Q numbers a head.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import bad, concept, invalid
from minitransformers.state_space.semiseparable import segsum
from minitransformers.state_space.ssd_recurrent import REJECTS, check_recurrence, example_call


@concept(
    title="SSD, chunked form",
    source="Dao and Gu 2024, arXiv:2405.21060, section 6, listing 1",
    example=lambda rng: example_call(rng, chunk=2),
    rejects=[*REJECTS, bad(chunk=0), bad(chunk=2.5)],
)
def ssd_chunked(
    x: Float[Array, "*batch n heads d_head"],
    log_decay: Float[Array, "*batch n heads"],
    B: Float[Array, "*batch n groups d_state"],
    C: Float[Array, "*batch n groups d_state"],
    state: Float[Array, "*batch heads d_head d_state"] | None = None,
    *,
    chunk: int = 32,
):
    """The recurrence in chunks of so many positions, each worked on by matrix products; the last may be shorter.

    chunk changes the speed and the rounding, nothing else. Arguments, results and errors are those of ssd_recurrent;
    a chunk below 1 raises ValueError, too.
    """
    check_recurrence(log_decay, B)
    if not isinstance(chunk, (int, np.integer)) or chunk < 1:
        raise invalid("chunk", got=chunk, wants="a whole number of at least 1 position")
    *batch, n, heads, d_head = x.shape
    groups, d_state = B.shape[-2:]
    r = heads // groups
    # Two views of the same memory. One matrix a head, for products with M; and the heads of a group side by side, so that
    # one product serves them all, and a sum over heads is part of a product: (..., groups, Q, r * d_head).

    def per_head(a):                                         # (..., Q, heads, d) to (..., heads, Q, d)
        return a.swapaxes(-2, -3)

    def side_by_side(a):                                     # (..., Q, heads, d) to (..., groups, Q, r * d)
        return a.reshape(*batch, -1, groups, r * d_head).swapaxes(-2, -3)

    def apart(a):                                            # and back
        return a.swapaxes(-2, -3).reshape(*batch, -1, heads, d_head)

    def decayed(L, scores):                                  # the scores of a group serve its heads
        return (L.reshape(*batch, groups, r, *L.shape[-2:]) * scores[..., None, :, :]).reshape(L.shape)

    h = np.zeros((*batch, groups, r * d_head, d_state), x.dtype) if state is None else state.reshape(*batch, groups, -1, d_state)
    y, chunks = np.empty_like(x), []
    for start in range(0, n, chunk):
        at = np.s_[..., start : start + chunk, :, :]
        here, key, query = x[at], per_head(B[at]), per_head(C[at])
        alpha = log_decay[..., start : start + chunk, :]     # (..., Q, heads)
        L = np.exp(segsum(alpha.swapaxes(-1, -2)))           # (..., heads, Q, Q)  (1)
        carry = np.exp(np.cumsum(alpha, axis=-2))[..., None]  # (..., Q, heads, 1)  (2)
        scores = query @ key.swapaxes(-1, -2)                # (..., groups, Q, Q)
        M = decayed(L, scores)                               # (3)
        out = carry * apart(query @ h.swapaxes(-1, -2))      # from before the chunk
        out += per_head(M @ per_head(here))                  # from within it  (4)
        y[at] = out
        last = L[..., -1, :].swapaxes(-1, -2)[..., None]     # (..., Q, heads, 1): what the end of the chunk still has of each
        fade = np.repeat(carry[..., -1, :, :], d_head, axis=-2).reshape(*batch, groups, -1, 1)
        chunks.append((at, L, carry, scores, last, fade, h))
        h = fade * h
        h += side_by_side(last * here).swapaxes(-1, -2) @ key  # (5)
    final = h

    def backward(dout):
        dy, dh = dout[0], dout[1].reshape(final.shape)
        dx, dlog_decay, dB, dC = (np.empty_like(a) for a in (x, log_decay, B, C))
        after = final
        for at, L, carry, scores, last, fade, h in reversed(chunks):
            here, key, query, dhere = x[at], per_head(B[at]), per_head(C[at]), dy[at]
            dinput = last * apart(key @ dh.swapaxes(-1, -2))
            dinput += per_head(decayed(L, scores).swapaxes(-1, -2) @ per_head(dhere))  # (6)
            dM = per_head(dhere) @ per_head(here).swapaxes(-1, -2)
            dM *= L
            dscores = dM.reshape(*batch, groups, r, *L.shape[-2:]).sum(-3)  # (7)
            dread, stored = side_by_side(carry * dhere), side_by_side(last * here)
            dC[at] = per_head(dscores @ key + dread @ h)     # the sum over the heads is in the product  (8)
            dB[at] = per_head(dscores.swapaxes(-1, -2) @ query + stored @ dh)  # (9)
            dsums = np.vecdot(dhere, y[at]) - np.vecdot(dinput, here)
            dsums[..., -1, :] += (dh * after).reshape(*batch, heads, -1).sum(-1)  # (10)
            dlog_decay[at[:-1]] = np.cumsum(dsums[..., ::-1, :], axis=-2)[..., ::-1, :]  # (11)
            dx[at], after = dinput, h
            dh = fade * dh
            dh += dread.swapaxes(-1, -2) @ query             # (12)
        return dx, dlog_decay, dB, dC, None if state is None else dh.reshape(state.shape)

    return (y, final.reshape(*batch, heads, d_head, d_state)), backward
