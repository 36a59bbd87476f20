"""Adapted: a part of a frozen model, and behind it an adapter, together again a part of the same kind.

Wherever a model has a slot, what stood in it goes on standing there with an adapter behind it, and no line of the model
changes. With a bottleneck behind both sub-layers of each block this is the adapter of Houlsby et al. 2019, arXiv:1902.00751,
section 2 and figure 2. It differs from a chain of the two in one thing: settings and further arrays (a mask, a bias on the
scores) are the part's alone. F is the part, A the adapter; a star is the backward of what it stands on.

    made = F(x)                                              (1)
    out = A(made)                                            (2)
    dmade = A*(dout)                                         (3)
    dx = F*(dmade)                                           (4)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.foundation import Backward, concept, example, trusted
from minitransformers.peft.bottleneck_adapter import adapter_example, bottleneck_adapter


class Adapted(NamedTuple):
    """What the part holds, and what the adapter behind it learns."""

    part: Any
    adapter: Any


@trusted
def adapted_step(
    params: Adapted, x: Array, state: Any, *, part: Callable, adapter: Callable = bottleneck_adapter, **config: Any
) -> tuple[Array, Any]:
    """A few new positions, given those before: part is the decoding step, ``part(params, x, state, **config) -> made, state``. Forward only."""
    made, state = part(params.part, x, state, **config)
    return adapter(params.adapter, made)[0], state


@concept(
    title="Adapter behind a sub-layer",
    source="Houlsby et al. 2019, arXiv:1902.00751, section 2 and figure 2",
    example=lambda rng: _example(rng),
)
def adapted(
    params: Adapted, x: Float[Array, "..."], *more: Any, part: Callable, adapter: Callable = bottleneck_adapter, **config: Any
) -> tuple[Array, Backward]:
    """The part, ``part(params.part, x, *more, **config) -> made, backward``, then ``adapter(params.adapter, made) -> out, backward``.

    more (a bias on scores, a memory) and config (heads, a mask, a core) go to the part alone; bind the adapter's settings to
    it: ``partial(bottleneck_adapter, scale=0.5)``.
    Returns out, shaped like what the part returns, and backward: dout -> Adapted of gradients, dx, and what the part returns for more.
    Raises ValueError when the shapes do not fit.
    """
    made, part_backward = part(params.part, x, *more, **config)  # (1)
    out, adapter_backward = adapter(params.adapter, made)    # (2)

    def backward(dout):
        dadapter, dmade = adapter_backward(dout)             # (3)
        dpart, dx, *dmore = part_backward(dmade)             # (4)
        return Adapted(dpart, dadapter), dx, *dmore[: len(more)]  # what was left out (a bias) has no gradient

    return out, backward


def _example(rng: np.random.Generator):
    params = Adapted(init_multi_head_attention(rng, 6, num_heads=2, dtype=np.float64), adapter_example(rng, 6, 4))
    return example(params, rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 3)), part=multi_head_attention, num_heads=2)
