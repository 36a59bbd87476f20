"""SSD as a recurrence: one step a position, a state of fixed size. The form for writing token by token.

Each head carries a matrix of d_head x d_state numbers. A position lets it fade by one factor, adds the outer product of its
value x and its key B, and reads it with its query C. Source: Dao and Gu 2024, arXiv:2405.21060, eq. 2 with A_t a scalar
times the identity (section 5.1). x comes multiplied by its step already; ssd does that.
Heads share keys and queries: with r = heads / groups, head h reads group g = h // r.

    decay_t = exp(log_decay_t)                               (1)
    h_t = decay_t h_{t-1} + x_t B_t^T                        (2)
    y_t = h_t C_t                                            (3)
    dh_t = decay_{t+1} dh_{t+1} + dy_t C_t^T                 (4)
    dC_t = sum over the heads of a group of h_t^T dy_t       (5)
    dB_t = sum over the heads of a group of dh_t^T x_t       (6)
    dx_t = dh_t B_t                                          (7)
    dlog_decay_t = decay_t <dh_t, h_{t-1}>                   (8)

The last dh is the gradient of the final state; decay_0 dh_0 is that of the initial one. Time positions heads d_head d_state, and
all of it outer products and matrix-vector products: nothing that a matrix unit could do. Every sqrt(positions)-th state is
kept, and those between are made again on the way back.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_most, bad, concept, example, invalid

THREE_GROUPS = bad("B", B=np.ones((2, 5, 3, 6)), C=np.ones((2, 5, 3, 6)))  # for four heads: every form refuses it


@concept(
    title="SSD, recurrent form",
    source="Dao and Gu 2024, arXiv:2405.21060, eq. 2 and section 5.1",
    example=lambda rng: example_call(rng),
    rejects=[THREE_GROUPS],
)
def ssd_recurrent(
    x: Float[Array, "*batch positions heads d_head"],
    log_decay: Annotated[Float[Array, "*batch positions heads"], at_most(0)],
    B: Float[Array, "*batch positions groups d_state"],
    C: Float[Array, "*batch positions groups d_state"],
    state: Float[Array, "*batch heads d_head d_state"] | None = None,
) -> tuple[tuple[Array, Array], Backward]:
    """Carry a state along the sequence: fade it, add to it, read it.

    log_decay is 0 or less; state is what came before the first position (None: zeros).
    Returns (y, state), y shaped like x and the final state, and backward: (dy, dstate) -> dx, dlog_decay, dB, dC, and
    the gradient of the initial state (None where there was none).
    Raises ValueError when a log_decay is positive or not finite, when the groups do not divide the heads, or when the
    axes do not fit.
    """
    *batch, positions, heads, d_head = x.shape
    groups, d_state = check_groups(B, heads)
    grouped = (*batch, positions, groups, heads // groups, d_state)
    key, query = (np.repeat(part, heads // groups, axis=-2) for part in (B, C))  # (..., positions, heads, d_state)
    decay = np.exp(log_decay)[..., None, None]               # (1)
    h = np.zeros((*batch, heads, d_head, d_state), x.dtype) if state is None else state

    def step(h, t):
        h = decay[..., t, :, :, :] * h
        h += x[..., t, :, :, None] * key[..., t, :, None, :]  # (2)
        return h

    stride = int(np.ceil(positions**0.5))
    kept, y = [], np.empty_like(x)
    for t in range(positions):
        if t % stride == 0:
            kept.append(h)
        h = step(h, t)
        y[..., t, :, :] = (h @ query[..., t, :, :, None])[..., 0]  # (3)

    def backward(dout):
        dy, dh = dout
        dx, dlog_decay, dkey, dquery = (np.empty_like(a) for a in (x, log_decay, key, query))
        for start, before in reversed(list(zip(range(0, positions, stride), kept, strict=True))):
            states = [before]
            for t in range(start, min(start + stride, positions)):
                states.append(step(states[-1], t))
            for t in reversed(range(start, start + len(states) - 1)):
                dh = dh + dy[..., t, :, :, None] * query[..., t, :, None, :]  # (4)
                dquery[..., t, :, :] = (dy[..., t, :, None, :] @ states.pop())[..., 0, :]
                dkey[..., t, :, :] = (x[..., t, :, None, :] @ dh)[..., 0, :]
                dx[..., t, :, :] = (dh @ key[..., t, :, :, None])[..., 0]  # (7)
                dh *= decay[..., t, :, :, :]                 # on to the state before
                dlog_decay[..., t, :] = (dh * states[-1]).sum((-1, -2))  # (8)
        dC = dquery.reshape(grouped).sum(-2)                 # (5)
        dB = dkey.reshape(grouped).sum(-2)                   # (6)
        return dx, dlog_decay, dB, dC, None if state is None else dh

    return (y, h), backward


def check_groups(B: Array, heads: int) -> tuple[int, int]:
    """The number of groups and d_state. Raises ValueError when the groups do not divide the heads."""
    groups, d_state = B.shape[-2:]
    if heads % groups:
        raise invalid("B", got=f"{groups} groups", wants=f"a number of groups that divides the {heads} heads")
    return groups, d_state


def example_call(rng: np.random.Generator, **config):
    """The small call of every form: 4 heads in 2 groups, with an initial state."""
    return example(
        rng.normal(size=(2, 5, 4, 3)), -rng.uniform(0.1, 1.0, size=(2, 5, 4)), rng.normal(size=(2, 5, 2, 6)),
        rng.normal(size=(2, 5, 2, 6)), rng.normal(size=(2, 4, 3, 6)), **config,
    )  # fmt: skip
