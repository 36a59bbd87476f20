"""Pfeiffer's adapter: one in a block, behind the last sub-layer, and the block's own norm stands before it as well as after it.

A post-norm block ends in LN(x + F(x)). The adapter reads just that, and what it makes is added to the sum inside, which then
goes through the same norm, with the same gain and bias, a second time. With an adapter that says nothing the block is what it
was; leaving the first norm out, or the attention's adapter out of Houlsby's two, gives another function.
Source: Pfeiffer et al. 2020, arXiv:2005.00247, and figure 3 there; the order of the parts is that of the AdapterHub, which the
weights published there need. F is the sub-layer, A(u) = phi(u W_down + b_down) W_up + b_up the bottleneck; a star is the
backward of what it stands on, and of a norm it gives the gradients of gain g and bias b as well.

    total = x + F(x)                                         (1)
    normed = LN(total)                                       (2)
    out = LN(total + s A(normed)), s = 1                     (3)
    dsum, dg_outer, db_outer = LN*(dout), at the sum of (3)  (4)
    dnormed = A*(s dsum), and dW_up, db_up, dW_down, db_down   (5)
    dinner, dg_inner, db_inner = LN*(dnormed), at total      (6)
    dtotal = dsum + dinner                                   (7)
    dg = dg_outer + dg_inner, db = db_outer + db_inner       (8)
    dx = dtotal + F*(dtotal)                                 (9)
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.gelu import gelu
from minitransformers.foundation import Backward, bad, concept, example, finite, invalid, slot, trees
from minitransformers.norms.layer_norm import LayerNorm, layer_norm
from minitransformers.peft.bottleneck_adapter import BottleneckAdapter, adapter_example, bottleneck


class PfeifferAdapter(NamedTuple):
    """What the sub-layer holds, the norm behind it, which is used twice, and the adapter."""

    part: Any
    norm: Any
    adapter: BottleneckAdapter


@concept(
    title="Pfeiffer's adapter",
    source="Pfeiffer et al. 2020, arXiv:2005.00247, figure 3",
    example=lambda rng: _example(rng),
    rejects=[bad("part", part=lambda params, x, bias, num_heads: (x[..., :1], None))],
)
def pfeiffer_adapter(
    params: PfeifferAdapter, x: Float[Array, "... d_model"], *more: Any, part: Callable, norm: Callable = layer_norm,
    activation: Callable = slot(gelu), scale: Annotated[float, finite] = 1.0, **config: Any,
) -> tuple[Array, Backward]:  # fmt: skip
    """A post-norm sub-layer, its norm included, with an adapter that reads what the norm makes of the sum.

    ``part(params.part, x, *more, **config) -> added, backward`` is the sub-layer without the way around it; more and config
    are its alone. norm is its norm; activation and scale are bottleneck_adapter's.
    Returns out, shaped like x, and backward: dout -> PfeifferAdapter of gradients, dx, and what the part returns for more.
    Raises ValueError when the part returns another shape than that of x, or other shapes do not fit.
    """
    added, part_backward = part(params.part, x, *more, **config)
    if added.shape != x.shape:
        raise invalid("part", got=f"an output of shape {added.shape}", wants=f"{x.shape}, the shape of x")
    total = x + added                                        # (1)
    normed, inner_backward = norm(params.norm, total)        # (2)
    change, adapter_backward = bottleneck(params.adapter, normed, activation=activation)
    out, outer_backward = norm(params.norm, total + scale * change)  # the same norm again  (3)

    def backward(dout):
        douter, dsum = outer_backward(dout)                  # (4)
        dadapter, dnormed = adapter_backward(scale * dsum)   # (5)
        dinner_norm, dinner = inner_backward(dnormed)        # (6)
        dtotal = dsum + dinner                               # total is added to and normed: two gradients  (7)
        dnorm = trees.map(np.add, douter, dinner_norm)       # one norm, two uses: its gradients add  (8)
        dpart, dthrough, *dmore = part_backward(dtotal)
        dx = dtotal + dthrough                               # (9)
        return PfeifferAdapter(dpart, dnorm, dadapter), dx, *dmore[: len(more)]

    return out, backward


def _example(rng: np.random.Generator):
    norm = LayerNorm(rng.normal(size=6), rng.normal(size=6))
    params = PfeifferAdapter(init_multi_head_attention(rng, 6, num_heads=2, dtype=np.float64), norm, adapter_example(rng, 6, 4))
    return example(params, rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 3)), part=multi_head_attention, scale=0.7, num_heads=2)
