"""State-space duality (SSD): one map that is a recurrence and an attention, the core of Mamba-2.

Mamba's scan lets every state entry fade at a rate of its own. Give a head one rate for its whole state, and the recurrence becomes
a matrix of decays o scores that multiplies the values: attention without its softmax. Either reading computes the same map;
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

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import bad, concept, example, invalid
from minitransformers.state_space.ssd_chunked import ssd_chunked
from minitransformers.state_space.ssd_quadratic import ssd_quadratic
from minitransformers.state_space.ssd_recurrent import ssd_recurrent

_FORMS: dict[str, Callable] = {"chunked": ssd_chunked, "recurrent": ssd_recurrent, "quadratic": ssd_quadratic}


def _example(rng: np.random.Generator):
    return example(
        rng.normal(size=(2, 5, 4, 3)), rng.uniform(0.2, 1.0, size=(2, 5, 4)), -rng.uniform(0.3, 1.5, size=4),
        rng.normal(size=(2, 5, 2, 6)), rng.normal(size=(2, 5, 2, 6)), rng.normal(size=4), rng.normal(size=(2, 4, 3, 6)), chunk=2,
    )  # fmt: skip


@concept(
    title="State-space duality (SSD)",
    source="Dao and Gu 2024, arXiv:2405.21060, sections 3 to 6",
    example=_example,
    rejects=[
        bad(delta=np.full((2, 5, 4), -0.1)),
        bad(delta=np.full((2, 5, 4), np.nan)),
        bad(A=np.array([-1.0, -1.0, 0.0, -1.0])),
        bad(A=np.ones(3)),
        bad(chunk=0),
        bad(form="parallel"),
        bad("B", B=np.ones((2, 5, 3, 6)), C=np.ones((2, 5, 3, 6))),
        bad(state=np.ones((2, 4, 3, 5))),
        bad(D=np.ones(3)),
        bad(x=np.ones((2, 0, 4, 3))),
    ],
)
def ssd(
    x: Float[Array, "*batch n heads d_head"],
    delta: Float[Array, "*batch n heads"],
    A: Float[Array, "heads"],
    B: Float[Array, "*batch n groups d_state"],
    C: Float[Array, "*batch n groups d_state"],
    D: Float[Array, "heads"] | None = None,
    state: Float[Array, "*batch heads d_head d_state"] | None = None,
    *,
    form: str = "chunked",
    chunk: int = 32,
):
    """Move information along the sequence through a state of d_head x d_state numbers a head.

    delta is the step of each position, not negative (0: the position is not noticed), A the rate of decay a unit of step,
    negative; with r = heads / groups, head h reads group h // r of B and C. D adds the position's own x. state is what came before.
    form is "chunked" (training; chunk positions at a time), "recurrent" (the reference) or "quadratic" (short sequences).
    Returns (y, state), y shaped like x, and backward: (dy, dstate) -> dx, ddelta, dA, dB, dC, dD, dstate, the last two None
    where the argument was None.
    Raises ValueError for a negative step, a rate that is not negative, groups that do not divide the heads, a chunk below 1,
    an unknown form, or axes that do not fit.
    """
    if not np.all((delta >= 0) & np.isfinite(delta)):
        raise invalid("delta", got=f"numbers from {delta.min()} to {delta.max()}", wants="finite steps that are not negative")
    if not np.all((A < 0) & np.isfinite(A)):
        raise invalid("A", got=A, wants="finite rates below 0")
    if form not in _FORMS:
        raise invalid("form", got=repr(form), wants=f"one of {', '.join(_FORMS)}")
    cut = {"chunk": chunk} if form == "chunked" else {}

    log_decay = delta * A                                    # (1)
    step = delta[..., None]
    (read, final), core_backward = _FORMS[form](step * x, log_decay, B, C, state, **cut)  # (2) (3)
    y = read if D is None else read + D[:, None] * x         # (4)

    def backward(dout):
        dy, dfinal = dout
        dinput, dlog_decay, dB, dC, dstate = core_backward((dy, dfinal))  # (5)
        ddelta = np.vecdot(dinput, x) + A * dlog_decay       # the step is in the input and in the decay: two terms  (7)
        dx = np.multiply(step, dinput, out=dinput)           # in place: dinput is ours, and as large as x
        if D is not None:
            dx += D[:, None] * dy                            # (6)
        positions = tuple(range(delta.ndim - 1))
        dA = (delta * dlog_decay).sum(positions)             # (8)
        dD = None if D is None else np.vecdot(dy, x).sum(positions)  # (9)
        return dx, ddelta, dA, dB, dC, dD, dstate

    return (y, final), backward
