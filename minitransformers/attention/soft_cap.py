"""Soft cap: squash scores smoothly into (-cap, cap), and hardly touch the small ones.

Source: Gemma Team 2024, arXiv:2408.00118, section 2 (attention scores: cap 50, final logits: cap 30).
A hard clip bounds as well, but its gradient beyond the cap is exactly zero; here it fades and never stops. In attention
the cap acts before bias and mask, which keep their full effect.

    squashed = tanh(x / cap)                                 (1)
    out = cap squashed                                       (2)
    dx = dout (1 - squashed^2)                               (3)
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.scaled_dot_product_attention_fast import dot_products, softmax_mix
from minitransformers.attention.weighted_attention import core_example
from minitransformers.foundation import Backward, concept, example, finite, invalid, positive


@concept(
    title="Soft cap",
    source="Gemma Team 2024, arXiv:2408.00118, section 2",
    example=lambda rng: example(3 * rng.normal(size=(2, 3, 5)), cap=2.0),
)
def soft_cap(x: Float[Array, "..."], *, cap: Annotated[float, positive]) -> tuple[Array, Backward]:
    """Squash every element into (-cap, cap); cap is in the units of x.

    Returns out, shaped like x, and backward: dout -> dx.
    """
    squashed = np.tanh(x / cap)                              # (1)
    out = cap * squashed                                     # (2)

    def backward(dout):
        return dout * (1 - squashed * squashed)              # (3)

    return out, backward


@concept(
    title="Attention with capped scores",
    source="Gemma Team 2024, arXiv:2408.00118, section 2",
    example=lambda rng: core_example(rng, None, cap=2.0),
    roles=("core",),
    form_of="soft_cap",
)
def soft_capped_attention(
    params: None, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    cap: Annotated[float, positive], mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    scale: Annotated[float, finite] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """Softmax attention whose scores stay within (-cap, cap) before bias and mask. A core.

    The other arguments, results and errors are those of scaled_dot_product_attention; params is None, as nothing is learned.
    """
    if params is not None:                                   # inside an attention no annotation is checked
        raise invalid("params", got=type(params).__name__, wants="None: a cap learns nothing")
    scores_t, scores_backward = dot_products(query, key, scale)
    capped_t, cap_backward = soft_cap(scores_t, cap=cap)
    out, mix_backward = softmax_mix(capped_t, value, bias, mask)  # written over: the cap keeps squashed

    def backward(dout):
        dcapped_t, dvalue, dbias = mix_backward(dout)
        dquery, dkey = scores_backward(cap_backward(dcapped_t))
        return None, dquery, dkey, dvalue, dbias

    return out, backward
