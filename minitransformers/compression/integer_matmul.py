"""Products of codes: where both sides are whole numbers, a matrix product is one of whole numbers, and the steps come afterwards.

That is what quantised hardware does: it multiplies bytes, adds in 32 bits, and touches a real number once for each output. NumPy
has no such instruction, and its own product of int8 arrays wraps around without a word. So codes are widened first. The product
of int32 arrays has no fast routine either; but a product of whole numbers in floats is exact as long as no sum can pass the
last whole number that the float can count to. Within that bound the fast way gives the same numbers, to the last bit.

Source: Jacob et al. 2018, arXiv:1712.05877, sections 2.2 to 2.4; (3) is their eq. 7. Differs from them: out is real, where they
round it to codes again. p and q are codes, s steps, z the codes of zero, K the length of the sums.

    total = sum over k of p_mk q_kn                          (1)
    out = s_m s_n total                                      (2)
    total - z_n sum_k p_mk - z_m sum_k q_kn + K z_m z_n      (3)
    K max|p| max|q| < 2^31                                   (4)
    K max|p| max|q| <= 2^24 in float32, 2^53 in float64      (5)

(3) takes the place of total where codes are affine.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.compression.quantize import Affine, Symmetric, check_sharing, quantize_affine, quantize_symmetric
from minitransformers.foundation import bad, example, invalid, procedure


@procedure(
    title="Integer matrix product",
    source="Jacob et al. 2018, arXiv:1712.05877, section 2.4",
    example=lambda rng: example(rng.integers(-127, 128, size=(2, 5)).astype(np.int8), rng.integers(-127, 128, size=(5, 3)).astype(np.int8)),
    rejects=[bad(right=np.ones((4, 3), np.int8)), bad("left", left=np.full((2, 5), 2**15), right=np.full((5, 3), 2**15))],
)
def integer_matmul(left: Int[Array, "... inner"], right: Int[Array, "inner outer"]) -> Int[Array, "... outer"]:
    """The product of two arrays of codes in int32, by NumPy's own loop over whole numbers.

    Raises ValueError where inner sizes differ, or where a sum of so many products might not fit into 32 bits.
    """
    _check_sums(left, right)
    return left.astype(np.int32) @ right.astype(np.int32)    # (1)


@procedure(
    title="Integer matrix product, in floats",
    source="Jacob et al. 2018, arXiv:1712.05877, section 2.4",
    example=lambda rng: example(rng.integers(-127, 128, size=(2, 5)).astype(np.int8), rng.integers(-127, 128, size=(5, 3)).astype(np.int8)),
    rejects=[bad(right=np.ones((4, 3), np.int8)), bad("left", left=np.full((2, 5), 2**15), right=np.full((5, 3), 2**15))],
)
def integer_matmul_fast(left: Int[Array, "... inner"], right: Int[Array, "inner outer"]) -> Int[Array, "... outer"]:
    """The same numbers, by the fast product of floats: exact, since every partial sum is a whole number that the float can hold."""
    float_type = exact_float(_check_sums(left, right))
    return (left.astype(float_type) @ right.astype(float_type)).astype(np.int32)  # (1)


def exact_float(most: int) -> type:
    """The narrowest float that holds every whole number up to most."""
    return np.float32 if most <= 2**24 else np.float64       # (5)


@procedure(
    title="Product of matrices in symmetric codes",
    source="Jacob et al. 2018, arXiv:1712.05877, section 2.2",
    example=lambda rng: example(quantize_symmetric(rng.normal(size=(2, 5)), bits=8, axis=-1), quantize_symmetric(rng.normal(size=(5, 3)), bits=8)),
    rejects=[
        bad("left.step", left=Symmetric(np.ones((2, 5), np.int8), np.ones((1, 5)))), bad("right.step", right=Symmetric(np.ones((5, 3), np.int8), np.ones((5, 1)))),
        bad("right", right=Symmetric(np.ones((4, 3), np.int8), np.ones((1, 3)))),
    ],
)  # fmt: skip
def symmetric_matmul(left: Annotated[Symmetric, ""], right: Annotated[Symmetric, ""]) -> Float[Array, "... outer"]:
    """What the restored matrices have for a product, computed on their codes; the steps multiply what has been summed.

    left (..., inner) has a step for each row or for all, right (inner, outer) for each column or for all: no step may change
    within a sum. Returns an array with the dtype of the steps.
    Raises ValueError where one does, or as integer_matmul does.
    """
    _check_steps(left, right)
    total = integer_matmul_fast(left.codes, right.codes)
    return left.step * right.step * total.astype(left.step.dtype)  # (2)


@procedure(
    title="Product of matrices in affine codes",
    source="Jacob et al. 2018, arXiv:1712.05877, section 2.3",
    example=lambda rng: example(quantize_affine(rng.normal(size=(2, 5)), bits=8, axis=-1), quantize_affine(rng.normal(size=(5, 3)), bits=8)),
    rejects=[
        bad("left.step", left=Affine(np.ones((2, 5), np.uint8), np.ones((1, 5)), np.zeros((1, 5), int))),
        bad("right.step", right=Affine(np.ones((5, 3), np.uint8), np.ones((5, 1)), np.zeros((5, 1), int))),
    ],
)
def affine_matmul(left: Annotated[Affine, ""], right: Annotated[Affine, ""]) -> Float[Array, "... outer"]:
    """The same for codes with a zero of their own. The sums over right's columns do not depend on left: a layer keeps them.

    Raises ValueError as symmetric_matmul does.
    """
    _check_steps(left, right)
    total = integer_matmul_fast(left.codes, right.codes).astype(np.int64)
    rows, columns = left.codes.sum(axis=-1, keepdims=True, dtype=np.int64), right.codes.sum(axis=0, keepdims=True, dtype=np.int64)
    total += len(right.codes) * left.zero.astype(np.int64) * right.zero - right.zero * rows - left.zero * columns  # (3)
    return left.step * right.step * total.astype(left.step.dtype)  # (2)


def _check_steps(left: Symmetric | Affine, right: Symmetric | Affine) -> None:
    """ValueError where a step changes along what is summed."""
    check_sharing(left.codes, left.step, "left")
    check_sharing(right.codes, right.step, "right")
    if left.step.shape[-1] != 1:
        raise invalid("left.step", got=f"shape {left.step.shape}", wants="a last axis of 1: one step for all that is summed")
    if right.codes.ndim != 2 or right.step.shape[0] != 1:
        raise invalid("right.step", got=f"shape {right.step.shape}", wants="a matrix's, a first axis of 1: one step for all that is summed")


def _check_sums(left: Array, right: Array) -> int:
    """The largest magnitude that a sum can reach; ValueError where inner sizes differ or 32 bits do not hold it."""
    if left.shape[-1] != len(right):
        raise invalid("right", got=f"shape {right.shape}", wants=f"a first axis of {left.shape[-1]}, as left's last")
    most = len(right) * _largest(left) * _largest(right)
    if most >= 2**31:                                        # (4)
        raise invalid("left", got=f"sums of up to {most:.1e}", wants="below 2^31, which 32 bits hold")
    return most


def _largest(codes: Array) -> int:
    return max(-int(codes.min()), int(codes.max()))
