"""QLoRA: LoRA beside a frozen weight that is stored in few bits, and restored each time that it is used.

The weight is as large as ever only while it is multiplied: it is restored in the forward pass, and once more in the backward
pass. What stays in memory is its codes and scales, half a byte a weight and a little. Gradients go through it, to x; to it none
goes, which is why it may be as coarse as it is. How it is stored is the business of a function in a slot.

Source: Dettmers et al. 2023, arXiv:2305.14314, eq. 5. down is the paper's L1 and up its L2. Differs from the paper: computed in
the dtype of x, not in bfloat16. R restores; D is the backward of drop.

    kept = drop(x)                                           (1)
    hidden = scale kept down                                 (2)
    out = x R(codes) + b + hidden up                         (3)
    dup = sum over positions of hidden^T dout                (4)
    dhidden = scale dout up^T                                (5)
    ddown = sum over positions of kept^T dhidden             (6)
    dx = dout R(codes)^T + D(dhidden down^T)                 (7)
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.dropout import dropout
from minitransformers.foundation import Backward, bad, concept, example, invalid, positive
from minitransformers.peft.lora_linear import Lora, check_rank
from minitransformers.peft.nf4 import dequantize_nf4, quantize_nf4


class QuantizedLinear(NamedTuple):
    """A weight as it is stored, and a bias or None."""

    weight: Any
    bias: Float[Array, "d_out"] | None


@concept(
    title="QLoRA",
    source="Dettmers et al. 2023, arXiv:2305.14314, eq. 5",
    example=lambda rng: example(
        Lora(rng.normal(size=(5, 2)), rng.normal(size=(2, 4))), rng.normal(size=(2, 3, 5)),
        base=QuantizedLinear(quantize_nf4(rng.normal(size=(5, 4)), block=10), rng.normal(size=4)), scale=0.7, drop=_without_one,
    ),
    rejects=[
        bad("rank", params=Lora(np.ones((5, 6)), np.ones((6, 4)))),
        bad("base", base=QuantizedLinear(quantize_nf4(np.ones((5, 6)), block=10), None)),
        bad("base", base=QuantizedLinear(quantize_nf4(np.ones((4, 5, 4)), block=10), None)),
    ],
)  # fmt: skip
def qlora_linear(
    params: Annotated[Lora, "d_in rank d_out"], x: Float[Array, "... d_in"], *, base: Annotated[QuantizedLinear, "d_out"],
    scale: Annotated[float, positive], dequantize: Callable = dequantize_nf4, drop: Callable = partial(dropout, rate=0.0, rng=None),
) -> tuple[Array, Backward]:  # fmt: skip
    """The map of the restored weight, plus scale times x through the two thin matrices.

    ``dequantize(base.weight) -> weight`` makes a matrix (d_in, d_out), with the dtype of x, of what is stored, whatever that
    is. scale and drop are as in lora_linear.
    Returns out (..., d_out), and backward: dout -> Lora(ddown, dup), dx; base gets no gradient. Neither keeps the matrix.
    Raises ValueError when the axes do not fit, or the rank is above the smaller of d_in and d_out.
    """
    (down, up), (stored, bias) = params, base
    check_rank(down.shape[1], len(down), up.shape[1])
    kept, drop_backward = drop(x)                            # (1)
    rows, kept_rows = x.reshape(-1, x.shape[-1]), kept.reshape(-1, x.shape[-1])
    hidden = scale * (kept_rows @ down)                      # (positions, rank)  (2)
    out = rows @ _restored(stored, dequantize, like=params)
    out += hidden @ up
    if bias is not None:
        out += bias                                          # (3)
    out = out.reshape(*x.shape[:-1], -1)

    def backward(dout):
        drows = dout.reshape(-1, dout.shape[-1])
        dup = hidden.T @ drows                               # (4)
        dhidden = scale * (drows @ up.T)                     # (5)
        ddown = kept_rows.T @ dhidden                        # (6)
        dthin = (dhidden @ down.T).reshape(x.shape)
        weight = _restored(stored, dequantize, like=params)  # once more: it was not kept
        dx = (drows @ weight.T).reshape(x.shape) + drop_backward(dthin)  # (7)
        return Lora(ddown, dup), dx

    return out, backward


def _restored(stored: Any, dequantize: Callable, *, like: Lora) -> Array:
    """The weight; ValueError where it is none that the thin matrices could stand beside."""
    weight, (down, up) = dequantize(stored), like
    if weight.shape != (len(down), up.shape[1]) or weight.dtype != down.dtype:
        raise invalid("base.weight", got=f"{weight.dtype} of shape {weight.shape}", wants=f"{down.dtype} of shape {(len(down), up.shape[1])}, restored")
    return weight


def _without_one(x: Array) -> tuple[Array, Backward]:
    """What dropout does, but always to the second feature."""
    mask = np.where(np.arange(x.shape[-1]) == 1, 0, 1.25).astype(x.dtype)
    return x * mask, lambda dout: dout * mask
