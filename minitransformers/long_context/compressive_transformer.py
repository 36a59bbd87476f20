"""Compressive Transformer: what falls out of a Transformer-XL's memory is compressed, and kept in a second memory behind it.

Of each ``rate`` rows that leave the memory of recent rows one is made, which enters the compressed memory; what leaves that is
forgotten. Attention reads both before the segment, a compressed row being one row and one position like any other. So as many rows
as a Transformer-XL keeps reach further back, less sharply. Source: Rae et al. 2019, arXiv:1911.05507, section 3, algorithms 1 and
2. Differs from the paper: a text starts with empty memories, not with zeros, which every query would attend to. [a; b] is a with b
below it, r_l is the memory of layer l, of R rows (memory_length), c_l the compressed one, of C rows (compressed_length), f_l the
compression, a star the backward of what it stands on. (2) and (3), (6) to (8) are ``compressive_memory``.

    context_l = [c_l; r_l]                                   (1)
    [old_l; r'_l] = [r_l; x_(l-1)], cut before the last R rows   (2)
    c'_l = the last C rows of [c_l; f_l(old_l)]              (3)
    x_l = layer_l(x_(l-1), context_l), l = 1 .. L            (4)
    dx_(l-1), [dc_l; dr_l] = layer_l*(dx_l), l = L .. 1      (5)
    [dc_l; dsmall_l] = dc'_l in the last rows, else 0        (6)
    dold_l = f_l*(dsmall_l)                                  (7)
    [dr_l; dx_(l-1)] = [dold_l; dr'_l], and with dc_l added to those of (5)   (8)
    dc_l and dr_l go no further: memory is stopped           (9)

The task sees f_l through later segments only. Those are stopped (9), so it gets zeros from the task, and learns from a loss of its
own: compression_loss. compressive_transformer_through_memory takes memory by position, and there the task trains it.
"""

from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, slot, trees
from minitransformers.long_context.attention_with_memory import attention_received, below
from minitransformers.long_context.compressive_memory import compressive_memory
from minitransformers.long_context.convolution_compression import (
    convolution_compression,
    init_convolution_compression,
    most_used_compression,
)
from minitransformers.long_context.transformer_xl import Size, check_layers, init_transformer_xl, rows_of_layers
from minitransformers.long_context.transformer_xl_layer import XlLayer, transformer_xl_layer
from minitransformers.norms.layer_norm import layer_norm


class CompressiveTransformer(NamedTuple):
    """The layers, and what the compression of each learns (None for nothing)."""

    layers: list[XlLayer]
    compress: list[Any]


class CompressiveMemory(NamedTuple):
    """Of each layer its inputs at the last positions, and compressed ones of before, the earliest first; [] while there are none."""

    recent: list[Float[Array, "*batch kept d_model"]]
    compressed: list[Float[Array, "*batch fewer d_model"]]


@checked
def init_compressive_transformer(
    rng: np.random.Generator, d_model: Annotated[int, at_least(2)], *, num_layers: Size, num_heads: Size, rate: Size,
    d_hidden: Size | None = None, std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> CompressiveTransformer:  # fmt: skip
    """Layers as init_transformer_xl makes them, and for each a convolution that starts near the mean."""
    layers = init_transformer_xl(rng, d_model, num_layers=num_layers, num_heads=num_heads, d_hidden=d_hidden, std=std, dtype=dtype)
    return CompressiveTransformer(layers, [init_convolution_compression(rng, d_model, rate=rate, dtype=dtype) for _ in layers])


def usage_in_layer(params: XlLayer, x: Array, context: Array | None, *, num_heads: int) -> Float[Array, "*batch rows"]:
    """The attention that each row of the context and of x receives in a transformer_xl_layer."""
    return attention_received(params.attention, x, context, num_heads=num_heads)


def usage_in_pre_norm_layer(params: XlLayer, x: Array, context: Array | None, *, num_heads: int, eps: float = 1e-5) -> Float[Array, "*batch rows"]:
    """The same in a transformer_xl_pre_norm_layer."""
    norm = partial(layer_norm, params.attention_norm, eps=eps)
    return attention_received(params.attention, norm(x)[0], None if context is None else norm(context)[0], num_heads=num_heads)


@concept(
    title="Compressive Transformer",
    source="Rae et al. 2019, arXiv:1911.05507, section 3",
    example=lambda rng: _example(rng, by_keyword=True),
    rejects=[
        bad(num_heads=4), bad("x", x=np.ones((2, 3, 6))), bad("x: got shape", x=np.ones((2, 4, 8)), memory=None), bad(memory_length=2), bad(memory_length=5),
        bad("params.layers: got no layers", params=CompressiveTransformer([], []), memory=None),
        bad("params.weight", rate=4, memory_length=4), bad("memory.recent", memory=CompressiveMemory([np.ones((2, 4, 6))], [])),
        bad("memory.recent.1", memory=CompressiveMemory([np.ones((2, 4, 6)), np.ones((3, 4, 6))], [])),
        bad("memory.compressed.0", memory=CompressiveMemory([np.ones((2, 4, 6))] * 2, [np.ones((2, 1, 8))] * 2)),
    ],
)  # fmt: skip
def compressive_transformer(
    params: CompressiveTransformer, x: Float[Array, "*batch positions d_model"], *, memory: CompressiveMemory | None = None,
    num_heads: Size, memory_length: Size, compressed_length: Size, rate: Size, compress: Callable = convolution_compression,
    usage: Callable = usage_in_layer, layer: Callable = transformer_xl_layer,
) -> tuple[tuple[Array, CompressiveMemory], Backward]:  # fmt: skip
    """One segment, read with the two memories that the segment before has left; no gradient goes into those.

    memory is None at the start of a text. Both lengths are in rows; rate says of how many rows one is made. Slots: compress(params
    of one, old, rate=..., usage=...) -> small, backward; layer as in transformer_xl; and usage(layer's params, x, context,
    num_heads=...) -> (*batch, rows), how much each row is used, which is computed only if a compression asks.
    Returns (out, memory): out, shaped like x, and what the next segment reads; and backward: (dout, dmemory) ->
    CompressiveTransformer, dx. Where dmemory is None, as it should be, compress gets zeros: its loss is compression_loss.
    Raises ValueError where rate does not divide the positions and memory_length, memory_length is less than the positions, or
    layers, compressions and memory do not fit each other and x.
    """
    settings = {"memory_length": memory_length, "compressed_length": compressed_length, "rate": rate, "compress": compress}
    result, whole_backward = _segment(params, x, memory, num_heads, usage, layer, settings)

    def backward(dresult):
        dparams, dx, _ = whole_backward(dresult)             # (9)
        return dparams, dx

    return result, backward


@concept(
    title="Compressive Transformer with a gradient through memory",
    source="Rae et al. 2019, arXiv:1911.05507, section 3 (BPTT)",
    example=lambda rng: _example(rng, by_keyword=False),
    rejects=[bad(memory_length=2)],
    form_of="compressive_transformer",
)
def compressive_transformer_through_memory(
    params: CompressiveTransformer, x: Float[Array, "*batch positions d_model"], memory: CompressiveMemory | None = None, *,
    num_heads: Size, memory_length: Size, compressed_length: Size, rate: Size, compress: Callable = convolution_compression,
    usage: Callable = usage_in_layer, layer: Callable = transformer_xl_layer,
) -> tuple[tuple[Array, CompressiveMemory], Backward]:  # fmt: skip
    """The same segment, its memory an argument like others: so the task trains compress. Arguments and errors are the same.

    backward: (dout, dmemory) -> CompressiveTransformer, dx, and the gradient of the memory that was read (None without one).
    """
    settings = {"memory_length": memory_length, "compressed_length": compressed_length, "rate": rate, "compress": compress}
    return _segment(params, x, memory, num_heads, usage, layer, settings)


def _segment(
    params: CompressiveTransformer, x: Array, memory: CompressiveMemory | None, num_heads: int, usage: Callable, layer: Callable,
    settings: dict[str, Any],
):  # fmt: skip
    """The results, and a backward that returns the gradient of memory as well."""
    count = len(params.layers)
    check_layers(params.layers, x, "params.layers")
    if len(params.compress) != count:
        raise invalid("params.compress", got=f"{len(params.compress)} compressions", wants=f"one for each of the {count} layers")
    recents = rows_of_layers("memory.recent", memory and memory.recent, count, x)
    compresseds = rows_of_layers("memory.compressed", (memory and memory.compressed) or None, count, x)
    after, backwards = CompressiveMemory([], []), []
    for own, f, recent, compressed in zip(params.layers, params.compress, recents, compresseds, strict=True):
        context = recent if compressed is None or recent is None else below(compressed, recent)  # (1)
        used = partial(_usage_of_recent, usage, own, x, context, recent, num_heads)
        (kept, held), update_backward = compressive_memory(f, x, recent, compressed, usage=used, **settings)  # (2) (3)
        x, layer_backward = layer(own, x, context, num_heads=num_heads)  # (4)
        after.recent.append(kept)
        after.compressed.extend([] if held is None else [held])
        backwards.append((layer_backward, update_backward))

    def backward(dresult):
        dx, dafter = dresult
        dparams, dmemory = CompressiveTransformer([], []), CompressiveMemory([], [])
        steps = list(zip_longest(backwards, dafter.recent, dafter.compressed))  # None where nothing is compressed yet
        for (layer_backward, update_backward), dkept, dheld in reversed(steps):
            dlayer, dx, dcontext = layer_backward(dx)        # (5)
            df, dx_kept, drecent, dcompressed = update_backward((dkept, dheld))  # (6) (7)
            dx = dx + dx_kept                                # read by the layer, and kept: two terms  (8)
            dparams.layers.insert(0, dlayer)
            dparams.compress.insert(0, df)
            if drecent is not None:
                read = dcontext.shape[-2] - drecent.shape[-2]
                dmemory.recent.insert(0, dcontext[..., read:, :] + drecent)
                dmemory.compressed[:0] = [] if dcompressed is None else [dcontext[..., :read, :] + dcompressed]
        return dparams, dx, None if memory is None else dmemory

    return (x, after), backward


def _usage_of_recent(usage: Callable, own: XlLayer, x: Array, context: Array | None, recent: Array | None, num_heads: int) -> Array:
    """How much the recent rows, and below them those of x, are used: the last of what usage gives."""
    rows = x.shape[-2] + (0 if recent is None else recent.shape[-2])
    return usage(own, x, context, num_heads=num_heads)[..., -rows:]


def _tree(rng: np.random.Generator) -> CompressiveTransformer:
    params = init_compressive_transformer(rng, 6, num_layers=2, num_heads=3, rate=2, d_hidden=5, dtype=np.float64)
    return trees.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape), params)


def _example(rng: np.random.Generator, *, by_keyword: bool):
    params, x = _tree(rng), rng.normal(size=(2, 4, 6))
    memory = CompressiveMemory(*([rng.normal(size=(2, rows, 6)) for _ in range(2)] for rows in (4, 2)))
    settings: dict[str, Any] = {"num_heads": 3, "memory_length": 4, "compressed_length": 3, "rate": 2}
    if by_keyword:
        return example(params, x, memory=memory, **settings)
    params = params._replace(compress=[None, None])
    return example(params, x, memory, **settings, compress=slot(most_used_compression))
