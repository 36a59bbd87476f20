"""Rank-one recurrence: rows of a state fade, and what a vector reads there is written back along another. The core of RWKV-7.

The gated recurrence lets each row of the state fade at a rate of its own, and moves nothing from row to row. The delta rule takes away what a
key reads, and lets nothing fade. Here a position does both, and need not take away where it reads: the state is multiplied by a
diagonal matrix plus one of rank one, diag(decay) + write read^T. With decay 1, read = -beta key and write = key it is the delta rule; with
read or write 0 the gated recurrence, but for its scale. Source: Peng et al. 2025, arXiv:2503.14456 (RWKV-7's time mixing, where read is minus
a direction and write a share of it). Differs from the paper: an initial and a final state; the state is transposed, a row a feature of
the keys. o is the product of elements, which takes a vector as a column; t counts positions.

    decay = exp(log_decay)                                   (1)
    found_t = state_{t-1}^T read_t                           (2)
    state_t = decay_t o state_{t-1} + write_t found_t^T + key_t value_t^T   (3)
    out_t = state_t^T query_t                                (4)
    dstate_t = dleft_t + query_t dout_t^T                    (5)
    dquery_t = state_t dout_t                                (6)
    dkey_t = dstate_t value_t                                (7)
    dvalue_t = dstate_t^T key_t                              (8)
    dwrite_t = dstate_t found_t                              (9)
    dfound_t = dstate_t^T write_t                            (10)
    dread_t = state_{t-1} dfound_t                           (11)
    dlog_decay_t = decay_t o sum over the columns of dstate_t o state_{t-1}   (12)
    dleft_{t-1} = decay_t o dstate_t + read_t dfound_t^T     (13)

dleft_t is what later positions hand back; the last is the gradient of the final state, the first that of the initial one. Nothing here
keeps the state bounded: that read and write fit together is up to the layer (rwkv7). Time positions d_head d_value, in outer
products and matrix-vector products: nothing that a matrix unit could do (rank_one_recurrence_chunked). Every sqrt(positions)-th state is
kept, and those between are made again on the way back.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_most, bad, concept, example
from minitransformers.linear_attention.delta_rule import state_before

REJECTS = [bad(state=np.ones((2, 4, 6)))]


@concept(
    title="Rank-one recurrence (generalised delta rule)",
    source="Peng et al. 2025, arXiv:2503.14456",
    example=lambda rng: example_call(rng),
    rejects=REJECTS,
)
def rank_one_recurrence(
    query: Float[Array, "*batch positions d_head"],
    key: Float[Array, "*batch positions d_head"],
    value: Float[Array, "*batch positions d_value"],
    log_decay: Annotated[Float[Array, "*batch positions d_head"], at_most(0)],
    read: Float[Array, "*batch positions d_head"],
    write: Float[Array, "*batch positions d_head"],
    state: Float[Array, "*batch d_head d_value"] | None = None,
) -> tuple[tuple[Array, Array], Backward]:
    """Carry a state along the text: let its rows fade, write what ``read`` finds there along ``write``, add a value under its key, read it.

    log_decay is 0 or less, a number for each position and feature of the keys (0: nothing fades). All read the state before the
    position but the query, which sees what its own position has done. state is what came before the first position (None: zeros).
    Returns (out, state), out shaped like value and the final state, and backward: (dout, dstate) -> dquery, dkey, dvalue,
    dlog_decay, dread, dwrite, and the gradient of the initial state (None where there was none).
    Raises ValueError where a log_decay is positive or not finite, axes do not fit, or the state is not that of these keys and values.
    """
    positions = query.shape[-2]
    decay = np.exp(log_decay)                                # (1)
    h = state_before(state, key, value)

    def found_by(h, t):
        return (read[..., t, None, :] @ h)[..., 0, :]        # (2)

    def step(h, t):
        after = decay[..., t, :, None] * h
        after += write[..., t, :, None] * found_by(h, t)[..., None, :]
        after += key[..., t, :, None] * value[..., t, None, :]  # (3)
        return after

    stride = int(np.ceil(positions**0.5))
    kept, out = [], np.empty_like(value)
    for t in range(positions):
        if t % stride == 0:
            kept.append(h)
        h = step(h, t)
        out[..., t, :] = (query[..., t, None, :] @ h)[..., 0, :]  # (4)

    def backward(dresult):
        dout, dh = dresult
        dquery, dkey, dvalue, dlog_decay, dread, dwrite = (np.empty_like(a) for a in (query, key, value, log_decay, read, write))
        for first, h in reversed(list(zip(range(0, positions, stride), kept, strict=True))):
            states = [h]
            for t in range(first, min(first + stride, positions)):
                states.append(step(states[-1], t))
            for t in reversed(range(first, first + len(states) - 1)):
                dh = dh + query[..., t, :, None] * dout[..., t, None, :]  # (5)
                dquery[..., t, :] = (states.pop() @ dout[..., t, :, None])[..., 0]  # (6)
                before = states[-1]
                dkey[..., t, :] = (dh @ value[..., t, :, None])[..., 0]  # (7)
                dvalue[..., t, :] = (key[..., t, None, :] @ dh)[..., 0, :]  # (8)
                dwrite[..., t, :] = (dh @ found_by(before, t)[..., None])[..., 0]  # (9)
                dfound = (write[..., t, None, :] @ dh)[..., 0, :]  # (10)
                dread[..., t, :] = (before @ dfound[..., None])[..., 0]  # (11)
                dh *= decay[..., t, :, None]
                dlog_decay[..., t, :] = np.vecdot(dh, before)  # (12)
                dh += read[..., t, :, None] * dfound[..., None, :]  # on to the state before  (13)
        return dquery, dkey, dvalue, dlog_decay, dread, dwrite, None if state is None else dh

    return (out, h), backward


def example_call(rng: np.random.Generator, **config):
    """The small call of every form, with an initial state; read and write are short, as a check takes each a thousand times larger."""
    query, key, read, write = (rng.normal(size=(2, 5, 4)) for _ in range(4))
    value, log_decay = rng.normal(size=(2, 5, 3)), -rng.uniform(0.1, 1.0, size=(2, 5, 4))
    return example(query, key, value, log_decay, read / 12, write / 12, rng.normal(size=(2, 4, 3)), **config)
