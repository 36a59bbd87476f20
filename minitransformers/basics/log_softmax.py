"""Log-softmax: the logarithm of softmax, exact where softmax itself has rounded to zero.

log(softmax(x)) loses everything once a weight underflows (in float32 about 104 below the largest score). Here the
logarithm is taken by hand: it cancels the exponential of the numerator, and only the sum is ever exponentiated.

Source: Blanchard, Higham and Higham 2019, arXiv:1909.03469, who prove the shifted form accurate.

    shifted_i = x_i - max_j x_j                              (1)
    log_total = log(sum_j exp(shifted_j))                    (2)
    out_i = shifted_i - log_total                            (3)
    dx_i = dout_i - exp(out_i) sum_j dout_j                  (4)
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, invalid


@concept(
    title="Log-softmax",
    source="Blanchard, Higham and Higham 2019, arXiv:1909.03469",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
    rejects=[bad(axis=3), bad(x=np.full((2, 3), -np.inf))],
)
def log_softmax(x: Float[Array, "..."], *, axis: int = -1) -> tuple[Array, Backward]:
    """Logarithm of softmax along ``axis``.

    x holds scores (logits); a score of -inf stays -inf.
    Returns out, shaped like x: log-probabilities in nats, at most 0; and backward: dout -> dx.
    Raises ValueError when x has no axis or none such, when a slice holds nothing but -inf, and when it holds +inf.
    """
    if x.ndim == 0:
        raise invalid("x", got="shape ()", wants="at least one axis")
    if not -x.ndim <= axis < x.ndim:
        raise invalid("axis", got=axis, wants=f"a whole number from {-x.ndim} to {x.ndim - 1}")
    largest = x.max(axis=axis, keepdims=True)
    if np.isinf(largest).any():
        raise invalid("x", got="a slice whose largest score is infinite", wants="a finite largest score in every slice")
    shifted = x - largest                                    # (1)
    log_total = np.log(np.exp(shifted).sum(axis=axis, keepdims=True))  # the sum is at least 1  (2)
    out = shifted - log_total                                # (3)

    def backward(dout):
        dx = np.exp(out)                                     # softmax, from its logarithm
        dx *= dout.sum(axis=axis, keepdims=True)
        return np.subtract(dout, dx, out=dx)                 # (4)

    return out, backward
