"""Linear attention in both directions: every query reads the same two sums over all keys. A core.

Without the causal mask nothing has to be carried along. What (6) of linear_attention leaves at the end is what every query reads, so
the sums over the keys are taken once, and each query costs two products with them. The equations are those of linear_attention
without its scores, and so are the numbers on the lines: sums = q state in the place of (4), dq = dsums state^T (9), dstate =
q^T dsums (12), and then dk = v dstate^T (10), dv = k dstate (11). Source: Katharopoulos et al. 2020, arXiv:2006.16236, eqs. 4 to 6.
A key that the mask hides is left out of the sums. A mask that hides different keys from different queries, such as the causal one,
would need a state for each query, and so would a bias: both are refused, and the core does not go into ``causal``.

Multiply-adds: 2 (queries + keys) d_features d_value / 2 a head. Memory: the features, and a state a head.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_to
from minitransformers.foundation import Backward, bad, concept, example, invalid, slot
from minitransformers.linear_attention.elu_plus_one import elu_plus_one
from minitransformers.linear_attention.linear_attention import features_of, mean_of, with_a_gain, with_ones


@concept(
    title="Linear attention in both directions",
    source="Katharopoulos, Vyas, Pappas and Fleuret 2020, arXiv:2006.16236, eqs. 4 to 6",
    example=lambda rng: _example(rng),
    rejects=[
        bad(bias=np.zeros((2, 3, 4, 6))), bad(mask=np.tri(4, 6, dtype=bool)[None, None]), bad(feature_map=lambda params, x: (x, None)),
    ],
    form_of="linear_attention",
)  # fmt: skip
def linear_attention_bidirectional(
    params: Any,
    query: Float[Array, "*#batch queries d_head"],
    key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"],
    bias: Float[Array, "*#batch #queries #keys"] | None = None,
    *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None,
    feature_map: Callable = slot(elu_plus_one),
) -> tuple[Array, Backward]:
    """The mean of all values, weighted by phi(query) . phi(key); a mask says which keys there are. A core.

    feature_map and params are those of linear_attention. mask is True where a key is real, alike for all queries (*batch, 1, keys):
    padding_mask makes one. A query that no key is left for reads zero. bias is None: it stands there for the form of a core.
    Returns out (*batch, queries, d_value), and backward: dout -> dparams, dquery, dkey, dvalue, None.
    Raises ValueError for a bias, for a mask that differs between queries, where axes do not fit or a feature is below 0.
    """
    if bias is not None:
        raise invalid("bias", got=f"an array of shape {bias.shape}", wants="None: there are no scores to add it to")
    if mask is not None and mask.shape[-2] > 1 and (mask != mask[..., :1, :]).any():
        raise invalid("mask", got="a mask that differs between queries", wants="one that hides the same keys from all of them")
    shown = 1 if mask is None else mask[..., 0, :, None]     # (..., #keys, 1)

    (q, k), features_backward = features_of(params, query, key, feature_map)  # (1)
    v = with_ones(value)                                     # (2)
    seen = v * shown                                         # of a hidden key neither its value nor its 1
    state = k.swapaxes(-1, -2) @ seen                        # (..., d_features, d_value + 1)  (6)
    sums = q @ state                                         # (4)
    out, mean_backward = mean_of(sums)                       # (5)

    def backward(dout):
        dsums = mean_backward(dout)                          # (7)
        dq = dsums @ state.swapaxes(-1, -2)                  # (9)
        dstate = sum_to(q.swapaxes(-1, -2) @ dsums, state.shape)  # (12)
        dk = seen @ dstate.swapaxes(-1, -2)                  # (10)
        dv = (k @ dstate) * shown                            # (11)
        dparams, dquery, dkey = features_backward(sum_to(dq, q.shape), sum_to(dk, k.shape))  # (13)
        return dparams, dquery, dkey, sum_to(dv, v.shape)[..., :-1], None

    return out, backward


def _example(rng: np.random.Generator):
    shapes = (2, 3, 4, 5), (2, 1, 6, 5), (2, 1, 6, 7)        # keys and values shared by three heads
    mask = np.array([[1, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 0]], bool)[:, None, None]
    return example(np.array(rng.normal()), *(rng.normal(size=shape) for shape in shapes), mask=mask, feature_map=with_a_gain)
