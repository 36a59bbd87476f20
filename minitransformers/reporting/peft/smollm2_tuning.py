"""SmolLM2-135M learns from a text: all weights, LoRA beside queries and values, or a prefix in every layer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import Backward, reparameterize, trees
from minitransformers.models.llama import NAMES, Llama, llama, llama_block
from minitransformers.models.tokenizers.byte_pair_encoding import byte_pair_encode
from minitransformers.norms.rms_norm import rms_norm
from minitransformers.peft.adapter_files import save_adapter
from minitransformers.peft.frozen_stack import frozen_stack
from minitransformers.peft.lora import lora
from minitransformers.peft.lora_linear import init_lora, lora_scale
from minitransformers.peft.prefix_attention import Prefix, prefix_attention
from minitransformers.peft.targets import at_targets
from minitransformers.reporting.measures import bits
from minitransformers.training.schedule import warmup_cosine
from minitransformers.training.task import Labelled, on_ids
from minitransformers.training.update import Learner

RANK, ALPHA, PREFIX, LENGTH = 8, 16, 16, 128
FULL, LORA, AHEAD = "all weights", "LoRA", "a prefix"


# The text, and the model around its blocks
def texts(vocabulary: Any) -> list[Array]:
    """Tokens to learn from, and those of the last tenth."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    cut = len(text) * 9 // 10
    return [byte_pair_encode(part, vocabulary=vocabulary) for part in (text[:cut], text[cut:])]


def frozen_ends(base: Llama, stack: Callable, settings: dict[str, Any]) -> Callable:
    """``run(trained, ids) -> logits, backward``: frozen words, ``stack(trained, x)``, a frozen norm and head, which get no gradient."""
    table = base.embedding.weight

    def run(trained: Any, ids: Array) -> tuple[Array, Backward]:
        x, stack_backward = stack(trained, table[ids])
        hidden, norm_backward = rms_norm(base.norm, x, eps=settings.get("eps", 1e-5))
        return hidden @ table.T, lambda dlogits: stack_backward(norm_backward(dlogits @ table)[1])[0]

    return run


# Three ways to learn: what is trained, and the model that it makes
def all_weights(rng: np.random.Generator, base: Llama, settings: dict[str, Any]) -> tuple[Any, Callable]:
    """Everything."""
    return base, on_ids(partial(llama, **settings))


def low_rank(rng: np.random.Generator, base: Llama, settings: dict[str, Any]) -> tuple[Any, Callable]:
    """Thin matrices beside queries and values, block by block."""
    trained = at_targets(lambda weight: init_lora(rng, *weight.shape, rank=RANK), base.blocks, ["query.weight", "value.weight"])
    adapt = partial(reparameterize, change=partial(lora, scale=lora_scale(ALPHA, RANK)))
    return trained, frozen_ends(base, partial(frozen_stack, base=base.blocks, block=partial(llama_block, **settings), adapt=adapt), settings)


def prefixed(rng: np.random.Generator, base: Llama, settings: dict[str, Any]) -> tuple[Any, Callable]:
    """Keys and values in front of every layer's, block by block."""
    d_head = base.embedding.weight.shape[1] // settings["num_heads"]
    shape = (2, base.blocks[0].attention.key.weight.shape[1] // d_head, PREFIX, d_head)
    trained = [Prefix(*(0.02 * rng.standard_normal(shape)).astype(np.float32)) for _ in base.blocks]

    def adapt(own: Any, *, base: Any) -> tuple[Any, Backward]:
        return base._replace(attention=base.attention._replace(core=own)), lambda dblock: dblock.attention.core

    block = partial(llama_block, core=prefix_attention, **settings)
    return trained, frozen_ends(base, partial(frozen_stack, base=base.blocks, block=block, adapt=adapt), settings)


WAYS: dict[str, Callable] = {FULL: all_weights, LORA: low_rank, AHEAD: prefixed}


# Learning
def learned(name: str, base: Llama, settings: dict[str, Any], text: Array, rng: np.random.Generator, *, steps: int, peak: float) -> tuple[Any, Callable, float]:
    """What is trained after some updates, its model, and seconds an update."""
    params, run = WAYS[name](rng, base, settings)

    def draw(rng: np.random.Generator) -> tuple[Array, Array]:
        start = rng.integers(len(text) - LENGTH)
        return text[None, start : start + LENGTH], text[None, start + 1 : start + LENGTH + 1]

    task, learner, started = Labelled(run, draw), Learner(params), time.process_time()
    for step in range(1, steps + 1):
        rate = warmup_cosine(step, peak=peak, steps=steps, warmup=2)
        learner.update(task, batch=task.batch(rng), rng=rng, learning_rate=rate, clip=1.0)
    return learner.params.tree, run, (time.process_time() - started) / steps


def bits_of(params: Any, run: Callable, text: Array) -> float:
    """Bits a token, of the second half of each window of 256."""
    found = []
    for start in range(0, len(text) - 256, 256):
        window = text[None, start : start + 257]
        log_p, _ = log_softmax(run(params, window[:, :-1])[0][0, 128:])
        found.append(-log_p[np.arange(128), window[0, 129:]].mean())
    return bits(np.mean(found))


def bytes_of_file(base: Llama, blocks: list[Any]) -> int:
    """Of the adapter as peft reads it."""
    empty = trees.partition(base, lambda path, leaf: False)[0]
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(folder, empty._replace(blocks=blocks), names=NAMES, alpha=ALPHA, base_model="HuggingFaceTB/SmolLM2-135M")
        return sum(path.stat().st_size for path in Path(folder).iterdir())
