"""Gemma 2, block and model, forward and backward, made of concepts: norms on both sides, caps on what is scored, every other layer local.

Beside Llama: each sub-layer is normed before and after; gains are learned as distances from one; the gate is GELU's; scores
of attention and final logits stay within caps; layers 0, 2, ... see a window and layers 1, 3, ... everything; the embedding is
scaled by sqrt(d_model); heads may be wider than d_model / num_heads, and scores are scaled by a number of their own.
Source: Gemma Team 2024, arXiv:2408.00118, section 2 and table 1; the published code for what the report leaves open. N1 to N4
and N are RMS norms (1 + g) x / rms(x), A_l is causal grouped-query attention of turned queries and keys, with softmax of
c tanh(scores / c), F the GeGLU feed-forward network; a star is the backward of what it stands on.

    middle = x + N2(A_l(N1(x)))                              (1)
    out = middle + N4(F(N3(middle)))                         (2)
    dmiddle = dout + N3*(F*(N4*(dout)))                      (3)
    dx = dmiddle + N1*(A_l*(N2*(dmiddle)))                   (4)
    x = sqrt(d_model) E[ids]                                 (5)
    x = block_l(x), l = 0 .. num_layers - 1, A_l within a window where l is even   (6)
    logits = c tanh(N(x) E^T / c), c = final_cap             (7)
    dscores = dlogits (1 - (logits / c)^2), dx = N*(dscores E)   (8)
    dx = block_l*(dx), l = num_layers - 1 .. 0               (9)
    dE = dscores^T N(x) + sqrt(d_model) dx scattered to the rows ids   (10)

A head of its own, W in the place of E^T, keeps the first term of (10) for itself. Differs from the published code, which
rounds sqrt(d_model) to the dtype of the model, bfloat16 in training: here it is as exact as the dtype is.
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
from minitransformers.attention.core import causal
from minitransformers.attention.grouped_query_attention import (
    GroupedQueryAttention,
    grouped_query_attention,
    grouped_query_attention_step,
    kv_heads_of,
)
from minitransformers.attention.heads import check_heads
from minitransformers.attention.prepare import on_both
from minitransformers.attention.soft_cap import soft_cap, soft_capped_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.gated_feed_forward import GatedFeedForward, gated_feed_forward, init_gated_feed_forward
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive, slot, trees, trusted
from minitransformers.models.configuration import Configuration
from minitransformers.models.weights import Names, drop_tied, plain, read_arrays, transposed
from minitransformers.norms.rms_norm import RmsNorm, init_rms_norm, rms_norm
from minitransformers.positional.rope_fast import rope_fast


class Gemma2Block(NamedTuple):
    """Two sub-layers, each between two norms."""

    before_attention: Annotated[RmsNorm, "d_model"]
    attention: GroupedQueryAttention
    after_attention: Annotated[RmsNorm, "d_model"]
    before_feed_forward: Annotated[RmsNorm, "d_model"]
    feed_forward: GatedFeedForward
    after_feed_forward: Annotated[RmsNorm, "d_model"]


class Gemma2(NamedTuple):
    """All parameters. A head of None is the embedding again, as in every published size."""

    embedding: Annotated[Embedding, "vocabulary d_model"]
    blocks: list[Gemma2Block]
    norm: Annotated[RmsNorm, "d_model"]
    head: Annotated[Linear, "d_model vocabulary"] | None


@checked
def init_gemma2(
    rng: np.random.Generator, *, vocabulary: Annotated[int, at_least(1)], d_model: Annotated[int, at_least(1)],
    num_layers: Annotated[int, at_least(1)], num_heads: Annotated[int, at_least(1)], num_kv_heads: Annotated[int, at_least(1)],
    d_head: Annotated[int, at_least(1)], d_hidden: Annotated[int, at_least(1)], tied: bool = True,
    std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> Gemma2:  # fmt: skip
    """Normal weights of deviation ``std`` and gains of 1 + 0: ``init_gemma2(rng, **GEMMA2_2B.sizes)``, or sizes of your own."""
    check_heads("num_kv_heads", num_kv_heads, num_heads)

    def part(d_in: int, d_out: int) -> Linear:
        return init_linear(rng, d_in, d_out, std=std, bias=False, dtype=dtype)

    def norm() -> RmsNorm:
        return init_rms_norm(rng, d_model, offset=1.0, dtype=dtype)

    def attention() -> GroupedQueryAttention:
        d_heads, d_keys = num_heads * d_head, num_kv_heads * d_head
        return GroupedQueryAttention(part(d_model, d_heads), part(d_model, d_keys), part(d_model, d_keys), part(d_heads, d_model))

    def block() -> Gemma2Block:
        work = init_gated_feed_forward(rng, d_model, d_hidden=d_hidden, std=std, dtype=dtype)
        return Gemma2Block(norm(), attention(), norm(), norm(), work, norm())

    table = init_embedding(rng, vocabulary, d_model, std=std, dtype=dtype)
    return Gemma2(table, [block() for _ in range(num_layers)], norm(), None if tied else part(d_model, vocabulary))


_SHARED = {"window": 4096, "attention_cap": 50.0, "final_cap": 30.0}
GEMMA2_2B = Configuration(
    {"vocabulary": 256_000, "d_model": 2304, "num_layers": 26, "num_heads": 8, "num_kv_heads": 4, "d_head": 256, "d_hidden": 9216},
    {"num_heads": 8, "query_pre_attn_scalar": 256.0, **_SHARED},
)
GEMMA2_9B = Configuration(
    {"vocabulary": 256_000, "d_model": 3584, "num_layers": 42, "num_heads": 16, "num_kv_heads": 8, "d_head": 256, "d_hidden": 14_336},
    {"num_heads": 16, "query_pre_attn_scalar": 256.0, **_SHARED},
)
GEMMA2_27B = Configuration(
    {"vocabulary": 256_000, "d_model": 4608, "num_layers": 46, "num_heads": 32, "num_kv_heads": 16, "d_head": 128, "d_hidden": 36_864},
    {"num_heads": 32, "query_pre_attn_scalar": 144.0, **_SHARED},
)
_geglu = partial(gated_feed_forward, activation=slot(gelu))


def gemma2_block(
    params: Gemma2Block, x: Float[Array, "... positions d_model"], *, num_heads: int, core: Callable, rope: Callable = rope_fast,
    eps: float = 1e-6, mask: Array | None = None,
):  # fmt: skip
    """One block; core is that of its attention. Returns out, shaped like x, and backward: dout -> Gemma2Block of gradients, dx."""
    norm = partial(rms_norm, eps=eps, offset=1.0)
    settings: dict[str, Any] = {"num_heads": num_heads, "num_kv_heads": kv_heads_of(params.attention, num_heads), "prepare": on_both(rope), "core": core}
    attend = partial(chain, parts=(norm, partial(grouped_query_attention, mask=mask, **settings), norm))
    work = partial(chain, parts=(norm, _geglu, norm))
    middle, attend_backward = residual(params[:3], x, part=attend)  # (1)
    out, work_backward = residual(params[3:], middle, part=work)  # (2)

    def backward(dout):
        dwork, dmiddle = work_backward(dout)                 # (3)
        dattend, dx = attend_backward(dmiddle)               # (4)
        return Gemma2Block(*dattend, *dwork), dx

    return out, backward


def _cores(num_layers: int, *, window: int, attention_cap: float, query_pre_attn_scalar: float) -> list[Callable]:
    """What moves values in each layer: capped softmax attention, within the window in layers 0, 2, ..., causal in the others."""
    capped = partial(soft_capped_attention, cap=attention_cap, scale=query_pre_attn_scalar**-0.5)
    local, everywhere = partial(banded_attention_blocks, window=window, core=capped), causal(capped)
    return [everywhere if layer % 2 else local for layer in range(num_layers)]


@concept(
    title="Gemma 2",
    source="Gemma Team 2024, arXiv:2408.00118, section 2",
    example=lambda rng: _example(rng),
    rejects=[bad(ids=np.array([[0, 7]])), bad(ids=np.array([[0, -1]])), bad(num_heads=3), bad(mask=np.ones((2, 1, 1, 3), bool))],
)
def gemma2(
    params: Gemma2, *, ids: Int[Array, "*batch positions"], num_heads: Annotated[int, at_least(1)],
    query_pre_attn_scalar: Annotated[float, positive], window: Annotated[int, at_least(1)] = 4096,
    attention_cap: Annotated[float, positive] = 50.0, final_cap: Annotated[float, positive] = 30.0, rope: Callable = rope_fast,
    eps: Annotated[float, at_least(0)] = 1e-6, mask: Bool[Array, "*#scores #positions #positions"] | None = None,
) -> tuple[Array, Backward]:  # fmt: skip
    """Logits, each within (-final_cap, final_cap), for the token after each position, given that position and those before it.

    Scores of attention are products of queries and keys, divided by sqrt(query_pre_attn_scalar), then kept within
    (-attention_cap, attention_cap). window is how many positions layers 0, 2, ... see, its own included.
    ``rope(x, positions=...)`` turns queries and keys; eps is that of the norms. There are as many heads of keys as params hold.
    mask, broadcastable to (*batch, heads, queries, keys), is True where a query may see a key besides (padding_mask).
    Returns logits (*batch, positions, vocabulary), and backward: dlogits -> Gemma2 of gradients (None for a tied head).
    Raises ValueError where ids lie outside the vocabulary, heads do not divide, or mask does not fit the scores.

    Published models by name, ``gemma2(params, ids=ids, **GEMMA2_2B.settings)``, their parameters by
    ``init_gemma2(rng, **GEMMA2_2B.sizes)`` or load_gemma2; all tied, window 4096, caps 50 and 30, rope base 10000, eps 1e-6:

        name         layers  d_model  heads  of keys  d_head  d_hidden  vocabulary  query_pre_attn_scalar      parameters
        GEMMA2_2B        26     2304      8        4     256      9216      256000                    256   2,614,341,888
        GEMMA2_9B        42     3584     16        8     256     14336      256000                    256   9,241,705,984
        GEMMA2_27B       46     4608     32       16     128     36864      256000                    144  27,227,128,320
    """
    root = float(params.embedding.weight.shape[1] ** 0.5)
    embedded, embedding_backward = embedding(params.embedding, ids=ids)
    x, backwards = root * embedded, []                       # (5)
    scored = _cores(len(params.blocks), window=window, attention_cap=attention_cap, query_pre_attn_scalar=query_pre_attn_scalar)
    for block, core in zip(params.blocks, scored, strict=True):
        x, block_backward = gemma2_block(block, x, num_heads=num_heads, core=core, rope=rope, eps=eps, mask=mask)  # (6)
        backwards.append(block_backward)
    normed, norm_backward = rms_norm(params.norm, x, eps=eps, offset=1.0)
    scores, head_backward = linear(_head(params), normed)
    logits, cap_backward = soft_cap(scores, cap=final_cap)   # (7)

    def backward(dlogits):
        dhead, dnormed = head_backward(cap_backward(dlogits))
        dnorm, dx = norm_backward(dnormed)                   # (8)
        dblocks = []
        for block_backward in reversed(backwards):
            dblock, dx = block_backward(dx)                  # (9)
            dblocks.append(dblock)
        dembedding = embedding_backward(root * dx)
        if params.head is None:
            dembedding, dhead = Embedding(dembedding.weight + dhead.weight.T), None  # used at both ends: two gradients  (10)
        return Gemma2(dembedding, dblocks[::-1], dnorm, dhead)

    return logits, backward


def _head(params: Gemma2) -> Linear:
    return Linear(params.embedding.weight.T, None) if params.head is None else params.head  # a view: nothing is copied


class Gemma2State(NamedTuple):
    """What the past left behind: a cache a block, of the last ``window`` positions in blocks 0, 2, ..., of all in the others."""

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
def gemma2_step(
    params: Gemma2, ids: Int[Array, "*batch new"], state: Gemma2State | None, *, num_heads: int, query_pre_attn_scalar: float,
    window: int = 4096, attention_cap: float = 50.0, final_cap: float = 30.0, rope: Callable = rope_fast, eps: float = 1e-6,
    mask: Bool[Array, "... new seen"] | None = None,
) -> tuple[Array, Gemma2State]:  # fmt: skip
    """Logits at a few new positions, given those before; ``state`` is None at the start. Forward only.

    The settings are gemma2's. mask is True where a new position may see one of all so far: the last rows of gemma2's.
    Raises ValueError where state is that of a model of other sizes or of another window.
    """
    if state is not None and not isinstance(state, Gemma2State):
        raise invalid("state", got=type(state).__name__, wants="Gemma2State, or None at the start of a text")
    if state is not None and len(state.blocks) != len(params.blocks):
        raise invalid("state", got=f"that of a model of {len(state.blocks)} blocks", wants=f"that of this model, of {len(params.blocks)}")
    norm, prepare = partial(rms_norm, eps=eps, offset=1.0), on_both(rope)
    caches: list[Any] = [None] * len(params.blocks) if state is None else state.blocks
    scored = _cores(len(params.blocks), window=window, attention_cap=attention_cap, query_pre_attn_scalar=query_pre_attn_scalar)
    x, after = float(params.embedding.weight.shape[1] ** 0.5) * embedding(params.embedding, ids=ids)[0], []
    for layer, (block, core, cache) in enumerate(zip(params.blocks, scored, caches, strict=True)):
        mixed, cache = grouped_query_attention_step(
            block.attention, norm(block.before_attention, x)[0], cache, num_heads=num_heads, num_kv_heads=kv_heads_of(block.attention, num_heads),
            mask=mask, prepare=prepare, core=core, window=None if layer % 2 else window,
        )  # fmt: skip
        middle = x + norm(block.after_attention, mixed)[0]
        worked, _ = _geglu(block.feed_forward, norm(block.before_feed_forward, middle)[0])
        x = middle + norm(block.after_feed_forward, worked)[0]
        after.append(cache)
    return soft_cap(linear(_head(params), norm(params.norm, x)[0])[0], cap=final_cap)[0], Gemma2State(after)


# Hugging Face's names; torch.nn.Linear keeps a weight as (d_out, d_in). Its gains are distances from one, as ours are.
NAMES = Names(
    {
        "embedding.weight": plain("model.embed_tokens.weight"),
        "blocks.*.before_attention.gain": plain("model.layers.*.input_layernorm.weight"),
        "blocks.*.attention.query.weight": transposed("model.layers.*.self_attn.q_proj.weight"),
        "blocks.*.attention.key.weight": transposed("model.layers.*.self_attn.k_proj.weight"),
        "blocks.*.attention.value.weight": transposed("model.layers.*.self_attn.v_proj.weight"),
        "blocks.*.attention.output.weight": transposed("model.layers.*.self_attn.o_proj.weight"),
        "blocks.*.after_attention.gain": plain("model.layers.*.post_attention_layernorm.weight"),
        "blocks.*.before_feed_forward.gain": plain("model.layers.*.pre_feedforward_layernorm.weight"),
        "blocks.*.feed_forward.gate.weight": transposed("model.layers.*.mlp.gate_proj.weight"),
        "blocks.*.feed_forward.up.weight": transposed("model.layers.*.mlp.up_proj.weight"),
        "blocks.*.feed_forward.down.weight": transposed("model.layers.*.mlp.down_proj.weight"),
        "blocks.*.after_feed_forward.gain": plain("model.layers.*.post_feedforward_layernorm.weight"),
        "norm.gain": plain("model.norm.weight"),
        "head.weight": transposed("lm_head.weight"),
    },
)


def load_gemma2(source: Mapping[str, Array] | str | Path) -> Gemma2:
    """The parameters of Hugging Face's Gemma 2: from a dict of arrays, a .safetensors file, or a sharded one.

    Sizes are read off the arrays; the settings cannot be. A head that is missing, or is the embedding again, is tied. The
    dtype stays, and each weight is laid out as (d_in, d_out) once, here.
    Raises ValueError for missing, unexpected or mis-shaped weights, naming them.
    """
    arrays = NAMES.stripped(read_arrays(source))
    tied = drop_tied(arrays, "lm_head.weight", "model.embed_tokens.weight")
    sizes: dict[str, Any] = dict.fromkeys(("vocabulary", "d_model", "num_heads", "num_kv_heads", "d_head", "d_hidden"), 1)
    skeleton = init_gemma2(np.random.default_rng(0), num_layers=NAMES.count("model.layers.*.", arrays), tied=tied, **sizes)
    return NAMES.tree(skeleton, arrays)


def gemma2_weights(params: Gemma2) -> dict[str, Array]:
    """The same parameters (or their gradients) under Hugging Face's names; without a head of its own where it is tied."""
    return NAMES.arrays(params)


def _example(rng: np.random.Generator):
    sizes: dict[str, Any] = {"vocabulary": 6, "d_model": 5, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_head": 2, "d_hidden": 3}
    params = init_gemma2(rng, **sizes, std=0.5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    mask = np.array([[1, 1, 1, 1], [0, 1, 1, 1]], bool)[:, None, None]
    settings: dict[str, Any] = {"query_pre_attn_scalar": 3.0, "window": 3, "attention_cap": 2.0, "final_cap": 4.0, "rope": partial(rope_fast, base=20.0)}
    return example(params, ids=rng.integers(6, size=(2, 4)), num_heads=4, mask=mask, **settings)
