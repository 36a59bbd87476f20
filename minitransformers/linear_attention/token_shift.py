"""Token shift: every feature is a mixture of itself and of what it was one position before. A convolution of width two.

It gives a layer without attention the one thing that attention would learn first, to look at the token before. How much, each
feature learns for itself. Costs two products an element. Source: Peng et al. 2023, arXiv:2305.13048, section 3.1, eq. 11 to 13.

    before_t = x_{t-1}                                       (1)
    out_t = before_t + mix (x_t - before_t)                  (2)
    dmix = sum over t of dout_t (x_t - before_t)             (3)
    dx_t = mix dout_t + (1 - mix) dout_{t+1}                 (4)
    dpast = (1 - mix) dout_0                                 (5)

before_0 is what the past left, or 0. Each x_t is read twice: by its own position and by the one after it.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, example


@concept(
    title="Token shift",
    source="Peng et al. 2023, arXiv:2305.13048, section 3.1",
    example=lambda rng: example(rng.normal(size=3), rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 3))),
)
def token_shift(
    mix: Float[Array, "d_model"], x: Float[Array, "*batch positions d_model"], past: Float[Array, "*batch d_model"] | None = None
) -> tuple[Array, Backward]:
    """Mix each position with the one before it: mix 1 leaves x as it is, mix 0 moves it one position on.

    past is the position before the first of x, None for zeros.
    Returns out, shaped like x, and backward: dout -> dmix, dx, dpast (None where there was no past).
    """
    first = np.zeros_like(x[..., :1, :]) if past is None else past[..., None, :]
    before = np.concatenate([first, x[..., :-1, :]], axis=-2)  # (1)
    step = x - before
    out = before + mix * step                                # (2)

    def backward(dout):
        dmix = (dout * step).reshape(-1, x.shape[-1]).sum(0)  # (3)
        dbefore = (1 - mix) * dout
        dx = mix * dout
        dx[..., :-1, :] += dbefore[..., 1:, :]               # (4)
        dpast = None if past is None else dbefore[..., 0, :]  # (5)
        return dmix, dx, dpast

    return out, backward
