"""Llama, block and model, forward and backward, made of concepts: with a window it is Mistral, deep and thin it is SmolLM2.

What changed since GPT-2: no bias anywhere, RMSNorm for LayerNorm, SwiGLU for GELU, and queries and keys turned by their
positions (RoPE) for a table of them, so that nothing but memory bounds a text; later sizes share heads of keys (grouped
queries). Sources: Touvron et al. 2023, arXiv:2302.13971, section 2.2, and arXiv:2307.09288; Grattafiori et al. 2024,
arXiv:2407.21783 (Llama 3); Jiang et al. 2023, arXiv:2310.06825 (Mistral); Ben Allal et al. 2025, arXiv:2502.02737 (SmolLM2).
Features are paired for the rotation as in Hugging Face's weights, m with m + d/2, where the authors' files pair neighbours
(put in rope_interleaved for those). N1, N2 and N are RMS norms, A is causal grouped-query attention whose queries and keys are
turned, F the SwiGLU feed-forward network, W_head the map to logits, or E^T where it is tied; a star is the backward of what
it stands on.

    middle = x + A(N1(x))                                    (1)
    out = middle + F(N2(middle))                             (2)
    dmiddle = dout + N2*(F*(dout))                           (3)
    dx = dmiddle + N1*(A*(dmiddle))                          (4)
    x = E[ids]                                               (5)
    x = block_l(x), l = 1 .. num_layers                      (6)
    logits = N(x) W_head                                     (7)
    dx = N*(dlogits W_head^T), and dW_head = N(x)^T dlogits   (8)
    dx = block_l*(dx), l = num_layers .. 1                   (9)
    dE = dx scattered to the rows ids                        (10)
    dE = dE + dW_head^T, where the head is tied              (11)
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.attention.cache import KeyValueCache
from minitransformers.attention.core import causal_attention
from minitransformers.attention.grouped_query_attention import (
    GroupedQueryAttention,
    grouped_query_attention,
    grouped_query_attention_step,
    init_grouped_query_attention,
    kv_heads_of,
)
from minitransformers.attention.prepare import on_both
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.gated_feed_forward import gated_feed_forward, init_gated_feed_forward
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, trees, trusted
from minitransformers.models.configuration import Configuration
from minitransformers.models.weights import Names, drop_tied, plain, read_arrays, transposed
from minitransformers.norms.rms_norm import RmsNorm, init_rms_norm, rms_norm
from minitransformers.positional.rope_fast import rope_fast
from minitransformers.positional.rope_llama3 import rope_llama3


class LlamaBlock(NamedTuple):
    """Two sub-layers, each behind its norm."""

    attention_norm: Annotated[RmsNorm, "d_model"]
    attention: Any                                           # GroupedQueryAttention, or what stands in that slot
    feed_forward_norm: Annotated[RmsNorm, "d_model"]
    feed_forward: Any                                        # GatedFeedForward


class Llama(NamedTuple):
    """All parameters. A head of None is the embedding again."""

    embedding: Annotated[Embedding, "vocabulary d_model"]
    blocks: list[LlamaBlock]
    norm: Annotated[RmsNorm, "d_model"]
    head: Annotated[Linear, "d_model vocabulary"] | None


@checked
def init_llama(
    rng: np.random.Generator, *, vocabulary: Annotated[int, at_least(1)], d_model: Annotated[int, at_least(1)],
    num_layers: Annotated[int, at_least(1)], num_heads: Annotated[int, at_least(1)], num_kv_heads: Annotated[int, at_least(1)] | None = None,
    d_hidden: Annotated[int, at_least(1)] | None = None, tied: bool = False, std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> Llama:  # fmt: skip
    """Normal weights of deviation ``std`` and gains of 1: ``init_llama(rng, **SMOLLM2_135M.sizes)``, or sizes of your own.

    num_kv_heads is num_heads unless given; d_hidden is 2/3 of 4 d_model, rounded up to a multiple of 256, as in the first
    Llama. tied makes the embedding the head.
    """
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    hidden = 256 * -(-(8 * d_model // 3) // 256) if d_hidden is None else d_hidden  # -(-a // b) rounds up

    def norm() -> RmsNorm:
        return init_rms_norm(rng, d_model, dtype=dtype)

    def block() -> LlamaBlock:
        return LlamaBlock(
            norm(), init_grouped_query_attention(rng, d_model, num_heads=num_heads, num_kv_heads=kv_heads, std=std, dtype=dtype),
            norm(), init_gated_feed_forward(rng, d_model, d_hidden=hidden, std=std, dtype=dtype),
        )  # fmt: skip

    return Llama(
        init_embedding(rng, vocabulary, d_model, std=std, dtype=dtype), [block() for _ in range(num_layers)], norm(),
        None if tied else init_linear(rng, d_model, vocabulary, std=std, bias=False, dtype=dtype),
    )  # fmt: skip


LLAMA_7B = Configuration(
    {"vocabulary": 32_000, "d_model": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 32, "d_hidden": 11_008},
    {"num_heads": 32, "eps": 1e-6},
)
LLAMA_2_7B = Configuration(LLAMA_7B.sizes, {"num_heads": 32, "eps": 1e-5})
LLAMA_3_8B = Configuration(
    {"vocabulary": 128_256, "d_model": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8, "d_hidden": 14_336},
    {"num_heads": 32, "rope": partial(rope_fast, base=500_000.0)},
)
LLAMA_3_2_1B = Configuration(
    {"vocabulary": 128_256, "d_model": 2048, "num_layers": 16, "num_heads": 32, "num_kv_heads": 8, "d_hidden": 8192, "tied": True},
    {"num_heads": 32, "rope": partial(rope_llama3, base=500_000.0, factor=32.0)},
)
MISTRAL_7B = Configuration(
    {"vocabulary": 32_000, "d_model": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8, "d_hidden": 14_336},
    {"num_heads": 32, "window": 4096},
)
SMOLLM2_135M = Configuration(
    {"vocabulary": 49_152, "d_model": 576, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3, "d_hidden": 1536, "tied": True, "std": 1 / 24},
    {"num_heads": 9, "rope": partial(rope_fast, base=100_000.0)},
)


def llama_attention(params: GroupedQueryAttention, x: Float[Array, "... positions d_model"], *, num_heads: int, **settings: Any):
    """Attention with as many heads of keys as params hold; the settings are those of grouped_query_attention."""
    return grouped_query_attention(params, x, num_heads=num_heads, num_kv_heads=kv_heads_of(params, num_heads), **settings)


def llama_block(
    params: LlamaBlock, x: Float[Array, "... positions d_model"], *, num_heads: int, rope: Callable = rope_fast, eps: float = 1e-5,
    window: int | None = None, mask: Array | None = None, core: Callable | None = None, attention: Callable = llama_attention,
    feed_forward: Callable = gated_feed_forward,
):  # fmt: skip
    """One block. Returns out, shaped like x, and backward: dout -> LlamaBlock of gradients, dx."""
    norm = partial(rms_norm, eps=eps)
    attend = partial(chain, parts=(norm, partial(attention, mask=mask, **_attention(num_heads, rope, window, core))))
    work = partial(chain, parts=(norm, feed_forward))
    middle, attend_backward = residual(params[:2], x, part=attend)  # (1)
    out, work_backward = residual(params[2:], middle, part=work)  # (2)

    def backward(dout):
        dwork, dmiddle = work_backward(dout)                 # (3)
        dattend, dx = attend_backward(dmiddle)               # (4)
        return LlamaBlock(*dattend, *dwork), dx

    return out, backward


def llama_body(params: Llama, *, ids: Int[Array, "*batch positions"], eps: float = 1e-5, **settings: Any):
    """All but the head; the settings are llama's. Returns hidden (*batch, positions, d_model), and backward: dhidden -> Llama of gradients."""
    x, embedding_backward = embedding(params.embedding, ids=ids)  # (5)
    backwards = []
    for block in params.blocks:
        x, block_backward = llama_block(block, x, eps=eps, **settings)  # (6)
        backwards.append(block_backward)
    hidden, norm_backward = rms_norm(params.norm, x, eps=eps)

    def backward(dhidden):
        dnorm, dx = norm_backward(dhidden)                   # (8)
        dblocks = []
        for block_backward in reversed(backwards):
            dblock, dx = block_backward(dx)                  # (9)
            dblocks.append(dblock)
        return Llama(embedding_backward(dx), dblocks[::-1], dnorm, None)  # (10)

    return hidden, backward


def _attention(num_heads: int, rope: Callable, window: int | None, core: Callable | None = None) -> dict[str, Any]:
    """The settings of attention that all blocks share."""
    if core is None:
        core = causal_attention if window is None else partial(banded_attention_blocks, window=window)
    return {"num_heads": num_heads, "prepare": on_both(rope), "core": core}


@concept(
    title="Llama, Mistral and SmolLM2",
    source="Touvron et al. 2023, arXiv:2302.13971, section 2.2; Jiang et al. 2023, arXiv:2310.06825, section 2",
    example=lambda rng: _example(rng),
    rejects=[bad(ids=np.array([[0, 7]])), bad(ids=np.array([[0, -1]])), bad(num_heads=3), bad(mask=np.ones((2, 1, 1, 3), bool))],
)
def llama(
    params: Llama, *, ids: Int[Array, "*batch positions"], num_heads: Annotated[int, at_least(1)], rope: Callable = rope_fast,
    eps: Annotated[float, at_least(0)] = 1e-5, window: Annotated[int, at_least(1)] | None = None,
    mask: Bool[Array, "*#scores #positions #positions"] | None = None, core: Callable | None = None,
    attention: Callable = llama_attention, feed_forward: Callable = gated_feed_forward,
) -> tuple[Array, Backward]:  # fmt: skip
    """Logits for the token after each position, given that position and those before it.

    ``rope(x, positions=...)`` turns queries and keys: ``partial(rope_fast, base=1e5)``. eps is that of the norms. window is how
    many positions each one sees, its own included, None for all. There are as many heads of keys as params hold. mask,
    broadcastable to (*batch, heads, queries, keys), is True where a query may see a key besides (padding_mask). core stands in
    the place of causal attention, or of the window's; attention and feed_forward are slots of every block.
    Returns logits (*batch, positions, vocabulary), and backward: dlogits -> Llama of gradients (None for a tied head).
    Raises ValueError where ids lie outside the vocabulary, heads do not divide, or mask does not fit the scores.

    Published models by name, ``llama(params, ids=ids, **SMOLLM2_135M.settings)``, their parameters by
    ``init_llama(rng, **SMOLLM2_135M.sizes)`` or load_llama:

        name          layers  d_model  heads  of keys  d_hidden  vocabulary  head       rope base  window     parameters
        LLAMA_7B          32     4096     32       32     11008       32000  its own        10000       -  6,738,415,616
        LLAMA_2_7B        32     4096     32       32     11008       32000  its own        10000       -  6,738,415,616
        LLAMA_3_8B        32     4096     32        8     14336      128256  its own       500000       -  8,030,261,248
        LLAMA_3_2_1B      16     2048     32        8      8192      128256  tied          500000       -  1,235,814,400
        MISTRAL_7B        32     4096     32        8     14336       32000  its own        10000    4096  7,241,732,096
        SMOLLM2_135M      30      576      9        3      1536       49152  tied          100000       -    134,515,008

    LLAMA_3_2_1B slows its rotations for long texts (rope_llama3). eps is 1e-6 in LLAMA_7B and 1e-5 in the others.
    """
    parts: dict[str, Any] = {"core": core, "attention": attention, "feed_forward": feed_forward}
    hidden, body_backward = llama_body(params, ids=ids, num_heads=num_heads, rope=rope, eps=eps, window=window, mask=mask, **parts)
    logits, head_backward = linear(_head(params), hidden)    # (7)

    def backward(dlogits):
        dhead, dhidden = head_backward(dlogits)
        gradients = body_backward(dhidden)
        if params.head is not None:
            return gradients._replace(head=dhead)
        dembedding = Embedding(gradients.embedding.weight + dhead.weight.T)  # used at both ends: two gradients  (11)
        return gradients._replace(embedding=dembedding)

    return logits, backward


def _head(params: Llama) -> Linear:
    return Linear(params.embedding.weight.T, None) if params.head is None else params.head  # a view: nothing is copied


class LlamaState(NamedTuple):
    """What the past left behind: a cache a block, of all positions or of the last ``window``."""

    blocks: list[KeyValueCache]

    @property
    def length(self) -> int:
        """How many positions were read."""
        return self.blocks[0].length

    @property
    def bytes(self) -> int:
        """The size of the keys and values that the last position may look at."""
        return sum(cache.bytes for cache in self.blocks)


@trusted
def llama_step(
    params: Llama, ids: Int[Array, "*batch new"], state: LlamaState | None, *, num_heads: int, rope: Callable = rope_fast, eps: float = 1e-5,
    window: int | None = None, mask: Bool[Array, "... new seen"] | None = None,
) -> tuple[Array, LlamaState]:  # fmt: skip
    """Logits at a few new positions, given those before; ``state`` is None at the start. Forward only.

    The settings are llama's; with a window the caches stop growing. mask is True where a new position may see one of all so
    far: the last rows of llama's.
    Raises ValueError where state is that of a model of other sizes or of another window.
    """
    if state is not None and not isinstance(state, LlamaState):
        raise invalid("state", got=type(state).__name__, wants="LlamaState, or None at the start of a text")
    if state is not None and len(state.blocks) != len(params.blocks):
        raise invalid("state", got=f"that of a model of {len(state.blocks)} blocks", wants=f"that of this model, of {len(params.blocks)}")
    caches: list[Any] = [None] * len(params.blocks) if state is None else state.blocks
    for cache in caches:
        if cache is not None and cache.window != window:
            raise invalid("window", got=window, wants=f"{cache.window}, as the text was started with")
    x, after, settings = embedding(params.embedding, ids=ids)[0], [], _attention(num_heads, rope, window)
    for block, cache in zip(params.blocks, caches, strict=True):
        normed, _ = rms_norm(block.attention_norm, x, eps=eps)
        num_kv_heads = kv_heads_of(block.attention, num_heads)
        mixed, cache = grouped_query_attention_step(
            block.attention, normed, cache, num_kv_heads=num_kv_heads, mask=mask, window=window, **settings
        )  # fmt: skip
        middle = x + mixed
        x = middle + gated_feed_forward(block.feed_forward, rms_norm(block.feed_forward_norm, middle, eps=eps)[0])[0]
        after.append(cache)
    return linear(_head(params), rms_norm(params.norm, x, eps=eps)[0])[0], LlamaState(after)


# Hugging Face's names, the same for Llama, Mistral and SmolLM2; torch.nn.Linear keeps a weight as (d_out, d_in).
NAMES = Names(
    {
        "embedding.weight": plain("model.embed_tokens.weight"),
        "blocks.*.attention_norm.gain": plain("model.layers.*.input_layernorm.weight"),
        "blocks.*.attention.query.weight": transposed("model.layers.*.self_attn.q_proj.weight"),
        "blocks.*.attention.key.weight": transposed("model.layers.*.self_attn.k_proj.weight"),
        "blocks.*.attention.value.weight": transposed("model.layers.*.self_attn.v_proj.weight"),
        "blocks.*.attention.output.weight": transposed("model.layers.*.self_attn.o_proj.weight"),
        "blocks.*.feed_forward_norm.gain": plain("model.layers.*.post_attention_layernorm.weight"),
        "blocks.*.feed_forward.gate.weight": transposed("model.layers.*.mlp.gate_proj.weight"),
        "blocks.*.feed_forward.up.weight": transposed("model.layers.*.mlp.up_proj.weight"),
        "blocks.*.feed_forward.down.weight": transposed("model.layers.*.mlp.down_proj.weight"),
        "norm.gain": plain("model.norm.weight"),
        "head.weight": transposed("lm_head.weight"),
    },
    ignored=(".rotary_emb.inv_freq",),                       # a table of RoPE, in old files
)


def load_llama(source: Mapping[str, Array] | str | Path) -> Llama:
    """The parameters of Hugging Face's Llama, Mistral or SmolLM2: from a dict of arrays, a .safetensors file, or a sharded one.

    Sizes are read off the arrays; the settings cannot be. A head that is missing, or is the embedding again, is tied. The
    dtype stays, and each weight is laid out as (d_in, d_out) once, here.
    Raises ValueError for missing, unexpected or mis-shaped weights, naming them.
    """
    arrays = NAMES.stripped(read_arrays(source))
    tied = drop_tied(arrays, "lm_head.weight", "model.embed_tokens.weight")
    num_layers = NAMES.count("model.layers.*.", arrays)
    skeleton = init_llama(np.random.default_rng(0), vocabulary=1, d_model=1, num_layers=num_layers, num_heads=1, d_hidden=1, tied=tied)
    return NAMES.tree(skeleton, arrays)


def llama_weights(params: Llama) -> dict[str, Array]:
    """The same parameters (or their gradients) under Hugging Face's names; without a head of its own where it is tied."""
    return NAMES.arrays(params)


def _example(rng: np.random.Generator):
    sizes: dict[str, Any] = {"vocabulary": 6, "d_model": 8, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_hidden": 3, "tied": True}
    params = init_llama(rng, **sizes, std=0.5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    mask = np.array([[1, 1, 1, 1], [0, 1, 1, 1]], bool)[:, None, None]
    return example(params, ids=rng.integers(6, size=(2, 4)), num_heads=4, rope=partial(rope_fast, base=20.0), window=3, mask=mask)
