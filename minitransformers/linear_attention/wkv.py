"""WKV, the attention of RWKV-4: in every channel a mean of the values so far, in which the past fades by a rate that is learned.

Key and value are numbers here, one pair a channel and position, and the weight of a position is exp(key), fading by exp(-decay)
with each position that comes after it. The current position is weighed by exp(bonus + key) instead, and fades not at all. What is
kept of the past is two numbers a channel: the mean of the values, and the logarithm of the sum of their weights.

Source: Peng et al. 2023, arXiv:2305.13048, eq. 16 and appendix D. Differs from the paper: it keeps a numerator and a denominator,
both scaled by the largest exponent so far. Mean and log-total are the same state, cannot overflow either, and have a gradient
everywhere. At the start there is nothing: the mean is 0 and the log-total -inf.

    write_t = sigmoid(k_t - (total_{t-1} - decay))           (1)
    mean_t = mean_{t-1} + write_t (v_t - mean_{t-1})         (2)
    total_t = log(exp(total_{t-1} - decay) + exp(k_t))       (3)
    read_t = sigmoid(bonus + k_t - total_{t-1})              (4)
    out_t = mean_{t-1} + read_t (v_t - mean_{t-1})           (5)
    dread_t = read_t (1 - read_t) (v_t - mean_{t-1}) dout_t  (6)
    dwrite_t = write_t (1 - write_t) (v_t - mean_{t-1}) dmean_t   (7)
    dv_t = read_t dout_t + write_t dmean_t                   (8)
    dk_t = dread_t + dwrite_t + write_t dtotal_t             (9)
    dbonus = sum over t of dread_t                           (10)
    ddecay = sum over t of dwrite_t - (1 - write_t) dtotal_t (11)
    dmean_{t-1} = (1 - read_t) dout_t + (1 - write_t) dmean_t   (12)
    dtotal_{t-1} = (1 - write_t) dtotal_t - dread_t - dwrite_t  (13)

dread and dwrite are the gradients of what stands inside the two sigmoids. (2) and (3) merge two means, as merge_attention does.
One step a position; wkv_chunked is the same in a few steps over many positions.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.sigmoid import sigmoid
from minitransformers.foundation import Backward, concept, example, positive


class WkvState(NamedTuple):
    """The past of every channel: the mean of its values, and the logarithm of the sum of their weights (-inf for no past)."""

    mean: Float[Array, "*batch channels"]
    log_total: Float[Array, "*batch channels"]


@concept(
    title="WKV",
    source="Peng et al. 2023, arXiv:2305.13048, eq. 16",
    example=lambda rng: example_call(rng),
    roles=("recurrence",),
)
def wkv(
    decay: Annotated[Float[Array, "channels"], positive],
    bonus: Float[Array, "channels"],
    key: Float[Array, "*batch positions channels"],
    value: Float[Array, "*batch positions channels"],
    state: WkvState | None = None,
) -> tuple[tuple[Array, WkvState], Backward]:
    """The mean of the values up to each position, weighed by the exponential of their keys and fading with distance.

    decay, above 0, is what a weight's logarithm loses with each position; bonus is added to the key of the current position.
    state is what came before the first position, None for nothing.
    Returns (out, state), out shaped like value, and backward: (dout, dstate) -> ddecay, dbonus, dkey, dvalue, dstate (None
    where there was no state).
    """
    past = empty_past(key) if state is None else state
    out, states = np.empty_like(value), []
    for t in range(key.shape[-2]):
        k, v = key[..., t, :], value[..., t, :]
        states.append(past)
        write = sigmoid(k - (past.log_total - decay))[0]     # (1)
        mean = past.mean + write * (v - past.mean)           # (2)
        total = np.logaddexp(past.log_total - decay, k)      # (3)
        read = sigmoid(bonus + k - past.log_total)[0]        # (4)
        out[..., t, :] = past.mean + read * (v - past.mean)  # (5)
        past = WkvState(mean, total)

    def backward(dresult):
        dout, (dmean, dtotal) = dresult
        dkey, dvalue, ddecays, dbonuses = (np.zeros_like(key) for _ in range(4))
        for t in reversed(range(key.shape[-2])):
            k, v, dy = key[..., t, :], value[..., t, :], dout[..., t, :]
            mean, total = states[t]
            write, read = sigmoid(k - (total - decay))[0], sigmoid(bonus + k - total)[0]
            dread = read * (1 - read) * (v - mean) * dy      # (6)
            dwrite = write * (1 - write) * (v - mean) * dmean  # (7)
            dvalue[..., t, :] = read * dy + write * dmean    # (8)
            dkey[..., t, :] = dread + dwrite + write * dtotal  # (9)
            dbonuses[..., t, :] = dread                      # (10)
            ddecays[..., t, :] = dwrite - (1 - write) * dtotal  # (11)
            dmean = (1 - read) * dy + (1 - write) * dmean    # (12)
            dtotal = (1 - write) * dtotal - dread - dwrite   # (13)
        axes = tuple(range(key.ndim - 1))                    # batch and positions share decay and bonus
        dstate = None if state is None else WkvState(dmean, dtotal)
        return ddecays.sum(axes), dbonuses.sum(axes), dkey, dvalue, dstate

    return (out, past), backward


def empty_past(key: Array) -> WkvState:
    """The state before the first position."""
    shape = (*key.shape[:-2], key.shape[-1])
    return WkvState(np.zeros(shape, key.dtype), np.full(shape, -np.inf, key.dtype))


def example_call(rng: np.random.Generator, **config):
    """The small call of both forms, with a state."""
    state = WkvState(*rng.normal(size=(2, 2, 3)))
    return example(rng.uniform(0.2, 1.5, size=3), rng.normal(size=3), *rng.normal(size=(2, 2, 5, 3)), state, **config)
