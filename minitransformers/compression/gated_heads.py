"""Gated heads: a number for each head, by which what the head has read is multiplied.

At 1 a gate changes nothing, at 0 the head is silent: so a head is removed for a trial, without a weight being touched. And the
slope of the loss by a gate says how much the head matters, before anything is tried. One product a number that the heads hand on,
and one more in the backward. Source: Michel, Levy and Neubig 2019, arXiv:1905.10650, section 2, with gates of 0 and 1; Voita et
al. 2019, arXiv:1905.09418, with gates that are drawn and learned. Differs from them: gates are any numbers; and each example of a
batch may have its own, so that one backward tells their slopes apart. C_h is what head h has read, A the core inside, A* its
backward.

    C = A(query, key, value, bias), under the mask           (1)
    out_h = gate_h C_h                                       (2)
    dgate_h = sum over queries and features of C_h dout_h    (3)
    dC_h = gate_h dout_h                                     (4)
    dquery, dkey, dvalue, dbias = A*(dC)                     (5)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import causal_attention
from minitransformers.attention.heads import sum_to
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.attention.weighted_attention import core_example
from minitransformers.foundation import Backward, bad, concept, finite, invalid


class HeadGates(NamedTuple):
    """A gate for each head, or for each example and head; and what the core inside learns."""

    gates: Annotated[Float[Array, "... heads"], finite]
    core: Any = None


@concept(
    title="Gated heads",
    source="Michel, Levy and Neubig 2019, arXiv:1905.10650, section 2",
    example=lambda rng: core_example(
        rng, HeadGates(rng.normal(size=3), SoftmaxOffByOne(rng.normal(size=3))), core=softmax_off_by_one_attention
    ),
    rejects=[
        bad("params.gates", params=HeadGates(np.ones(shape)), core=causal_attention) for shape in ((4,), (5, 3), (1, 2, 3))
    ],
)
def gated_heads(
    params: HeadGates, query: Float[Array, "*#batch queries d_head"], key: Float[Array, "*#batch keys d_head"],
    value: Float[Array, "*#batch keys d_value"], bias: Float[Array, "*#batch #queries #keys"] | None = None, *,
    mask: Bool[Array, "*#batch #queries #keys"] | None = None, core: Callable = causal_attention,
) -> tuple[Array, Backward]:  # fmt: skip
    """An attention whose heads are turned up, down or off, each by its gate. A core.

    core(params.core, query, key, value, bias, mask=mask) -> C, backward is what moves the values. params.gates is (heads,), the
    gates of all examples, or has the batch's axes (or 1) in front. Grouped queries stand on two axes, (..., groups, heads of a
    group, queries, d); their gates stand on one, in the order of the heads.
    Returns out (*batch, queries, d_value), and backward: dout -> HeadGates, dquery, dkey, dvalue, dbias (None without a bias).
    Raises ValueError where there is not a gate for each head, or gates of other examples than there are.
    """
    context, core_backward = core(params.core, query, key, value, bias, mask=mask)  # (..., heads, queries, d_value)  (1)
    gates = _at_heads(params.gates, context)                 # (..., heads, 1, 1)
    out = gates * context                                    # (2)

    def backward(dout):
        slopes = np.einsum("...qd,...qd->...", context, dout)[..., None, None]
        dgates = sum_to(slopes, gates.shape).reshape(params.gates.shape)  # (3)
        dcontext = gates * dout                              # (4)
        dcore, dquery, dkey, dvalue, dbias = core_backward(dcontext)  # (5)
        return HeadGates(dgates, dcore), dquery, dkey, dvalue, dbias

    return out, backward


def _at_heads(gates: Array, context: Array) -> Array:
    """The gates as they multiply what the heads have read, which stand on one axis, or on two under grouped queries."""
    own, heads, before = gates.shape[:-1], gates.shape[-1], context.shape[:-2]
    for axes in (1, 2):
        batch, on = before[:-axes], before[-axes:]
        of_examples = len(own) == len(batch) and all(size in (1, wanted) for size, wanted in zip(own, batch, strict=True))
        if np.prod(on) == heads and (not own or of_examples):
            return gates.reshape(*own, *on, 1, 1)
    wants = f"a gate for each head of what the core has read, of shape {context.shape}, and in front nothing, 1, or its examples"
    raise invalid("params.gates", got=f"shape {gates.shape}", wants=wants)
