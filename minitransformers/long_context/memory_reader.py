"""Memory reader: every token of a segment looks at the slots, and adds what it finds to itself.

It is cross-attention with a few slots in the place of an encoder's states. The slots are a set: nothing says which is the first.
Costs positions times slots scores a head, however long the text was.

Source: Wu et al. 2020 (Memformer), arXiv:2010.06891, section 3 (memory reading). Differs from the paper: the norm comes first,
and slots of length 1 are stretched to the length of a token of unit features, sqrt(d_model). N is a layer norm, C cross-
attention, a star the backward of what it stands on.

    memory = sqrt(d_model) slots                             (1)
    out = x + C(N(x), memory)                                (2)
    dnormed, dmemory = C*(dout)                              (3)
    dx = dout + N*(dnormed)                                  (4)
    dslots = sqrt(d_model) dmemory                           (5)
"""

from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.cross_attention import CrossAttention, cross_attention, init_cross_attention
from minitransformers.basics.linear import Linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm


class MemoryReader(NamedTuple):
    """The norm of the tokens, and the attention from them to the slots."""

    norm: Annotated[LayerNorm, "d_model"]
    attention: CrossAttention


@checked
def init_memory_reader(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_heads: Annotated[int, at_least(1)],
    std: Annotated[float, at_least(0)] | None = None, residual_std: Annotated[float, at_least(0)] | None = None, bias: bool = True,
    dtype: type = np.float32,
) -> MemoryReader:  # fmt: skip
    """A norm that only normalises, and cross-attention with these settings."""
    settings: dict[str, Any] = {"num_heads": num_heads, "std": std, "residual_std": residual_std, "bias": bias, "dtype": dtype}
    return MemoryReader(init_layer_norm(rng, d_model, dtype=dtype), init_cross_attention(rng, d_model, **settings))


@concept(
    title="Memory reader",
    source="Wu et al. 2020 (Memformer), arXiv:2010.06891, section 3",
    example=lambda rng: _example(rng),
    rejects=[bad(num_heads=3), bad(slots=np.ones((2, 3, 5))), bad(slots=np.ones((3, 3, 6)))],
)
def memory_reader(
    params: MemoryReader, x: Float[Array, "*batch positions d_model"], slots: Float[Array, "*batch slots d_model"], *,
    num_heads: Annotated[int, at_least(1)],
) -> tuple[Array, Backward]:  # fmt: skip
    """Add to each token what it finds in the slots, num_heads times one mean of them.

    Returns out, shaped like x, and backward: dout -> MemoryReader of gradients, dx, dslots. Where several layers read the
    same slots, their gradient is the sum.
    Raises ValueError where num_heads does not divide the projections, or slots have another batch or width than x.
    """
    scale = x.shape[-1] ** 0.5
    memory = scale * slots                                   # (1)
    normed, norm_backward = layer_norm(params.norm, x)
    found, attention_backward = cross_attention(params.attention, normed, memory, num_heads=num_heads)
    out = x + found                                          # (2)

    def backward(dout):
        dattention, dnormed, dmemory, _ = attention_backward(dout)  # (3)
        dnorm, dx = norm_backward(dnormed)
        dx = dout + dx                                       # (4)
        dslots = scale * dmemory                             # (5)
        return MemoryReader(dnorm, dattention), dx, dslots

    return out, backward


def _example(rng: np.random.Generator):
    maps = (Linear(rng.normal(size=shape) / 2, rng.normal(size=shape[1])) for shape in ((6, 4), (6, 4), (6, 2), (2, 6)))
    params = MemoryReader(LayerNorm(rng.normal(size=6), rng.normal(size=6)), CrossAttention(*maps))
    return example(params, rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 3, 6)) / 2, num_heads=2)
