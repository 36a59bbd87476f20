"""Zamba: a stack of Mamba layers with one attention block between them that is used again and again.

Attention is what recall needs, and one block of it, called every few layers, is nearly enough; its parameters are paid once.
Sources: Glorioso et al. 2024 (Zamba), arXiv:2405.16712, section 2: Mamba, one block; Glorioso et al. 2024 (Zamba2),
arXiv:2411.15242, section 2: Mamba-2, several alternating blocks, and a low-rank change of their weights for every call.
embedded is what the stack is given, and every call reads it beside the stream (see shared_attention). Call number i uses block
i mod m. M is the mixer of a layer, RMS its norm, a star the backward of what it stands on.

    attended = shared_attention(block_(i mod m), call_i; stream, embedded), 0 in a layer without a call   (1)
    mixed = M(RMS(stream + attended))                        (2)
    stream = stream + mixed, from stream = embedded to out   (3)
    dattended = RMS*(M*(dstream))                            (4)
    dstream = dstream + dattended                            (5)
    dblock, dcall, dthrough, dembedded_i = shared_attention*(dattended), and dstream = dstream + dthrough   (6)
    dblock_j = sum of dblock over its calls                  (7)
    dembedded = dstream + sum over the calls of dembedded_i  (8)

The output of the shared block enters the mixer and not the stream: only what Mamba makes of it stays. Its time and its caches
are those of as many attention layers as there are calls.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.prepare import unprepared
from minitransformers.basics.chain import chain
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, trees, trusted
from minitransformers.hybrids.samba import check_stack
from minitransformers.hybrids.shared_attention import (
    SharedAttention,
    SharedCall,
    init_shared_attention,
    init_shared_call,
    shared_attention,
    shared_attention_step,
)
from minitransformers.norms.rms_norm import RmsNorm, init_rms_norm, rms_norm
from minitransformers.state_space.mamba import Mamba, init_mamba, mamba, mamba_step
from minitransformers.state_space.mamba2 import Mamba2, init_mamba2, mamba2, mamba2_step

Size = Annotated[int, at_least(1)]


class ZambaLayer(NamedTuple):
    """A recurrence behind its norm, and what is its own of a call to a shared block, or None where it makes none."""

    norm: RmsNorm
    mixer: Mamba | Mamba2
    call: SharedCall | None


class Zamba(NamedTuple):
    """The blocks that are shared, and the layers."""

    shared: list[SharedAttention]
    layers: list[ZambaLayer]


@checked
def init_zamba(
    rng: np.random.Generator, d_model: Size, *, num_layers: Size, num_heads: Size, every: Size = 6, num_shared: Size = 1,
    mixer: Literal["mamba", "mamba2"] = "mamba", rank: Size | None = None, attention_rank: Size | None = None, d_state: Size = 16,
    d_hidden: Size | None = None, std: Annotated[float, at_least(0)] | None = None,
    residual_std: Annotated[float, at_least(0)] | None = None, dtype: type = np.float32,
) -> Zamba:  # fmt: skip
    """A call in layers every - 1, 2 every - 1, ...; they alternate between num_shared blocks.

    mixer is "mamba" (Zamba) or "mamba2" (Zamba2); rank and attention_rank are those of a call's changes to the feed-forward
    and to the attention, which are zero at first. Raises ValueError when no layer would call, or a block would not be called.
    """
    if every > num_layers:
        raise invalid("every", got=every, wants=f"at most the {num_layers} layers, or no layer calls")
    if num_shared > num_layers // every:
        raise invalid("num_shared", got=num_shared, wants=f"at most the {num_layers // every} calls")
    shared = [init_shared_attention(rng, d_model, num_heads=num_heads, d_hidden=d_hidden, std=std, dtype=dtype) for _ in range(num_shared)]
    init: Callable = init_mamba if mixer == "mamba" else init_mamba2
    ranks: dict[str, Any] = {"rank": rank, "attention_rank": attention_rank, "std": std}
    layers = []
    for i in range(num_layers):
        own = init(rng, d_model, d_state=d_state, std=std, residual_std=residual_std, dtype=dtype)
        call = init_shared_call(rng, shared[0], **ranks) if (i + 1) % every == 0 else None
        layers.append(ZambaLayer(init_rms_norm(rng, d_model, dtype=dtype), own, call))
    return Zamba(shared, layers)


@trusted
def zamba_step(
    params: Zamba, x: Float[Array, "... new d_model"], state: list[Any] | None, *, num_heads: int, prepare: Callable = unprepared
) -> tuple[Array, list[Any]]:
    """The outputs of a few new positions; a layer's state is its recurrence's, and its own cache where it calls.

    Raises ValueError where x or the number of states does not fit the layers.
    """
    _check(params, x, state)
    stream, states = x, []
    for layer, block, (mixer_state, cache) in zip(params.layers, _blocks(params), state or [(None, None)] * len(params.layers), strict=True):
        mixer_input = stream
        if layer.call is not None:
            attended, cache = shared_attention_step(params.shared[block], layer.call, stream, x, cache, num_heads=num_heads, prepare=prepare)
            mixer_input = stream + attended
        step: Callable = mamba_step if isinstance(layer.mixer, Mamba) else mamba2_step
        mixed, mixer_state = step(layer.mixer, rms_norm(layer.norm, mixer_input)[0], mixer_state)
        stream = stream + mixed
        states.append((mixer_state, cache))
    return stream, states


@concept(
    title="Zamba",
    source="Glorioso et al. 2024, arXiv:2405.16712, section 2; arXiv:2411.15242, section 2",
    example=lambda rng: _example(rng, 0.5),
    large=lambda rng: _example(rng, 1 / 200),                # what meets in products is small, what follows a norm need not be
    roles=("stack",),
    rejects=[bad(num_heads=3), bad(x=np.ones((2, 3, 5)))],
    step=zamba_step,
)
def zamba(
    params: Zamba, x: Float[Array, "... positions d_model"], *, num_heads: Size, prepare: Callable = unprepared
) -> tuple[Array, Backward]:
    """A stack of recurrences, some of which read the output of a shared attention block; causal. x is the embeddings.

    num_heads heads of 2 d_model / num_heads features share the block; prepare is that of multi_head_attention, the same at
    every call, and what it learns is the block's.
    Returns out, shaped like x and not normalised, and backward: dout -> Zamba, dx.
    Raises ValueError when num_heads does not divide 2 d_model, layers or blocks are none, or the layers are not all as wide
    as x.
    """
    _check(params, x)
    stream, backwards = x, []
    for layer, block in zip(params.layers, _blocks(params), strict=True):
        mixer_input, call_backward = stream, None
        if layer.call is not None:
            attended, call_backward = shared_attention(params.shared[block], layer.call, stream, x, num_heads=num_heads, prepare=prepare)  # (1)
            mixer_input = stream + attended
        mix: Callable = mamba if isinstance(layer.mixer, Mamba) else mamba2
        mixed, mix_backward = chain((layer.norm, layer.mixer), mixer_input, parts=(rms_norm, mix))  # (2)
        stream = stream + mixed                              # (3)
        backwards.append((block, call_backward, mix_backward))

    def backward(dout):
        dstream, dembedded = dout, np.zeros_like(dout)
        dblocks, dlayers = [trees.zeros_like(block) for block in params.shared], []
        for block, call_backward, mix_backward in reversed(backwards):
            (dnorm, dmixer), dattended = mix_backward(dstream)  # (4)
            dstream = dstream + dattended                    # (5)
            dcall = None
            if call_backward is not None:
                dblock, dcall, dthrough, dread = call_backward(dattended)
                dstream = dstream + dthrough                 # (6)
                dblocks[block] = trees.map(np.add, dblocks[block], dblock)  # (7)
                dembedded = dembedded + dread
            dlayers.append(ZambaLayer(dnorm, dmixer, dcall))
        return Zamba(dblocks, dlayers[::-1]), dstream + dembedded  # (8)

    return stream, backward


def _blocks(params: Zamba) -> list[int]:
    """For each layer the number of the block that it calls, if it calls: calls are counted, not layers."""
    calls = np.cumsum([layer.call is not None for layer in params.layers])
    return [max(0, int(count) - 1) % len(params.shared) for count in calls]


def _check(params: Zamba, x: Array, state: list[Any] | None = None) -> None:
    check_stack({f"layers.{i}.norm": layer.norm for i, layer in enumerate(params.layers)}, x, state)
    if not params.shared:
        raise invalid("params.shared", got="no block", wants="at least 1 to call")


def _example(rng: np.random.Generator, std: float):
    params = init_zamba(rng, 2, num_layers=2, num_heads=1, every=1, num_shared=1, mixer="mamba2", d_state=1, d_hidden=3, dtype=np.float64)

    def small(tree: Any) -> Any:
        return trees.map(lambda leaf: rng.uniform(0.1, 0.2, size=leaf.shape), tree)

    shared = [block._replace(attention_norm=small(block.attention_norm), channel_norm=small(block.channel_norm)) for block in params.shared]
    layers = []
    for layer in params.layers:
        own: Any = layer.mixer
        mixer = trees.map(lambda leaf: rng.normal(size=leaf.shape) * std, own)
        mixer = mixer._replace(D=mixer.D + 9, norm=own.norm, out_proj=own.out_proj)
        layers.append(ZambaLayer(small(layer.norm), mixer, layer.call))
    return example(Zamba(shared, layers), rng.normal(size=(2, 3, 2)), num_heads=1)
