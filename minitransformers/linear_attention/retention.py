"""Retention: attention without a softmax, in which a key fades by one constant factor a position. The core of RetNet.

What is left of the softmax's weights are plain scores; the causal mask of zeros and ones becomes a mask of powers of the head's
decay. Since powers multiply, the same map is a recurrence with a state of fixed size (retention_recurrent), and anything
between the two (retention_chunked). Source: Sun et al. 2023, arXiv:2307.08621, eqs. 5 to 7. Differs from the paper: an initial and
a final state; the rotation of queries and keys stands outside, in retnet. o is the product of elements.

    scaled = query / sqrt(d_head)                            (1)
    mask_ij = exp((i - j) log decay) for j <= i, 0 above the diagonal        (2)
    carry_i = exp((i + 1) log decay)                         (3)
    weights = mask o (scaled key^T)                          (4)
    out_i = sum_j weights_ij value_j + carry_i scaled_i state                (5)
    state' = sum_j mask_{last,j} key_j value_j^T + carry_last state          (6)
    dscores = mask o (dout value^T)                          (7)
    dquery = (dscores key + carry o (dout state^T)) / sqrt(d_head)           (8)
    dkey = dscores^T scaled + mask_last o (value dstate'^T)  (9)
    dvalue = weights^T dout + mask_last o (key dstate')      (10)
    dstate = (carry o scaled)^T dout + carry_last dstate'    (11)

state is what came before the first position, state' what the last leaves. Every exponent is 0 or less: no power of 1 / decay is
ever made, which would overflow. Time and memory positions^2.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, invalid

REJECTS = [
    bad(decay=(0.5, 0.5, 0.5)), bad(decay=(0.5, 0.0)), bad(decay=np.array([0.5, 1.01])), bad(decay=(0.5, np.nan)), bad(decay=0.5),
    bad(decay="half"), bad(decay=np.ones((1, 2))),
]  # fmt: skip


def multi_scale_decays(heads: int) -> Array:
    """The paper's decays, 1 - 2^(-5 - h) for head h: each head remembers twice as long as the one before, 32 positions the first."""
    return 1 - 2.0 ** (-5 - np.arange(heads))


def log_decays(decay: Sequence[float] | Float[Array, "heads"] | None, heads: int) -> Float[Array, "heads 1 1"]:
    """The logarithms of the heads' decays, in float64; None stands for multi_scale_decays.

    Raises ValueError, naming decay, unless it is one number above 0 and up to 1 for each head.
    """
    if decay is None:
        decay = multi_scale_decays(heads)
    wants = f"a number above 0 and up to 1 for each of the {heads} heads"
    try:
        numbers = np.asarray(decay, np.float64)
    except (TypeError, ValueError):
        raise invalid("decay", got=repr(decay), wants=wants) from None
    if numbers.shape != (heads,) or not ((numbers > 0) & (numbers <= 1)).all():
        raise invalid("decay", got=f"{numbers.tolist()}", wants=wants)
    return np.log(numbers)[:, None, None]


def fading_mask(log_decay: Float[Array, "heads 1 1"], positions: int, dtype: np.dtype) -> Float[Array, "heads positions positions"]:
    """What is left of each position at each later one; zeros above the diagonal."""
    apart = np.arange(positions)[:, None] - np.arange(positions)
    return np.exp(np.where(apart >= 0, apart * log_decay, -np.inf)).astype(dtype)  # -inf before exp: nothing overflows  (2)


def fading_since(log_decay: Float[Array, "heads 1 1"], positions: int, dtype: np.dtype) -> Float[Array, "heads positions 1"]:
    """What is left at each position of the state before the first."""
    return np.exp(np.arange(1, positions + 1)[:, None] * log_decay).astype(dtype)  # (3)


@concept(
    title="Retention",
    source="Sun et al. 2023, arXiv:2307.08621, eqs. 5 to 7",
    example=lambda rng: example_call(rng),
    roles=("recurrence",),
    rejects=REJECTS,
)
def retention(
    query: Float[Array, "*batch heads positions d_head"],
    key: Float[Array, "*batch heads positions d_head"],
    value: Float[Array, "*batch heads positions d_value"],
    state: Float[Array, "*batch heads d_head d_value"] | None = None,
    *,
    decay: Sequence[float] | Float[Array, "heads"] | None = None,
) -> tuple[tuple[Array, Array], Backward]:
    """Every output as a sum of the values up to it, each with the weight query . key / sqrt(d_head) times the decay between the two.

    decay is what is left after one position, above 0 and up to 1 (1: nothing fades), one number a head; None: those of RetNet,
    1 - 2^(-5 - h) for head h. It is not trained. state is what came before the first position (None: zeros).
    Returns (out, state), out shaped like value and the final state, and backward: (dout, dstate) -> dquery, dkey, dvalue, and
    the gradient of the initial state (None where there was none).
    Raises ValueError for other decays than that, and axes that do not fit.
    """
    *before, positions, d_head = query.shape
    scale = d_head**-0.5
    log_decay = log_decays(decay, before[-1])
    mask = fading_mask(log_decay, positions, query.dtype)    # (2)
    carry = fading_since(log_decay, positions, query.dtype)  # (3)
    last, fade = mask[:, -1, :, None], carry[:, -1:]         # what is left at the end of each position, and of the state
    start = state_before(state, key, value)

    scaled = scale * query                                   # (1)
    weights = mask * (scaled @ key.swapaxes(-1, -2))         # (..., heads, positions, positions)  (4)
    out = weights @ value + carry * (scaled @ start)         # (5)
    final = (last * key).swapaxes(-1, -2) @ value + fade * start  # (6)

    def backward(dresult):
        dout, dfinal = dresult
        dscores = mask * (dout @ value.swapaxes(-1, -2))     # (7)
        dquery = scale * (dscores @ key + carry * (dout @ start.swapaxes(-1, -2)))  # (8)
        dkey = dscores.swapaxes(-1, -2) @ scaled + last * (value @ dfinal.swapaxes(-1, -2))  # (9)
        dvalue = weights.swapaxes(-1, -2) @ dout + last * (key @ dfinal)  # (10)
        dstate = (carry * scaled).swapaxes(-1, -2) @ dout + fade * dfinal  # (11)
        return dquery, dkey, dvalue, None if state is None else dstate

    return (out, final), backward


def state_before(state: Array | None, key: Array, value: Array) -> Array:
    """The initial state, zeros for None. Raises ValueError where it has another shape than these keys and values need."""
    shape = (*key.shape[:-2], key.shape[-1], value.shape[-1])
    if state is None:
        return np.zeros(shape, value.dtype)
    if state.shape != shape:                                 # where a text is written token by token no annotation is checked
        raise invalid("state", got=f"shape {state.shape}", wants=f"{shape}: (..., heads, d_head, d_value)")
    return state


def example_call(rng: np.random.Generator, **config):
    """The small call of every form: two heads that fade at different rates, with an initial state."""
    shapes = (3, 2, 5, 4), (3, 2, 5, 4), (3, 2, 5, 6), (3, 2, 4, 6)
    return example(*(rng.normal(size=shape) for shape in shapes), decay=np.array([0.9, 0.4]), **config)
