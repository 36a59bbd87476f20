"""A decoder-only language model whose mixer, channel, norm and position are chosen by name.

Source: Radford et al. 2019 (GPT-2), after Vaswani et al. 2017, arXiv:1706.03762; tied embeddings: Press and Wolf 2017,
arXiv:1608.05859. GPT-2 is one choice of parts: multi_head_attention, feed_forward, layer_norm, learned. Differs from
GPT-2's training code: no dropout on the attention weights, only on embeddings and sub-layer outputs.

    hidden = s U[ids], with the positions put in; U = E, s = 1   (1)
    hidden = block_l(hidden), l = 1 .. num_layers, or stack(hidden)   (2)
    final = N(hidden) for pre-norm, hidden for post-norm     (3)
    logits = final U^T when tied, final W otherwise          (4)
    dfinal = dlogits U, dU = dlogits^T final                 (5)
    dhidden = N*(dfinal)                                     (6)
    dhidden = block_l*(dhidden), l = num_layers .. 1, or stack*(dhidden)   (7)
    dE = dU + scatter of s dhidden to the rows ids           (8)

With fix_norm U is FixNorm(E), the rows of E at length one, s is sqrt(d_model), and (8) goes on through its backward.
The paper of 2017 and Gemma scale the embeddings by s = sqrt(d_model) (scale_embedding): without it, sinusoidal positions,
whose entries are as large as 1, drown embeddings that start at 0.02.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.basics.dropout import dropout
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, trees, trusted
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.transformer_block import TransformerBlock, transformer_block, transformer_block_step
from minitransformers.norms.fix_norm import fix_norm


class LanguageModel(NamedTuple):
    """All parameters. head is None when tied; final_norm is None for post-norm; position is None without parameters.

    blocks holds a TransformerBlock for each layer, or what the stack has in their place.
    """

    embedding: Annotated[Embedding, "vocabulary d_model"]
    position: Any
    blocks: Any
    final_norm: Any
    head: Annotated[Linear, "d_model vocabulary"] | None


@checked
def init_language_model(
    rng: np.random.Generator, config: LanguageModelConfig, *, std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32
) -> LanguageModel:
    """GPT-2's initialisation: N(0, std^2), residual projections divided by sqrt(2 num_layers), biases 0, gains 1.

    With the placement "deep" the weights of the blocks are DeepNorm's, and std is for the embeddings alone.
    Raises ValueError where DeepNorm meets a mixer without queries, keys, values and outputs.
    """
    settings = {
        "d_model": config.d_model, "num_heads": config.num_heads, "num_layers": config.num_layers, "max_positions": config.context,
        "std": std, "residual_std": std / (2 * config.num_layers) ** 0.5, "dtype": dtype,
    }  # fmt: skip
    parts = config.parts

    def fresh(role):
        # Norms take no std: they start as the identity. A part takes of the settings what its init names.
        return parts[role].init(rng, **settings)

    def mixing(part):
        return part.init(rng, rotation=config.rotation, **settings)

    def block(mixer):
        made = TransformerBlock(mixer_norm=fresh("norm"), mixer=mixing(mixer), channel_norm=fresh("norm"), channel=fresh("channel"))
        return _deep_start(rng, made, mixer.entry.name, beta=config.deep.beta) if config.placement == "deep" else made

    return LanguageModel(
        embedding=init_embedding(rng, config.vocabulary_size, config.d_model, std=std, dtype=dtype),
        position=fresh("position") if "position" in parts else None,
        blocks=mixing(config.mixers[0]) if config.stack is not None else [block(mixer) for mixer in config.mixers],
        final_norm=fresh("norm") if config.placement == "pre" else None,
        head=None if config.tied else init_linear(rng, config.d_model, config.vocabulary_size, std=std, bias=False, dtype=dtype),
    )


def _deep_start(rng: np.random.Generator, block: TransformerBlock, name: str, *, beta: float) -> TransformerBlock:
    """Xavier's deviation for every weight, beta of it for values, outputs and the channel part."""
    gains = {"query": 1.0, "key": 1.0, "value": beta, "output": beta}
    if not gains.keys() <= set(getattr(block.mixer, "_fields", ())):
        raise invalid("placement", got=f"'deep' with the mixer {name}", wants="a mixer with queries, keys, values and outputs")

    def drawn(part, gain):
        def draw(leaf):                                      # biases stay
            return leaf if leaf.ndim < 2 else (gain * (2 / sum(leaf.shape)) ** 0.5 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

        return trees.map(draw, part)

    mixer = block.mixer._replace(**{field: drawn(getattr(block.mixer, field), gain) for field, gain in gains.items()})
    return block._replace(mixer=mixer, channel=drawn(block.channel, beta))


@concept(
    title="Language model of chosen parts",
    source="Radford et al. 2019, Language Models are Unsupervised Multitask Learners (GPT-2), section 2.3",
    example=lambda rng: _example(rng),
    rejects=[bad(ids=np.array([[0, 7]])), bad(ids=np.zeros((1, 6), int))],
)
def language_model(
    params: LanguageModel,
    *,
    ids: Int[Array, "*batch positions"],
    config: LanguageModelConfig,
    mask: Bool[Array, "*#scores #positions #positions"] | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[Float[Array, "*batch positions vocabulary"], Backward]:
    """Logits for the token after each position, given that position and those before it.

    mask, broadcastable to (*batch, heads, queries, keys), is True where a query may see a key besides (padding_mask, segment_mask).
    rng is needed where config.dropout is above 0 and the model trains; without it nothing is dropped.
    Returns logits, and backward: dlogits -> LanguageModel of gradients.
    Raises ValueError where ids lie outside the vocabulary or are longer than the context, or a mixer has no place for a mask.
    """
    positions, parts = ids.shape[-1], config.bound
    if positions > config.context:
        raise invalid("ids", got=f"{positions} positions", wants=f"at most the context of {config.context}")
    if config.stack is None and len(params.blocks) != config.num_layers:
        raise invalid("params.blocks", got=f"{len(params.blocks)} blocks", wants=f"{config.num_layers}, as config has layers")
    drop = functools.partial(dropout, rate=config.dropout, rng=rng) if config.dropout > 0 and rng is not None else None

    table, fix_backward = fix_norm(params.embedding.weight) if config.fix_norm else (params.embedding.weight, None)
    hidden, embedding_backward = embedding(Embedding(table), ids=ids)
    hidden *= config.embedding_scale
    position_backward = bias_backward = drop_backward = bias = None
    if parts.input_position is not None:
        hidden, position_backward = parts.input_position(params.position, hidden)  # (1)
    if parts.bias_position is not None:
        bias, bias_backward = parts.bias_position(params.position, num_queries=positions, num_keys=positions)
    if drop is not None:
        hidden, drop_backward = drop(hidden)

    backwards = []
    for own, layer in zip(*_layers(params, config, drop), strict=True):
        hidden, layer_backward = layer(own, hidden, bias, mask=mask)  # (2)
        backwards.append(layer_backward)

    final, final_norm_backward = (hidden, None) if params.final_norm is None else parts.norm(params.final_norm, hidden)  # (3)
    head = Linear(table.T, None) if params.head is None else params.head
    logits, head_backward = linear(head, final)              # (4)

    def backward(dlogits):
        dhead, dhidden = head_backward(dlogits)              # (5)
        dfinal_norm = None
        if final_norm_backward is not None:
            dfinal_norm, dhidden = final_norm_backward(dhidden)  # (6)
        dlayers, dbias = [], None
        for layer_backward in reversed(backwards):
            dlayer, dhidden, dbias_here = layer_backward(dhidden)  # (7)
            dlayers.append(dlayer)
            if dbias_here is not None:                       # one bias serves every layer: its gradients add
                dbias = dbias_here if dbias is None else dbias + dbias_here
        dblocks = dlayers[::-1] if config.stack is None else dlayers[0]
        if drop_backward is not None:
            dhidden = drop_backward(dhidden)
        dposition = bias_backward(dbias) if bias_backward is not None else None
        if position_backward is not None:
            dposition, dhidden = position_backward(dhidden)
        dtable = embedding_backward(dhidden * config.embedding_scale).weight
        if params.head is None:                              # tied: U is read at the input and at the output
            dtable = dtable + dhead.weight.T                 # (8)
        if fix_backward is not None:
            dtable = fix_backward(dtable)
        return LanguageModel(Embedding(dtable), dposition, dblocks, dfinal_norm, None if params.head is None else dhead)

    return logits, backward


def _layers(params: LanguageModel, config: LanguageModelConfig, drop: Callable | None) -> tuple[list[Any], list[Callable]]:
    """The parameters of each layer and its function, ``layer(params, x, bias, mask=mask)``; a stack is one layer."""
    parts = config.bound
    if config.stack is not None:
        return [params.blocks], [parts.mixers[0].call]
    around: dict[str, Any] = {"channel": parts.channel, "norm": parts.norm, "placement": parts.placement, "drop": drop}
    return params.blocks, [functools.partial(transformer_block, mixer=mixer.call, **around) for mixer in parts.mixers]


class DecodingState(NamedTuple):
    """What the past left behind: one state a block, or the stack's; how many positions were read; the words as they are used."""

    blocks: Any
    length: int
    table: Array


@trusted
def language_model_step(
    params: LanguageModel, ids: Array, state: DecodingState | None, *, config: LanguageModelConfig, mask: Array | None = None
) -> tuple[Array, DecodingState]:
    """Logits at new positions, given the state after those before; ids is (batch, new), state is None at the start of a text.

    mask is True where a new position may see one of all so far: the last rows of language_model's, (..., new, seen).
    Raises ValueError where the mixer has no step or no place for a mask, the text outgrows the context, or state is that of a
    model of other sizes.
    """
    _check_state(params, state, config)
    parts, length = config.bound, state.length if state else 0
    end = length + ids.shape[-1]
    if any(mixer.step is None for mixer in parts.mixers):
        raise invalid("config.mixer", got=config.stack or config.mixer, wants="one that can decode step by step")
    if end > config.context:
        raise invalid("ids", got=f"{end} positions", wants=f"at most the context of {config.context}")
    table = state.table if state else fix_norm(params.embedding.weight)[0] if config.fix_norm else params.embedding.weight
    hidden = embedding(Embedding(table), ids=ids)[0]
    hidden *= config.embedding_scale
    bias = None
    if parts.input_position is not None:
        hidden = parts.input_position(params.position, hidden, positions=np.arange(length, end))[0]
    if parts.bias_position is not None:
        bias = parts.bias_position(params.position, num_queries=end - length, num_keys=end)[0]
    if config.stack is not None:
        hidden, blocks = parts.mixers[0].step(params.blocks, hidden, state.blocks if state else None, mask=mask)
    else:
        blocks = []
        for i, (block, mixer) in enumerate(zip(params.blocks, parts.mixers, strict=True)):
            hidden, block_state = transformer_block_step(
                block, hidden, state.blocks[i] if state else None, channel=parts.channel, norm=parts.norm, placement=parts.placement,
                mixer_step=functools.partial(mixer.step, bias=bias, mask=mask),
            )  # fmt: skip
            blocks.append(block_state)
    if params.final_norm is not None:
        hidden = parts.norm(params.final_norm, hidden)[0]
    head = table.T if params.head is None else params.head.weight
    return hidden @ head, DecodingState(blocks, end, table)


def _check_state(params: LanguageModel, state: DecodingState | None, config: LanguageModelConfig) -> None:
    """Raise ValueError where a state is not of such a model; what a block keeps is judged by the block."""
    if state is None:
        return
    if not isinstance(state, DecodingState):
        raise invalid("state", got=type(state).__name__, wants="DecodingState, or None at the start of a text")
    held, own = state.table, params.embedding.weight
    if held.shape != own.shape or held.dtype != own.dtype:
        wants = f"that of this model, with words {own.shape} in {own.dtype}"
        raise invalid("state", got=f"that of a model with words {held.shape} in {held.dtype}", wants=wants)
    if config.stack is None and len(state.blocks) != len(params.blocks):
        raise invalid("state", got=f"that of a model of {len(state.blocks)} blocks", wants=f"that of this model, of {len(params.blocks)}")


def _example(rng: np.random.Generator):
    config = LanguageModelConfig(
        vocabulary_size=6, context=5, d_model=3, num_layers=2, num_heads=3, scale_embedding=True, options={"channel": {"d_hidden": 2}}
    )
    params = init_language_model(rng, config, std=0.5, dtype=np.float64)
    return example(params, ids=rng.integers(6, size=(2, 4)), config=config)
