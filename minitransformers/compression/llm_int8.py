"""LLM.int8: the few input features that are huge stay in floats, and all others are multiplied as bytes.

From some size on, language models have features that are twenty times as large as the rest, always the same few, in nearly every
token. With one step for a token they take it for themselves, and all other features round to nothing. They are about one in a
thousand. So their columns are cut out and multiplied as floats, and what is left is quantised well: a step for each token, a step
for each column of the weight.

Source: Dettmers et al. 2022, arXiv:2208.07339, section 3.2 and eq. 8. Differs from the paper: the steps of the weight are those of
whole columns, outliers' rows included, since it is quantised before any x is seen. Where weight is not given, outliers' rows are
restored from its codes, which is what the authors' library bitsandbytes does; there the threshold itself counts as an outlier.
Rounding has no slope, so (6) takes the rounded x for x (straight-through), as bitsandbytes does too. R restores, o is the product
of elements.

    O = columns of x in which some |x| > threshold           (1)
    q = codes of x without O, a step s for each row          (2)
    many = (s t) o (q p), with codes p and steps t of the weight   (3)
    few = x_O V_O, V = weight, or R(p) where there is none   (4)
    out = many + few + b                                     (5)
    dx = dout M^T, M_O = V_O and all other rows those of R(p)   (6)
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.compression.integer_matmul import symmetric_matmul
from minitransformers.compression.quantize import Symmetric, dequantize_symmetric, quantize_symmetric
from minitransformers.foundation import Backward, bad, concept, example, invalid, positive, procedure
from minitransformers.peft.qlora_linear import QuantizedLinear


@procedure(
    title="Outlier columns",
    source="Dettmers et al. 2022, arXiv:2208.07339, section 3.2",
    example=lambda rng: example(rng.normal(size=(2, 3, 5)), threshold=1.5),
)
def outlier_columns(x: Float[Array, "... d_in"], *, threshold: Annotated[float, positive] = 6.0) -> Bool[Array, "d_in"]:
    """The features whose magnitude is above threshold at some position; threshold has the unit of x."""
    return np.abs(x).reshape(-1, x.shape[-1]).max(axis=0) > threshold  # (1)


@concept(
    title="LLM.int8",
    source="Dettmers et al. 2022, arXiv:2208.07339, eq. 8",
    example=lambda rng: _example(rng),
    rejects=[
        bad("base", base=QuantizedLinear(np.ones((5, 4)), None)),
        bad("base", base=QuantizedLinear(quantize_symmetric(np.ones((6, 4)), bits=8), np.ones(4))),
        bad("base", base=QuantizedLinear(quantize_symmetric(np.ones((5, 4)), bits=8, axis=-1), None)),
        bad("base", base=QuantizedLinear(quantize_symmetric(np.ones((5, 3)), bits=8), np.ones(4))),
        bad(weight=np.ones((5, 3))), bad(outliers=lambda x: np.zeros(4, bool)), bad(outliers=lambda x: np.zeros(5)),
        bad("x", x=np.full((2, 3, 5), np.nan)),
    ],
    gradient_of=lambda x, **config: _straight(x, **config),
)  # fmt: skip
def llm_int8(
    x: Float[Array, "first ... d_in"], *, base: Annotated[QuantizedLinear, "d_out"], weight: Float[Array, "d_in d_out"] | None = None,
    outliers: Callable = outlier_columns,
) -> tuple[Array, Backward]:  # fmt: skip
    """The map of a weight in codes of 8 bits, Symmetric with a step for each column, on x in codes but for its outliers.

    ``outliers(x)`` says which features stay in floats; they are chosen for all positions together, so what else is in a batch has
    its part. weight, where given, is the one in floats: its rows are read where x is, and of the codes the others.
    Returns out (..., d_out), and backward: dout -> dx, the gradient of the map that takes x unrounded; base gets none.
    Raises ValueError when the axes do not fit, base has no such codes, x is not finite, or outliers gives no mask of features.
    """
    codes, step = _checked(base, x, weight)
    rows = x.reshape(-1, x.shape[-1])
    chosen = outliers(x)
    if chosen.shape != rows.shape[1:] or chosen.dtype != bool:
        raise invalid("outliers", got=f"{chosen.dtype} of shape {chosen.shape}", wants=f"bool of shape {rows.shape[1:]}")
    many = quantize_symmetric(np.where(chosen, 0, rows), bits=8, axis=-1)  # 0 is a code: nothing need be cut out  (2)
    out = symmetric_matmul(many, Symmetric(codes, step))     # (3)
    in_floats = codes[chosen] * step if weight is None else weight[chosen]
    out += rows[:, chosen] @ in_floats                       # (4)
    if base.bias is not None:
        out += base.bias                                     # (5)
    out = out.reshape(*x.shape[:-1], -1)

    def backward(dout):
        whole = dequantize_symmetric(base.weight)            # once more: it was not kept
        whole[chosen] = in_floats
        return (dout.reshape(-1, dout.shape[-1]) @ whole.T).reshape(x.shape)  # (6)

    return out, backward


def _checked(base: QuantizedLinear, x: Array, weight: Array | None) -> Symmetric:
    stored, d_out = base.weight, weight if weight is None else weight.shape[1]
    d_out = len(base.bias) if base.bias is not None else d_out
    if not isinstance(stored, Symmetric) or stored.codes.ndim != 2 or stored.step.shape != (1, stored.codes.shape[1]):
        raise invalid("base.weight", got=f"{type(stored).__name__}", wants="Symmetric codes of a matrix, with a step for each column")
    if len(stored.codes) != x.shape[-1] or stored.codes.shape[1] != (d_out or stored.codes.shape[1]):
        raise invalid("base.weight", got=f"codes of shape {stored.codes.shape}", wants=f"shape {(x.shape[-1], d_out or 'd_out')}")
    if not np.isfinite(x).all():
        raise invalid("x", got="numbers that are not finite", wants="finite numbers")
    return stored


def _straight(x: Array, *, base: QuantizedLinear, weight: Array | None = None, outliers: Callable = outlier_columns) -> Callable:
    """The function whose gradient this is: what rounding x has changed stays as it is, and so do the outliers."""
    out, _ = llm_int8(x, base=base, weight=weight, outliers=outliers)
    whole = dequantize_symmetric(base.weight)
    whole = whole if weight is None else np.where(outliers(x)[:, None], weight, whole)
    return lambda new: out + (new - x) @ whole


def _example(rng: np.random.Generator):
    weight, x = rng.normal(size=(5, 4)), rng.normal(size=(2, 3, 5))
    x[..., 1] *= 20
    base = QuantizedLinear(quantize_symmetric(rng.normal(size=(5, 4)), bits=8), rng.normal(size=4))
    return example(x, base=base, weight=weight)
