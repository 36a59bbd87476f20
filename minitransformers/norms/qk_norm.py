"""QK-norm: normalise queries and keys before they meet, so that no score can grow without bound.

A score is a dot product, and a dot product grows with the lengths of both sides. Divide each by its root mean square,
and a score says how well two directions fit. Only the gains can make it larger than sqrt(d_head).

Source: Henry, Dachapally, Pawar and Chen 2020, arXiv:2010.04245 (unit vectors and one learned scale); Dehghani et al.
2023, arXiv:2302.05442, section 2 (layer norm on both, against diverging logits). What stands here is the form of the
models that followed, RMSNorm with a gain a feature: on each head in Qwen3, on all heads at once in OLMo 2.
Differs from 2302.05442: RMSNorm for layer norm.

    rms_query = sqrt(mean_i query_i^2 + eps), unit_query = query / rms_query, out_query = query_gain * unit_query   (1)
    rms_key = sqrt(mean_i key_i^2 + eps), unit_key = key / rms_key, out_key = key_gain * unit_key   (2)
    dquery_gain = sum of dout_query * unit_query, dunit_query = query_gain * dout_query,
    dquery = (dunit_query - unit_query mean_i dunit_query unit_query) / rms_query   (3)
    the same for the key                                     (4)

It stands between the projections and RoPE, once before the keys go into a cache. Values are not normalised. Attention
takes it on each head, as prepare=qk_norm.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Real
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, checked, concept, example, invalid
from minitransformers.norms.rms_norm import RmsNorm, rms_norm


class QkNorm(NamedTuple):
    """A gain for each feature of a query and of a key; all heads share them where the norm acts on each head."""

    query_gain: Float[Array, "d_query"]
    key_gain: Float[Array, "d_key"]


@checked
def init_qk_norm(
    rng: np.random.Generator, d_query: Annotated[int, at_least(1)], d_key: Annotated[int, at_least(1)] | None = None, *,
    dtype: type = np.float32,
) -> QkNorm:  # fmt: skip
    """Gains of one. d_key is d_query unless given: they differ where heads are normalised together and share keys."""
    return QkNorm(query_gain=np.ones(d_query, dtype), key_gain=np.ones(d_query if d_key is None else d_key, dtype))


@concept(
    title="QK-norm",
    source="Henry et al. 2020, arXiv:2010.04245; Dehghani et al. 2023, arXiv:2302.05442, section 2",
    example=lambda rng: example(
        QkNorm(rng.normal(size=5), rng.normal(size=5)), rng.normal(size=(2, 4, 3, 5)), rng.normal(size=(2, 2, 6, 5))
    ),
    roles=("prepare",),
)
def qk_norm(
    params: QkNorm,
    query: Float[Array, "... queries d_query"],
    key: Float[Array, "... keys d_key"],
    *,
    positions: Real[Array, "..."] | None = None,
    eps: Annotated[float, at_least(0)] = 1e-6,
) -> tuple[tuple[Array, Array], Backward]:
    """Divide each query and each key by its root mean square, then scale by its gains.

    The last axis is what is normalised together: (..., heads, positions, d_head) normalises each head, as Qwen3 does,
    (..., positions, heads * d_head) all heads at once, as OLMo 2 does. eps has the units of query squared. Where it is
    above 0 in the dtype of query, a query or key of zeros stays zero; otherwise that becomes NaN. A norm has no use for
    positions, which every prepare is told.
    Returns (out_query, out_key), shaped like query and key, and backward: (dout_query, dout_key) -> QkNorm(dquery_gain,
    dkey_gain), dquery, dkey.
    Raises ValueError when a gain does not fit its last axis or eps is negative.
    """
    for name, gain, x in (("query_gain", params.query_gain, query), ("key_gain", params.key_gain, key)):
        if gain.shape != x.shape[-1:]:                       # inside an attention no annotation is checked, and one gain would broadcast
            raise invalid(f"params.{name}", got=f"shape {gain.shape}", wants=f"{x.shape[-1:]}")
    out_query, query_backward = rms_norm(RmsNorm(params.query_gain), query, eps=eps)  # (1)
    out_key, key_backward = rms_norm(RmsNorm(params.key_gain), key, eps=eps)  # (2)

    def backward(douts):
        dout_query, dout_key = douts
        (dquery_gain,), dquery = query_backward(dout_query)  # (3)
        (dkey_gain,), dkey = key_backward(dout_key)          # (4)
        return QkNorm(dquery_gain, dkey_gain), dquery, dkey

    return (out_query, out_key), backward
