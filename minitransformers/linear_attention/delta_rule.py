"""The delta rule: a memory that looks before it writes. What its key reads already is taken away, and only what is missing is added.

Linear attention adds value after value under the same key, and reads their sum. Here a position first reads with its own key, compares
with the value that it wants to be read there, and writes a share beta of the difference. It is one step of gradient
descent on |state^T key - value|^2 / 2, of size beta. Sources: Widrow and Hoff 1960, Adaptive switching circuits (the rule); Schlag,
Irie and Schmidhuber 2021, arXiv:2102.11174, eqs. 23 to 25 (in attention); Yang, Wang, Zhang, Shen and Kim 2024, arXiv:2406.06484, section
2.2. Differs from them: an initial and a final state; queries and keys are taken as given: what their length is to be, a layer
decides (delta_net). t counts positions.

    error_t = value_t - state_{t-1}^T key_t                  (1)
    write_t = beta_t error_t                                 (2)
    state_t = state_{t-1} + key_t write_t^T                  (3)
    out_t = state_t^T query_t                                (4)
    dstate_t = dleft_t + query_t dout_t^T                    (5)
    dquery_t = state_t dout_t                                (6)
    dwrite_t = dstate_t^T key_t                              (7)
    dbeta_t = <dwrite_t, error_t>                            (8)
    dvalue_t = beta_t dwrite_t                               (9)
    dkey_t = dstate_t write_t - state_{t-1} dvalue_t         (10)
    dleft_{t-1} = dstate_t - key_t dvalue_t^T                (11)

dleft_t is what later positions hand back; the last is the gradient of the final state, the first that of the initial one. The state
is multiplied by I - beta key key^T: with keys of length 1 and beta from 0 to 1 nothing in it grows; where beta |key|^2 is above 2, it
does, and faster with every position. Time positions d_head d_value, in matrix-vector and outer products: nothing that a matrix unit
could do (delta_rule_chunked). Every sqrt(positions)-th state is kept, and those between are made again on the way back.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, invalid

REJECTS = [bad(state=np.ones((2, 4, 6)))]


@concept(
    title="Delta rule",
    source="Schlag, Irie and Schmidhuber 2021, arXiv:2102.11174, eqs. 23 to 25",
    example=lambda rng: example_call(rng),
    rejects=REJECTS,
)
def delta_rule(
    query: Float[Array, "*batch positions d_head"],
    key: Float[Array, "*batch positions d_head"],
    value: Float[Array, "*batch positions d_value"],
    beta: Float[Array, "*batch positions"],
    state: Float[Array, "*batch d_head d_value"] | None = None,
) -> tuple[tuple[Array, Array], Backward]:
    """Carry a state along the text: at each position correct what its key reads towards its value, then read with its query.

    beta is the share of the error that is corrected: 0 writes nothing, 1 makes a key of length 1 read its value exactly. Keys are
    taken as they are; the usual length is 1. state is what came before the first position (None: zeros).
    Returns (out, state), out shaped like value and the final state, and backward: (dout, dstate) -> dquery, dkey, dvalue, dbeta,
    and the gradient of the initial state (None where there was none).
    Raises ValueError where axes do not fit, or the state is not that of these keys and values.
    """
    positions = query.shape[-2]
    h = state_before(state, key, value)

    def error_of(h, t):
        return value[..., t, :] - (key[..., t, None, :] @ h)[..., 0, :]  # (1)

    def step(h, t):
        write = beta[..., t, None] * error_of(h, t)          # (2)
        return h + key[..., t, :, None] * write[..., None, :]  # (3)

    stride = int(np.ceil(positions**0.5))
    kept, out = [], np.empty_like(value)
    for t in range(positions):
        if t % stride == 0:
            kept.append(h)
        h = step(h, t)
        out[..., t, :] = (query[..., t, None, :] @ h)[..., 0, :]  # (4)

    def backward(dresult):
        dout, dh = dresult
        dquery, dkey, dvalue, dbeta = (np.empty_like(a) for a in (query, key, value, beta))
        for first, h in reversed(list(zip(range(0, positions, stride), kept, strict=True))):
            states = [h]
            for t in range(first, min(first + stride, positions)):
                states.append(step(states[-1], t))
            for t in reversed(range(first, first + len(states) - 1)):
                dh = dh + query[..., t, :, None] * dout[..., t, None, :]  # (5)
                dquery[..., t, :] = (states.pop() @ dout[..., t, :, None])[..., 0]  # (6)
                dwrite = (key[..., t, None, :] @ dh)[..., 0, :]  # (7)
                before = states[-1]
                error = error_of(before, t)
                dbeta[..., t] = np.vecdot(dwrite, error)     # (8)
                dv = beta[..., t, None] * dwrite
                dvalue[..., t, :] = dv                       # (9)
                write = beta[..., t, None] * error
                dkey[..., t, :] = (dh @ write[..., None] - before @ dv[..., None])[..., 0]  # (10)
                dh -= key[..., t, :, None] * dv[..., None, :]  # on to the state before  (11)
        return dquery, dkey, dvalue, dbeta, None if state is None else dh

    return (out, h), backward


def state_before(state: Array | None, key: Array, value: Array) -> Array:
    """The initial state, zeros for None. Raises ValueError where it has another shape than these keys and values need."""
    shape = (*key.shape[:-2], key.shape[-1], value.shape[-1])
    if state is None:
        return np.zeros(shape, value.dtype)
    if state.shape != shape:                                 # where a text is written token by token no annotation is checked
        raise invalid("state", got=f"shape {state.shape}", wants=f"{shape}: (..., d_head, d_value)")
    return state


def example_call(rng: np.random.Generator, **config):
    """The small call of every form, with an initial state; keys are short, as a check takes them and beta a thousand times larger."""
    shapes = (2, 3, 4), (2, 3, 4), (2, 3, 5), (2, 4, 5)
    query, key, value, state = (rng.normal(size=shape) for shape in shapes)
    return example(query, key / 12, value, rng.uniform(0.2, 1.0, size=(2, 3)), state, **config)
