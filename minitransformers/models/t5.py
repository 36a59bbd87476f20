"""T5, encoder and decoder, v1.0 and v1.1, forward and backward, made of concepts: every task as a text that follows a text.

The two halves of the Transformer of 2017, with what was learned in between: norms stand before each part and once more behind
each stack, they are RMS norms, and nothing has a bias. Positions are a number that the distance adds to a score, from a table that
all layers of a stack share. Scores are not divided by sqrt(d_head): the deviation of the maps to queries starts that much
smaller. Source: Raffel et al. 2020, arXiv:1910.10683, section 2.1; v1.1 (a gated network, a head of its own): Shazeer 2020,
arXiv:2002.05202, and the published configurations. Differs from the training code: no dropout. A is multi-head attention, causal
in the decoder, C cross-attention, without a bias on its scores, F the feed-forward network, N an RMS norm, d the width (d_model).
S_P is the sub-layer around a part P; a star is the backward of what it stands on. Both stacks, e and d, are (7) to (12), the
encoder without memory.

    S_P(x, ...) = x + P(N(x), ...)                           (1)
    (dnormed, ...) = P*(dout), dx = dout + N*(dnormed)       (2)
    middle = S_A(x, bias), out = S_F(middle)                 (3)
    dmiddle = S_F*(dout), (dx, dbias) = S_A*(dmiddle)        (4)
    written = S_A(y, bias), read = S_C(written, memory), out = S_F(read)   (5)
    dread = S_F*(dout), (dwritten, dmemory) = S_C*(dread), (dy, dbias) = S_A*(dwritten)   (6)
    bias = B(table), a number for each head, query and key   (7)
    x = block_l(x, bias, memory), l = 1 .. num_layers        (8)
    out = N(x)                                               (9)
    dx = N*(dout)                                            (10)
    dx, dbias_l, dmemory_l = block_l*(dx), l = num_layers .. 1   (11)
    dtable = B*(sum over l of dbias_l), dmemory = sum over l of dmemory_l   (12)
    memory = stack_e(E[source])                              (13)
    y = stack_d(E[target], memory)                           (14)
    logits = d^(-1/2) y E^T, where the head is tied, otherwise y W_head   (15)
    dy = d^(-1/2) dlogits E and dE = d^(-1/2) dlogits^T y, or dy = dlogits W_head^T and dW_head = y^T dlogits   (16)
    (dtarget, dmemory) = stack_d*(dy)                        (17)
    dsource = stack_e*(dmemory)                              (18)
    dE = dE + dtarget and dsource, scattered to the rows target and source   (19)
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.attention.cache import KeyValueCache
from minitransformers.attention.core import causal, softmax_attention
from minitransformers.attention.cross_attention import CrossAttention, CrossAttentionState, cross_attention, cross_attention_step
from minitransformers.attention.multi_head_attention import MultiHeadAttention, multi_head_attention, multi_head_attention_step
from minitransformers.basics.embedding import Embedding, check_ids, embedding, init_embedding
from minitransformers.basics.feed_forward import FeedForward, feed_forward, init_feed_forward
from minitransformers.basics.gated_feed_forward import GatedFeedForward, gated_feed_forward, init_gated_feed_forward
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.relu import relu
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, slot, trees, trusted
from minitransformers.models.configuration import Configuration
from minitransformers.models.weights import Names, Place, drop_tied, plain, read_arrays, transposed
from minitransformers.norms.rms_norm import RmsNorm, init_rms_norm, rms_norm
from minitransformers.positional.t5_bias import T5Bias, init_t5_bias, t5_bias


class T5EncoderBlock(NamedTuple):
    """Two sub-layers, each behind its norm. The feed-forward network is plain or gated."""

    attention_norm: Annotated[RmsNorm, "d_model"]
    attention: MultiHeadAttention
    feed_forward_norm: Annotated[RmsNorm, "d_model"]
    feed_forward: Any


class T5DecoderBlock(NamedTuple):
    """Three sub-layers, each behind its norm: what was written, what was read, and what follows from both."""

    attention_norm: Annotated[RmsNorm, "d_model"]
    attention: MultiHeadAttention
    cross_attention_norm: Annotated[RmsNorm, "d_model"]
    cross_attention: CrossAttention
    feed_forward_norm: Annotated[RmsNorm, "d_model"]
    feed_forward: Any


class T5Encoder(NamedTuple):
    """The table of distances that all blocks share, the blocks, and the norm behind them."""

    position: T5Bias
    blocks: list[T5EncoderBlock]
    norm: Annotated[RmsNorm, "d_model"]


class T5Decoder(NamedTuple):
    """As the encoder, with a table of its own."""

    position: T5Bias
    blocks: list[T5DecoderBlock]
    norm: Annotated[RmsNorm, "d_model"]


class T5(NamedTuple):
    """All parameters. The embedding is the source's and the target's, and, where the head is None, the head."""

    embedding: Annotated[Embedding, "vocabulary d_model"]
    encoder: T5Encoder
    decoder: T5Decoder
    head: Annotated[Linear, "d_model vocabulary"] | None


@checked
def init_t5(
    rng: np.random.Generator, *, vocabulary: Annotated[int, at_least(1)], d_model: Annotated[int, at_least(1)],
    num_layers: Annotated[int, at_least(1)], num_heads: Annotated[int, at_least(1)], d_head: Annotated[int, at_least(1)],
    d_hidden: Annotated[int, at_least(1)], feed_forward: Callable = init_feed_forward, tied: bool = True,
    num_buckets: Annotated[int, at_least(4)] = 32, std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> T5:  # fmt: skip
    """Normal weights: ``init_t5(rng, **T5_SMALL.sizes)``, or sizes of your own. num_layers are those of each stack.

    std is the deviation of all weights. By default that of a map is 1/sqrt of the width that it reads, that of a map to queries
    1/sqrt(d_head) of this, of the tables of distances 1/sqrt(d_model), and of the embedding 1. ``feed_forward`` makes the
    parameters of a network: init_feed_forward, or init_gated_feed_forward for v1.1. tied makes the embedding the head.
    """
    d_heads = num_heads * d_head

    def part(d_in: int, d_out: int, deviation: float | None = std) -> Linear:
        return init_linear(rng, d_in, d_out, std=deviation, bias=False, dtype=dtype)

    def norm() -> RmsNorm:
        return init_rms_norm(rng, d_model, dtype=dtype)

    def attention() -> tuple[Linear, Linear, Linear, Linear]:
        query = part(d_model, d_heads, (d_model * d_head) ** -0.5 if std is None else std)
        return query, part(d_model, d_heads), part(d_model, d_heads), part(d_heads, d_model)

    def work() -> Any:
        return feed_forward(rng, d_model, d_hidden=d_hidden, std=std, bias=False, dtype=dtype)

    def position() -> T5Bias:
        return init_t5_bias(rng, num_heads=num_heads, num_buckets=num_buckets, std=d_model**-0.5 if std is None else std, dtype=dtype)

    def reading() -> T5EncoderBlock:
        return T5EncoderBlock(norm(), MultiHeadAttention(*attention()), norm(), work())

    def writing() -> T5DecoderBlock:
        return T5DecoderBlock(norm(), MultiHeadAttention(*attention()), norm(), CrossAttention(*attention()), norm(), work())

    return T5(
        init_embedding(rng, vocabulary, d_model, std=1.0 if std is None else std, dtype=dtype),
        T5Encoder(position(), [reading() for _ in range(num_layers)], norm()),
        T5Decoder(position(), [writing() for _ in range(num_layers)], norm()),
        None if tied else part(d_model, vocabulary),
    )  # fmt: skip


relu_network = partial(feed_forward, activation=slot(relu))
geglu_network = partial(gated_feed_forward, activation=slot(gelu))
_READS: dict[Any, type] = {feed_forward: FeedForward, gated_feed_forward: GatedFeedForward}
_V1_1: dict[str, Any] = {"feed_forward": init_gated_feed_forward, "tied": False}
T5_SMALL = Configuration(
    {"vocabulary": 32_128, "d_model": 512, "num_layers": 6, "num_heads": 8, "d_head": 64, "d_hidden": 2048}, {"num_heads": 8}
)
T5_BASE = Configuration(
    {"vocabulary": 32_128, "d_model": 768, "num_layers": 12, "num_heads": 12, "d_head": 64, "d_hidden": 3072}, {"num_heads": 12}
)
T5_V1_1_SMALL = Configuration(
    {"vocabulary": 32_128, "d_model": 512, "num_layers": 8, "num_heads": 6, "d_head": 64, "d_hidden": 1024, **_V1_1},
    {"num_heads": 6, "feed_forward": geglu_network},
)
T5_V1_1_BASE = Configuration(
    {"vocabulary": 32_128, "d_model": 768, "num_layers": 12, "num_heads": 12, "d_head": 64, "d_hidden": 2048, **_V1_1},
    {"num_heads": 12, "feed_forward": geglu_network},
)
_unscaled = partial(softmax_attention, scale=1.0)
_unscaled_causal = causal(_unscaled)


def sub_layer(params: Any, x: Float[Array, "... positions d_model"], *more: Array, part: Callable, eps: float):
    """A part behind its norm, added to what the norm read; params are those of the norm and of the part.

    Returns out, shaped like x, and backward: dout -> the gradients of both, dx, and one for each of more.
    """
    normed, norm_backward = rms_norm(params[0], x, eps=eps)
    added, part_backward = part(params[1], normed, *more)
    out = x + added                                          # (1)

    def backward(dout):
        dpart, dnormed, *dmore = part_backward(dout)
        dnorm, dthrough = norm_backward(dnormed)
        dx = dout + dthrough                                 # x is used twice: two gradients  (2)
        return (dnorm, dpart), dx, *dmore[: len(more)]

    return out, backward


def t5_encoder_block(
    params: T5EncoderBlock, x: Float[Array, "... source d_model"], bias: Float[Array, "heads source source"], *, num_heads: int,
    feed_forward: Callable = relu_network, mask: Array | None = None, eps: float = 1e-6,
):  # fmt: skip
    """A block that sees the whole source. Returns out, and backward: dout -> gradients of the block, dx, dbias."""
    attend = partial(multi_head_attention, num_heads=num_heads, mask=mask, core=_unscaled)
    middle, attend_backward = sub_layer(params[:2], x, bias, part=attend, eps=eps)
    out, work_backward = sub_layer(params[2:], middle, part=feed_forward, eps=eps)  # (3)

    def backward(dout):
        dwork, dmiddle = work_backward(dout)
        dattend, dx, dbias = attend_backward(dmiddle)        # (4)
        return T5EncoderBlock(*dattend, *dwork), dx, dbias

    return out, backward


def t5_decoder_block(
    params: T5DecoderBlock, y: Float[Array, "... target d_model"], bias: Float[Array, "heads target target"],
    memory: Float[Array, "... source d_model"], *, num_heads: int, feed_forward: Callable = relu_network, mask: Array | None = None,
    eps: float = 1e-6,
):  # fmt: skip
    """A block that sees what was written and the memory. Returns out, and backward: dout -> gradients of it, dy, dbias, dmemory."""
    attend = partial(multi_head_attention, num_heads=num_heads, core=_unscaled_causal)
    look = partial(cross_attention, num_heads=num_heads, mask=mask, core=_unscaled)
    written, attend_backward = sub_layer(params[:2], y, bias, part=attend, eps=eps)
    read, look_backward = sub_layer(params[2:4], written, memory, part=look, eps=eps)
    out, work_backward = sub_layer(params[4:], read, part=feed_forward, eps=eps)  # (5)

    def backward(dout):
        dwork, dread = work_backward(dout)
        dlook, dwritten, dmemory = look_backward(dread)
        dattend, dy, dbias = attend_backward(dwritten)       # (6)
        return T5DecoderBlock(*dattend, *dlook, *dwork), dy, dbias, dmemory

    return out, backward


def t5_stack(params: Any, x: Float[Array, "... positions d_model"], *memory: Array, block: Callable, causal: bool, max_distance: int, eps: float):
    """The blocks of an encoder, or of a decoder that reads a memory, and the norm behind them.

    Returns out, shaped like x, and backward: dout -> gradients of the stack, dx, and dmemory where there is one.
    """
    positions = x.shape[-2]
    bias, bias_backward = t5_bias(params.position, num_queries=positions, num_keys=positions, causal=causal, max_distance=max_distance)  # (7)
    backwards = []
    for own in params.blocks:
        x, block_backward = block(own, x, bias, *memory, eps=eps)  # (8)
        backwards.append(block_backward)
    out, norm_backward = rms_norm(params.norm, x, eps=eps)   # (9)

    def backward(dout):
        dnorm, dx = norm_backward(dout)                      # (10)
        dblocks, dshared = [], []
        for block_backward in reversed(backwards):
            dblock, dx, *dothers = block_backward(dx)        # (11)
            dblocks.append(dblock)
            dshared.append(dothers)
        dbias, *dmemory = map(sum, zip(*dshared, strict=True))  # what all blocks share hears from all of them  (12)
        return type(params)(bias_backward(dbias), dblocks[::-1], dnorm), dx, *dmemory

    return out, backward


@concept(
    title="T5",
    source="Raffel et al. 2020, arXiv:1910.10683, section 2.1; Shazeer 2020, arXiv:2002.05202 (v1.1)",
    example=lambda rng: _example(rng),
    rejects=[
        bad(source=np.array([[0, 7, 1], [0, 1, 2]])), bad(target=np.array([[0, -1], [1, 1]])), bad(num_heads=3),
        bad(mask=np.ones((3, 1, 1, 3), bool)), bad(target=np.zeros((3, 2), int)), bad(max_distance=2),
    ],
)  # fmt: skip
def t5(
    params: T5, *, source: Int[Array, "*batch source"], target: Int[Array, "*batch target"], num_heads: Annotated[int, at_least(1)],
    feed_forward: Callable = relu_network, max_distance: Annotated[int, at_least(2)] = 128,
    mask: Bool[Array, "*#scores 1 source"] | None = None, eps: Annotated[float, at_least(0)] = 1e-6,
) -> tuple[Array, Backward]:  # fmt: skip
    """Logits for the token after each position of the target, given the whole source, that position and those before it.

    target starts with the padding token, 0, which means the start. ``feed_forward(params, x) -> out, backward`` is relu_network
    (v1.0) or geglu_network (v1.1). max_distance is where the last bucket of distances is reached. mask, broadcastable to
    (*batch, heads, 1, source), is True where a token of the source may be read (padding_mask). eps is that of the norms.
    A head of None is the embedding, and what it reads is divided by sqrt(d_model).
    Returns logits (*batch, target, vocabulary), and backward: dlogits -> T5 of gradients (None for a tied head).
    Raises ValueError where ids lie outside the vocabulary, heads do not divide, mask does not fit the scores, or max_distance
    does not exceed the distances that have a bucket of their own.

    Published models by name, ``t5(params, source=..., target=..., **T5_SMALL.settings)``, their parameters by
    ``init_t5(rng, **T5_SMALL.sizes)`` or load_t5:

        name           layers  d_model  heads  d_head  d_hidden  vocabulary  network  head      parameters
        T5_SMALL          6+6      512      8      64      2048       32128  ReLU     tied      60,506,624
        T5_BASE         12+12      768     12      64      3072       32128  ReLU     tied     222,903,552
        T5_V1_1_SMALL     8+8      512      6      64      1024       32128  GeGLU    its own   76,961,152
        T5_V1_1_BASE    12+12      768     12      64      2048       32128  GeGLU    its own  247,577,856
    """
    for name, ids in (("source", source), ("target", target)):
        check_ids(name, ids, params.embedding)
    _check_network(params, feed_forward)
    settings: dict[str, Any] = {"num_heads": num_heads, "feed_forward": feed_forward, "mask": mask}
    around: dict[str, Any] = {"max_distance": max_distance, "eps": eps}
    x, source_backward = embedding(params.embedding, ids=source)
    memory, encoder_backward = t5_stack(params.encoder, x, block=partial(t5_encoder_block, **settings), causal=False, **around)  # (13)
    y, target_backward = embedding(params.embedding, ids=target)
    y, decoder_backward = t5_stack(params.decoder, y, memory, block=partial(t5_decoder_block, **settings), causal=True, **around)  # (14)
    logits, head_backward = _head(params, y)                 # (15)

    def backward(dlogits):
        dhead, dy = head_backward(dlogits)                   # (16)
        ddecoder, dtarget, dmemory = decoder_backward(dy)    # (17)
        dencoder, dsource = encoder_backward(dmemory)        # (18)
        dembedding = target_backward(dtarget).weight + source_backward(dsource).weight
        if params.head is None:
            dembedding, dhead = dembedding + dhead.weight.T, None  # three uses: three gradients
        return T5(Embedding(dembedding), dencoder, ddecoder, dhead)  # (19)

    return logits, backward


def _head(params: T5, y: Array) -> tuple[Array, Callable]:
    """The logits; backward: dlogits -> the gradient of the head, dy. A tied head reads y / sqrt(d_model), as E's rows are long."""
    if params.head is not None:
        return linear(params.head, y)
    scale = y.shape[-1] ** -0.5
    logits, backward = linear(Linear(params.embedding.weight.T, None), scale * y)  # a view: nothing is copied

    def scaled(dlogits):
        dhead, dy = backward(dlogits)
        return dhead, scale * dy

    return logits, scaled


def _check_network(params: T5, network: Callable) -> None:
    """A plain network would read the parameters of a gated one without complaint: both have maps up and down."""
    own, wanted = params.encoder.blocks[0].feed_forward, _READS.get(getattr(network, "func", network))
    if wanted is not None and not isinstance(own, wanted):
        raise invalid("feed_forward", got=f"a network of {wanted.__name__}", wants=f"one of {type(own).__name__}, as params hold")


class T5State(NamedTuple):
    """What was written and what was read: for each block the cache of the target, and the memory's keys and values, made once."""

    blocks: list[tuple[KeyValueCache, CrossAttentionState]]
    mask: Bool[Array, "*batch heads one source"] | None

    @property
    def length(self) -> int:
        """How many positions of the target were read."""
        return self.blocks[0][0].length


@trusted
def t5_step(
    params: T5, ids: Int[Array, "*batch new"], state: T5State | None, *, num_heads: int, source: Int[Array, "*batch source"] | None = None,
    feed_forward: Callable = relu_network, max_distance: int = 128, mask: Bool[Array, "*#scores 1 source"] | None = None, eps: float = 1e-6,
) -> tuple[Array, T5State]:  # fmt: skip
    """Logits at a few new positions of the target, given those before; ``state`` is None at the start. Forward only.

    source and mask, those of t5, are read at the start: there the encoder runs, once, and each block of the decoder makes the
    keys and values of the memory, once. Later they may be given again, and are not looked at.
    Raises ValueError where there is neither a source nor a state, ids lie outside the vocabulary, or state is that of a model
    of other sizes.
    """
    if state is not None and not isinstance(state, T5State):
        raise invalid("state", got=type(state).__name__, wants="T5State, or None at the start of a text")
    if state is not None and len(state.blocks) != len(params.decoder.blocks):
        raise invalid("state", got=f"that of a model of {len(state.blocks)} blocks", wants=f"that of this model, of {len(params.decoder.blocks)}")
    check_ids("ids", ids, params.embedding)
    _check_network(params, feed_forward)
    past: list[Any] = [(None, None)] * len(params.decoder.blocks)
    memory, seen = None, 0
    if state is not None:
        past, mask, seen = state.blocks, state.mask, state.length
    elif source is None:
        raise invalid("source", got=None, wants="what the decoder reads, at the first step")
    else:
        check_ids("source", source, params.embedding)
        reading = partial(t5_encoder_block, num_heads=num_heads, feed_forward=feed_forward, mask=mask)
        x, _ = embedding(params.embedding, ids=source)
        memory, _ = t5_stack(params.encoder, x, block=reading, causal=False, max_distance=max_distance, eps=eps)
        if mask is not None:                                 # with the texts in front, as all that is kept
            mask = mask | np.zeros((*source.shape[:-1], 1, 1, 1), bool)
    new = ids.shape[-1]
    bias, _ = t5_bias(params.decoder.position, num_queries=new, num_keys=seen + new, causal=True, max_distance=max_distance)
    y, after = embedding(params.embedding, ids=ids)[0], []
    for block, (cache, held) in zip(params.decoder.blocks, past, strict=True):
        normed, _ = rms_norm(block.attention_norm, y, eps=eps)
        mixed, cache = multi_head_attention_step(block.attention, normed, cache, num_heads=num_heads, bias=bias, core=_unscaled_causal)
        written = y + mixed
        normed, _ = rms_norm(block.cross_attention_norm, written, eps=eps)
        found, held = cross_attention_step(block.cross_attention, normed, held, num_heads=num_heads, memory=memory, mask=mask, core=_unscaled)
        y, _ = sub_layer(block[4:], written + found, part=feed_forward, eps=eps)
        after.append((cache, held))
    return _head(params, rms_norm(params.decoder.norm, y, eps=eps)[0])[0], T5State(after, mask)


def _sub_layer_names(ours: str, theirs: str, part: str, their_part: str, maps: dict[str, str]) -> dict[str, Place]:
    """A norm and the maps behind it."""
    names = {f"{ours}.{part}.{own}.weight": transposed(f"{theirs}.{their_part}.{their}.weight") for own, their in maps.items()}
    return {f"{ours}.{part}_norm.gain": plain(f"{theirs}.layer_norm.weight"), **names}


def _names(maps: dict[str, str]) -> Names:
    """Hugging Face's names; torch.nn.Linear keeps a weight as (d_out, d_in). maps are those of the feed-forward network."""
    of_attention = {"query": "q", "key": "k", "value": "v", "output": "o"}
    places = {"embedding.weight": plain("shared.weight"), "head.weight": transposed("lm_head.weight")}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        ours, theirs = f"{stack}.blocks.*", f"{stack}.block.*.layer"
        places[f"{stack}.position.table"] = plain(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        places[f"{stack}.norm.gain"] = plain(f"{stack}.final_layer_norm.weight")
        places |= _sub_layer_names(ours, f"{theirs}.0", "attention", "SelfAttention", of_attention)
        places |= _sub_layer_names(ours, f"{theirs}.{last}", "feed_forward", "DenseReluDense", maps)
    places |= _sub_layer_names("decoder.blocks.*", "decoder.block.*.layer.1", "cross_attention", "EncDecAttention", of_attention)
    repeated = {f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")}
    return Names(places, ignored=("EncDecAttention.relative_attention_bias.weight",), tied=repeated)  # ignored: in old files, never read


NAMES = _names({"up": "wi", "down": "wo"})
GATED_NAMES = _names({"gate": "wi_0", "up": "wi_1", "down": "wo"})


def load_t5(source: Mapping[str, Array] | str | Path) -> T5:
    """The parameters of Hugging Face's T5, v1.0 or v1.1: from a dict of arrays, a .safetensors file, or a sharded one.

    Sizes, and whether the network is gated, are read off the arrays; num_heads is the number of columns of a table of distances.
    A head that is missing, or is the embedding again, is tied. The dtype stays.
    Raises ValueError for missing, unexpected or mis-shaped weights, naming them.
    """
    arrays = NAMES.stripped(read_arrays(source))
    tied = drop_tied(arrays, "lm_head.weight", "shared.weight")
    gated = any("DenseReluDense.wi_0." in name for name in arrays)
    encoder, decoder = (NAMES.count(f"{stack}.block.*.", arrays) for stack in ("encoder", "decoder"))
    skeleton = init_t5(
        np.random.default_rng(0), vocabulary=1, d_model=1, num_layers=max(encoder, decoder), num_heads=1, d_head=1, d_hidden=1, tied=tied,
        feed_forward=init_gated_feed_forward if gated else init_feed_forward,
    )  # fmt: skip
    skeleton = skeleton._replace(
        encoder=skeleton.encoder._replace(blocks=skeleton.encoder.blocks[:encoder]),
        decoder=skeleton.decoder._replace(blocks=skeleton.decoder.blocks[:decoder]),
    )
    return (GATED_NAMES if gated else NAMES).tree(skeleton, arrays)


def t5_weights(params: T5) -> dict[str, Array]:
    """The same parameters (or their gradients) under Hugging Face's names; without a head of its own where it is tied."""
    gated = isinstance(params.encoder.blocks[0].feed_forward, GatedFeedForward)
    return (GATED_NAMES if gated else NAMES).arrays(params)


def _example(rng: np.random.Generator):
    sizes: dict[str, Any] = {"vocabulary": 5, "d_model": 3, "num_layers": 2, "num_heads": 2, "d_head": 1, "d_hidden": 4, "num_buckets": 4}
    params = init_t5(rng, **sizes, std=0.5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    mask = np.array([[1, 1, 1], [1, 1, 0]], bool)[:, None, None]
    return example(params, source=rng.integers(5, size=(2, 3)), target=rng.integers(5, size=(2, 4)), num_heads=2, max_distance=4, mask=mask)
