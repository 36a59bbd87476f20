"""LoRA-guided importance: how much each weight matters, told by gradients of the thin matrices alone.

Setting a weight to zero changes the loss by about its size times its gradient. But the gradient of a frozen weight is as large as
the weight, and LoRA is there to do without it. What a step of gradient descent would do to the product of the thin matrices is
known, and stands in its place.

Source: Zhang et al. 2024 (LoRAPrune), arXiv:2305.18403, and the authors' code, loraprune/utils.py. down is A there and up B, each
transposed. Differs from the code: the step, which is 1 there, is an argument; sums over rows, columns or heads are the caller's.

    stepped = (down - step ddown)(up - step dup) = down up - step change   (1)
    change = ddown up + down dup - step ddown dup            (2)
    weight = W + scale down up                               (3)
    importance = |change o weight|                           (4)

At step 0 and with scale 1, change is dW up^T up + down down^T dW: the true gradient seen through two projections of rank r.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, positive, procedure
from minitransformers.peft.lora_linear import Lora, check_rank


@procedure(
    title="LoRA-guided importance",
    source="Zhang et al. 2024 (LoRAPrune), arXiv:2305.18403",
    example=lambda rng: example(
        Lora(rng.normal(size=(5, 2)), rng.normal(size=(2, 4))), Lora(rng.normal(size=(5, 2)), rng.normal(size=(2, 4))),
        base=rng.normal(size=(5, 4)), scale=0.7,
    ),
    rejects=[
        bad("rank", params=Lora(np.ones((5, 6)), np.ones((6, 4))), gradient=Lora(np.ones((5, 6)), np.ones((6, 4)))),
        bad("gradient", gradient=Lora(np.ones((5, 1)), np.ones((1, 4)))), bad("base", base=np.ones((5, 3))),
    ],
)  # fmt: skip
def lora_importance(
    params: Annotated[Lora, "d_in rank d_out"], gradient: Annotated[Lora, "d_in rank d_out"], *, base: Float[Array, "d_in d_out"],
    scale: Annotated[float, positive], step: Annotated[float, at_least(0)] = 1.0,
) -> Float[Array, "d_in d_out"]:  # fmt: skip
    """The importance of each weight of base with params merged into it; gradient is that of params, of a batch or a mean of many.

    step is the size of the step of gradient descent that is thought of. With 0 the order of the weights does not depend on the
    size of the loss; with 1, as published, it does.
    Raises ValueError when the shapes do not fit, or the rank is above the smaller side of base.
    """
    (down, up), (ddown, dup) = params, gradient
    check_rank(down.shape[1], *base.shape)
    change = ddown @ up + down @ dup - step * (ddown @ dup)  # (1) (2)
    weight = base + (scale * down) @ up                      # (3)
    return np.abs(change * weight)                           # (4)
