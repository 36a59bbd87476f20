"""A GRU and two blocks of attention as readers of text, as large as each other: what sections on the cost of waiting share. Nobody trains them.

A reader is its parameters, ``read(params, ids) -> logits`` of whole texts, and ``step(params, ids, state) -> logits, state`` which reads on; state is
None at the start of a text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.linear import init_linear, linear
from minitransformers.models.gru import gru, init_gru
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model, language_model_step
from minitransformers.norms.rms_norm import init_rms_norm, rms_norm

VOCABULARY, WIDTH, HIDDEN = 103, 48, 108
RELU = {"channel": {"activation": "relu"}}                   # an activation that keeps the count: GELU writes into an array of its own


class Reader(NamedTuple):
    """Parameters, and two functions of them."""

    params: Any
    read: Callable
    step: Callable


def attention_reader(rng: np.random.Generator, longest: int) -> Reader:
    """Two blocks with RoPE, for texts of so many characters at most; its step keeps keys and values."""
    config = LanguageModelConfig(VOCABULARY, longest, WIDTH, num_layers=2, position="rope", norm="rms_norm", options=RELU)
    params = init_language_model(rng, config, std=0.1)
    return Reader(params, lambda params, ids: language_model(params, ids=ids, config=config)[0], partial(language_model_step, config=config))


def recurrent_reader(rng: np.random.Generator) -> Reader:
    """One GRU between norms, in a residual stream; its table is its head as well."""
    table = (0.1 * rng.standard_normal((VOCABULARY, WIDTH))).astype(np.float32)
    cell, down = init_gru(rng, WIDTH, HIDDEN), init_linear(rng, HIDDEN, WIDTH)
    params = table, init_rms_norm(rng, WIDTH), cell, down, init_rms_norm(rng, WIDTH)

    def step(params: tuple, ids: Array, state: Array | None) -> tuple[Array, Array]:
        table, norm, cell, down, last = params
        hidden = table[ids]
        (out, state), _ = gru(cell, rms_norm(norm, hidden)[0], state)
        return rms_norm(last, hidden + linear(down, out)[0])[0] @ table.T, state

    return Reader(params, lambda params, ids: step(params, ids, None)[0], step)
