"""LoftQ: where LoRA on a quantised weight starts, so that both together are as near to the weight as they can be.

QLoRA starts from the rounded weight alone. LoftQ gives the two thin matrices the best part of what rounding took away, and may
then round anew what they do not hold, and so on in turns. How the weight is stored is a function in a slot.

Source: Li et al. 2023, arXiv:2310.08659, algorithm 1. down is the paper's B and up its A, as x stands on the left here.
Differs from the authors' code: the root of scale is taken out of both matrices, so that the sum is right for every scale; there
it is right for a scale of 1. Signs are chosen so that the largest element of each column of U is positive. Q stores, R restores.

    stored = Q(W - scale down up), at the start Q(W)         (1)
    lost = W - R(stored)                                     (2)
    U, sigma, V^T = the singular value decomposition of lost (3)
    down = U_r (sigma_r / scale)^(1/2),  up = (sigma_r / scale)^(1/2) V_r^T, of the r largest   (4)

(1) to (4) are one turn. (4) is the matrix of rank r nearest to what is lost, so after it no more is missing than before it.
Of (1) in a later turn nothing of that kind is true.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, finite, invalid, positive, procedure
from minitransformers.peft.lora_linear import Lora, check_rank
from minitransformers.peft.nf4 import dequantize_nf4, quantize_nf4


class LoftqStart(NamedTuple):
    """A weight as it is stored, and the thin matrices that stand beside it."""

    weight: Any
    params: Lora


@procedure(
    title="LoftQ",
    source="Li et al. 2023, arXiv:2310.08659, algorithm 1",
    example=lambda rng: example(rng.normal(size=(8, 6)), rank=2, scale=0.5, turns=2, quantize=partial(quantize_nf4, block=16)),
    rejects=[bad(rank=7), bad("block", quantize=quantize_nf4), bad("dequantize", dequantize=lambda stored: np.ones((3, 3)))],
)
def loftq(
    weight: Annotated[Float[Array, "d_in d_out"], finite], *, rank: Annotated[int, at_least(1)], scale: Annotated[float, positive] = 1.0,
    turns: Annotated[int, at_least(1)] = 1, quantize: Callable = quantize_nf4, dequantize: Callable = dequantize_nf4,
) -> LoftqStart:  # fmt: skip
    """What to store of weight, and the thin matrices to begin with, for qlora_linear with this scale.

    ``quantize(weight) -> stored`` and ``dequantize(stored) -> weight``.
    Raises ValueError for a rank above the smaller of d_in and d_out, and where dequantize gives no such matrix.
    """
    check_rank(rank, *weight.shape)
    product = np.zeros_like(weight)
    for _ in range(turns):
        stored = quantize(weight - product)                  # (1)
        restored = dequantize(stored)
        if restored.shape != weight.shape or restored.dtype != weight.dtype:
            raise invalid("dequantize", got=f"{restored.dtype} of shape {restored.shape}", wants=f"{weight.dtype} of shape {weight.shape}, as weight is")
        lost = weight - restored                             # (2)
        U, sigma, V = np.linalg.svd(lost, full_matrices=False)  # V has the vectors as rows  (3)
        signs = np.sign(np.take_along_axis(U, np.abs(U).argmax(axis=0)[None], axis=0)[0])
        root = signs * np.sqrt(sigma / scale)
        params = Lora(U[:, :rank] * root[:rank], root[:rank, None] * V[:rank])  # (4)
        product = (scale * params.down) @ params.up
    return LoftqStart(stored, params)
