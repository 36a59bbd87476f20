"""State-space duality (SSD): one map that is a recurrence and an attention, the core of Mamba-2.

Mamba's scan lets every state entry fade at a rate of its own. Give a head one rate for its whole state, and the recurrence becomes
a matrix of decays o scores that multiplies the values: attention without its softmax. Both ways compute the same map;
in chunks they share the work, and the state can be large. Source: Dao and Gu 2024, arXiv:2405.21060, sections 3 to 6.
Differs from the paper's listing: the step delta is applied here, within limits, and a gate may stand behind, as in the authors'
kernels. delta is positive already (softplus stands outside). What computes (4) is a slot, the core.

    step_t = delta_t, clipped to delta_limit                 (1)
    log_decay_t = step_t A                                   (2)
    input_t = step_t x_t                                     (3)
    h_t = exp(log_decay_t) h_{t-1} + input_t B_t^T, read_t = h_t C_t, by the core         (4)
    y_t = read_t + D x_t                                     (5)
    out_t = y_t silu(z_t)                                    (6)
    dy_t = dout_t silu(z_t), dz_t = dout_t y_t silu'(z_t)    (7)
    dinput, dlog_decay, dB, dC, dstate = the core's backward at dy                        (8)
    dstep_t = <dinput_t, x_t> + A dlog_decay_t               (9)
    ddelta_t = dstep_t where step_t = delta_t, 0 where it was clipped                     (10)
    dA = sum over positions of step dlog_decay               (11)
    dx_t = step_t dinput_t + D dy_t                          (12)
    dD = sum over positions of dy x, and over the features that share a D                 (13)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.silu import silu
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid, negative
from minitransformers.foundation.ranges import Range
from minitransformers.state_space.ssd_chunked import ssd_chunked
from minitransformers.state_space.ssd_recurrent import THREE_GROUPS

# What an end of delta_limit may be. Infinity, which other ranges leave out, is the high end of no limit.
step_limit = Range("of at least 0, or infinity", lambda low, high: bool(low >= 0), (-1.0, np.nan, -np.inf))


@concept(
    title="State-space duality (SSD)",
    source="Dao and Gu 2024, arXiv:2405.21060, sections 3 to 6",
    example=lambda rng: _example(rng),
    rejects=[
        THREE_GROUPS,
        bad("delta", delta=np.full((2, 5, 4), 1e300), A=np.full(4, -1e300), delta_limit=None),
        *(bad(delta_limit=limit) for limit in ((1.0, 0.3), (-0.1, 1.0), (np.nan, 1.0), (0.3, np.nan), (np.inf, np.inf), (0.3,), 0.3)),
    ],
)
def ssd(
    x: Float[Array, "*batch positions heads d_head"],
    delta: Annotated[Float[Array, "*batch positions heads"], at_least(0)],
    A: Annotated[Float[Array, "heads"], negative],
    B: Float[Array, "*batch positions groups d_state"],
    C: Float[Array, "*batch positions groups d_state"],
    D: Float[Array, "heads #d_head"] | None = None,
    z: Float[Array, "*batch positions heads d_head"] | None = None,
    state: Float[Array, "*batch heads d_head d_state"] | None = None,
    *,
    core: Callable = ssd_chunked,
    delta_limit: Sequence[Annotated[float, step_limit]] | None = None,
) -> tuple[tuple[Array, Array], Backward]:
    """Move information along the sequence through a state of d_head x d_state numbers a head.

    delta is the step of each position, at least 0 (0: the position is not noticed), A the rate of decay a unit of step,
    below 0; with r = heads / groups, head h reads group h // r of B and C. D adds the position's own x, times one number a
    feature, or one a head where its last axis is 1; z gates the output, state is what came before. None leaves each of them out.
    core(input, log_decay, B, C, state) -> (read, state), backward is the recurrence: ssd_chunked (training), ssd_recurrent (the
    reference) or ssd_quadratic (short sequences). All give the same. delta_limit is (low, high): steps outside are clipped, and
    their gradient is 0; a step equal to one of the two is inside.
    Returns (out, state), out shaped like x, and backward: (dout, dstate) -> one gradient each, None for what was None.
    Raises ValueError for a step below 0, a rate that is not, steps times rates that overflow, groups that do not divide the
    heads, a limit that is reversed, or axes that do not fit.
    """
    with np.errstate(over="ignore"):
        step = delta if delta_limit is None else _clipped(delta, delta_limit)  # (1)
        log_decay = step * A                                 # (2)
    if not np.isfinite(log_decay).all():
        raise invalid("delta", got=f"steps up to {step.max():.3g} and rates down to {A.min():.3g}", wants="finite products of the two")
    by_feature = step[..., None]
    (read, final), core_backward = core(by_feature * x, log_decay, B, C, state)  # (3) (4)
    y = read if D is None else read + D * x                  # (5)
    out = y
    if z is not None:
        gate, gate_backward = silu(z)
        out = y * gate                                       # (6)

    def backward(dresult):
        dy, dfinal = dresult
        dz = None
        if z is not None:
            dy, dz = dy * gate, gate_backward(dy * y)        # (7)
        dinput, dlog_decay, dB, dC, dstate = core_backward((dy, dfinal))  # (8)
        dstep = np.vecdot(dinput, x) + A * dlog_decay        # the step is in the input and in the decay: two terms  (9)
        ddelta = dstep if delta_limit is None else np.where(step == delta, dstep, 0)  # a clipped step is a constant  (10)
        axes = tuple(range(delta.ndim - 1))                  # batch and positions
        dA = (step * dlog_decay).sum(axes)                   # (11)
        dx = by_feature * dinput                             # an array of our own: a core may return its dout
        dD = None
        if D is not None:
            dx += D * dy                                     # (12)
            dD = np.vecdot(dy, x).sum(axes)[:, None] if D.shape[1] == 1 else (dy * x).sum(axes)  # (13)
        return dx, ddelta, dA, dB, dC, dD, dz, dstate

    return (out, final), backward


def _clipped(delta: Array, limit: Sequence[float]) -> Array:
    """The steps within the limit. Raises ValueError for a limit that is none."""
    if len(limit) != 2 or not limit[0] <= limit[1] or limit[0] == np.inf:
        raise invalid("delta_limit", got=limit, wants="a finite low and a high step, the low one first")
    return np.clip(delta, *limit)


def _example(rng: np.random.Generator):
    """Steps below, within and above the limit, none of them near it; a D for each feature."""
    delta = rng.uniform(0.4, 0.8, size=(2, 5, 4)) * rng.choice([0.25, 1.0, 3.0], size=(2, 5, 4))
    return example(
        rng.normal(size=(2, 5, 4, 3)), delta, -rng.uniform(0.3, 1.5, size=4), rng.normal(size=(2, 5, 2, 6)), rng.normal(size=(2, 5, 2, 6)),
        rng.normal(size=(4, 3)), rng.normal(size=(2, 5, 4, 3)), rng.normal(size=(2, 4, 3, 6)),
        core=partial(ssd_chunked, chunk=2), delta_limit=(0.3, 1.0),
    )  # fmt: skip
