"""Memformer: a Transformer that reads a long text in segments and carries a few slots from one to the next, and nothing else.

In every block the tokens look at the slots as well as at each other. After the last block the slots look at the tokens and are
rewritten. A slot is no state of a token, so their number is a choice, and what the past costs does not grow with it. The
gradient goes through the slots from segment to segment: what is worth writing is learned from what is asked later (see
memory_replay for the memory that this takes).

Source: Wu et al. 2020, arXiv:2010.06891, section 3: the encoder, its reader in (3), its writer and its forgetting in (6). Differs from the
paper: norms come first; the slots, of length 1, are as long as a token of unit features, sqrt(d_model), where they are read;
the writer reads normalised tokens. N, N1 to N3 are layer norms, A is multi-head attention, C cross-attention, F a feed-forward
network, W the memory writer, B biased memory normalisation; a star is the backward of what it stands on.

    slots = B(), its start, where none are given             (1)
    near = x + A(N1(x))                                      (2)
    read = near + C(N2(near), sqrt(d_model) slots)           (3)
    x = read + F(N3(read)), and so (2) to (4) in every block (4)
    out = N(x)                                               (5)
    new slots = B(W(slots, out))                             (6)
    dslots, dout = dout + what the writer sends, by W*(B*(dnew slots))   (7)
    dx = N*(dout)                                            (8)
    dread = dx + N3*(F*(dx))                                 (9)
    dnear, dmemory = dread + N2*(C*(dread)), the C* of the slots   (10)
    dx = dnear + N1*(A*(dnear))                              (11)
    dslots = dslots + sqrt(d_model) times the sum of dmemory over the blocks   (12)
    dbias = B*'s of (6), and of (1) where the slots were its start   (13)
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.cross_attention import CrossAttention, cross_attention, init_cross_attention
from minitransformers.attention.heads import sum_to
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.prepare import unprepared
from minitransformers.basics.chain import chain
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.residual import residual
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive, trees
from minitransformers.long_context.biased_memory_norm import BiasedMemoryNorm, biased_memory_norm, init_biased_memory_norm
from minitransformers.long_context.memory_writer import MemoryWriter, init_memory_writer, memory_writer
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm


class MemformerBlock(NamedTuple):
    """Three sub-layers, each behind its norm: tokens look at each other, at the slots, and think."""

    attention_norm: Annotated[LayerNorm, "d_model"]
    attention: Any                                           # MultiHeadAttention
    reader_norm: Annotated[LayerNorm, "d_model"]
    reader: Annotated[CrossAttention, "d_model d_heads d_model d_values"]
    feed_forward_norm: Annotated[LayerNorm, "d_model"]
    feed_forward: Any                                        # FeedForward


class Memformer(NamedTuple):
    """The blocks, the norm of what they make, what writes, and where slots start and go back to."""

    blocks: list[MemformerBlock]
    norm: Annotated[LayerNorm, "d_model"]
    writer: Annotated[MemoryWriter, "d_model d_heads"]
    forgetting: Annotated[BiasedMemoryNorm, "slots d_model"]


@checked
def init_memformer(
    rng: np.random.Generator, d_model: Annotated[int, at_least(1)], *, num_slots: Annotated[int, at_least(1)],
    num_layers: Annotated[int, at_least(1)], num_heads: Annotated[int, at_least(1)], d_hidden: Annotated[int, at_least(1)] | None = None,
    forgetting: Annotated[float, positive] = 0.1, std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> Memformer:  # fmt: skip
    """Normal weights of deviation ``std`` (default 1/sqrt of the width they read). forgetting is the length of the slots' biases."""
    norm = partial(init_layer_norm, rng, d_model, dtype=dtype)
    settings: dict[str, Any] = {"num_heads": num_heads, "std": std, "dtype": dtype}

    def block() -> MemformerBlock:
        return MemformerBlock(
            norm(), init_multi_head_attention(rng, d_model, **settings), norm(), init_cross_attention(rng, d_model, **settings),
            norm(), init_feed_forward(rng, d_model, d_hidden=d_hidden, std=std, dtype=dtype),
        )  # fmt: skip

    return Memformer(
        [block() for _ in range(num_layers)], norm(), init_memory_writer(rng, d_model, dtype=dtype),
        init_biased_memory_norm(rng, num_slots, d_model, length=forgetting, dtype=dtype),
    )  # fmt: skip


def memformer_block(
    params: MemformerBlock, x: Float[Array, "*batch positions d_model"], memory: Float[Array, "*batch slots d_model"], *, num_heads: int,
    mask: Array | None = None, prepare: Callable = unprepared, core: Callable = softmax_attention,
):  # fmt: skip
    """One block. Returns out, shaped like x, and backward: dout -> MemformerBlock of gradients, dx, dmemory."""
    attend = partial(chain, parts=(layer_norm, partial(multi_head_attention, num_heads=num_heads, mask=mask, prepare=prepare, core=core)))
    near, attend_backward = residual(params[:2], x, part=attend)  # (2)
    read, read_backward = residual(params[2:4], near, memory, part=partial(_reader, num_heads=num_heads))  # (3)
    out, work_backward = residual(params[4:], read, part=partial(chain, parts=(layer_norm, feed_forward)))  # (4)

    def backward(dout):
        dwork, dread = work_backward(dout)                   # (9)
        dreader, dnear, dmemory = read_backward(dread)       # (10)
        dattend, dx = attend_backward(dnear)                 # (11)
        return MemformerBlock(*dattend, *dreader, *dwork), dx, dmemory

    return out, backward


def _reader(params, x, memory, *, num_heads):
    """Tokens, normalised, look at the slots."""
    normed, norm_backward = layer_norm(params[0], x)
    out, attention_backward = cross_attention(params[1], normed, memory, num_heads=num_heads)

    def backward(dout):
        dattention, dnormed, dmemory, _ = attention_backward(dout)
        dnorm, dx = norm_backward(dnormed)
        return (dnorm, dattention), dx, dmemory

    return out, backward


@concept(
    title="Memformer",
    source="Wu et al. 2020, arXiv:2010.06891, section 3",
    example=lambda rng: _example(rng),
    rejects=[bad(num_heads=4), bad(mask=np.ones((2, 1, 1, 5), bool)), bad(slots=np.ones((2, 4, 6))), bad(slots=np.ones((3, 3, 6)))],
)
def memformer(
    params: Memformer,
    x: Float[Array, "*batch positions d_model"],
    slots: Float[Array, "*batch slots d_model"] | None = None,
    *,
    num_heads: Annotated[int, at_least(1)],
    temperature: Annotated[float, positive] = 0.25,
    mask: Bool[Array, "*#scores one positions"] | None = None,
    prepare: Callable = unprepared,
    core: Callable = softmax_attention,
) -> tuple[tuple[Array, Array], Backward]:
    """One segment: what its tokens become with the slots before their eyes, and the slots after it. None: the text begins.

    temperature is memory_writer's. mask, broadcastable to (*batch, heads, 1, positions), is True where there is a token
    (padding_mask): others are neither looked at nor written. prepare and core are those of multi_head_attention; x knows no
    positions but those that were put into it, or that prepare puts into queries and keys. core=causal_attention for writing text.
    Returns (out, slots), out shaped like x and slots (*batch, slots, d_model), each of length 1, and backward: (dout, dslots)
    -> Memformer of gradients, dx, dslots (None without slots).
    Raises ValueError where heads do not divide, there are more or fewer slots than biases, or mask does not fit.
    """
    if mask is not None and mask.shape[-2] != 1:
        raise invalid("mask", got=f"shape {mask.shape}", wants="one row, which tokens there are: tokens and slots read the same ones")
    before, start_backward = slots, None
    if before is None:
        start, start_backward = biased_memory_norm(params.forgetting)
        before = np.broadcast_to(start, (*x.shape[:-2], *start.shape))  # (1)
    scale = x.shape[-1] ** 0.5
    memory, backwards = scale * before, []
    for block in params.blocks:
        x, block_backward = memformer_block(block, x, memory, num_heads=num_heads, mask=mask, prepare=prepare, core=core)
        backwards.append(block_backward)
    out, norm_backward = layer_norm(params.norm, x)          # (5)
    written, writer_backward = memory_writer(params.writer, before, out, num_heads=num_heads, temperature=temperature, mask=mask)
    after, forgetting_backward = biased_memory_norm(params.forgetting, written)  # (6)

    def backward(dresult):
        dout, dafter = dresult
        dforgetting, dwritten = forgetting_backward(dafter)
        dwriter, dbefore, dout_written = writer_backward(dwritten)
        dnorm, dx = norm_backward(dout + dout_written)       # out is read and written: two gradients  (7) (8)
        dblocks, dmemories = [], []
        for block_backward in reversed(backwards):
            dblock, dx, dmemory = block_backward(dx)
            dblocks.append(dblock)
            dmemories.append(dmemory)
        dbefore = dbefore + scale * sum(dmemories)           # every block reads the slots, and the writer  (12)
        if start_backward is not None:                       # the bias is where slots go, and where they start
            dstart, _ = start_backward(sum_to(dbefore, params.forgetting.bias.shape))
            dforgetting = trees.map(np.add, dforgetting, dstart)  # (13)
        dparams = Memformer(dblocks[::-1], dnorm, dwriter, dforgetting)
        return dparams, dx, None if slots is None else dbefore

    return (out, after), backward


def _example(rng: np.random.Generator):
    params = init_memformer(rng, 6, num_slots=3, num_layers=2, num_heads=2, d_hidden=5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    slots, _ = biased_memory_norm(params.forgetting, rng.normal(size=(2, 3, 6)))
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 1]], bool)[:, None, None]
    return example(params, rng.normal(size=(2, 4, 6)), slots, num_heads=2, temperature=0.7, mask=mask)
