"""Retention as a recurrence: one step a position, a state of fixed size. The form for writing token by token.

A head keeps a matrix of d_head x d_value numbers. A position lets it fade by the head's decay, adds the outer product of its key
and its value, and reads it with its query. Each step is retention over a text of one position, and bears its numbers:

    state_t = decay state_{t-1} + key_t value_t^T            (6), where mask is 1 and carry the decay
    out_t = scaled_t state_t                                 (5), which has both terms of state_t multiplied out

and so do the steps back. Source: Sun et al. 2023, arXiv:2307.08621, eq. 6. Time positions d_head d_value a head, in outer products and
matrix-vector products: nothing that a matrix unit could do. Every sqrt(positions)-th state is kept, and those between are
made again on the way back.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept
from minitransformers.linear_attention.retention import REJECTS, example_call, log_decays, state_before


@concept(
    title="Retention, recurrent form",
    source="Sun et al. 2023, arXiv:2307.08621, eq. 6",
    example=lambda rng: example_call(rng),
    roles=("recurrence",),
    rejects=REJECTS,
    form_of="retention",
)
def retention_recurrent(
    query: Float[Array, "*batch heads positions d_head"],
    key: Float[Array, "*batch heads positions d_head"],
    value: Float[Array, "*batch heads positions d_value"],
    state: Float[Array, "*batch heads d_head d_value"] | None = None,
    *,
    decay: Sequence[float] | Float[Array, "heads"] | None = None,
) -> tuple[tuple[Array, Array], Backward]:
    """Carry a state along the text: fade it, add to it, read it. Arguments, results and errors are those of retention."""
    *before, positions, d_head = query.shape
    scale = d_head**-0.5
    fade = np.exp(log_decays(decay, before[-1])).astype(query.dtype)  # (heads, 1, 1)
    scaled = scale * query                                   # (1)
    start = state_before(state, key, value)

    def step(h, t):
        h = fade * h
        h += key[..., t, :, None] * value[..., t, None, :]   # (6)
        return h

    stride = int(np.ceil(positions**0.5))
    kept, out, h = [], np.empty_like(value), start
    for t in range(positions):
        if t % stride == 0:
            kept.append(h)
        h = step(h, t)
        out[..., t, :] = (scaled[..., t, None, :] @ h)[..., 0, :]  # (5)

    def backward(dresult):
        dout, dh = dresult
        dscaled, dkey, dvalue = (np.empty_like(a) for a in (query, key, value))
        for first, h in reversed(list(zip(range(0, positions, stride), kept, strict=True))):
            states = [h]
            for t in range(first, min(first + stride, positions)):
                states.append(step(states[-1], t))
            for t in reversed(range(first, first + len(states) - 1)):
                dh = dh + scaled[..., t, :, None] * dout[..., t, None, :]
                dscaled[..., t, :] = (states.pop() @ dout[..., t, :, None])[..., 0]
                dkey[..., t, :] = (dh @ value[..., t, :, None])[..., 0]  # (9)
                dvalue[..., t, :] = (key[..., t, None, :] @ dh)[..., 0, :]  # (10)
                dh *= fade                                   # on to the state before  (11)
        dquery = scale * dscaled                             # (8)
        return dquery, dkey, dvalue, None if state is None else dh

    return (out, h), backward
