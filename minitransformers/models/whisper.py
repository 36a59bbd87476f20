"""Whisper, encoder and decoder, forward and backward, made of concepts: what was said, written down.

Source: Radford et al. 2022, arXiv:2212.04356, section 2.2, and the published code for what the paper leaves open. The encoder-decoder of
2017 with norms before each part, and two convolutions in front of the encoder, which make half as many positions of the frames of a
sound (80 numbers each, a spectrum on the mel scale). Positions are two tables: the encoder's starts as waves and is not trained, the
decoder's is learned. The head is the decoder's table of tokens. Differs from the training code: no dropout. N is a layer norm, another
one at each place, A multi-head attention, causal in the decoder, C cross-attention, F the feed-forward network with the exact GELU, phi
GELU; a star is the backward of what it stands on. Keys have no bias: it would add the same to all scores of a query.

    S_P(x, ...) = x + P(N(x), ...)                           (1)
    dx = dout + N*(P*(dout))                                 (2)
    middle = S_A(x), out = S_F(middle)                       (3)
    dmiddle = S_F*(dout), dx = S_A*(dmiddle)                 (4)
    written = S_A(y), read = S_C(written, memory), out = S_F(read)   (5)
    dread = S_F*(dout), (dwritten, dmemory) = S_C*(dread), dy = S_A*(dwritten)   (6)
    conv(x)_t = (x_{st-1}, x_{st}, x_{st+1}) W + b, with zeros outside, for the stride s   (7)
    dwindow_t = dout_t W^T, dx = every row of every window added to the row that it is   (8)
    x = phi(conv_2(phi(conv_1(mel)))) + P_e, strides 1 and 2   (9)
    memory = N(x after encoder_l(x), l = 1 .. num_layers)    (10)
    y = E[ids] + P_d                                         (11)
    y = decoder_l(y, memory), l = 1 .. num_layers            (12)
    logits = N(y) E^T                                        (13)
    dE = dlogits^T N(y), dy = N*(dlogits E), then decoder_l*(dy, ...), l = num_layers .. 1   (14)
    dP_d = dy summed over texts, dE = dE + dy scattered to the rows ids   (15)
    dmemory = sum over l of dmemory_l                        (16)
    dx = N*(dmemory), then encoder_l*(dx), l = num_layers .. 1   (17)
    dP_e = dx summed over sounds, dmel = conv_1*(phi*(conv_2*(phi*(dx))))   (18)
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
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
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.feed_forward import FeedForward, feed_forward, init_feed_forward
from minitransformers.basics.gelu import gelu_exact
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, slot, trees, trusted
from minitransformers.models.configuration import Configuration
from minitransformers.models.weights import Names, plain, read_arrays, transposed
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm
from minitransformers.positional.learned import Learned, init_learned, learned


class WhisperEncoderBlock(NamedTuple):
    """Two sub-layers, each behind its norm."""

    attention_norm: Annotated[LayerNorm, "d_model"]
    attention: MultiHeadAttention
    feed_forward_norm: Annotated[LayerNorm, "d_model"]
    feed_forward: FeedForward


class WhisperDecoderBlock(NamedTuple):
    """Three sub-layers, each behind its norm: what was written, what was heard, and what follows from both."""

    attention_norm: Annotated[LayerNorm, "d_model"]
    attention: MultiHeadAttention
    cross_attention_norm: Annotated[LayerNorm, "d_model"]
    cross_attention: CrossAttention
    feed_forward_norm: Annotated[LayerNorm, "d_model"]
    feed_forward: FeedForward


class WhisperEncoder(NamedTuple):
    """From frames to the memory. A convolution's weight has the rows of the frame before, of the frame, and of the frame behind."""

    conv1: Annotated[Linear, "three_mels d_model"]
    conv2: Annotated[Linear, "three_d_model d_model"]
    positions: Annotated[Learned, "places d_model"]
    blocks: list[WhisperEncoderBlock]
    norm: Annotated[LayerNorm, "d_model"]


class WhisperDecoder(NamedTuple):
    """From tokens and the memory to the next token; the embedding is the head, too."""

    embedding: Annotated[Embedding, "vocabulary d_model"]
    positions: Annotated[Learned, "context d_model"]
    blocks: list[WhisperDecoderBlock]
    norm: Annotated[LayerNorm, "d_model"]


class Whisper(NamedTuple):
    """All parameters."""

    encoder: WhisperEncoder
    decoder: WhisperDecoder


def whisper_waves(places: int, d_model: int) -> Array:
    """The encoder's positions, (places, d_model): sines in one half, cosines in the other, of wavelengths from 2 pi to 20,000 pi."""
    if d_model < 4 or d_model % 2:
        raise invalid("d_model", got=d_model, wants="an even number of at least 4: sines and cosines of two wavelengths or more")
    angle = np.arange(places)[:, None] * 10_000.0 ** (-np.arange(d_model // 2) / (d_model // 2 - 1))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


@checked
def init_whisper(
    rng: np.random.Generator, *, vocabulary: Annotated[int, at_least(1)], d_model: Annotated[int, at_least(1)],
    num_layers: Annotated[int, at_least(1)], num_heads: Annotated[int, at_least(1)], mels: Annotated[int, at_least(1)] = 80,
    d_hidden: Annotated[int, at_least(1)] | None = None, places: Annotated[int, at_least(1)] = 1500, context: Annotated[int, at_least(1)] = 448,
    std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> Whisper:  # fmt: skip
    """Normal weights of deviation ``std``: ``init_whisper(rng, **WHISPER_TINY.sizes)``, or sizes of your own.

    num_layers are those of each stack, d_hidden is 4 d_model unless given. places is the longest that a sound may be behind the
    convolutions (half its frames), context the longest text.
    """
    norm = partial(init_layer_norm, rng, d_model, dtype=dtype)
    work = partial(init_feed_forward, rng, d_model, d_hidden=d_hidden, std=std, dtype=dtype)
    window = partial(init_linear, rng, std=std, dtype=dtype)

    def without_key_bias(part: Any) -> Any:
        return part._replace(key=part.key._replace(bias=None))

    def attention() -> MultiHeadAttention:
        return without_key_bias(init_multi_head_attention(rng, d_model, num_heads=num_heads, std=std, dtype=dtype))

    def cross() -> CrossAttention:
        return without_key_bias(init_cross_attention(rng, d_model, num_heads=num_heads, std=std, dtype=dtype))

    encoder = WhisperEncoder(
        window(3 * mels, d_model), window(3 * d_model, d_model), Learned(whisper_waves(places, d_model).astype(dtype)),
        [WhisperEncoderBlock(norm(), attention(), norm(), work()) for _ in range(num_layers)], norm(),
    )  # fmt: skip
    decoder = WhisperDecoder(
        init_embedding(rng, vocabulary, d_model, std=std, dtype=dtype), init_learned(rng, d_model, max_positions=context, std=std, dtype=dtype),
        [WhisperDecoderBlock(norm(), attention(), norm(), cross(), norm(), work()) for _ in range(num_layers)], norm(),
    )  # fmt: skip
    return Whisper(encoder, decoder)


def _published(*, d_model: int, num_layers: int, vocabulary: int = 51_865) -> Configuration:
    """Heads are 64 wide in all of them."""
    heads = {"num_heads": d_model // 64}
    return Configuration({"vocabulary": vocabulary, "d_model": d_model, "num_layers": num_layers, **heads}, heads)


WHISPER_TINY_EN = _published(d_model=384, num_layers=4, vocabulary=51_864)
WHISPER_TINY = _published(d_model=384, num_layers=4)
WHISPER_BASE = _published(d_model=512, num_layers=6)
WHISPER_SMALL = _published(d_model=768, num_layers=12)
WHISPER_MEDIUM = _published(d_model=1024, num_layers=24)
WHISPER_LARGE = _published(d_model=1280, num_layers=32)
_work = partial(feed_forward, activation=slot(gelu_exact))


def sub_layer(params: Any, x: Float[Array, "... positions d_model"], *more: Array, part: Any, eps: float):
    """A norm, a part, and the sum with what was read; params are those of the norm and of the part.

    Returns out, shaped like x, and backward: dout -> the gradients of both, dx, and one for each of more.
    """
    unit, norm_backward = layer_norm(params[0], x, eps=eps)
    added, part_backward = part(params[1], unit, *more)
    out = x + added                                          # (1)

    def backward(dout):
        dpart, dunit, *dmore = part_backward(dout)
        dnorm, dthrough = norm_backward(dunit)
        dx = dout + dthrough                                 # (2)
        return (dnorm, dpart), dx, *dmore[: len(more)]

    return out, backward


def whisper_encoder_block(params: WhisperEncoderBlock, x: Float[Array, "... places d_model"], *, num_heads: int, eps: float = 1e-5):
    """A block that hears the whole sound. Returns out, shaped like x, and backward: dout -> gradients of the block, dx."""
    attend = partial(multi_head_attention, num_heads=num_heads, core=softmax_attention)
    middle, attend_backward = sub_layer(params[:2], x, part=attend, eps=eps)
    out, work_backward = sub_layer(params[2:], middle, part=_work, eps=eps)  # (3)

    def backward(dout):
        dwork, dmiddle = work_backward(dout)
        dattend, dx = attend_backward(dmiddle)               # (4)
        return WhisperEncoderBlock(*dattend, *dwork), dx

    return out, backward


def whisper_decoder_block(
    params: WhisperDecoderBlock, y: Float[Array, "... target d_model"], memory: Float[Array, "... places d_model"], *, num_heads: int,
    eps: float = 1e-5,
):  # fmt: skip
    """A block that sees what was written and the memory. Returns out, and backward: dout -> gradients of the block, dy, dmemory."""
    attend, look = (partial(part, num_heads=num_heads) for part in (multi_head_attention, cross_attention))
    written, attend_backward = sub_layer(params[:2], y, part=attend, eps=eps)
    read, look_backward = sub_layer(params[2:4], written, memory, part=look, eps=eps)
    out, work_backward = sub_layer(params[4:], read, part=_work, eps=eps)  # (5)

    def backward(dout):
        dwork, dread = work_backward(dout)
        dlook, dwritten, dmemory = look_backward(dread)
        dattend, dy = attend_backward(dwritten)              # (6)
        return WhisperDecoderBlock(*dattend, *dlook, *dwork), dy, dmemory

    return out, backward


def windows_of_three(params: Linear, x: Float[Array, "... frames d_in"], *, stride: int):
    """A convolution of width 3: a linear map of each frame, or of every second one, with its two neighbours. Zeros stand outside."""
    outside = np.zeros_like(x[..., :1, :])
    padded = np.concatenate([outside, x, outside], axis=-2)
    starts = np.arange(0, x.shape[-2], stride)
    window = np.concatenate([padded[..., starts + k, :] for k in range(3)], axis=-1)  # (..., frames / stride, 3 d_in)
    out, map_backward = linear(params, window)               # (7)

    def backward(dout):
        dparams, dwindow = map_backward(dout)
        dpadded = np.zeros_like(padded)
        for k, drows in enumerate(np.split(dwindow, 3, axis=-1)):
            dpadded[..., starts + k, :] += drows             # a frame stands in up to three windows  (8)
        return dparams, dpadded[..., 1:-1, :]

    return out, backward


def whisper_encoder(params: WhisperEncoder, mel: Float[Array, "... frames mels"], *, num_heads: int, eps: float = 1e-5):
    """The memory: what the encoder makes of a sound, (..., frames / 2, d_model); backward: dmemory -> WhisperEncoder of gradients, dmel."""
    front = (partial(windows_of_three, stride=1), slot(gelu_exact), partial(windows_of_three, stride=2), slot(gelu_exact))
    heard, front_backward = chain((params.conv1, None, params.conv2, None), mel, parts=front)
    x, positions_backward = learned(params.positions, heard)  # (9)
    backwards = []
    for block in params.blocks:
        x, block_backward = whisper_encoder_block(block, x, num_heads=num_heads, eps=eps)
        backwards.append(block_backward)
    memory, norm_backward = layer_norm(params.norm, x, eps=eps)  # (10)

    def backward(dmemory):
        (dnorm, dx), dblocks = norm_backward(dmemory), []
        for block_backward in reversed(backwards):
            dblock, dx = block_backward(dx)                  # (17)
            dblocks.append(dblock)
        dpositions, dheard = positions_backward(dx)
        (dconv1, _, dconv2, _), dmel = front_backward(dheard)  # (18)
        return WhisperEncoder(dconv1, dconv2, dpositions, dblocks[::-1], dnorm), dmel

    return memory, backward


@concept(
    title="Whisper",
    source="Radford et al. 2022, arXiv:2212.04356, section 2.2",
    example=lambda rng: _example(rng),
    rejects=[
        bad(ids=np.array([[0, 7], [0, 1]])), bad(ids=np.array([[0, -1], [1, 1]])), bad(num_heads=3),
        bad("positions", ids=np.zeros((2, 4), int)), bad("mel", mel=np.ones((2, 5, 2))), bad("mel", mel=np.ones((2, 3, 3))),
        bad(ids=np.zeros((3, 2), int)),
    ],
)  # fmt: skip
def whisper(
    params: Whisper, mel: Float[Array, "*batch frames mels"], *, ids: Int[Array, "*batch target"], num_heads: Annotated[int, at_least(1)] = 6,
    eps: Annotated[float, at_least(0)] = 1e-5,
) -> tuple[Array, Backward]:  # fmt: skip
    """Logits for the token after each of ids, given the sound, that token and those before it.

    mel are the frames of a sound, features last: the logarithm of a spectrum on the mel scale, about 1 in size, 100 frames a
    second. The published models were trained on 3,000 of them, 30 seconds, silence filled up. ids start with the tokens that say
    what is wanted. eps is that of the norms.
    Returns logits (*batch, target, vocabulary), and backward: dlogits -> Whisper of gradients, dmel.
    Raises ValueError where ids lie outside the table, ids or half the frames are longer than the tables of positions, mel has other
    features than the model, or heads do not divide.

    Published models by name, ``whisper(params, mel, ids=ids, **WHISPER_TINY.settings)``, their parameters by
    ``init_whisper(rng, **WHISPER_TINY.sizes)`` or load_whisper. d_hidden is 4 d_model; 80 mels, 1500 places, 448 tokens:

        name             layers  d_model  heads  vocabulary     parameters
        WHISPER_TINY_EN     4+4      384      6       51864     37,760,256
        WHISPER_TINY        4+4      384      6       51865     37,760,640
        WHISPER_BASE        6+6      512      8       51865     72,593,920
        WHISPER_SMALL     12+12      768     12       51865    241,734,912
        WHISPER_MEDIUM    24+24     1024     16       51865    763,857,920
        WHISPER_LARGE     32+32     1280     20       51865  1,543,304,960

    The positions of the encoder are among them, though they are not trained.
    """
    decoder = params.decoder
    _check(params, mel)
    rows, embedding_backward = embedding(decoder.embedding, ids=ids)
    memory, encoder_backward = whisper_encoder(params.encoder, mel, num_heads=num_heads, eps=eps)
    y, positions_backward = learned(decoder.positions, rows)  # (11)
    backwards = []
    for block in decoder.blocks:
        y, block_backward = whisper_decoder_block(block, y, memory, num_heads=num_heads, eps=eps)  # (12)
        backwards.append(block_backward)
    logits, head_backward = chain((decoder.norm, _head(decoder)), y, parts=(partial(layer_norm, eps=eps), linear))  # (13)

    def backward(dlogits):
        (dnorm, dhead), dy = head_backward(dlogits)
        dblocks, dmemories = [], []
        for block_backward in reversed(backwards):
            dblock, dy, dmemory = block_backward(dy)         # (14)
            dblocks.append(dblock)
            dmemories.append(dmemory)
        dpositions, drows = positions_backward(dy)
        dembedding = Embedding(dhead.weight.T + embedding_backward(drows).weight)  # the table is used at both ends: two gradients  (15)
        dencoder, dmel = encoder_backward(sum(dmemories))    # every block reads the memory  (16)
        return Whisper(dencoder, WhisperDecoder(dembedding, dpositions, dblocks[::-1], dnorm)), dmel

    return logits, backward


def _head(params: WhisperDecoder) -> Linear:
    return Linear(params.embedding.weight.T, None)           # a view: nothing is copied


def _check(params: Whisper, mel: Array) -> None:
    features, places = params.encoder.conv1.weight.shape[0], len(params.encoder.positions.table)
    if 3 * mel.shape[-1] != features:
        raise invalid("mel", got=f"{mel.shape[-1]} features a frame", wants=f"{features // 3}, a third of what params.encoder.conv1.weight reads")
    if mel.shape[-2] > 2 * places or mel.shape[-2] < 1:
        raise invalid("mel", got=f"{mel.shape[-2]} frames", wants=f"1 to {2 * places}, twice the rows of params.encoder.positions.table")


class WhisperState(NamedTuple):
    """What was written and what was heard: for each block the cache of the text, and the memory's keys and values, made once."""

    blocks: list[tuple[KeyValueCache, CrossAttentionState]]

    @property
    def length(self) -> int:
        """How many tokens were read."""
        return self.blocks[0][0].length


@trusted
def whisper_step(
    params: Whisper, ids: Int[Array, "*batch new"], state: WhisperState | None, *, num_heads: int = 6,
    mel: Float[Array, "*batch frames mels"] | None = None, eps: float = 1e-5,
) -> tuple[Array, WhisperState]:  # fmt: skip
    """Logits at a few new tokens, given those before; ``state`` is None at the start, and then the sound is needed. Forward only.

    Raises ValueError where there is neither a sound nor a state, ids lie outside the vocabulary or run over the table of positions, or
    state is that of a model of other sizes.
    """
    decoder = params.decoder
    if state is not None and (not isinstance(state, WhisperState) or len(state.blocks) != len(decoder.blocks)):
        raise invalid("state", got=type(state).__name__, wants=f"WhisperState of {len(decoder.blocks)} blocks, or None at the start of a text")
    rows, _ = embedding(decoder.embedding, ids=ids)
    past: list[Any] = [(None, None)] * len(decoder.blocks)
    memory, seen = None, 0
    if state is not None:
        past, seen = state.blocks, state.length
    elif mel is None:
        raise invalid("mel", got=None, wants="what the decoder listens to, at the first step")
    else:
        _check(params, mel)
        memory, _ = whisper_encoder(params.encoder, mel, num_heads=num_heads, eps=eps)
    y, _ = learned(decoder.positions, rows, positions=np.arange(seen, seen + ids.shape[-1]))
    after = []
    for block, (cache, held) in zip(decoder.blocks, past, strict=True):
        mixed, cache = multi_head_attention_step(block.attention, layer_norm(block.attention_norm, y, eps=eps)[0], cache, num_heads=num_heads)
        written = y + mixed
        asked, _ = layer_norm(block.cross_attention_norm, written, eps=eps)
        found, held = cross_attention_step(block.cross_attention, asked, held, num_heads=num_heads, memory=memory)
        y, _ = sub_layer(block[4:], written + found, part=_work, eps=eps)
        after.append((cache, held))
    return linear(_head(decoder), layer_norm(decoder.norm, y, eps=eps)[0])[0], WhisperState(after)


# Hugging Face's names; torch.nn.Linear keeps a weight as (d_out, d_in), and torch.nn.Conv1d as (d_out, d_in, width).
def _attention(ours: str, theirs: str) -> dict[str, Any]:
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    weights = {f"{ours}.{own}.weight": transposed(f"{theirs}.{name}.weight") for own, name in parts.items()}
    return weights | {f"{ours}.{own}.bias": plain(f"{theirs}.{name}.bias") for own, name in parts.items() if own != "key"}


def _norm(ours: str, theirs: str) -> dict[str, Any]:
    return {f"{ours}.gain": plain(f"{theirs}.weight"), f"{ours}.bias": plain(f"{theirs}.bias")}


def _block(stack: str) -> dict[str, Any]:
    ours, theirs = f"{stack}.blocks.*.", f"model.{stack}.layers.*."
    places = _norm(f"{ours}attention_norm", f"{theirs}self_attn_layer_norm") | _attention(f"{ours}attention", f"{theirs}self_attn")
    if stack == "decoder":
        places |= _norm(f"{ours}cross_attention_norm", f"{theirs}encoder_attn_layer_norm")
        places |= _attention(f"{ours}cross_attention", f"{theirs}encoder_attn")
    for own, name in (("up", "fc1"), ("down", "fc2")):
        places |= {f"{ours}feed_forward.{own}.weight": transposed(f"{theirs}{name}.weight")}
        places |= {f"{ours}feed_forward.{own}.bias": plain(f"{theirs}{name}.bias")}
    return places | _norm(f"{ours}feed_forward_norm", f"{theirs}final_layer_norm")


_CONVOLUTIONS = ("model.encoder.conv1.weight", "model.encoder.conv2.weight")
NAMES = Names(
    {
        "encoder.conv1.weight": plain(_CONVOLUTIONS[0]), "encoder.conv1.bias": plain("model.encoder.conv1.bias"),
        "encoder.conv2.weight": plain(_CONVOLUTIONS[1]), "encoder.conv2.bias": plain("model.encoder.conv2.bias"),
        "encoder.positions.table": plain("model.encoder.embed_positions.weight"),
        "decoder.embedding.weight": plain("model.decoder.embed_tokens.weight"),
        "decoder.positions.table": plain("model.decoder.embed_positions.weight"),
        **_block("encoder"), **_norm("encoder.norm", "model.encoder.layer_norm"),
        **_block("decoder"), **_norm("decoder.norm", "model.decoder.layer_norm"),
    },
    tied={"proj_out.weight": "model.decoder.embed_tokens.weight"},
)  # fmt: skip


def load_whisper(source: Mapping[str, Array] | str | Path) -> Whisper:
    """The parameters of Hugging Face's WhisperForConditionalGeneration: from a dict of arrays, or from files.

    Sizes are read off the arrays; the number of heads cannot be (d_model / 64 in published models). The dtype stays.
    Raises ValueError for missing, unexpected or mis-shaped weights, naming them.
    """
    arrays = NAMES.stripped(read_arrays(source))
    for name in _CONVOLUTIONS:
        d_out, d_in, width = NAMES.shape(name, arrays, axes=3)
        if width != 3:
            raise invalid("weights", got=f"{name} of width {width}", wants="a convolution of width 3")
        arrays[name] = np.ascontiguousarray(arrays[name].transpose(2, 1, 0)).reshape(3 * d_in, d_out)
    encoder, decoder = (NAMES.count(f"model.{stack}.layers.*.", arrays) for stack in ("encoder", "decoder"))
    skeleton = init_whisper(np.random.default_rng(0), vocabulary=1, d_model=4, num_layers=max(encoder, decoder), num_heads=1, mels=1, d_hidden=1, places=1, context=1)
    skeleton = Whisper(
        skeleton.encoder._replace(blocks=skeleton.encoder.blocks[:encoder]), skeleton.decoder._replace(blocks=skeleton.decoder.blocks[:decoder])
    )
    return NAMES.tree(skeleton, arrays)


def whisper_weights(params: Whisper) -> dict[str, Array]:
    """The same parameters (or their gradients) under Hugging Face's names."""
    arrays = NAMES.arrays(params)
    for name in _CONVOLUTIONS:
        rows, d_out = arrays[name].shape
        arrays[name] = np.ascontiguousarray(arrays[name].reshape(3, rows // 3, d_out).transpose(2, 1, 0))
    return arrays


def _example(rng: np.random.Generator):
    sizes: dict[str, Any] = {"vocabulary": 5, "d_model": 4, "num_layers": 2, "num_heads": 2, "mels": 2, "d_hidden": 1, "places": 2, "context": 3}
    params = init_whisper(rng, **sizes, std=0.5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    return example(params, rng.normal(size=(2, 3, 2)), ids=rng.integers(5, size=(2, 3)), num_heads=2)
