"""Causal convolution, depthwise: every feature becomes a weighted sum of its own last few values.

Source: Gu and Dao 2023, arXiv:2312.00752, section 3.4 (width 4, before the scan; after H3, Fu et al. 2022,
arXiv:2212.14052). It costs width multiplications a number. Differs from a framework's conv1d: features stand last, as
everywhere here, the weight has no axis of length 1, and what came before the first position may be given. K is the
width; tap K - 1 multiplies the current position, tap 0 the one furthest back.

    seen = past, then x;  past = K - 1 rows of zeros where none is given   (1)
    out_t = bias + sum over k of w_k seen_{t + k}                           (2)
    dseen_s = sum over k of w_k dout_{s - k}, where s - k is a position     (3)
    dw_k = sum over t of dout_t seen_{t + k}                                (4)
    dbias = sum over t of dout_t                                            (5)
    dpast, dx = the first K - 1 rows of dseen, and the others               (6)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid
from minitransformers.foundation.trees import decays


class CausalConvolution(NamedTuple):
    """Taps of every feature, the last one for the current position, and a bias or None."""

    weight: Annotated[Float[Array, "d_model width"], decays]
    bias: Float[Array, "d_model"] | None


@checked
def init_causal_convolution(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, width: Annotated[int, at_least(1)] = 4, bias: bool = True,
    dtype: type = np.float32,
) -> CausalConvolution:  # fmt: skip
    """Taps uniform in +-1/sqrt(width), as PyTorch starts them, and a bias of zero."""
    weight: Array = rng.uniform(-(width**-0.5), width**-0.5, size=(d_model, width)).astype(dtype)
    return CausalConvolution(weight, np.zeros(d_model, dtype) if bias else None)


@concept(
    title="Causal convolution (depthwise)",
    source="Gu and Dao 2023, arXiv:2312.00752, section 3.4",
    example=lambda rng: example(
        CausalConvolution(rng.normal(size=(3, 4)), rng.normal(size=3)), rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 3, 3))
    ),
    rejects=[bad(past=np.ones((2, 4, 3)))],
)
def causal_convolution(
    params: CausalConvolution, x: Float[Array, "*batch positions d_model"], past: Float[Array, "*batch before d_model"] | None = None
) -> tuple[Array, Backward]:
    """Mix each feature with its own last width - 1 values; no feature sees another.

    past holds the width - 1 inputs before the first of x, oldest first; None stands for zeros. At width 1 there is none to give.
    Returns out, shaped like x, and backward: dout -> CausalConvolution(dweight, dbias), dx, dpast.
    Raises ValueError where past is not width - 1 positions long or the axes do not fit.
    """
    *batch, positions, d_model = x.shape
    width = params.weight.shape[1]
    if past is not None and past.shape[-2] != width - 1:
        raise invalid("past", got=f"{past.shape[-2]} positions", wants=f"width - 1 = {width - 1}, the inputs before x")
    before = np.zeros((*batch, width - 1, d_model), x.dtype) if past is None else past
    seen = np.concatenate([before, x], axis=-2)              # (..., width - 1 + positions, d_model)  (1)
    taps = np.ascontiguousarray(params.weight.T)             # (width, d_model)
    out = seen[..., :positions, :] * taps[0]
    for k in range(1, width):
        out += seen[..., k : k + positions, :] * taps[k]
    if params.bias is not None:
        out += params.bias                                   # (2)

    def backward(dout):
        dseen, dtaps = np.zeros(seen.shape, x.dtype), np.zeros(taps.shape, x.dtype)
        for k in range(width):
            dseen[..., k : k + positions, :] += dout * taps[k]  # a value is read by the width outputs after it  (3)
            dtaps[k] = (dout * seen[..., k : k + positions, :]).reshape(-1, d_model).sum(axis=0)  # (4)
        dbias = None if params.bias is None else dout.reshape(-1, d_model).sum(axis=0)  # (5)
        dpast, dx = dseen[..., : width - 1, :], dseen[..., width - 1 :, :]  # (6)
        return CausalConvolution(dtaps.T, dbias), dx, None if past is None else dpast

    return out, backward
