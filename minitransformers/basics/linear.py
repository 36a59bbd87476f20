"""Linear map: every output feature is a weighted sum of the input features, plus a bias.

Differs from torch.nn.Linear: the weight is (d_in, d_out), so that it acts on the right as it is written.

    out = x W + b                                            (1)
    dx = dout W^T                                            (2)
    dW = sum over positions of x^T dout                      (3)
    db = sum over positions of dout                          (4)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, checked, concept, example
from minitransformers.foundation.trees import decays


class Linear(NamedTuple):
    """A weight that acts on the right, and a bias or None."""

    weight: Annotated[Float[Array, "d_in d_out"], decays]
    bias: Float[Array, "d_out"] | None


@checked
def init_linear(
    rng: np.random.Generator, d_in: Annotated[int, at_least(1)], d_out: Annotated[int, at_least(1)], *,
    std: Annotated[float, at_least(0)] | None = None, bias: bool = True, dtype: type = np.float32,
) -> Linear:  # fmt: skip
    """Normal weights of standard deviation ``std`` (default 1/sqrt(d_in), which keeps the variance of x), zero bias."""
    scale = d_in**-0.5 if std is None else std
    weight: Array = (scale * rng.standard_normal((d_in, d_out))).astype(dtype)
    return Linear(weight, np.zeros(d_out, dtype) if bias else None)


@concept(
    title="Linear map",
    source="Goodfellow, Bengio and Courville 2016, Deep Learning, section 6.1",
    example=lambda rng: example(Linear(rng.normal(size=(5, 3)), rng.normal(size=3)), rng.normal(size=(2, 4, 5))),
)
def linear(params: Linear, x: Float[Array, "... d_in"]) -> tuple[Array, Backward]:
    """Map the last axis of x from d_in to d_out features.

    Returns out (..., d_out), and backward: dout -> Linear(dweight, dbias), dx.
    Raises ValueError when the axes do not fit.
    """
    weight, bias = params
    rows = x.reshape(-1, x.shape[-1])                       # one matrix product, however many leading axes
    out = rows @ weight
    if bias is not None:
        out += bias                                          # (1)
    out = out.reshape(*x.shape[:-1], -1)

    def backward(dout):
        drows = dout.reshape(-1, dout.shape[-1])
        dx = (drows @ weight.T).reshape(x.shape)             # (2)
        dweight = rows.T @ drows                             # (3)
        # A product with ones sums rows three times faster than sum(axis=0).
        dbias = None if bias is None else np.ones(len(drows), drows.dtype) @ drows  # (4)
        return Linear(dweight, dbias), dx

    return out, backward
