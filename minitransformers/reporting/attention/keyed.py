"""One layer of attention that names the value beside a key: it learns in short texts, and is asked in long ones.

Every token stores a key and a value, and asks for the key of one that it may see (``needles.keys_and_values``). In the test the last token asks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.basics.chain import chain
from minitransformers.basics.linear import init_linear, linear
from minitransformers.training.needles import keys_and_values
from minitransformers.training.task import on_arrays

KEY, VALUES, HEADS = 32, 8, 2
draw = partial(keys_and_values, d_key=KEY, num_values=VALUES)


def init_keyed(rng: np.random.Generator) -> tuple[Any, Any]:
    """Parameters of attention, and of the head that names the value."""
    width = 2 * KEY + VALUES
    return init_multi_head_attention(rng, width, num_heads=HEADS, bias=False), init_linear(rng, width, VALUES)


def keyed(core: Callable) -> Callable:
    """``model(params, tokens) -> logits, backward`` with this core."""
    return on_arrays(partial(chain, parts=(partial(multi_head_attention, num_heads=HEADS, core=core), linear)))


def asked_at(core: Callable, params: tuple[Any, Any], length: int, rng: np.random.Generator, *, questions: int, wrong: bool) -> dict[str, float]:
    """The share of right answers of the last token, and the weight on the key by the head that looks at it most.

    wrong: all tokens but the one asked for carry one and the same wrong value.
    """
    right: list[Array] = []
    weight: list[Array] = []
    at_once = max(1, 16_384 // length)
    for start in range(0, questions, at_once):
        tokens, answers, asked = draw(rng, batch_size=min(at_once, questions - start), length=length)
        answer, there = answers[:, -1], np.arange(length) == asked[:, -1:]
        if wrong:
            other = (answer + rng.integers(1, VALUES, size=len(answer))) % VALUES
            tokens[..., 2 * KEY :] = np.eye(VALUES, dtype=np.float32)[np.where(there, answer[:, None], other[:, None])]

        def last_query(learned, query, key, value, bias, *, mask, there=there):
            """The core for the question that is judged. One more value, a one at the key asked for, becomes its weight."""
            one = np.broadcast_to(there[:, None, :, None], (*value.shape[:-1], 1)).astype(value.dtype)
            out, _ = core(learned, query[..., -1:, :], key, np.concatenate([value, one], axis=-1))
            weight.append(out[:, :, 0, -1])
            return out[..., :-1], None

        right.append(keyed(last_query)(params, tokens)[0][:, 0].argmax(-1) == answer)
    return {"right": np.concatenate(right).mean(), "weight": np.concatenate(weight).mean(0).max()}
