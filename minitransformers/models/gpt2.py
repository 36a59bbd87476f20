"""GPT-2, block and model, forward and backward, made of concepts: the model that most others are told apart from.

Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3; the published code for what
the report leaves open. Norms stand before each sub-layer and once more at the end; positions are a table; the head is the
embedding again. Differs from the training code: no dropout. The smallest size has 124,439,808 parameters. N1, N2 and N are
layer norms, A is causal multi-head attention, F the feed-forward network with GELU; a star is the backward of what it stands on.

    middle = x + A(N1(x))                                    (1)
    out = middle + F(N2(middle))                             (2)
    dmiddle = dout + N2*(F*(dout))                           (3)
    dx = dmiddle + N1*(A*(dmiddle))                          (4)
    x = E[ids] + positions                                   (5)
    x = block_l(x), l = 1 .. num_layers                      (6)
    logits = N(x) E^T                                        (7)
    dx = N*(dlogits E)                                       (8)
    dx = block_l*(dx), l = num_layers .. 1                   (9)
    dE = dlogits^T N(x) + dx scattered to the rows ids       (10)
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.attention.core import causal_attention
from minitransformers.attention.multi_head_attention import (
    init_multi_head_attention,
    multi_head_attention,
    multi_head_attention_step,
)
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.linear import Linear, linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, trees, trusted
from minitransformers.models.weights import Names, packed, plain, read_arrays
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm
from minitransformers.positional.learned import Learned, init_learned, learned


class Gpt2Block(NamedTuple):
    """Two sub-layers, each behind its norm."""

    attention_norm: Annotated[LayerNorm, "d_model"]
    attention: Any                                           # MultiHeadAttention, or what stands in that slot
    feed_forward_norm: Annotated[LayerNorm, "d_model"]
    feed_forward: Any                                        # FeedForward


class Gpt2(NamedTuple):
    """All parameters. The head is the embedding again."""

    embedding: Annotated[Embedding, "vocabulary d_model"]
    positions: Annotated[Learned, "context d_model"]
    blocks: list[Gpt2Block]
    norm: Annotated[LayerNorm, "d_model"]


@checked
def init_gpt2(
    rng: np.random.Generator, *, vocabulary: Annotated[int, at_least(1)] = 50257, context: Annotated[int, at_least(1)] = 1024,
    d_model: Annotated[int, at_least(1)] = 768, num_layers: Annotated[int, at_least(1)] = 12, num_heads: Annotated[int, at_least(1)] = 12,
    std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> Gpt2:  # fmt: skip
    """Normal weights of deviation ``std``, those that write to the stream divided by sqrt(2 num_layers); the smallest published size."""
    stds: dict[str, Any] = {"std": std, "residual_std": std / (2 * num_layers) ** 0.5, "dtype": dtype}

    def block() -> Gpt2Block:
        return Gpt2Block(
            init_layer_norm(rng, d_model, dtype=dtype), init_multi_head_attention(rng, d_model, num_heads=num_heads, **stds),
            init_layer_norm(rng, d_model, dtype=dtype), init_feed_forward(rng, d_model, **stds),
        )  # fmt: skip

    return Gpt2(
        init_embedding(rng, vocabulary, d_model, std=std, dtype=dtype), init_learned(rng, d_model, max_positions=context, std=std, dtype=dtype),
        [block() for _ in range(num_layers)], init_layer_norm(rng, d_model, dtype=dtype),
    )  # fmt: skip


def gpt2_block(
    params: Gpt2Block, x: Float[Array, "... positions d_model"], *, num_heads: int, mask: Array | None = None,
    core: Callable = causal_attention, attention: Callable = multi_head_attention, feed_forward: Callable = feed_forward,
):  # fmt: skip
    """One block. Returns out, shaped like x, and backward: dout -> Gpt2Block of gradients, dx."""
    attend = partial(chain, parts=(layer_norm, partial(attention, num_heads=num_heads, mask=mask, core=core)))
    work = partial(chain, parts=(layer_norm, feed_forward))
    middle, attend_backward = residual(params[:2], x, part=attend)  # (1)
    out, work_backward = residual(params[2:], middle, part=work)  # (2)

    def backward(dout):
        dwork, dmiddle = work_backward(dout)                 # (3)
        dattend, dx = attend_backward(dmiddle)               # (4)
        return Gpt2Block(*dattend, *dwork), dx

    return out, backward


@concept(
    title="GPT-2",
    source="Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3",
    example=lambda rng: _example(rng),
    rejects=[bad(ids=np.array([[0, 7]])), bad(ids=np.zeros((1, 6), int)), bad(num_heads=2)],
)
def gpt2(
    params: Gpt2, *, ids: Int[Array, "*batch positions"], num_heads: Annotated[int, at_least(1)] = 12,
    mask: Bool[Array, "*#scores #positions #positions"] | None = None,
    positions: Annotated[Int[Array, "*#batch positions"], at_least(0)] | None = None, core: Callable = causal_attention,
    attention: Callable = multi_head_attention, feed_forward: Callable = feed_forward,
) -> tuple[Array, Backward]:  # fmt: skip
    """Logits for the token after each position, given that position and those before it.

    mask, broadcastable to (*batch, heads, queries, keys), is True where a query may see a key besides (padding_mask). positions
    count each text's tokens, 0, 1, ... unless given: behind padding they begin anew (left_padding). core is attention's;
    attention and feed_forward are slots of every block.
    Returns logits (*batch, positions, vocabulary), and backward: dlogits -> Gpt2 of gradients.
    Raises ValueError where ids lie outside the vocabulary or are longer than the table of positions, or heads do not divide.
    """
    embedded, embedding_backward = embedding(params.embedding, ids=ids)
    x, positions_backward = learned(params.positions, embedded, positions=positions)  # (5)
    backwards = []
    for block in params.blocks:
        x, block_backward = gpt2_block(block, x, num_heads=num_heads, mask=mask, core=core, attention=attention, feed_forward=feed_forward)  # (6)
        backwards.append(block_backward)
    normed, norm_backward = layer_norm(params.norm, x)
    logits, head_backward = linear(Linear(params.embedding.weight.T, None), normed)  # (7)

    def backward(dlogits):
        dhead, dnormed = head_backward(dlogits)
        dnorm, dx = norm_backward(dnormed)                   # (8)
        dblocks = []
        for block_backward in reversed(backwards):
            dblock, dx = block_backward(dx)                  # (9)
            dblocks.append(dblock)
        dpositions, dembedded = positions_backward(dx)
        read = embedding_backward(dembedded).weight
        dembedding = Embedding(read + dhead.weight.T)        # the table is used at both ends: two gradients  (10)
        return Gpt2(dembedding, dpositions, dblocks[::-1], dnorm)

    return logits, backward


class Gpt2State(NamedTuple):
    """What the past left behind: a cache a block, and how many positions were read."""

    blocks: list[Any]
    length: int


@trusted
def gpt2_step(
    params: Gpt2, ids: Int[Array, "*batch new"], state: Gpt2State | None, *, num_heads: int, mask: Bool[Array, "... new seen"] | None = None,
    positions: Int[Array, "... new"] | None = None,
) -> tuple[Array, Gpt2State]:  # fmt: skip
    """Logits at a few new positions, given those before; ``state`` is None at the start. Forward only.

    mask is True where a new position may see one of all so far: the last rows of gpt2's. positions are those of the new ones.
    Raises ValueError where the text outgrows the context, or state is that of a model of other sizes.
    """
    if state is not None and not isinstance(state, Gpt2State):
        raise invalid("state", got=type(state).__name__, wants="Gpt2State, or None at the start of a text")
    if state is not None and len(state.blocks) != len(params.blocks):
        raise invalid("state", got=f"that of a model of {len(state.blocks)} blocks", wants=f"that of this model, of {len(params.blocks)}")
    seen = 0 if state is None else state.length
    caches: list[Any] = [None] * len(params.blocks) if state is None else state.blocks
    end, after = seen + ids.shape[-1], []
    if positions is None:
        positions = np.arange(seen, end)
        if end > len(params.positions.table):
            raise invalid("ids", got=f"{end} positions", wants=f"at most the context of {len(params.positions.table)}")
    x, _ = learned(params.positions, embedding(params.embedding, ids=ids)[0], positions=positions)
    for block, cache in zip(params.blocks, caches, strict=True):
        normed, _ = layer_norm(block.attention_norm, x)
        mixed, cache = multi_head_attention_step(block.attention, normed, cache, num_heads=num_heads, mask=mask)
        middle = x + mixed
        x = middle + feed_forward(block.feed_forward, layer_norm(block.feed_forward_norm, middle)[0])[0]
        after.append(cache)
    return layer_norm(params.norm, x)[0] @ params.embedding.weight.T, Gpt2State(after, end)


# Hugging Face's names; its Conv1D weights are (d_in, d_out), as ours are. Query, key and value lie in one matrix, side by side.
NAMES = Names(
    {
        "embedding.weight": plain("wte.weight"),
        "positions.table": plain("wpe.weight"),
        "blocks.*.attention_norm.gain": plain("h.*.ln_1.weight"),
        "blocks.*.attention_norm.bias": plain("h.*.ln_1.bias"),
        "blocks.*.attention.query.weight": packed("h.*.attn.c_attn.weight", 0, of=3),
        "blocks.*.attention.query.bias": packed("h.*.attn.c_attn.bias", 0, of=3),
        "blocks.*.attention.key.weight": packed("h.*.attn.c_attn.weight", 1, of=3),
        "blocks.*.attention.key.bias": packed("h.*.attn.c_attn.bias", 1, of=3),
        "blocks.*.attention.value.weight": packed("h.*.attn.c_attn.weight", 2, of=3),
        "blocks.*.attention.value.bias": packed("h.*.attn.c_attn.bias", 2, of=3),
        "blocks.*.attention.output.weight": plain("h.*.attn.c_proj.weight"),
        "blocks.*.attention.output.bias": plain("h.*.attn.c_proj.bias"),
        "blocks.*.feed_forward_norm.gain": plain("h.*.ln_2.weight"),
        "blocks.*.feed_forward_norm.bias": plain("h.*.ln_2.bias"),
        "blocks.*.feed_forward.up.weight": plain("h.*.mlp.c_fc.weight"),
        "blocks.*.feed_forward.up.bias": plain("h.*.mlp.c_fc.bias"),
        "blocks.*.feed_forward.down.weight": plain("h.*.mlp.c_proj.weight"),
        "blocks.*.feed_forward.down.bias": plain("h.*.mlp.c_proj.bias"),
        "norm.gain": plain("ln_f.weight"),
        "norm.bias": plain("ln_f.bias"),
    },
    prefix="transformer.",
    # The causal mask lies beside the weights in old files; the head is the embedding again, and may be written out.
    ignored=(".attn.bias", ".attn.masked_bias"),
    tied={"lm_head.weight": "wte.weight"},
)


def load_gpt2(source: Mapping[str, Array] | str | Path) -> Gpt2:
    """The parameters of Hugging Face's GPT-2: from a dict of arrays, a .safetensors file, or a sharded one (see read_arrays).

    Sizes are read off the arrays; the number of heads cannot be (12 for the smallest). The dtype stays.
    Raises ValueError for missing, unexpected or mis-shaped weights, naming them.
    """
    arrays = NAMES.stripped(read_arrays(source))
    num_layers = NAMES.count("h.*.", arrays)
    skeleton = init_gpt2(np.random.default_rng(0), vocabulary=1, context=1, d_model=1, num_layers=num_layers, num_heads=1)
    return NAMES.tree(skeleton, arrays)


def gpt2_weights(params: Gpt2) -> dict[str, Array]:
    """The same parameters (or their gradients) under Hugging Face's names, "transformer." in front."""
    return NAMES.arrays(params)


def _example(rng: np.random.Generator):
    params = init_gpt2(rng, vocabulary=6, context=5, d_model=3, num_layers=2, num_heads=3, std=0.5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    mask = np.array([[1, 1, 1, 1], [0, 1, 1, 1]], bool)[:, None, None]
    return example(params, ids=rng.integers(6, size=(2, 4)), num_heads=3, mask=mask)
