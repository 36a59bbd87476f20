"""SiLU, also called Swish: x times its own sigmoid.

Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2 (the name); Elfwing, Uchibe and Doya 2017,
arXiv:1702.03118; Ramachandran, Zoph and Le 2017, arXiv:1710.05941 (Swish with beta = 1). The gate of Llama's SwiGLU.

    gate = 1 / (1 + exp(-x))                                 (1)
    out = x * gate                                           (2)
    slope = gate + out * (1 - gate)                          (3)
    dx = dout * slope                                        (4)

The slope is made in the forward, while gate and out are in the cache: the backward is one product, and keeps one array.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, example

_CHUNK = 32_768  # elements worked on at a time, so that the steps between x and slope stay in the cache


@concept(
    title="Sigmoid linear unit (SiLU, Swish)",
    source="Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2; Elfwing, Uchibe and Doya 2017, arXiv:1702.03118",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
    roles=("activation",),
)
def silu(x: Float[Array, "..."]) -> tuple[Array, Backward]:
    """x times the sigmoid of x, element by element: nearly x where x is large, nearly 0 where it is very negative.

    Returns out, shaped like x, and backward: dout -> dx.
    Raises ValueError when x is not a floating array.
    """
    flat = x.reshape(-1)
    out, slope = np.empty(x.size, x.dtype), np.empty(x.size, x.dtype)
    for start in range(0, x.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        with np.errstate(over="ignore"):                     # exp(-x) = inf is right: the gate is then 0
            gate = np.exp(-flat[part])
        gate += 1
        np.reciprocal(gate, out=gate)                        # (1)
        np.multiply(flat[part], gate, out=out[part])         # (2)
        closed = 1 - gate
        closed *= out[part]
        np.add(gate, closed, out=slope[part])                # (3)
    out, slope = out.reshape(x.shape), slope.reshape(x.shape)

    def backward(dout):
        return dout * slope                                  # (4)

    return out, backward
