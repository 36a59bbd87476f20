"""Linear map with a weight that is kept as codes: restored when it is multiplied, and dropped again.

A frozen weight is read twice in a training step: forward, to make out of x, and backward, to send the gradient on. Between the two
nobody needs it in full. So codes and steps are all that stays in memory, and the matrix is there for the time of one product. It
gets no gradient; x gets the one that the restored weight gives. How it is stored is a function in a slot: a step for each column
or for each group of a column, NF4, packed bits.

Source: Dettmers et al. 2023, arXiv:2305.14314, eq. 5, without its thin matrices; Frantar et al. 2022, arXiv:2210.17323, section 5
(codes of weights, activations in floats). R restores.

    W = R(stored), its groups one below the other            (1)
    out = x W + b                                            (2)
    dx = dout W^T, with W restored once more                 (3)
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.compression.quantize import dequantize_symmetric, in_groups, quantize_symmetric
from minitransformers.foundation import Backward, bad, concept, example, invalid
from minitransformers.peft.qlora_linear import QuantizedLinear


@concept(
    title="Linear map on codes",
    source="Dettmers et al. 2023, arXiv:2305.14314, eq. 5; Frantar et al. 2022, arXiv:2210.17323, section 5",
    example=lambda rng: example(
        rng.normal(size=(2, 3, 6)), base=QuantizedLinear(quantize_symmetric(in_groups(rng.normal(size=(6, 4)), size=2), bits=4), rng.normal(size=4))
    ),
    rejects=[
        bad("base", base=QuantizedLinear(quantize_symmetric(np.ones((5, 4)), bits=4), None)),
        bad("base", base=QuantizedLinear(quantize_symmetric(np.ones((6, 5)), bits=4), np.ones(4))),
        bad("base", base=QuantizedLinear(quantize_symmetric(np.ones(6), bits=4, axis=None), None)),
        bad("base", dequantize=lambda stored: np.ones((6, 4), np.float16)),
    ],
)  # fmt: skip
def quantized_linear(
    x: Float[Array, "... d_in"], *, base: Annotated[QuantizedLinear, "d_out"], dequantize: Callable = dequantize_symmetric
) -> tuple[Array, Backward]:
    """Map the last axis of x by the weight that base stores, and add its bias where there is one.

    ``dequantize(base.weight)`` makes a matrix (d_in, d_out) of what is stored, or groups of it (groups, size, d_out), with the
    dtype of x.
    Returns out (..., d_out), and backward: dout -> dx; base gets no gradient. Neither keeps the matrix.
    Raises ValueError when the axes do not fit, or what is restored has another dtype than x.
    """
    rows = x.reshape(-1, x.shape[-1])
    out = rows @ restored_weight(base, dequantize, x)
    if base.bias is not None:
        out += base.bias                                      # (2)
    out = out.reshape(*x.shape[:-1], -1)

    def backward(dout):
        weight = restored_weight(base, dequantize, x)        # once more: it was not kept
        return (dout.reshape(-1, dout.shape[-1]) @ weight.T).reshape(x.shape)  # (3)

    return out, backward


def restored_weight(base: QuantizedLinear, dequantize: Callable, x: Array) -> Any:
    """The matrix (d_in, d_out) of what base stores. Raises ValueError where it is none that x and the bias fit to."""
    restored = dequantize(base.weight)
    d_in, d_out = x.shape[-1], restored.shape[-1] if base.bias is None else len(base.bias)
    if restored.ndim < 2 or restored.size != d_in * d_out or restored.shape[-1] != d_out or restored.dtype != x.dtype:
        raise invalid("base.weight", got=f"{restored.dtype} of shape {restored.shape}", wants=f"{x.dtype} of shape {(d_in, d_out)}, or of groups of it, restored")
    return restored.reshape(d_in, d_out)                     # (1)
