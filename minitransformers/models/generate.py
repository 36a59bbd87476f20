"""Writing text with a language model: one token at a time, each drawn from what the model expects next.

Sources: top-k, Fan et al. 2018, arXiv:1805.04833; top-p (nucleus), Holtzman et al. 2020, arXiv:1904.09751. The order is
that of the field's libraries: temperature, then top-k, then top-p, then softmax and a draw.

The cache holds what the mixers need of the past (keys and values for attention, a state for a recurrence), so a token
costs one position instead of a whole window. A model with a table of positions cannot see past its context: when the
window is full, its older half is let go and the rest is read again. Cached and uncached decoding see the same windows,
so they give the same logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.embedding import Embedding, embedding
from minitransformers.basics.softmax import softmax
from minitransformers.foundation import invalid, trusted
from minitransformers.models.language_model import LanguageModel, LanguageModelConfig, language_model
from minitransformers.models.transformer_block import transformer_block_step
from minitransformers.norms.fix_norm import fix_norm


class DecodingState(NamedTuple):
    """What the past left behind: one state a block, or the stack's; how many positions were read; the words as they are used."""

    blocks: Any
    length: int
    table: Array


@trusted
def language_model_step(
    params: LanguageModel, ids: Array, state: DecodingState | None, *, config: LanguageModelConfig
) -> tuple[Array, DecodingState]:
    """Logits at new positions, given the state after those before; ids is (batch, new).

    state is None at the start of a text and belongs to the step from then on: its buffers are written to.
    Raises ValueError where the mixer has no step, or the text outgrows the context.
    """
    parts, length = config.bound, state.length if state else 0
    end = length + ids.shape[-1]
    if any(mover.step is None for mover in parts.movers):
        raise invalid("config.mixer", got=config.stack or config.mixer, wants="one that can decode step by step")
    if end > config.context:
        raise invalid("ids", got=f"{end} positions", wants=f"at most the context of {config.context}")
    table = state.table if state else fix_norm(params.embedding.weight)[0] if config.fix_norm else params.embedding.weight
    hidden = embedding(Embedding(table), ids=ids)[0]
    hidden *= config.embedding_scale
    bias = {}
    if parts.input_position is not None:
        hidden = parts.input_position(params.position, hidden, positions=np.arange(length, end))[0]
    if parts.bias_position is not None:
        bias["bias"] = parts.bias_position(params.position, num_queries=end - length, num_keys=end)[0]
    if config.stack is not None:
        hidden, blocks = parts.movers[0].step(params.blocks, hidden, state.blocks if state else None)
    else:
        blocks = []
        for i, (block, mixer) in enumerate(zip(params.blocks, parts.movers, strict=True)):
            hidden, block_state = transformer_block_step(
                block, hidden, state.blocks[i] if state else None, mixer_step=partial(mixer.step, **bias if mixer.takes_bias else {}),
                channel=parts.channel, norm=parts.norm, **config.residual,
            )  # fmt: skip
            blocks.append(block_state)
    if params.final_norm is not None:
        hidden = parts.norm(params.final_norm, hidden)[0]
    head = table.T if params.head is None else params.head.weight
    return hidden @ head, DecodingState(blocks, end, table)


def next_token_probabilities(
    logits: Array, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Array:
    """The distribution to draw from, over the last axis, in float64.

    temperature (0 or more) divides the logits; 0 puts all mass on the largest. top_k (1 or more) drops logits below the
    k-th largest, keeping ties with it. top_p in (0, 1] keeps the smallest set of most probable tokens whose mass
    reaches p, always at least one.
    Raises ValueError for values outside these ranges, and for logits of which none is finite.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = logits.astype(np.float64)
    if np.isnan(logits).any() or not np.isfinite(logits.max(axis=-1)).all():
        raise invalid("logits", got="NaN, +inf or nothing but -inf", wants="at least one finite logit in each row")
    if temperature == 0:
        return np.eye(logits.shape[-1])[logits.argmax(axis=-1)]
    with np.errstate(over="ignore"):                         # in the cold all but the largest may become -inf
        logits = (logits - logits.max(axis=-1, keepdims=True)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest_kept = np.partition(logits, -top_k, axis=-1)[..., -top_k, None]
        logits = np.where(logits >= smallest_kept, logits, -np.inf)
    probabilities, _ = softmax(logits)
    if top_p is not None and top_p < 1:
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=-1)
        needed = np.cumsum(ranked, axis=-1) - ranked < top_p  # the mass before a token has not reached p yet
        kept = np.zeros_like(needed)
        np.put_along_axis(kept, order, needed, axis=-1)
        probabilities = np.where(kept, probabilities, 0.0)
    return probabilities / probabilities.sum(axis=-1, keepdims=True)


def check_sampling(*, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError for a setting that no distribution can be made with."""
    if not 0 <= temperature < float("inf"):
        raise invalid("temperature", got=temperature, wants="a number of at least 0")
    if top_k is not None and (not isinstance(top_k, (int, np.integer)) or top_k < 1):
        raise invalid("top_k", got=top_k, wants="a whole number of at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise invalid("top_p", got=top_p, wants="a number above 0 and at most 1")


def generate(
    params: LanguageModel,
    *,
    config: LanguageModelConfig,
    prompt_ids: Array,
    num_tokens: int,
    rng: np.random.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Yield num_tokens token ids that continue prompt_ids (a 1-D array of at least one id).

    temperature, top_k and top_p as in next_token_probabilities; use_cache=False reads the whole window every time.
    The settings are checked at once, before the first token is asked for.
    Raises ValueError for an empty prompt, ids outside the vocabulary, and settings outside their range.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    if num_tokens < 0:
        raise invalid("num_tokens", got=num_tokens, wants="a number of at least 0")
    if not len(prompt_ids) or np.asarray(prompt_ids).dtype.kind not in "iu":
        raise invalid("prompt_ids", got=f"{len(prompt_ids)} of {np.asarray(prompt_ids).dtype}", wants="whole numbers, at least one")
    text = [int(i) for i in prompt_ids]
    if min(text) < 0 or max(text) >= config.vocabulary_size:
        raise invalid("prompt_ids", got=f"ids from {min(text)} to {max(text)}", wants=f"ids from 0 to {config.vocabulary_size - 1}")

    def tokens() -> Iterator[int]:
        for _, logits in zip(range(num_tokens), _next_logits(params, text, config=config, use_cache=use_cache), strict=False):
            if temperature == 0 and np.isfinite(logits).all():
                token = int(logits.argmax())                 # nothing to draw
            else:
                probabilities = next_token_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
                token = int(rng.choice(len(probabilities), p=probabilities))
            text.append(token)
            yield token

    return tokens()


def _next_logits(params: LanguageModel, text: list[int], *, config: LanguageModelConfig, use_cache: bool) -> Iterator[Array]:
    """Logits after the text so far; the caller appends a token to it between two of them."""
    start = max(0, len(text) - config.context)
    state, read = None, start
    use_cache = use_cache and all(mover.step is not None for mover in config.bound.movers)
    while True:
        if len(text) - start > config.context:
            start = len(text) - max(1, config.context // 2)
            state, read = None, start
        if use_cache:
            logits, state = language_model_step(params, np.array([text[read:]]), state, config=config)
            read = len(text)
        else:
            logits, _ = language_model(params, ids=np.array([text[start:]]), config=config)
        yield logits[0, -1]
