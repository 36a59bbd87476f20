"""QK-norm: normalise queries and keys before they meet, so that no score can grow without bound.

A score is a dot product, and a dot product grows with the lengths of both sides. Divide each by its root mean square,
and a score says how well two directions fit. Only the gains can make it larger than sqrt(d_head).

Source: Henry, Dachapally, Pawar and Chen 2020, arXiv:2010.04245 (unit vectors and one learned scale); Dehghani et al.
2023, arXiv:2302.05442, section 2 (layer norm on q and k, against diverging logits). What stands here is the form of the
models that followed, RMSNorm with a gain a feature: on each head in Qwen3, on all heads at once in OLMo 2.
Differs from 2302.05442: RMSNorm for layer norm.

    unit_q = q / sqrt(mean_i q_i^2 + eps), out_q = query_gain * unit_q   (1)
    unit_k = k / sqrt(mean_i k_i^2 + eps), out_k = key_gain * unit_k     (2)
    dquery_gain = sum of dout_q * unit_q; dunit_q = query_gain * dout_q,
    dq = (dunit_q - unit_q mean_i dunit_q unit_q) / sqrt(mean_i q_i^2 + eps)   (3)
    the same for k                                                       (4)

It stands between the projections and RoPE, once before the keys go into a cache. Values are not normalised. The mixers of
the attention chapter take it, on each head, as normalize="qk_norm".
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import bad, concept, example, invalid
from minitransformers.norms.rms_norm import RmsNorm, rms_norm


class QkNorm(NamedTuple):
    """A gain for each feature of a query and of a key; all heads share them where the norm acts on each head."""

    query_gain: Float[Array, "d_query"]
    key_gain: Float[Array, "d_key"]


def init_qk_norm(rng: np.random.Generator, d_query: int, d_key: int | None = None, *, dtype: type = np.float32) -> QkNorm:
    """Gains of one. d_key is d_query unless given: they differ where heads are normalised together and share keys."""
    return QkNorm(query_gain=np.ones(d_query, dtype), key_gain=np.ones(d_query if d_key is None else d_key, dtype))


@concept(
    title="QK-norm",
    source="Henry et al. 2020, arXiv:2010.04245; Dehghani et al. 2023, arXiv:2302.05442, section 2",
    example=lambda rng: example(
        QkNorm(rng.normal(size=5), rng.normal(size=5)), rng.normal(size=(2, 4, 3, 5)), rng.normal(size=(2, 2, 6, 5))
    ),
    roles=("normalizer",),
    rejects=[
        bad(eps=-1e-6),
        bad(eps=float("nan")),
        bad(q=np.ones((2, 4, 3, 6))),
        bad(k=np.ones((2, 2, 6, 4))),
        bad("params.key_gain", params=QkNorm(np.ones(5), np.ones((1, 5)))),
    ],
)
def qk_norm(
    params: QkNorm,
    q: Float[Array, "... queries d_query"],
    k: Float[Array, "... keys d_key"],
    *,
    eps: float = 1e-6,
):
    """Divide each query and each key by its root mean square, then scale by its gains.

    The last axis is what is normalised together: (..., heads, positions, d_head) normalises each head, as Qwen3 does,
    (..., positions, heads * d_head) all heads at once, as OLMo 2 does. eps has the units of q squared. Where it is
    above 0 in the dtype of q, a query or key of zeros stays zero; otherwise that becomes NaN.
    Returns (out_q, out_k), shaped like q and k, and backward: (dout_q, dout_k) -> QkNorm(dquery_gain, dkey_gain), dq, dk.
    Raises ValueError when a gain does not fit its last axis or eps is negative.
    """
    if not eps >= 0:
        raise invalid("eps", got=eps, wants="a number that is not negative")
    out_q, query_backward = rms_norm(RmsNorm(params.query_gain), q, eps=eps)  # (1)
    out_k, key_backward = rms_norm(RmsNorm(params.key_gain), k, eps=eps)  # (2)

    def backward(douts):
        dout_q, dout_k = douts
        (dquery_gain,), dq = query_backward(dout_q)          # (3)
        (dkey_gain,), dk = key_backward(dout_k)              # (4)
        return QkNorm(dquery_gain, dkey_gain), dq, dk

    return (out_q, out_k), backward
