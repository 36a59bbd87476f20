"""Compression loss: what the compressions of a Compressive Transformer are trained by, one segment and all layers at a time.

The memories around a segment hold all that is needed: the rows that it pushed out, and, last in the new memory, the inputs of the
layer. So it can be taken after the segment, and no pass has to be kept for it. Source: Rae et al. 2019, arXiv:1911.05507, section 3
and algorithm 2. It is a sum over the layers of ``attention_reconstruction_loss``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minitransformers.foundation import Backward, bad, concept, example, invalid, trees
from minitransformers.long_context.attention_reconstruction_loss import attention_reconstruction_loss
from minitransformers.long_context.compressive_transformer import CompressiveMemory, init_compressive_transformer
from minitransformers.long_context.convolution_compression import convolution_compression
from minitransformers.long_context.transformer_xl import Size
from minitransformers.long_context.transformer_xl_layer import XlLayer
from minitransformers.norms.layer_norm import layer_norm


@concept(
    title="Compression loss of a stack",
    source="Rae et al. 2019, arXiv:1911.05507, section 3, algorithm 2",
    example=lambda rng: _loss_example(rng),
    rejects=[bad("params", params=[None]), bad(positions=8)],
    form_of="compressive_transformer",
)
def compression_loss(
    params: list[Any], *, layers: list[XlLayer], before: CompressiveMemory | None, after: CompressiveMemory, positions: Size,
    num_heads: Size, rate: Size, compress: Callable = convolution_compression, norm: Callable | None = None,
) -> tuple[np.floating, Backward]:  # fmt: skip
    """The attention-reconstruction loss of what a segment of so many positions has pushed out, a sum over the layers.

    params are the compressions of the layers; before and after are the memories around the segment. Nothing but params gets a
    gradient. compress and norm are slots of attention_reconstruction_loss. The loss is zero where nothing was pushed out.
    Returns out, a scalar in squared values, and backward: dout -> list of what compress learns.
    Raises ValueError where layers, compressions and memories do not belong together.
    """
    count = len(layers)
    if not len(params) == count == len(after.recent) == (count if before is None else len(before.recent)):
        raise invalid("params", got=f"{len(params)} compressions", wants=f"one for each of the {count} layers, and their memories")
    if positions > after.recent[0].shape[-2]:
        raise invalid("positions", got=positions, wants=f"at most the {after.recent[0].shape[-2]} rows of memory")
    out, backwards = after.recent[0].dtype.type(0), []
    for own, layer, recent, old in zip(params, layers, after.recent, [] if before is None else before.recent, strict=False):
        if (pushed := old.shape[-2] + positions - recent.shape[-2]) > 0:
            loss, loss_backward = attention_reconstruction_loss(
                own, old=old[..., :pushed, :], segment=recent[..., -positions:, :], layer=layer, num_heads=num_heads, rate=rate,
                compress=compress, norm=norm,
            )  # fmt: skip
            out = out + loss
            backwards.append(loss_backward)

    def backward(dout):
        return [loss_backward(dout) for loss_backward in backwards] or trees.zeros_like(params)

    return out, backward


def _loss_example(rng: np.random.Generator):
    params = init_compressive_transformer(rng, 6, num_layers=2, num_heads=3, rate=2, d_hidden=5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape), params)
    before, after = (CompressiveMemory([rng.normal(size=(2, 6, 6)) for _ in range(2)], []) for _ in range(2))
    return example(params.compress, layers=params.layers, before=before, after=after, positions=4, num_heads=3, rate=2, norm=layer_norm)
