"""Layer pruning: how much each layer turns what flows through it, and a stack without the layers that hardly do.

Every block reads the residual stream and adds to it. A block after which the stream points where it pointed before has added
little that the next one can see, whose norm takes the length away. So the cosine between what goes in and what comes out tells
which blocks to leave out; it needs forward passes alone, and no loss. Without a block the stack is the same code, shorter.

Source: Men et al. 2024 (ShortGPT), arXiv:2403.03853, section 2, where 1 - cos is called block influence. Differs from the authors'
code: it counts padding, takes 1/2 for the cosine of a vector of zeros, and compares the last layer's input with its output behind
the final norm; here the mask says which tokens count, zeros are refused, and states are what the caller gives. x_l is the stream
before layer l, t runs over the tokens that count, K are the layers kept.

    cos_lt = x_lt . x_{l+1,t} / (|x_lt| |x_{l+1,t}|)         (1)
    influence_l = 1 - mean_t cos_lt                          (2)
    blocks = block_l, for l in K                             (3)
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.basics.linear import init_linear
from minitransformers.compression.kept import kept_places
from minitransformers.foundation import bad, example, finite, invalid, procedure


@procedure(
    title="Block influence",
    source="Men et al. 2024 (ShortGPT), arXiv:2403.03853, section 2",
    example=lambda rng: example(rng.normal(size=(4, 2, 5, 3)), mask=rng.random((2, 5)) < 0.8),
    rejects=[
        bad(states=np.ones((1, 2, 5, 3))), bad(states=np.zeros((4, 2, 5, 3))),
        bad(mask=np.zeros((2, 5), bool)), bad(mask=np.ones((5, 2), bool)),
    ],
)  # fmt: skip
def block_influence(
    states: Annotated[Float[Array, "states *batch d_model"], finite], *, mask: Bool[Array, "*batch"] | None = None
) -> Float[Array, "layers"]:
    """How far each layer turns the stream, in the mean over tokens: 0 not at all, 1 by a right angle, 2 to its opposite.

    states are the stream before the first layer and after each, one more than there are layers. mask is True where a token
    counts; without it all do. Large batches: the mean of several calls, weighted by the tokens of each.
    Raises ValueError for fewer than two states, where no token counts, and where one that does is a vector of zeros.
    """
    if len(states) < 2:
        raise invalid("states", got=f"{len(states)} of them", wants="at least two: the stream before a layer and after it")
    tokens = states.reshape(len(states), -1, states.shape[-1]) if mask is None else states[:, mask]  # (states, tokens, d_model)
    if tokens.shape[1] == 0:
        raise invalid("mask", got="no token that counts", wants="at least one")
    largest = np.abs(tokens).max(axis=-1, keepdims=True)     # divided by it no square overflows, and not all vanish
    if not largest.all():
        raise invalid("states", got="a vector of zeros", wants="vectors that have a direction, wherever a token counts")
    scaled = tokens / largest
    unit = scaled / np.sqrt(np.vecdot(scaled, scaled))[..., None]
    cosines = np.vecdot(unit[:-1], unit[1:])                 # (layers, tokens)  (1)
    return 1 - cosines.mean(axis=-1)                         # (2)


@procedure(
    title="A stack without some layers",
    source="Men et al. 2024 (ShortGPT), arXiv:2403.03853, section 2",
    example=lambda rng: example([init_linear(rng, 3, 3, dtype=np.float64) for _ in range(4)], kept=[0, 3]),
    rejects=[bad(kept=[]), bad(kept=[0, 4]), bad(kept=[-1]), bad(kept=[1, 1])],
)
def without_layers(blocks: list[Any], *, kept: Sequence[int]) -> list[Any]:
    """The blocks kept, in the order in which they stood: ``params._replace(blocks=without_layers(params.blocks, kept=[0, 1, 3]))``.

    kept are numbers of layers, from 0, in any order. The arrays are those of blocks, not copies.
    Raises ValueError where no layer is kept, or one is named twice or does not exist.
    """
    return [blocks[place] for place in kept_places(kept, len(blocks), units="layers")]  # (3)
