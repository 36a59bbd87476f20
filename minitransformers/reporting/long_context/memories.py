"""What sections on memories share: ways to read a text segment by segment, each with a memory of its own kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import Backward, trees
from minitransformers.long_context.compression_loss import compression_loss
from minitransformers.long_context.compressive_transformer import (
    CompressiveTransformer,
    compressive_transformer,
    init_compressive_transformer,
)
from minitransformers.long_context.ernie_doc import ernie_doc
from minitransformers.long_context.memformer import init_memformer, memformer
from minitransformers.long_context.retrospective_feed import retrospective_feed
from minitransformers.long_context.transformer_xl import init_transformer_xl, transformer_xl
from minitransformers.long_context.transformer_xl_layer import transformer_xl_pre_norm_layer
from minitransformers.norms.layer_norm import layer_norm

NOTHING, XL, SQUEEZED, SAME_LAYER, WRITTEN = "no memory", "Transformer-XL", "Compressive", "ERNIE-Doc", "Memformer"
HEADS, SLOTS = 2, 4


def steps(*, length: int, rows: int, rate: int, layer: Callable = transformer_xl_pre_norm_layer) -> dict[str, Callable]:
    """``step(stack, x, memory) -> (out, memory), backward``, for segments of one length; all but the slots stop gradients at their memory.

    Each holds so many rows, of which the Compressive Transformer squeezes all but those of one segment.
    """
    settings: dict[str, Any] = {"num_heads": HEADS, "layer": layer}
    squeezed: Any = partial(compressive_transformer, memory_length=length, compressed_length=rows - length, rate=rate, **settings)
    return {
        NOTHING: lambda stack, x, memory: transformer_xl(stack, x, memory=None, memory_length=rows, **settings),
        XL: lambda stack, x, memory: transformer_xl(stack, x, memory=memory, memory_length=rows, **settings),
        SQUEEZED: lambda stack, x, memory: squeezed(stack, x, memory=memory),
        SAME_LAYER: lambda stack, x, memory: ernie_doc(stack, x, memory=memory, memory_length=rows, **settings),
        WRITTEN: partial(memformer, num_heads=HEADS),
    }


def init_stack(name: str, rng: np.random.Generator, width: int, *, rate: int) -> Any:
    """One layer of that way, its feed-forward network twice as wide as the rest."""
    sizes: dict[str, Any] = {"num_layers": 1, "num_heads": HEADS, "d_hidden": 2 * width}
    if name == SQUEEZED:
        return init_compressive_transformer(rng, width, rate=rate, **sizes)
    return init_memformer(rng, width, num_slots=SLOTS, **sizes) if name == WRITTEN else init_transformer_xl(rng, width, **sizes)


def _squeezing(stack: CompressiveTransformer, before: Any, after: Any, *, length: int, rate: int) -> tuple[Any, CompressiveTransformer]:
    """How far attention to what was squeezed is from attention to what it was, and the gradient of that: of the compression alone."""
    value, backward = compression_loss(stack.compress, layers=stack.layers, before=before, after=after, positions=length, num_heads=HEADS, rate=rate, norm=layer_norm)
    return value, trees.zeros_like(stack)._replace(compress=backward(np.float32(1.0)))


def through(stack: Any, x: Array, *, step: Callable, rate: int) -> tuple[tuple[Array, Any], Backward]:
    """What the segments of x, (texts, segments, length, width), become one after the other, and what squeezing adds to the loss.

    backward: (dout, dadded) -> the gradient of the stack, dx.
    """
    length, outs, backwards = x.shape[2], [], []
    memory: Any = None
    added: Any = 0.0
    dadded: list[Any] = []
    for t in range(x.shape[1]):
        before = memory
        (out, memory), back = step(stack, x[:, t], memory)
        outs.append(out)
        backwards.append(back)
        if isinstance(stack, CompressiveTransformer):
            value, dstack = _squeezing(stack, before, memory, length=length, rate=rate)
            added, dadded = added + value, [*dadded, dstack]

    def backward(dresult):
        douts, dvalue = dresult
        dx, dmemory, dstack = np.zeros_like(x), None, trees.zeros_like(stack)
        for t in reversed(range(x.shape[1])):
            own, dx[:, t], *rest = backwards[t]((douts[:, t], dmemory))
            dmemory = rest[0] if rest else None              # of slots; a stopped memory gets none
            dstack = trees.map(np.add, dstack, own)
        for own in dadded:
            dstack = trees.map(lambda total, part: total + dvalue * part, dstack, own)
        return dstack, dx

    return (np.stack(outs, axis=1), added), backward


def last_segment(step: Callable, *, rate: int) -> Callable:
    """``body(stack, x) -> last, backward``: what became of the last segment, (texts, length, width). Squeezing adds its loss to the gradient alone."""

    def body(stack: Any, x: Array) -> tuple[Array, Backward]:
        (outs, _), backward = through(stack, x, step=step, rate=rate)
        return outs[:, -1], lambda dlast: backward((_last(x, dlast), np.float32(1.0)))

    return body


def last_segment_read_twice(step: Callable) -> Callable:
    """The same of a text that is read a second time, with the memory that the first has left."""

    def body(stack: Any, x: Array) -> tuple[Array, Backward]:
        (outs, _), backward = retrospective_feed(stack, x.swapaxes(0, 1), step=step)

        def back(dlast):
            dstack, dx = backward((_last(x, dlast).swapaxes(0, 1), None))
            return dstack, dx.swapaxes(0, 1)

        return outs[-1], back

    return body


def _last(x: Array, dlast: Array) -> Array:
    """The gradient of all segments where only the last was looked at."""
    dx = np.zeros_like(x)
    dx[:, -1] = dlast
    return dx
