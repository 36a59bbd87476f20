"""Masked LoRA: a change of low rank for a pruned weight that leaves its zeros zero.

A product of two thin matrices has no zeros. Added to a pruned weight it fills every gap, and what pruning saved is gone. Here the
mask lies over the sum: what is trained and what is merged is as sparse as the weight was. The mask is frozen, and a gradient
passes where it passes.

Source: Zimmer et al. 2023 (PERP), arXiv:2312.15230, where it is called MaskLoRA; Hu et al. 2021, arXiv:2106.09685. down is the
papers' A and up their B, each transposed. o is the product of elements, M the mask.

    weight = (W + scale down up) o M                         (1)
    dchange = dweight o M                                    (2)
    ddown = scale dchange up^T                               (3)
    dup = scale down^T dchange                               (4)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, bad, concept, example, positive
from minitransformers.peft.lora import check_factors
from minitransformers.peft.lora_linear import Lora


@concept(
    title="Masked LoRA",
    source="Zimmer et al. 2023 (PERP), arXiv:2312.15230; Hu et al. 2021, arXiv:2106.09685",
    example=lambda rng: example(
        Lora(rng.normal(size=(5, 2)), rng.normal(size=(2, 4))), base=rng.normal(size=(5, 4)), mask=rng.random((5, 4)) < 0.6, scale=0.7
    ),
    rejects=[bad("rank", params=Lora(np.ones((5, 6)), np.ones((6, 4)))), bad(base=np.ones((5, 3))), bad(mask=np.ones((5, 3), bool))],
)
def masked_lora(
    params: Lora, *, base: Float[Array, "d_in d_out"], mask: Bool[Array, "d_in d_out"] | None = None, scale: Annotated[float, positive]
) -> tuple[Array, Backward]:
    """The matrix base plus scale times the product of the thin ones, where mask is true, and 0 elsewhere.

    Without a mask it is where base is not 0: so it is a change for ``reparameterize`` that serves every pruned weight of a model,
    each with its own mask. The weight that it returns is the merged one.
    Returns weight, shaped like base, and backward: dweight -> Lora(ddown, dup).
    Raises ValueError when the factors do not make such a matrix, or the rank is above the smaller of its sides.
    """
    down, up = params
    check_factors(params, base)
    mask = base != 0 if mask is None else mask
    weight = (base + (scale * down) @ up) * mask             # (1)

    def backward(dweight):
        dchange = dweight * mask                             # (2)
        ddown = scale * (dchange @ up.T)                     # (3)
        dup = scale * (down.T @ dchange)                     # (4)
        return Lora(ddown, dup)

    return weight, backward
