"""ERNIE-Doc: a text read segment by segment, where every layer also reads what it made itself of the segments before.

Transformer-XL's layer reads the old inputs of its own, which are outputs of the layer below. So what was far comes up one layer
with each segment, and after the last layer it is gone. Here a layer keeps its outputs. They go in again at the same height, and
so a trace of the first segment can run along one layer for ever: the stack is a recurrent network, its state the last
``memory_length`` rows of every layer. The cost of a segment is Transformer-XL's, and so are the parameters. One index in (2) is
all that differs.

Source: Ding et al. 2020, arXiv:2012.15688, section 3.3 (enhanced recurrence); attention looks both ways, as in its encoder.
Differs from it: a text starts with no memory, where the authors' code starts with zeros that may be attended to; no embedding of
a task, of which the score of every key would get the same. [a; b] is a with b below it, M is memory_length, a star the backward
of what it stands on. The stack of L layers gets x_0 = x and the memories m_l, and returns x_L and m'_l:

    x_l = layer_l(x_(l-1), m_l), l = 1 .. L                  (1)
    m'_l = the last M rows of [m_l; x_l]                     (2)
    [dm_l; dx_l] = [0; dx_l], and dm'_l added to its last rows   (3)
    dx_(l-1), dm_l = layer_l*(dx_l), with dm_l of (3) added, l = L .. 1   (4)
    dm_l goes no further: memory is stopped                  (5)

As in transformer_xl memory comes by keyword, and nothing is returned for it (5). ernie_doc_through_memory takes it by position
and returns its gradient: then it is the recurrent network with its whole gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept, example, trees
from minitransformers.long_context.attention_with_memory import attention_with_memory, below
from minitransformers.long_context.transformer_xl import XlMemory, check_layers, init_transformer_xl, rows_of_layers
from minitransformers.long_context.transformer_xl_layer import XlLayer, transformer_xl_layer
from minitransformers.long_context.two_sided_relative import two_sided_relative

Size = Annotated[int, at_least(1)]
both_ways_layer = partial(transformer_xl_layer, attention=partial(attention_with_memory, core=two_sided_relative))


@concept(
    title="ERNIE-Doc (enhanced recurrence)",
    source="Ding et al. 2020, arXiv:2012.15688, section 3.3",
    example=lambda rng: _example(rng, by_keyword=True),
    rejects=[
        bad(num_heads=4), bad("params", params=[]), bad("x", x=np.ones((2, 3, 4))), bad("memory.rows", memory=XlMemory([np.ones((2, 2, 6))])),
        bad("memory.rows.1", memory=XlMemory([np.ones((2, 2, 6)), np.ones((3, 2, 6))])),
    ],
)  # fmt: skip
def ernie_doc(
    params: list[XlLayer], x: Float[Array, "*batch positions d_model"], *, memory: XlMemory | None = None, num_heads: Size,
    memory_length: Size, layer: Callable = both_ways_layer,
) -> tuple[tuple[Array, XlMemory], Backward]:  # fmt: skip
    """One segment, read with what each layer has put out before; no gradient goes into that. The parameters are init_transformer_xl's.

    memory is None at the start of a text. memory_length says of how many positions the new one is, at most. The slot
    layer(params of one, x, rows, num_heads=...) -> out, backward: ..., dx, drows looks both ways; transformer_xl_layer looks
    back only.
    Returns (out, memory): out, shaped like x, and what the next segment reads; and backward: (dout, dmemory) -> list of
    XlLayer, dx. dmemory is None unless something has read that memory and sends it a gradient.
    Raises ValueError when there is no layer, one is not as wide as x, or memory is that of another batch, width or stack.
    """
    result, whole_backward = _segment(params, x, memory, num_heads, memory_length, layer)

    def backward(dresult):
        dparams, dx, _ = whole_backward(dresult)             # (5)
        return dparams, dx

    return result, backward


@concept(
    title="ERNIE-Doc with a gradient through memory",
    source="Ding et al. 2020, arXiv:2012.15688, section 3.3, without the stop",
    example=lambda rng: _example(rng, by_keyword=False),
    rejects=[bad("memory.rows.1", memory=XlMemory([np.ones((2, 2, 6)), np.ones((3, 2, 6))]))],
    form_of="ernie_doc",
)
def ernie_doc_through_memory(
    params: list[XlLayer], x: Float[Array, "*batch positions d_model"], memory: XlMemory | None = None, *, num_heads: Size,
    memory_length: Size, layer: Callable = both_ways_layer,
) -> tuple[tuple[Array, XlMemory], Backward]:  # fmt: skip
    """The same segment, its memory an argument like others. Arguments, results and errors are those of ernie_doc.

    backward: (dout, dmemory) -> list of XlLayer, dx, and the gradient of the memory that was read (None without one): it is the
    dmemory of the segment before. A step for memory_replay.
    """
    return _segment(params, x, memory, num_heads, memory_length, layer)


def _segment(params: list[XlLayer], x: Array, memory: XlMemory | None, num_heads: int, memory_length: int, layer: Callable):
    """The results, and a backward that returns the gradient of memory as well."""
    check_layers(params, x)
    before = rows_of_layers("memory.rows", None if memory is None else memory.rows, len(params), x)
    after, backwards = [], []
    for own, rows in zip(params, before, strict=True):
        x, layer_backward = layer(own, x, rows, num_heads=num_heads)  # (1)
        after.append(below(rows, x)[..., -memory_length:, :].copy())  # (2)
        backwards.append(layer_backward)

    def backward(dresult):
        dx, dafter = dresult
        new = dx.shape[-2]
        dlayers: list[Any] = []
        dbefore: list[Any] = []
        for layer_backward, rows, dkept in reversed(list(zip(backwards, before, dafter.rows, strict=True))):
            dboth = below(None if rows is None else np.zeros_like(rows), dx)
            dboth[..., -dkept.shape[-2] :, :] += dkept       # what comes out goes up, and is kept: two gradients  (3)
            dlayer, dx, drows = layer_backward(dboth[..., -new:, :])  # (4)
            dlayers.append(dlayer)
            dbefore.append(None if rows is None else drows + dboth[..., :-new, :])
        return dlayers[::-1], dx, None if memory is None else XlMemory(dbefore[::-1])

    return (x, XlMemory(after)), backward


def _example(rng: np.random.Generator, *, by_keyword: bool):
    params = init_transformer_xl(rng, 6, num_layers=2, num_heads=3, d_hidden=5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape), params)
    x, memory = rng.normal(size=(2, 3, 6)), XlMemory([rng.normal(size=(2, 2, 6)) for _ in params])
    if by_keyword:
        return example(params, x, memory=memory, num_heads=3, memory_length=4)
    return example(params, x, memory, num_heads=3, memory_length=4)
