"""Transformer-XL: a text read segment by segment, where every layer also reads what it was given for the segments before.

A segment that starts from nothing has forgotten its text. Here each layer keeps its inputs, the last ``memory_length`` of them, and
in the next segment attends to these rows besides its own. A layer further up thereby sees a segment further back: the reach grows
with the layers, the cost of a segment stays. Positions are relative, since rows of two segments would else claim one place. Source:
Dai et al. 2019, arXiv:1901.02860, section 3.2. Differs from it: a text starts with no memory, where the authors' code may also start
with zeros. [a; b] is a with b below it, M is memory_length, a star the backward of what it stands on. The stack of L layers gets
x_0 = x and the memories m_l, and returns x_L and m'_l:

    m'_l = the last M rows of [m_l; x_(l-1)]                 (1)
    x_l = layer_l(x_(l-1), m_l), l = 1 .. L                  (2)
    dx_(l-1), dm_l = layer_l*(dx_l), l = L .. 1              (3)
    [dm_l; dx_(l-1)] = [dm_l; dx_(l-1)], and dm'_l added to its last rows   (4)
    dm_l goes no further: memory is stopped                  (5)

What stops a gradient is how memory comes in: by keyword, and nothing is returned for it (5). What goes out is an output like
others, and a gradient that is sent to it arrives in x (4). transformer_xl_through_memory takes memory by position and returns its
gradient: segments chained that way have the gradient of the whole text.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, trees
from minitransformers.long_context.attention_with_memory import below
from minitransformers.long_context.transformer_xl_layer import XlLayer, init_transformer_xl_layer, transformer_xl_layer

Size = Annotated[int, at_least(1)]


class XlMemory(NamedTuple):
    """What each layer keeps: its inputs at the last positions, the earliest first."""

    rows: list[Float[Array, "*batch kept d_model"]]


@checked
def init_transformer_xl(
    rng: np.random.Generator, d_model: Annotated[int, at_least(2)], *, num_layers: Size, num_heads: Size, d_hidden: Size | None = None,
    std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> list[XlLayer]:  # fmt: skip
    """As many layers as init_transformer_xl_layer makes them. Raises ValueError as that does."""
    return [init_transformer_xl_layer(rng, d_model, num_heads=num_heads, d_hidden=d_hidden, std=std, dtype=dtype) for _ in range(num_layers)]


@concept(
    title="Transformer-XL",
    source="Dai et al. 2019, arXiv:1901.02860, section 3.2",
    example=lambda rng: _example(rng, by_keyword=True),
    rejects=[
        bad(num_heads=4), bad("params: got no layers", params=[], memory=None), bad("x: got shape", x=np.ones((2, 3, 4)), memory=None),
        bad("memory.rows", memory=XlMemory([np.ones((2, 2, 6))])),
        bad("memory.rows.1", memory=XlMemory([np.ones((2, 2, 6)), np.ones((3, 2, 6))])),
        bad("memory.rows.0", memory=XlMemory([np.ones((2, 2, 4)), np.ones((2, 2, 6))])),
    ],
)  # fmt: skip
def transformer_xl(
    params: list[XlLayer], x: Float[Array, "*batch positions d_model"], *, memory: XlMemory | None = None, num_heads: Size,
    memory_length: Size, layer: Callable = transformer_xl_layer,
) -> tuple[tuple[Array, XlMemory], Backward]:  # fmt: skip
    """One segment, read with the memory that the segment before has left; no gradient goes into that.

    memory is None at the start of a text. memory_length says of how many positions the new one is, at most. The slot
    layer(params of one, x, rows, num_heads=...) -> out, backward: ..., dx, drows is transformer_xl_layer, or one of other settings.
    Returns (out, memory): out, shaped like x, and what the next segment reads; and backward: (dout, dmemory) -> list of XlLayer,
    dx. dmemory is None unless something has read that memory and sends it a gradient.
    Raises ValueError when there is no layer, one is not as wide as x, or memory is that of another batch, width or stack.
    """
    result, whole_backward = _segment(params, x, memory, num_heads, memory_length, layer)

    def backward(dresult):
        dparams, dx, _ = whole_backward(dresult)             # (5)
        return dparams, dx

    return result, backward


@concept(
    title="Transformer-XL with a gradient through memory",
    source="Dai et al. 2019, arXiv:1901.02860, section 3.2, without the stop",
    example=lambda rng: _example(rng, by_keyword=False),
    rejects=[bad("memory.rows.1", memory=XlMemory([np.ones((2, 2, 6)), np.ones((3, 2, 6))]))],
    form_of="transformer_xl",
)
def transformer_xl_through_memory(
    params: list[XlLayer], x: Float[Array, "*batch positions d_model"], memory: XlMemory | None = None, *, num_heads: Size,
    memory_length: Size, layer: Callable = transformer_xl_layer,
) -> tuple[tuple[Array, XlMemory], Backward]:  # fmt: skip
    """The same segment, its memory an argument like others. Arguments, results and errors are those of transformer_xl.

    backward: (dout, dmemory) -> list of XlLayer, dx, and the gradient of the memory that was read (None without one): it is the
    dmemory of the segment before.
    """
    return _segment(params, x, memory, num_heads, memory_length, layer)


def _segment(params: list[XlLayer], x: Array, memory: XlMemory | None, num_heads: int, memory_length: int, layer: Callable):
    """The results, and a backward that returns the gradient of memory as well."""
    check_layers(params, x)
    before = rows_of_layers("memory.rows", None if memory is None else memory.rows, len(params), x)
    after, backwards = [], []
    for own, rows in zip(params, before, strict=True):
        after.append(below(rows, x)[..., -memory_length:, :].copy())  # (1)
        x, layer_backward = layer(own, x, rows, num_heads=num_heads)  # (2)
        backwards.append(layer_backward)

    def backward(dresult):
        dx, dafter = dresult
        dlayers, dbefore = [], []
        for layer_backward, dkept in reversed(list(zip(backwards, dafter.rows, strict=True))):
            dlayer, dx, drows = layer_backward(dx)           # (3)
            dboth = below(drows, dx)
            dboth[..., -dkept.shape[-2] :, :] += dkept       # read by the layer, and kept: two terms  (4)
            new = dx.shape[-2]
            dlayers.append(dlayer)
            dbefore.append(dboth[..., :-new, :])
            dx = dboth[..., -new:, :]
        return dlayers[::-1], dx, None if memory is None else XlMemory(dbefore[::-1])

    return (x, XlMemory(after)), backward


def check_layers(params: list[XlLayer], x: Array, path: str = "params") -> None:
    """Raise ValueError unless there are layers, all of them as wide as x."""
    if not params:
        raise invalid(path, got="no layers", wants="at least 1 layer")
    for i, own in enumerate(params):
        if own.attention_norm.gain.shape != x.shape[-1:]:
            raise invalid("x", got=f"shape {x.shape}", wants=f"{own.attention_norm.gain.size} features, as {path}.{i} has")


def rows_of_layers(place: str, rows: list[Array] | None, num_layers: int, x: Array) -> list[Array | None]:
    """The rows that each layer has kept, None for each where there are none. Raises ValueError where they are another text's."""
    if rows is None:
        return [None] * num_layers
    if len(rows) != num_layers:
        raise invalid(place, got=f"those of {len(rows)} layers", wants=f"those of {num_layers}, as params has")
    for i, own in enumerate(rows):
        if own.shape[:-2] != x.shape[:-2] or own.shape[-1] != x.shape[-1]:
            raise invalid(f"{place}.{i}", got=f"shape {own.shape}", wants=f"the batch and the width of x, which is {x.shape}")
    return list(rows)


def _example(rng: np.random.Generator, *, by_keyword: bool):
    params = init_transformer_xl(rng, 6, num_layers=2, num_heads=3, d_hidden=5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape), params)
    x, memory = rng.normal(size=(2, 3, 6)), XlMemory([rng.normal(size=(2, 2, 6)) for _ in params])
    if by_keyword:
        return example(params, x, memory=memory, num_heads=3, memory_length=4)
    return example(params, x, memory, num_heads=3, memory_length=4)
