"""The delta rule in chunks: what a chunk writes from one triangular system, what a chunk passes on by matrix products.

A position writes after it has read, and what it reads depends on what those before it wrote. Within a chunk that is a system of
linear equations, with M = I + beta o overlap and overlap_ij = <key_i, key_j> for j < i, 0 elsewhere:

    M write = beta o (value - key state),    so    write = M^{-1} (beta o (value - key state))

M is triangular with ones on its diagonal. Its inverse does not depend on the state: forward substitution makes those of all chunks at
once, a row of each at a time. The rest is linear attention of these writes: out = scores write + query state with scores = query key^T where
the key is not later, state' = state + key^T write. The way back solves with M transposed, from the last chunk to the first:

    M^T dwrite = scores^T dout + key dstate',    dvalue = beta o dwrite,    dstate = dstate' + query^T dout - key^T dvalue

In every position these are the numbers of delta_rule, whose equations are on the lines. Source: Yang, Wang, Zhang, Shen and Kim 2024,
arXiv:2406.06484, section 3.2 (chunks), after Bischof and Van Loan 1987 (products of I - beta key key^T as one matrix, the WY form).
Differs from the paper: writes are found from the state by the inverse, in the place of two solved arrays W and U.

Multiply-adds a position, chunks of Q: Q (2 d_head + 3 d_value) / 2 + Q^2 / 6 that are used, twice as many that are made, + 3 d_head d_value.
Kept for the backward: 3 Q + 2 d_value numbers a position, and a state a chunk. Zeros fill up the last chunk: a beta of 0 writes nothing.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, concept
from minitransformers.linear_attention.delta_rule import REJECTS, example_call, state_before


@concept(
    title="Delta rule, chunked form",
    source="Yang, Wang, Zhang, Shen and Kim 2024, arXiv:2406.06484, section 3.2",
    example=lambda rng: example_call(rng, chunk=2),
    rejects=REJECTS,
    form_of="delta_rule",
)
def delta_rule_chunked(
    query: Float[Array, "*batch positions d_head"],
    key: Float[Array, "*batch positions d_head"],
    value: Float[Array, "*batch positions d_value"],
    beta: Float[Array, "*batch positions"],
    state: Float[Array, "*batch d_head d_value"] | None = None,
    *,
    chunk: Annotated[int, at_least(1)] = 32,
) -> tuple[tuple[Array, Array], Backward]:
    """The delta rule a chunk of so many positions at a time, each worked on by matrix products; the last may be shorter.

    chunk, at least 1, changes the speed and the rounding, nothing else. Arguments, results and errors are those of delta_rule.
    """
    positions = query.shape[-2]
    size = min(chunk, positions)
    q, k, v, b = (chunks_of(a, size) for a in (query, key, value, beta[..., None]))  # (chunks, ..., size, d)
    h = state_before(state, key, value)

    causal = np.tri(size, dtype=v.dtype)                     # a key that is not later
    earlier = np.tri(size, k=-1, dtype=v.dtype)              # a key that is earlier
    overlap = earlier * (k @ k.swapaxes(-1, -2))
    solved = inverse(b * overlap)                            # (chunks, ..., size, size)
    scores = causal * (q @ k.swapaxes(-1, -2))

    missing, write, before = np.empty_like(v), np.empty_like(v), np.empty((len(v), *h.shape), v.dtype)
    for i in range(len(v)):
        before[i] = h
        missing[i] = v[i] - k[i] @ h                         # what the state before the chunk does not read yet
        write[i] = solved[i] @ (b[i] * missing[i])           # (2)
        h = h + k[i].swapaxes(-1, -2) @ write[i]             # (3)
    error = missing - overlap @ write                        # and what the chunk's earlier positions have not put right  (1)
    out = positions_of(scores @ write + q @ before, positions)  # (4)

    def backward(dresult):
        dout, dh = chunks_of(dresult[0], size), dresult[1]
        dwrite, dv, dafter = scores.swapaxes(-1, -2) @ dout, np.empty_like(write), np.empty_like(before)
        for i in reversed(range(len(v))):
            dafter[i] = dh
            dwrite[i] = solved[i].swapaxes(-1, -2) @ (dwrite[i] + k[i] @ dh)  # (7)
            dv[i] = b[i] * dwrite[i]                         # (9)
            dh = dh + q[i].swapaxes(-1, -2) @ dout[i]        # (5)
            dh -= k[i].swapaxes(-1, -2) @ dv[i]              # (11)
        dbeta = np.vecdot(dwrite, error)[..., None]          # (8)
        dscores = causal * (dout @ write.swapaxes(-1, -2))
        doverlap = earlier * (dv @ write.swapaxes(-1, -2))   # with its sign turned
        dq = dscores @ k + dout @ before.swapaxes(-1, -2)    # (6)
        dk = write @ dafter.swapaxes(-1, -2) + dscores.swapaxes(-1, -2) @ q
        dk -= dv @ before.swapaxes(-1, -2) + (doverlap + doverlap.swapaxes(-1, -2)) @ k  # (10)
        dquery, dkey, dvalue, dbeta = (positions_of(a, positions) for a in (dq, dk, dv, dbeta))
        return dquery, dkey, dvalue, dbeta[..., 0], None if state is None else dh

    return (out, h), backward


def chunks_of(a: Float[Array, "... positions d"], size: int) -> Float[Array, "chunks ... size d"]:
    """The positions cut into chunks, zeros after the last."""
    fill = -a.shape[-2] % size
    if fill:
        a = np.concatenate([a, np.zeros((*a.shape[:-2], fill, a.shape[-1]), a.dtype)], axis=-2)
    return np.moveaxis(a.reshape(*a.shape[:-2], -1, size, a.shape[-1]), -3, 0)


def positions_of(a: Float[Array, "chunks ... size d"], positions: int) -> Float[Array, "... positions d"]:
    """The chunks one after the other again, what was filled up cut off."""
    a = np.moveaxis(a, 0, -3)
    return a.reshape(*a.shape[:-3], -1, a.shape[-1])[..., :positions, :]


def inverse(below: Float[Array, "... size size"]) -> Float[Array, "... size size"]:
    """The inverses of I + below, for matrices with nothing on and above the diagonal, by forward substitution.

    Each step makes a row of every matrix: several times sooner than np.linalg.inv, which knows nothing of triangles and takes one after
    the other.
    """
    out = below + np.eye(below.shape[-1], dtype=below.dtype)  # the rows below the first are to come
    for i in range(1, below.shape[-1]):
        row = below[..., i : i + 1, :i]
        out[..., i : i + 1, :i] = -(row @ out[..., :i, :i])
    return out
