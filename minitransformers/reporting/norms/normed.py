"""A small language model with any norm in its blocks, and norms on queries and keys or on words as well: what the section on kinds of norms trains.

Two layers with RoPE and one table for both ends learn real text. Of one seed all begin with the same weights, as norms draw nothing, and meet
the same batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.prepare import on_both
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import init_embedding
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.models.workbench.transformer_block import TransformerBlock, transformer_block
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.positional.rope_fast import rope_fast
from minitransformers.reporting.measures import bits_after
from minitransformers.reporting.networks import tied_network
from minitransformers.training.text import Corpus

LAYERS, WIDTH, HEADS, CONTEXT, BATCH, STEPS, START = 2, 48, 4, 32, 16, 300, 0.1


class Normed(NamedTuple):
    """A norm and how it begins, in the blocks; the same of queries and keys; a norm of words; deleted: attention sees its own position alone."""

    init_norm: Callable = init_layer_norm
    norm: Callable = layer_norm
    of_scores: tuple[Callable, Callable] | None = None
    of_words: Callable | None = None
    deleted: bool = False


@cache
def corpus() -> Corpus:
    """The text that they learn."""
    return Corpus.load(context=CONTEXT)


def fresh(of: Normed, rng: np.random.Generator) -> tuple[Any, list[Any]]:
    """Its parameters: words, then blocks and a last norm."""
    small: dict[str, Any] = {"std": START, "residual_std": START / 2}
    words, body = init_embedding(rng, corpus().vocabulary.size, WIDTH, std=START), []
    for _ in range(LAYERS):
        attention = init_multi_head_attention(rng, WIDTH, num_heads=HEADS, **small)
        if of.of_scores is not None:
            attention = attention._replace(prepare=(of.of_scores[0](rng, WIDTH // HEADS), None))
        norms = of.init_norm(rng, WIDTH), of.init_norm(rng, WIDTH)
        body.append(TransformerBlock(norms[0], attention, norms[1], init_feed_forward(rng, WIDTH, **small)))
    return words, [*body, of.init_norm(rng, WIDTH)]


def trained(of: Normed, rng: np.random.Generator, *, rate: float, quick: bool, watch: Any = None) -> float:
    """Bits a character of the validation text."""
    turn, alone = on_both(rope_fast), np.eye(CONTEXT, dtype=bool) if of.deleted else None
    prepare = turn if of.of_scores is None else partial(chain, parts=(of.of_scores[1], turn))
    mixer = partial(multi_head_attention, num_heads=HEADS, prepare=prepare)
    block = partial(transformer_block, mixer=mixer, channel=feed_forward, norm=of.norm, mask=alone)
    model = tied_network(*[block] * LAYERS, of.norm, rows=of.of_words)
    sizes: dict[str, Any] = {"context": CONTEXT, "batch_size": BATCH, "whole": not quick, "steps": 5 if quick else STEPS}
    return bits_after(model, fresh(of, rng), corpus(), rng=rng, peak=rate, warmup=0.1, floor=0.05, watch=watch, **sizes)
