"""Softmax: scores of any size become weights that are positive and sum to one.

Subtracting the largest score first changes nothing, for the factor cancels, and exp cannot overflow.
The Jacobian is diag(w) - w w^T; the backward never builds it. Time and memory are linear in the size of x.

Source: Bridle 1990, which names it; the shift is analysed by Blanchard, Higham and Higham 2019, arXiv:1909.03469.

    exps_i = exp(x_i - max_j x_j)                            (1)
    weights_i = exps_i / sum_j exps_j                        (2)
    shared = sum_j dout_j weights_j                          (3)
    dx_i = weights_i (dout_i - shared)                       (4)
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, invalid


@concept(
    title="Softmax",
    source="Bridle 1990, Training stochastic model recognition algorithms as networks, NeurIPS 2",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
    rejects=[bad(axis=3), bad(x=np.full((2, 3), -np.inf))],
)
def softmax(x: Float[Array, "..."], *, axis: int = -1) -> tuple[Array, Backward]:
    """Exponentiate x and divide by the sum along ``axis``.

    x holds scores (logits); a score of -inf gets the weight 0 and passes no gradient.
    Returns weights, shaped like x, in [0, 1] and summing to 1 along axis, and backward: dout -> dx.
    Raises ValueError when x has no axis or none such, when a slice holds nothing but -inf, and when it holds +inf.
    """
    if x.ndim == 0:
        raise invalid("x", got="shape ()", wants="at least one axis")
    if not -x.ndim <= axis < x.ndim:
        raise invalid("axis", got=axis, wants=f"a whole number from {-x.ndim} to {x.ndim - 1}")
    largest = x.max(axis=axis, keepdims=True)
    if np.isinf(largest).any():
        raise invalid("x", got="a slice whose largest score is infinite", wants="a finite largest score in every slice")
    weights = np.exp(x - largest)                            # every exponent is at most 0  (1)
    weights /= weights.sum(axis=axis, keepdims=True)         # (2)

    def backward(dout):
        shared = np.vecdot(dout, weights, axis=axis)         # every weight sees every score  (3)
        dx = dout - np.expand_dims(shared, axis)
        dx *= weights                                        # (4)
        return dx

    return weights, backward
