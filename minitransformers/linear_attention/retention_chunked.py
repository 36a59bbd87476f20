"""Retention in chunks: all pairs within a chunk, a state between chunks. The form for training.

The plain form costs positions^2, the recurrent one has no matrix products. Cut the text into chunks: within one take the
first, from one to the next hand the state on. Each chunk is retention over a short text, with the state that the one before
left; the equations are those of retention, and so are the numbers on the lines. On the way back the chunks are taken
from the last to the first, and dstate (11) of each is dstate' of the one before. The decays do not depend on the text: mask
and carry of one chunk serve all. Source: Sun et al. 2023, arXiv:2307.08621, eq. 7.

Multiply-adds a position and head, chunks of Q: Q (d_head + d_value) + 2 d_head d_value. Kept for the backward: Q weights a position,
and a state a chunk.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, concept
from minitransformers.linear_attention.retention import (
    REJECTS,
    example_call,
    fading_mask,
    fading_since,
    log_decays,
    state_before,
)


@concept(
    title="Retention, chunked form",
    source="Sun et al. 2023, arXiv:2307.08621, eq. 7",
    example=lambda rng: example_call(rng, chunk=2),
    roles=("recurrence",),
    rejects=REJECTS,
    form_of="retention",
)
def retention_chunked(
    query: Float[Array, "*batch heads positions d_head"],
    key: Float[Array, "*batch heads positions d_head"],
    value: Float[Array, "*batch heads positions d_value"],
    state: Float[Array, "*batch heads d_head d_value"] | None = None,
    *,
    decay: Sequence[float] | Float[Array, "heads"] | None = None,
    chunk: Annotated[int, at_least(1)] = 32,
) -> tuple[tuple[Array, Array], Backward]:
    """Retention a chunk of so many positions at a time, each worked on by matrix products; the last may be shorter.

    chunk, at least 1, changes the speed and the rounding, nothing else. Arguments, results and errors are those of retention.
    """
    *before, positions, d_head = query.shape
    scale = d_head**-0.5
    log_decay, longest = log_decays(decay, before[-1]), min(chunk, positions)
    mask = fading_mask(log_decay, longest, query.dtype)      # (2)
    carry = fading_since(log_decay, longest, query.dtype)    # (3)
    scaled = scale * query                                   # (1)
    h = state_before(state, key, value)

    out, chunks = np.empty_like(value), []
    for start in range(0, positions, chunk):
        at = np.s_[..., start : start + chunk, :]
        q, k, v = scaled[at], key[at], value[at]
        size = q.shape[-2]
        weights = q @ k.swapaxes(-1, -2)
        weights *= mask[:, :size, :size]                     # (4)
        here = weights @ v                                   # from within the chunk
        here += carry[:, :size] * (q @ h)                    # from before it
        out[at] = here                                       # (5)
        chunks.append((at, weights, h))
        last, fade = mask[:, size - 1, :size, None], carry[:, size - 1, None]
        h = fade * h
        h += (last * k).swapaxes(-1, -2) @ v                 # (6)

    def backward(dresult):
        dout, dh = dresult
        dquery, dkey, dvalue = (np.empty_like(a) for a in (query, key, value))
        for at, weights, h in reversed(chunks):
            q, k, v, dhere = scaled[at], key[at], value[at], dout[at]
            size = q.shape[-2]
            last, fade = mask[:, size - 1, :size, None], carry[:, size - 1, None]
            dscores = dhere @ v.swapaxes(-1, -2)
            dscores *= mask[:, :size, :size]                 # (7)
            dread = carry[:, :size] * dhere
            dq = dscores @ k
            dq += dread @ h.swapaxes(-1, -2)
            dquery[at] = scale * dq                          # (8)
            dk = dscores.swapaxes(-1, -2) @ q
            dk += last * (v @ dh.swapaxes(-1, -2))
            dkey[at] = dk                                    # (9)
            dv = weights.swapaxes(-1, -2) @ dhere
            dv += last * (k @ dh)
            dvalue[at] = dv                                  # (10)
            dh = fade * dh
            dh += q.swapaxes(-1, -2) @ dread                 # (11)
        return dquery, dkey, dvalue, None if state is None else dh

    return (out, h), backward
