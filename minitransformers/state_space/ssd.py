"""State-space duality (SSD): one map that is a recurrence and an attention, the core of Mamba-2.

Mamba's scan lets every state entry fade at a rate of its own. Give a head one rate for its whole state, and the recurrence becomes
a matrix of decays o scores that multiplies the values: attention without its softmax. Both ways compute the same map;
in chunks they share the work, and the state can be large. Source: Dao and Gu 2024, arXiv:2405.21060, sections 3 to 6.
Differs from the paper's listing: the step delta is applied here, as in the library's kernels, and the three forms can be chosen.

    log_decay_t = delta_t A                                  (1)
    input_t = delta_t x_t                                    (2)
    h_t = exp(log_decay_t) h_{t-1} + input_t B_t^T, read_t = h_t C_t, in one of the forms (3)
    y_t = read_t + D x_t                                     (4)
    dinput, dlog_decay, dB, dC, dstate = the form's backward at dy                        (5)
    dx_t = delta_t dinput_t + D dy_t                         (6)
    ddelta_t = <dinput_t, x_t> + A dlog_decay_t              (7)
    dA = sum over positions of delta dlog_decay              (8)
    dD = sum over positions of <dy, x>                       (9)
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid, negative
from minitransformers.state_space.ssd_chunked import ssd_chunked
from minitransformers.state_space.ssd_quadratic import ssd_quadratic
from minitransformers.state_space.ssd_recurrent import THREE_GROUPS, ssd_recurrent


@concept(
    title="State-space duality (SSD)",
    source="Dao and Gu 2024, arXiv:2405.21060, sections 3 to 6",
    example=lambda rng: _example(rng),
    rejects=[THREE_GROUPS, bad("delta", delta=np.full((2, 5, 4), 1e300), A=np.full(4, -1e300))],
)
def ssd(
    x: Float[Array, "*batch positions heads d_head"],
    delta: Annotated[Float[Array, "*batch positions heads"], at_least(0)],
    A: Annotated[Float[Array, "heads"], negative],
    B: Float[Array, "*batch positions groups d_state"],
    C: Float[Array, "*batch positions groups d_state"],
    D: Float[Array, "heads"] | None = None,
    state: Float[Array, "*batch heads d_head d_state"] | None = None,
    *,
    form: Literal["chunked", "recurrent", "quadratic"] = "chunked",
    chunk: Annotated[int, at_least(1)] = 32,
) -> tuple[tuple[Array, Array], Backward]:
    """Move information along the sequence through a state of d_head x d_state numbers a head.

    delta is the step of each position, at least 0 (0: the position is not noticed), A the rate of decay a unit of step,
    below 0; with r = heads / groups, head h reads group h // r of B and C. D adds the position's own x. state is what came before.
    form is "chunked" (training; chunk positions at a time), "recurrent" (the reference) or "quadratic" (short sequences); a
    single position is one step of the recurrence in each of them.
    Returns (y, state), y shaped like x, and backward: (dy, dstate) -> dx, ddelta, dA, dB, dC, dD, dstate, the last two None
    where the argument was None.
    Raises ValueError for a step below 0, a rate that is not, steps times rates that overflow, groups that do not divide the
    heads, or axes that do not fit.
    """
    with np.errstate(over="ignore"):
        log_decay = delta * A                                # (1)
    if not np.isfinite(log_decay).all():
        raise invalid("delta", got=f"steps up to {delta.max():.3g} and rates down to {A.min():.3g}", wants="finite products of the two")
    step = delta[..., None]
    forms: dict[str, Callable] = {"chunked": partial(ssd_chunked, chunk=chunk), "recurrent": ssd_recurrent, "quadratic": ssd_quadratic}
    core = forms[form] if x.shape[-3] > 1 else ssd_recurrent
    (read, final), core_backward = core(step * x, log_decay, B, C, state)  # (2) (3)
    y = read if D is None else read + D[:, None] * x         # (4)

    def backward(dout):
        dy, dfinal = dout
        dinput, dlog_decay, dB, dC, dstate = core_backward((dy, dfinal))  # (5)
        ddelta = np.vecdot(dinput, x) + A * dlog_decay       # the step is in the input and in the decay: two terms  (7)
        dx = np.multiply(step, dinput, out=dinput)           # in place: dinput is ours, and as large as x
        if D is not None:
            dx += D[:, None] * dy                            # (6)
        axes = tuple(range(delta.ndim - 1))                  # batch and positions
        dA = (delta * dlog_decay).sum(axes)                  # (8)
        dD = None if D is None else np.vecdot(dy, x).sum(axes)  # (9)
        return dx, ddelta, dA, dB, dC, dD, dstate

    return (y, final), backward


def _example(rng: np.random.Generator):
    return example(
        rng.normal(size=(2, 5, 4, 3)), rng.uniform(0.2, 1.0, size=(2, 5, 4)), -rng.uniform(0.3, 1.5, size=4),
        rng.normal(size=(2, 5, 2, 6)), rng.normal(size=(2, 5, 2, 6)), rng.normal(size=4), rng.normal(size=(2, 4, 3, 6)), chunk=2,
    )  # fmt: skip
