"""Banded attention: a core under a sliding window, so that each position attends to the last ``window`` positions only.

Its own position is one of them. With ``ahead`` above 0 a position sees as many later ones besides. The band is a mask like
any other, and the core inside any that takes a mask: this is the definition, at the cost of all positions^2 scores.
banded_attention_blocks is the same map and computes only what the band allows; attention with a window uses it.
Source: Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1; window as in Mistral (Jiang et al. 2023,
arXiv:2310.06825, section 2), but exactly ``window`` keys, as Hugging Face counts them.

    band_ij = (i - window < j <= i + ahead), the queries i being the last of the positions   (1)
    out = core(q, k, v) under the band                       (2)
    dparams, dq, dk, dv, dbias = its backward(dout)          (3)
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.foundation import Backward, at_least, bad, concept, example, invalid


@concept(
    title="Banded (sliding-window) attention",
    source="Beltagy, Peters and Cohan 2020, arXiv:2004.05150, section 3.1; Jiang et al. 2023, arXiv:2310.06825, section 2",
    example=lambda rng: example_call(rng),
    roles=("core",),
    rejects=[bad(ahead=4), bad("query", query=np.ones((2, 2, 9, 3)), bias=None)],
)
def banded_attention(
    params: Any,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    window: Annotated[int, at_least(1)],
    ahead: Annotated[int, at_least(0)] = 0,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    core: Callable = softmax_attention,
) -> tuple[Array, Backward]:
    """A core under a sliding-window mask. A core itself.

    Position i attends to i - window < j <= i + ahead; ahead is at most the window. A window longer than the sequence gives
    plain (causal) attention. Queries are the last of the positions that the keys span: fewer queries than keys, as in
    decoding, see the keys that their windows reach. params is what the inner core learns; bias and mask as in it.
    Returns out (*batch, queries, d_value), and backward: dout -> dparams, dquery, dkey, dvalue, dbias (None without a bias).
    Raises ValueError when axes do not fit, there are more queries than keys, or ahead exceeds the window.
    """
    check_band(query, key, window, ahead)
    queries, keys = query.shape[-2], key.shape[-2]
    i, j = np.arange(keys - queries, keys)[:, None], np.arange(keys)
    band = (i - window < j) & (j <= i + ahead)               # (1)
    out, core_backward = core(params, query, key, value, bias, mask=band if mask is None else band & mask)  # (2)

    def backward(dout):
        return core_backward(dout)                           # the band is a constant  (3)

    return out, backward


def check_band(query: Array, key: Array, window: int, ahead: int) -> None:
    """Raise ValueError where the band reaches further ahead than back, or queries are not the last of the keys' positions."""
    if ahead > window:
        raise invalid("ahead", got=ahead, wants=f"at most the window of {window}")
    if query.shape[-2] > key.shape[-2]:
        wants = f"at most as many as keys, {key.shape[-2]}: they are the last of their positions"
        raise invalid("query", got=f"{query.shape[-2]} queries", wants=wants)


def example_call(rng: np.random.Generator):
    """The small call of both forms."""
    shapes = (2, 2, 8, 3), (2, 1, 8, 3), (2, 1, 8, 5), (1, 2, 8, 8)
    return example(None, *(rng.normal(size=shape) for shape in shapes), window=3, mask=rng.random((2, 1, 1, 8)) < 0.8)
