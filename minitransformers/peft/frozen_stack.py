"""A stack of frozen blocks, adapted one at a time: no more than one block's dense gradient is ever in memory.

A model that is adapted as a whole hands back the gradient of every weight, from which those of a few thin matrices are taken:
as much memory as the model itself. Block by block the same is done with one block's worth, since what is above a block needs
only the gradient of its output, and what is trained in it needs only its own weights' gradients. The blocks are those of any
model, and no line of them changes.

Source: the order of the work is that of Chen et al. 2016, arXiv:1604.06174, section 3, who free what is no longer needed as the
backward goes down; here it is gradients, not activations. a is the change of the weights (LoRA and its like), f the block.

    P_l = a(t_l; W_l)                                        (1)
    x_l = f(P_l, x_(l-1)), l = 1 .. number of blocks         (2)
    dP_l, dx_(l-1) = f*(dx_l), l = number of blocks .. 1     (3)
    dt_l = a*(dP_l), and dP_l is let go                      (4)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import Backward, concept, example, invalid, reparameterize, trees
from minitransformers.peft.lora import lora
from minitransformers.peft.lora_linear import Lora


@concept(
    title="Frozen stack, block by block",
    source="Chen et al. 2016, arXiv:1604.06174, section 3",
    example=lambda rng: _example(rng),
)
def frozen_stack(
    trained: list, x: Float[Array, "... d_model"], *, base: list, block: Callable, adapt: Callable = reparameterize
) -> tuple[Array, Backward]:
    """x through the blocks, the parameters of each made of what is trained for it and of what stands still.

    trained and base have an item a block: ``adapt(own, base=frozen) -> tree, back`` makes its parameters (reparameterize, with
    ``partial(reparameterize, change=partial(lora, scale=...))`` for LoRA), ``block(tree, x) -> out, backward`` is the block.
    Returns out, shaped like what the last block returns, and backward: dout -> a list like trained, and dx.
    Raises ValueError where trained and base are not equally long, or x has another dtype than base.
    """
    if len(trained) != len(base):
        raise invalid("trained", got=f"{len(trained)} items", wants=f"{len(base)}, one for each block of base")
    for path, leaf in trees.leaves(base, "base"):
        if leaf.dtype != x.dtype:
            raise invalid("x", got=f"{x.dtype}", wants=f"{leaf.dtype}, as {path} is")
    backwards = []
    for own, frozen in zip(trained, base, strict=True):
        tree, adapt_backward = adapt(own, base=frozen)       # (1)
        x, block_backward = block(tree, x)                   # (2)
        backwards.append((adapt_backward, block_backward))

    def backward(dout):
        dx, dtrained = dout, []
        for adapt_backward, block_backward in reversed(backwards):
            dtree, dx = block_backward(dx)                   # (3)
            dtrained.append(adapt_backward(dtree))           # the next round overwrites dtree  (4)
        return dtrained[::-1], dx

    return x, backward


def _example(rng: np.random.Generator):
    base = [init_linear(rng, 4, 4, std=0.5, bias=True, dtype=np.float64) for _ in range(2)]
    factors: Any = [Lora(rng.normal(size=(4, 2)), rng.normal(size=(2, 4))) for _ in base]
    trained = [Linear(own, bias) for own, bias in zip(factors, (None, rng.normal(size=4)), strict=True)]
    adapt = partial(reparameterize, change=partial(lora, scale=0.5))
    return example(trained, rng.normal(size=(2, 3, 4)), base=base, block=partial(residual, part=linear), adapt=adapt)
