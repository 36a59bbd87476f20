"""Memformer: a Transformer that reads a long text in segments and carries a few slots from one to the next, and nothing else.

In every block the tokens look at the slots as well as at each other. After the last block the slots look at the tokens and are
rewritten. A slot is no state of a token, so their number is a choice, and what the past costs does not grow with it. The
gradient goes through the slots from segment to segment: what is worth writing is learned from what is asked later (see
memory_replay for the memory that this takes).

Source: Wu et al. 2020, arXiv:2010.06891, section 3: the encoder. Differs from the paper: norms come first, and the writer reads
normalised tokens; see also the parts. N, N1 and N2 are layer norms, A is multi-head attention, F a feed-forward network, R the
memory reader, W the memory writer, B biased memory normalisation; a star is the backward of what it stands on.

    slots = B(), where none are given                        (1)
    near = x + A(N1(x))                                      (2)
    read = R(near, slots)                                    (3)
    x = read + F(N2(read))                                   (4)
    out = N(x), after (2) to (4) in every block              (5)
    after = B(W(slots, out))                                 (6)
    dslots_W, dout_W = W*(B*(dafter))                        (7)
    dx = N*(dout + dout_W)                                   (8)
    dread = dx + N2*(F*(dx))                                 (9)
    dnear, dslots_R = R*(dread)                              (10)
    dx = dnear + N1*(A*(dnear)), after (9) to (11) in every block, the last first   (11)
    dslots = dslots_W + sum over the blocks of dslots_R      (12)
    dbias = what B* says at (6), and at (1) of the sum of dslots over the batch   (13)
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.heads import sum_to
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.prepare import unprepared
from minitransformers.basics.chain import chain
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.residual import residual
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive, trees
from minitransformers.long_context.biased_memory_norm import BiasedMemoryNorm, biased_memory_norm, init_biased_memory_norm
from minitransformers.long_context.memory_reader import MemoryReader, init_memory_reader, memory_reader
from minitransformers.long_context.memory_writer import MemoryWriter, init_memory_writer, memory_writer
from minitransformers.norms.layer_norm import LayerNorm, init_layer_norm, layer_norm


class MemformerBlock(NamedTuple):
    """Three sub-layers: tokens look at each other, at the slots, and work by themselves. The reader has its norm inside."""

    attention_norm: Annotated[LayerNorm, "d_model"]
    attention: Any                                           # MultiHeadAttention
    reader: MemoryReader
    feed_forward_norm: Annotated[LayerNorm, "d_model"]
    feed_forward: Any                                        # FeedForward


class Memformer(NamedTuple):
    """The blocks, the norm of what they make, what writes, and where slots start and go back to."""

    blocks: list[MemformerBlock]
    norm: Annotated[LayerNorm, "d_model"]
    writer: MemoryWriter
    forgetting: BiasedMemoryNorm


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
            norm(), init_multi_head_attention(rng, d_model, **settings), init_memory_reader(rng, d_model, **settings),
            norm(), init_feed_forward(rng, d_model, d_hidden=d_hidden, std=std, dtype=dtype),
        )  # fmt: skip

    return Memformer(
        [block() for _ in range(num_layers)], norm(), init_memory_writer(rng, d_model, dtype=dtype),
        init_biased_memory_norm(rng, num_slots, d_model, length=forgetting, dtype=dtype),
    )  # fmt: skip


def memformer_block(
    params: MemformerBlock, x: Float[Array, "*batch positions d_model"], slots: Float[Array, "*batch slots d_model"], *, num_heads: int,
    mask: Array | None = None, prepare: Callable = unprepared, core: Callable = softmax_attention,
):  # fmt: skip
    """One block. Returns out, shaped like x, and backward: dout -> MemformerBlock of gradients, dx, dslots."""
    attend = partial(chain, parts=(layer_norm, partial(multi_head_attention, num_heads=num_heads, mask=mask, prepare=prepare, core=core)))
    near, attend_backward = residual(params[:2], x, part=attend)  # (2)
    read, reader_backward = memory_reader(params.reader, near, slots, num_heads=num_heads)  # (3)
    out, work_backward = residual(params[3:], read, part=partial(chain, parts=(layer_norm, feed_forward)))  # (4)

    def backward(dout):
        (dwork_norm, dwork), dread = work_backward(dout)     # (9)
        dreader, dnear, dslots = reader_backward(dread)      # (10)
        (dattend_norm, dattend), dx = attend_backward(dnear)  # (11)
        return MemformerBlock(dattend_norm, dattend, dreader, dwork_norm, dwork), dx, dslots

    return out, backward


@concept(
    title="Memformer",
    source="Wu et al. 2020, arXiv:2010.06891, section 3",
    example=lambda rng: _example(rng),
    rejects=[
        bad(num_heads=4), bad(mask=np.ones((2, 1, 1, 5), bool)), bad(mask=np.ones((2, 1, 4, 4), bool)), bad(slots=np.ones((2, 4, 6))),
        bad(slots=np.ones((3, 3, 6))),
    ],
)  # fmt: skip
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
    """One segment: what its tokens become with the slots before them, and the slots after it. None: the text begins here.

    temperature is memory_writer's. mask, broadcastable to (*batch, heads, 1, positions), is True where there is a token
    (padding_mask): others are neither looked at nor written. prepare and core are those of multi_head_attention; x knows no
    positions but those that were put into it, or that prepare puts into queries and keys.
    Returns (out, slots), out shaped like x and slots (*batch, slots, d_model), each of length 1, and backward: (dout, dslots)
    -> Memformer of gradients, dx, dslots (None without slots).
    Raises ValueError where heads do not divide, or slots or mask do not fit.
    """
    if mask is not None and mask.shape[-2] != 1:
        raise invalid("mask", got=f"shape {mask.shape}", wants="one row for all queries: it says which tokens there are")
    shape = (*x.shape[:-2], *params.forgetting.bias.shape)
    if slots is not None and slots.shape != shape:
        raise invalid("slots", got=f"shape {slots.shape}", wants=f"{shape}: the batch of x, and a slot for each bias")
    before: Any = slots
    if slots is None:
        start, start_backward = biased_memory_norm(params.forgetting)
        before = np.broadcast_to(start, shape)               # (1)
    backwards = []
    for block in params.blocks:
        x, block_backward = memformer_block(block, x, before, num_heads=num_heads, mask=mask, prepare=prepare, core=core)
        backwards.append(block_backward)
    out, norm_backward = layer_norm(params.norm, x)          # (5)
    written, writer_backward = memory_writer(params.writer, before, out, num_heads=num_heads, temperature=temperature, mask=mask)
    after, forgetting_backward = biased_memory_norm(params.forgetting, written)  # (6)

    def backward(dresult):
        dout, dafter = dresult
        dforgetting, dwritten = forgetting_backward(dafter)
        dwriter, dslots, dout_written = writer_backward(dwritten)  # (7)
        dnorm, dx = norm_backward(dout + dout_written)       # out goes up, and into the slots: two gradients  (8)
        dblocks = []
        for block_backward in reversed(backwards):
            dblock, dx, dslots_read = block_backward(dx)
            dblocks.append(dblock)
            dslots = dslots + dslots_read                    # every block reads the slots, and so does the writer  (12)
        if slots is None:                                    # the bias is where slots go, and where they start
            dstart, _ = start_backward(sum_to(dslots, params.forgetting.bias.shape))
            dforgetting = trees.map(np.add, dforgetting, dstart)  # (13)
        return Memformer(dblocks[::-1], dnorm, dwriter, dforgetting), dx, None if slots is None else dslots

    return (out, after), backward


def _example(rng: np.random.Generator):
    params = init_memformer(rng, 6, num_slots=3, num_layers=2, num_heads=2, d_hidden=5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)  # no gain is 1, no bias 0: each of them is tested
    slots, _ = biased_memory_norm(params.forgetting, rng.normal(size=(2, 3, 6)))
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 1]], bool)[:, None, None]
    return example(params, rng.normal(size=(2, 4, 6)), slots, num_heads=2, temperature=0.7, mask=mask)
