"""SiLU, also called Swish: x times its own sigmoid.

Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2 (the name); Elfwing, Uchibe and Doya 2017,
arXiv:1702.03118; Ramachandran, Zoph and Le 2017, arXiv:1710.05941 (Swish with beta = 1). The gate of Llama's SwiGLU.

    gate = 1 / (1 + exp(-x))                                 (1)
    out = x * gate                                           (2)
    slope = gate + out * (1 - gate)                          (3)
    dx = dout * slope                                        (4)
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import bad, concept, example


@concept(
    title="Sigmoid linear unit (SiLU, Swish)",
    source="Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2; Elfwing, Uchibe and Doya 2017, arXiv:1702.03118",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
    rejects=[bad(x=np.arange(5)), bad(x=[1.0, -1.0]), bad(x=np.ones((2, 0)))],
)
def silu(x: Float[Array, "..."]):
    """x times the sigmoid of x, element by element: nearly x where x is large, nearly 0 where it is very negative.

    Returns out, shaped like x, and backward: dout -> dx.
    Raises ValueError when x is not a floating array.
    """
    with np.errstate(over="ignore"):                         # exp(-x) = inf is right: the gate is then 0
        gate = np.exp(-x)
    gate += 1
    gate = 1 / gate                                          # (1)
    out = x * gate                                           # (2)

    def backward(dout):
        slope = 1 - gate
        slope *= out
        slope += gate                                        # (3)
        slope *= dout                                        # (4)
        return slope

    return out, backward
