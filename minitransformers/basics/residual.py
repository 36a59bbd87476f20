"""Residual: what a part makes of x is added to x, so that x itself goes through whatever the part does.

x has two uses, and so its gradient is a sum of two: one comes straight back, the other through the part. The straight one
is why a deep stack of such parts can be trained: each adds to the gradient of its input, and none can stop it.

Source: He, Zhang, Ren and Sun 2015, arXiv:1512.03385, eq. 1; He et al. 2016, arXiv:1603.05027, eqs. 1 to 5 (the gradient).
With scale (DeepNorm, Wang et al. 2022, arXiv:2203.00555), x counts more than what is added. B is the part's backward.

    added = part(params, x)                                  (1)
    out = scale x + added, scale = 1                         (2)
    dparams, dthrough = B(dout)                              (3)
    dx = scale dout + dthrough                               (4)
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.linear import init_linear, linear
from minitransformers.foundation import Backward, bad, concept, example, invalid, positive


@concept(
    title="Residual connection",
    source="He, Zhang, Ren and Sun 2015, arXiv:1512.03385, eq. 1",
    example=lambda rng: example(init_linear(rng, 3, 3, dtype=np.float64), rng.normal(size=(2, 4, 3)), part=linear, scale=1.7),
    rejects=[bad("part", params=init_linear(np.random.default_rng(0), 3, 2, dtype=np.float64))],
)
def residual(
    params: Any, x: Float[Array, "..."], *more: Any, part: Callable, scale: Annotated[float, positive] = 1.0, **config: Any
) -> tuple[Array, Backward]:  # fmt: skip
    """scale x plus what the part makes of x: ``part(params, x, *more, **config) -> added, backward``.

    added has the shape of x. more (a bias on scores, a memory) and config are the part's alone. scale is dimensionless.
    Returns out, shaped like x, and backward: dout -> dparams, dx, and what the part returns for more.
    Raises ValueError when the part returns another shape than that of x.
    """
    added, backward_of_part = part(params, x, *more, **config)  # (1)
    if added.shape != x.shape:
        raise invalid("part", got=f"an output of shape {added.shape}", wants=f"{x.shape}, the shape of x")
    out = (x if scale == 1 else scale * x) + added           # (2)

    def backward(dout):
        dparams, dthrough, *dmore = backward_of_part(dout)   # (3)
        dx = (dout if scale == 1 else scale * dout) + dthrough  # x is used twice: two gradients  (4)
        return dparams, dx, *dmore[: len(more)]              # what was left out (a bias) has no gradient

    return out, backward
