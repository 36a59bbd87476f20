"""The Transformer of 2017, encoder and decoder, forward and backward, made of concepts: what all the others are parts of.

An encoder reads a source in both directions; a decoder writes a target from left to right, and looks at what the encoder made
of the source in each of its blocks. Source: Vaswani et al. 2017, arXiv:1706.03762, section 3. Each sub-layer is added to what it
reads, and the norm comes after the sum. One matrix E is the table of the source, that of the target, and the head, so source and
target share a vocabulary. Differs from the training code: no dropout; eps is PyTorch's, where the paper names none. As in the
paper the maps of attention have no bias; parameters with biases (PyTorch's) work as well. A is multi-head attention, causal in
the decoder, C cross-attention, F the feed-forward network with ReLU, N a layer norm, d the width (d_model), waves sine and cosine of
positions. S_P is the sub-layer around a part P; a star is the backward of what it stands on.

    S_P(x, ...) = N(total), total = x + P(x, ...)            (1)
    dtotal = N*(dout), dx = dtotal + P*(dtotal)              (2)
    middle = S_A(x), out = S_F(middle)                       (3)
    dmiddle = S_F*(dout), dx = S_A*(dmiddle)                 (4)
    written = S_A(y), read = S_C(written, memory), out = S_F(read)   (5)
    dread = S_F*(dout), (dwritten, dmemory) = S_C*(dread), dy = S_A*(dwritten)   (6)
    x = sqrt(d) E[source] + waves                            (7)
    memory = x after encoder_l(x), l = 1 .. num_layers       (8)
    y = sqrt(d) E[target] + waves                            (9)
    y = decoder_l(y, memory), l = 1 .. num_layers            (10)
    logits = y E^T                                           (11)
    dy = dlogits E, and dE_head = dlogits^T y                (12)
    dy, dmemory_l = decoder_l*(dy), l = num_layers .. 1      (13)
    dE_target = sqrt(d) dy scattered to the rows target      (14)
    dmemory = sum over l of dmemory_l                        (15)
    dx = dmemory before encoder_l*(dx), l = num_layers .. 1  (16)
    dE_source = sqrt(d) dx scattered to the rows source      (17)
    dE = dE_head + dE_target + dE_source                     (18)
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.attention.cache import KeyValueCache
from minitransformers.attention.core import softmax_attention
from minitransformers.attention.cross_attention import (
    CrossAttention,
    CrossAttentionState,
    cross_attention,
    cross_attention_step,
    init_cross_attention,
)
from minitransformers.attention.multi_head_attention import (
    MultiHeadAttention,
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.basics.embedding import Embedding, check_ids, embedding, init_embedding
from minitransformers.basics.feed_forward import FeedForward, feed_forward, init_feed_forward
from minitransformers.basics.linear import Linear, linear
from minitransformers.basics.relu import relu
from minitransformers.basics.residual import residual
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, slot, trees, trusted
from minitransformers.models.configuration import Configuration
from minitransformers.models.weights import Names, Place, packed, plain, read_arrays, transposed
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm
from minitransformers.positional.sinusoidal import sinusoidal


class TransformerEncoderBlock(NamedTuple):
    """Two sub-layers, each with the norm of its sum."""

    attention: MultiHeadAttention
    attention_norm: Annotated[LayerNorm, "d_model"]
    feed_forward: FeedForward
    feed_forward_norm: Annotated[LayerNorm, "d_model"]


class TransformerDecoderBlock(NamedTuple):
    """Three sub-layers: what was written, what was read, and what follows from both."""

    attention: MultiHeadAttention
    attention_norm: Annotated[LayerNorm, "d_model"]
    cross_attention: CrossAttention
    cross_attention_norm: Annotated[LayerNorm, "d_model"]
    feed_forward: FeedForward
    feed_forward_norm: Annotated[LayerNorm, "d_model"]


class Transformer(NamedTuple):
    """All parameters. The embedding is the source's, the target's and the head."""

    embedding: Annotated[Embedding, "vocabulary d_model"]
    encoder: list[TransformerEncoderBlock]
    decoder: list[TransformerDecoderBlock]


@checked
def init_transformer(
    rng: np.random.Generator, *, vocabulary: Annotated[int, at_least(1)], d_model: Annotated[int, at_least(2)],
    num_layers: Annotated[int, at_least(1)], num_heads: Annotated[int, at_least(1)], d_hidden: Annotated[int, at_least(1)] | None = None,
    std: Annotated[float, at_least(0)] | None = None, bias: bool = False, dtype: type = np.float32,
) -> Transformer:  # fmt: skip
    """Normal weights: ``init_transformer(rng, **TRANSFORMER_BASE.sizes)``, or sizes of your own. num_layers are those of each stack.

    std is the deviation of all weights; by default that of a map is 1/sqrt of the width that it reads, and that of the
    embedding 1/sqrt(d_model), so that sqrt(d) E has the size of the waves. d_hidden is 4 d_model unless given. bias gives the
    maps of attention biases, as PyTorch's have.
    """
    weights: dict[str, Any] = {"std": std, "dtype": dtype}

    def norm() -> LayerNorm:
        return init_layer_norm(rng, d_model, dtype=dtype)

    def attention() -> MultiHeadAttention:
        return init_multi_head_attention(rng, d_model, num_heads=num_heads, bias=bias, **weights)

    def work() -> FeedForward:
        return init_feed_forward(rng, d_model, d_hidden=d_hidden, **weights)

    def decoder_block() -> TransformerDecoderBlock:
        cross = init_cross_attention(rng, d_model, num_heads=num_heads, bias=bias, **weights)
        return TransformerDecoderBlock(attention(), norm(), cross, norm(), work(), norm())

    return Transformer(
        init_embedding(rng, vocabulary, d_model, std=d_model**-0.5 if std is None else std, dtype=dtype),
        [TransformerEncoderBlock(attention(), norm(), work(), norm()) for _ in range(num_layers)],
        [decoder_block() for _ in range(num_layers)],
    )  # fmt: skip


TRANSFORMER_BASE = Configuration(
    {"vocabulary": 37_000, "d_model": 512, "num_layers": 6, "num_heads": 8, "d_hidden": 2048}, {"num_heads": 8}
)
TRANSFORMER_BIG = Configuration(
    {"vocabulary": 37_000, "d_model": 1024, "num_layers": 6, "num_heads": 16, "d_hidden": 4096}, {"num_heads": 16}
)
_work = partial(feed_forward, activation=slot(relu))


def sub_layer(params: Any, x: Float[Array, "... positions d_model"], *more: Array, part: Callable, eps: float = 1e-5):
    """A part, the sum with what it read, and the norm of the sum; params are those of the part and of the norm.

    Returns out, shaped like x, and backward: dout -> the gradients of both, dx, and one for each of more.
    """
    total, total_backward = residual(params[0], x, *more, part=part)
    out, norm_backward = layer_norm(params[1], total, eps=eps)  # (1)

    def backward(dout):
        dnorm, dtotal = norm_backward(dout)
        dpart, dx, *dmore = total_backward(dtotal)           # (2)
        return (dpart, dnorm), dx, *dmore

    return out, backward


def transformer_encoder_block(
    params: TransformerEncoderBlock, x: Float[Array, "... source d_model"], *, num_heads: int, mask: Array | None = None, eps: float = 1e-5
):
    """A block that sees the whole source. Returns out, shaped like x, and backward: dout -> gradients of the block, dx."""
    attend = partial(multi_head_attention, num_heads=num_heads, mask=mask, core=softmax_attention)
    middle, attend_backward = sub_layer(params[:2], x, part=attend, eps=eps)
    out, work_backward = sub_layer(params[2:], middle, part=_work, eps=eps)  # (3)

    def backward(dout):
        dwork, dmiddle = work_backward(dout)
        dattend, dx = attend_backward(dmiddle)               # (4)
        return TransformerEncoderBlock(*dattend, *dwork), dx

    return out, backward


def transformer_decoder_block(
    params: TransformerDecoderBlock, y: Float[Array, "... target d_model"], memory: Float[Array, "... source d_model"], *,
    num_heads: int, mask: Array | None = None, eps: float = 1e-5,
):  # fmt: skip
    """A block that sees what was written and the memory. Returns out, and backward: dout -> gradients of the block, dy, dmemory."""
    attend = partial(multi_head_attention, num_heads=num_heads)  # causal unless told otherwise
    look = partial(cross_attention, num_heads=num_heads, mask=mask)
    written, attend_backward = sub_layer(params[:2], y, part=attend, eps=eps)
    read, look_backward = sub_layer(params[2:4], written, memory, part=look, eps=eps)
    out, work_backward = sub_layer(params[4:], read, part=_work, eps=eps)  # (5)

    def backward(dout):
        dwork, dread = work_backward(dout)
        dlook, dwritten, dmemory = look_backward(dread)
        dattend, dy = attend_backward(dwritten)              # (6)
        return TransformerDecoderBlock(*dattend, *dlook, *dwork), dy, dmemory

    return out, backward


def transformer_encoder(params: Transformer, ids: Int[Array, "*batch source"], *, num_heads: int, mask: Array | None = None, eps: float = 1e-5):
    """The memory: what the encoder makes of a source. Returns it, and backward: dmemory -> the table's gradient, a list of the blocks'."""
    x, input_backward = _inputs(params, ids)                 # (7)
    backwards = []
    for block in params.encoder:
        x, block_backward = transformer_encoder_block(block, x, num_heads=num_heads, mask=mask, eps=eps)  # (8)
        backwards.append(block_backward)

    def backward(dmemory):
        dx, dblocks = dmemory, []
        for block_backward in reversed(backwards):
            dblock, dx = block_backward(dx)                  # (16)
            dblocks.append(dblock)
        return input_backward(dx), dblocks[::-1]             # (17)

    return x, backward


def _inputs(params: Transformer, ids: Array, *, positions: Array | None = None):
    """Rows of the table, sqrt(d) times, plus the waves of their positions; backward: dx -> the gradient of the table."""
    rows, rows_backward = embedding(params.embedding, ids=ids)
    scale = rows.shape[-1] ** 0.5
    x, _ = sinusoidal(scale * rows, positions=positions)
    return x, lambda dx: rows_backward(scale * dx).weight    # the waves are a constant


@concept(
    title="Transformer (encoder and decoder)",
    source="Vaswani et al. 2017, arXiv:1706.03762, section 3",
    example=lambda rng: _example(rng),
    rejects=[
        bad(source=np.array([[0, 7, 1], [0, 1, 2]])), bad(target=np.array([[0, -1], [1, 1]])), bad(num_heads=3),
        bad(mask=np.ones((3, 1, 1, 3), bool)), bad(target=np.zeros((3, 2), int)),
    ],
)  # fmt: skip
def transformer(
    params: Transformer, *, source: Int[Array, "*batch source"], target: Int[Array, "*batch target"], num_heads: Annotated[int, at_least(1)],
    mask: Bool[Array, "*#scores 1 source"] | None = None, eps: Annotated[float, at_least(0)] = 1e-5,
) -> tuple[Array, Backward]:  # fmt: skip
    """Logits for the token after each position of the target, given the whole source, that position and those before it.

    target starts with a token that means the start, and the labels are the target moved one to the left. mask, broadcastable
    to (*batch, heads, 1, source), is True where a token of the source may be read, by encoder and decoder (padding_mask);
    padding behind a target needs none. eps is that of the norms.
    Returns logits (*batch, target, vocabulary), and backward: dlogits -> Transformer of gradients.
    Raises ValueError where ids lie outside the vocabulary, d_model is odd, heads do not divide, or mask does not fit the scores.

    Published models by name, ``transformer(params, source=..., target=..., **TRANSFORMER_BASE.settings)``, parameters by
    ``init_transformer(rng, **TRANSFORMER_BASE.sizes)``:

        name               layers  d_model  heads  d_hidden  vocabulary   parameters
        TRANSFORMER_BASE      6+6      512      8      2048       37000   63,045,632
        TRANSFORMER_BIG       6+6     1024     16      4096       37000  214,171,648

    The paper says "about 37000" tokens, and 65 and 213 million parameters.
    """
    for name, ids in (("source", source), ("target", target)):
        check_ids(name, ids, params.embedding)
    settings: dict[str, Any] = {"num_heads": num_heads, "mask": mask, "eps": eps}
    memory, encoder_backward = transformer_encoder(params, source, **settings)
    y, target_backward = _inputs(params, target)             # (9)
    backwards = []
    for block in params.decoder:
        y, block_backward = transformer_decoder_block(block, y, memory, **settings)  # (10)
        backwards.append(block_backward)
    logits, head_backward = linear(_head(params), y)         # (11)

    def backward(dlogits):
        dhead, dy = head_backward(dlogits)                   # (12)
        ddecoder, dmemories = [], []
        for block_backward in reversed(backwards):
            dblock, dy, dmemory = block_backward(dy)         # (13)
            ddecoder.append(dblock)
            dmemories.append(dmemory)
        dwritten = target_backward(dy)                       # (14)
        dmemory = sum(dmemories)                             # every block reads the memory  (15)
        dread, dencoder = encoder_backward(dmemory)
        dembedding = Embedding(dhead.weight.T + dwritten + dread)  # three uses: three gradients  (18)
        return Transformer(dembedding, dencoder, ddecoder[::-1])

    return logits, backward


def _head(params: Transformer) -> Linear:
    return Linear(params.embedding.weight.T, None)           # a view: nothing is copied


class TransformerState(NamedTuple):
    """What was written and what was read: for each block the cache of the target, and the memory's keys and values, made once."""

    blocks: list[tuple[KeyValueCache, CrossAttentionState]]
    mask: Bool[Array, "*batch heads one source"] | None

    @property
    def length(self) -> int:
        """How many positions of the target were read."""
        return self.blocks[0][0].length


@trusted
def transformer_step(
    params: Transformer, ids: Int[Array, "*batch new"], state: TransformerState | None, *, num_heads: int,
    source: Int[Array, "*batch source"] | None = None, mask: Bool[Array, "*#scores 1 source"] | None = None, eps: float = 1e-5,
) -> tuple[Array, TransformerState]:  # fmt: skip
    """Logits at a few new positions of the target, given those before; ``state`` is None at the start. Forward only.

    source and mask, those of transformer, are read at the start: there the encoder runs, once, and each block of the decoder
    makes the keys and values of the memory, once. Later they may be given again, and are not looked at.
    Raises ValueError where there is neither a source nor a state, ids lie outside the vocabulary, or state is that of a model
    of other sizes.
    """
    if state is not None and not isinstance(state, TransformerState):
        raise invalid("state", got=type(state).__name__, wants="TransformerState, or None at the start of a text")
    if state is not None and len(state.blocks) != len(params.decoder):
        raise invalid("state", got=f"that of a model of {len(state.blocks)} blocks", wants=f"that of this model, of {len(params.decoder)}")
    check_ids("ids", ids, params.embedding)
    past: list[Any] = [(None, None)] * len(params.decoder)
    memory, seen = None, 0
    if state is not None:
        past, mask, seen = state.blocks, state.mask, state.length
    elif source is None:
        raise invalid("source", got=None, wants="what the decoder reads, at the first step")
    else:
        check_ids("source", source, params.embedding)
        memory, _ = transformer_encoder(params, source, num_heads=num_heads, mask=mask, eps=eps)
        if mask is not None:                                 # with the texts in front, as all that is kept
            mask = mask | np.zeros((*source.shape[:-1], 1, 1, 1), bool)
    y, after = _inputs(params, ids, positions=np.arange(seen, seen + ids.shape[-1]))[0], []
    for block, (cache, held) in zip(params.decoder, past, strict=True):
        mixed, cache = multi_head_attention_step(block.attention, y, cache, num_heads=num_heads)
        written, _ = layer_norm(block.attention_norm, y + mixed, eps=eps)
        found, held = cross_attention_step(block.cross_attention, written, held, num_heads=num_heads, memory=memory, mask=mask)
        read, _ = layer_norm(block.cross_attention_norm, written + found, eps=eps)
        y, _ = sub_layer(block[4:], read, part=_work, eps=eps)
        after.append((cache, held))
    return linear(_head(params), y)[0], TransformerState(after, mask)


def _attention_names(ours: str, theirs: str) -> dict[str, Place]:
    """torch.nn.MultiheadAttention keeps the maps to queries, keys and values in one array, each as (d_out, d_in)."""
    inside = {
        f"{ours}.{part}.{kind}": packed(f"{theirs}.in_proj_{kind}", number, of=3, transposed=kind == "weight")
        for number, part in enumerate(("query", "key", "value"))
        for kind in ("weight", "bias")
    }
    return inside | {f"{ours}.output.weight": transposed(f"{theirs}.out_proj.weight"), f"{ours}.output.bias": plain(f"{theirs}.out_proj.bias")}


def _block_names(stack: str, norms: tuple[str, ...]) -> dict[str, Place]:
    ours, theirs = f"{stack}.*", f"{stack}.layers.*"
    names = _attention_names(f"{ours}.attention", f"{theirs}.self_attn")
    for number, norm in enumerate(norms, 1):
        names |= {f"{ours}.{norm}.gain": plain(f"{theirs}.norm{number}.weight"), f"{ours}.{norm}.bias": plain(f"{theirs}.norm{number}.bias")}
    for number, part in enumerate(("up", "down"), 1):
        names[f"{ours}.feed_forward.{part}.weight"] = transposed(f"{theirs}.linear{number}.weight")
        names[f"{ours}.feed_forward.{part}.bias"] = plain(f"{theirs}.linear{number}.bias")
    return names


# torch.nn.Transformer's names, and the table beside them, which it does not have.
NAMES = Names(
    {
        "embedding.weight": plain("embedding.weight"),
        **_block_names("encoder", ("attention_norm", "feed_forward_norm")),
        **_block_names("decoder", ("attention_norm", "cross_attention_norm", "feed_forward_norm")),
        **_attention_names("decoder.*.cross_attention", "decoder.layers.*.multihead_attn"),
    }
)


def load_transformer(source: Mapping[str, Array] | str | Path) -> Transformer:
    """The parameters of a torch.nn.Transformer without its two final norms, which the paper does not have, and "embedding.weight".

    From a dict of arrays, a .safetensors file, or a sharded one. Sizes are read off the arrays, the number of heads cannot be.
    Raises ValueError for missing, unexpected or mis-shaped weights, naming them.
    """
    arrays = NAMES.stripped(read_arrays(source))
    encoder, decoder = (NAMES.count(f"{stack}.layers.*.", arrays) for stack in ("encoder", "decoder"))
    bias = "encoder.layers.0.self_attn.in_proj_bias" in arrays
    skeleton = init_transformer(np.random.default_rng(0), vocabulary=1, d_model=2, num_layers=max(encoder, decoder), num_heads=1, d_hidden=1, bias=bias)
    return NAMES.tree(skeleton._replace(encoder=skeleton.encoder[:encoder], decoder=skeleton.decoder[:decoder]), arrays)


def transformer_weights(params: Transformer) -> dict[str, Array]:
    """The same parameters (or their gradients) under torch.nn.Transformer's names, and the table as "embedding.weight"."""
    return NAMES.arrays(params)


def _example(rng: np.random.Generator):
    params = init_transformer(rng, vocabulary=6, d_model=4, num_layers=2, num_heads=2, d_hidden=5, std=0.5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    mask = np.array([[1, 1, 1], [1, 1, 0]], bool)[:, None, None]
    return example(params, source=rng.integers(6, size=(2, 3)), target=rng.integers(6, size=(2, 4)), num_heads=2, mask=mask)
