"""Gated recurrence: a state each of whose rows fades at a rate of its own, which the input decides. The core of gated linear attention.

Linear attention adds to its state and forgets nothing; retention lets all of it fade by one constant. Here each position says for
each feature of the keys how much of the past is left. Source: Yang, Wang, Shen, Panda and Kim 2023, arXiv:2312.06635, eqs. 3 and 4. Differs
from the paper: an initial and a final state; queries are divided by sqrt(d_head), as the authors' code does. o is the
product of elements, which takes a vector as a column; t counts positions.

    scaled = query / sqrt(d_head)                            (1)
    decay = exp(log_decay)                                   (2)
    state_t = decay_t o state_{t-1} + key_t value_t^T        (3)
    out_t = state_t^T scaled_t                               (4)
    dstate_t = scaled_t dout_t^T + decay_{t+1} o dstate_{t+1}   (5)
    dquery_t = state_t dout_t / sqrt(d_head)                 (6)
    dkey_t = dstate_t value_t                                (7)
    dvalue_t = dstate_t^T key_t                              (8)
    dlog_decay_t = decay_t o sum over the columns of dstate_t o state_{t-1}   (9)

The last dstate is the gradient of the final state; decay_0 o dstate_0 is that of the initial one. Time positions d_head d_value a head, in
outer products and matrix-vector products: nothing that a matrix unit could do (gated_recurrence_chunked). Every sqrt(positions)-th
state is kept, and those between are made again on the way back.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_most, concept, example
from minitransformers.linear_attention.retention import state_before


@concept(
    title="Gated recurrence",
    source="Yang, Wang, Shen, Panda and Kim 2023, arXiv:2312.06635, eqs. 3 and 4",
    example=lambda rng: example_call(rng),
)
def gated_recurrence(
    query: Float[Array, "*batch heads positions d_head"],
    key: Float[Array, "*batch heads positions d_head"],
    value: Float[Array, "*batch heads positions d_value"],
    log_decay: Annotated[Float[Array, "*batch heads positions d_head"], at_most(0)],
    state: Float[Array, "*batch heads d_head d_value"] | None = None,
) -> tuple[tuple[Array, Array], Backward]:
    """Carry a state along the text: let each of its rows fade, add to it, read it.

    log_decay is 0 or less, a number for each position and feature of the keys (0: nothing fades). state is what came before the
    first position (None: zeros).
    Returns (out, state), out shaped like value and the final state, and backward: (dout, dstate) -> dquery, dkey, dvalue,
    dlog_decay, and the gradient of the initial state (None where there was none).
    Raises ValueError when a log_decay is positive or not finite, or when the axes do not fit.
    """
    positions, d_head = query.shape[-2:]
    scale = d_head**-0.5
    scaled = scale * query                                   # (1)
    decay = np.exp(log_decay)                                # (2)
    h = state_before(state, key, value)

    def step(h, t):
        h = decay[..., t, :, None] * h
        h += key[..., t, :, None] * value[..., t, None, :]   # (3)
        return h

    stride = int(np.ceil(positions**0.5))
    kept, out = [], np.empty_like(value)
    for t in range(positions):
        if t % stride == 0:
            kept.append(h)
        h = step(h, t)
        out[..., t, :] = (scaled[..., t, None, :] @ h)[..., 0, :]  # (4)

    def backward(dresult):
        dout, dh = dresult
        dscaled, dkey, dvalue, dlog_decay = (np.empty_like(a) for a in (query, key, value, log_decay))
        for first, h in reversed(list(zip(range(0, positions, stride), kept, strict=True))):
            states = [h]
            for t in range(first, min(first + stride, positions)):
                states.append(step(states[-1], t))
            for t in reversed(range(first, first + len(states) - 1)):
                dh = dh + scaled[..., t, :, None] * dout[..., t, None, :]  # (5)
                dscaled[..., t, :] = (states.pop() @ dout[..., t, :, None])[..., 0]
                dkey[..., t, :] = (dh @ value[..., t, :, None])[..., 0]  # (7)
                dvalue[..., t, :] = (key[..., t, None, :] @ dh)[..., 0, :]  # (8)
                dh *= decay[..., t, :, None]                 # on to the state before
                dlog_decay[..., t, :] = np.vecdot(dh, states[-1])  # (9)
        dquery = scale * dscaled                             # (6)
        return dquery, dkey, dvalue, dlog_decay, None if state is None else dh

    return (out, h), backward


def example_call(rng: np.random.Generator, **config):
    """The small call of every form, with an initial state."""
    shapes = (2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 6)
    query, key, value = (rng.normal(size=shape) for shape in shapes)
    return example(query, key, value, -rng.uniform(0.1, 1.0, size=(2, 3, 5, 4)), rng.normal(size=(2, 3, 4, 6)), **config)
