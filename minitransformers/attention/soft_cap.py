"""Soft cap: squash scores smoothly into (-cap, cap), and hardly touch the small ones.

Source: Gemma Team 2024, arXiv:2408.00118, section 2 (attention scores: cap 50, final logits: cap 30).
A hard clip bounds as well, but its gradient beyond the cap is exactly zero; here it fades and never stops.

    squashed = tanh(x / cap)                                 (1)
    out = cap squashed                                       (2)
    dx = dout (1 - squashed^2)                               (3)
"""

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import bad, concept, example, invalid


@concept(
    title="Soft cap",
    source="Gemma Team 2024, arXiv:2408.00118, section 2",
    example=lambda rng: example(3 * rng.normal(size=(2, 3, 5)), cap=2.0),
    rejects=[bad(cap=0.0), bad(cap=-1.0), bad(cap=math.nan), bad(cap=math.inf), bad(cap=1e-320)],
)
def soft_cap(x: Float[Array, "..."], *, cap: float):
    """Squash every element into (-cap, cap); cap is in the units of x.

    Returns out, shaped like x, and backward: dout -> dx.
    Raises ValueError when cap is not a positive finite number in the dtype of x.
    """
    cap = float(cap)
    if not float(np.finfo(x.dtype).tiny) <= cap <= float(np.finfo(x.dtype).max):  # a NaN is not, either
        raise invalid("cap", got=cap, wants=f"a positive number that {x.dtype} holds")
    squashed = np.tanh(x / cap)                              # (1)
    out = cap * squashed                                     # (2)

    def backward(dout):
        return dout * (1 - squashed * squashed)              # (3)

    return out, backward
