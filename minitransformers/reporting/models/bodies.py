"""A small body that reads a mask together with its text: who sees whom is no part of the model, so one body serves any objective."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.prepare import on_both
from minitransformers.basics.embedding import init_embedding
from minitransformers.basics.gated_feed_forward import gated_feed_forward, init_gated_feed_forward
from minitransformers.basics.linear import init_linear, linear
from minitransformers.foundation import Backward
from minitransformers.norms.rms_norm import init_rms_norm, rms_norm
from minitransformers.positional.rope_fast import rope_fast
from minitransformers.reporting.networks import behind_norm, network


def init_body(rng: np.random.Generator, vocabulary: int, d_model: int, *, num_layers: int, num_heads: int) -> list[Any]:
    """Words, layers of attention and a gated feed-forward network behind their norms, a norm and a head."""
    layers = []
    for _ in range(num_layers):
        layers += [(init_rms_norm(rng, d_model), init_multi_head_attention(rng, d_model, num_heads=num_heads, std=0.1)),
                   (init_rms_norm(rng, d_model), init_gated_feed_forward(rng, d_model, std=0.1))]  # fmt: skip
    words = init_embedding(rng, vocabulary, d_model, std=0.1)
    return [words, *layers, init_rms_norm(rng, d_model), init_linear(rng, d_model, vocabulary)]


def body(params: list[Any], inputs: tuple[Array, Array | None], *, num_heads: int, head: bool = True) -> tuple[Array, Backward]:
    """Logits of ``ids, mask``, with RoPE; without the head the hidden states below it."""
    ids, mask = inputs
    attention = partial(multi_head_attention, num_heads=num_heads, core=softmax_attention, prepare=on_both(rope_fast), mask=mask)
    layers = [behind_norm(attention), behind_norm(gated_feed_forward)] * ((len(params) - 3) // 2)
    parts: list[Any] = [*layers, rms_norm, linear][: len(layers) + 1 + head]
    return network(*parts)(params[: 1 + len(parts)], ids)
