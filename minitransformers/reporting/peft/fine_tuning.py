"""Ways to fine-tune the reader of ``adaptation``: what is trained, and the model that it makes, ``way(rng, base) -> trained, run``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import Backward, trees
from minitransformers.peft.bitfit import bitfit
from minitransformers.peft.bottleneck_adapter import init_bottleneck_adapter
from minitransformers.peft.compacter_adapter import compacter_adapter, init_compacter_adapter
from minitransformers.peft.dora import dora, init_dora
from minitransformers.peft.ia3 import init_ia3, with_ia3
from minitransformers.peft.lora import lora
from minitransformers.peft.lora_linear import init_lora
from minitransformers.peft.phm_linear import init_phm_rules
from minitransformers.peft.prefix_attention import prefix_attention
from minitransformers.peft.prefixes import init_prefixes, with_prefixes
from minitransformers.peft.prompt_tuning import init_prompt_tuning, prompted
from minitransformers.peft.targets import at_targets
from minitransformers.reporting import adaptation as at

QUERIES, EVERYWHERE = ["query.weight", "value.weight"], ["attention.*.weight", "feed_forward.*.weight"]
Trained = tuple[trees.Tree, Callable]


# Functions of weights: the model runs on a tree that is made of what is trained
def head_alone(rng: np.random.Generator, base: at.Reader) -> Trained:
    """The last map."""
    return trees.partition(base, lambda path, leaf: path.startswith("head."))[0], at.reader_of(base)


def all_weights(rng: np.random.Generator, base: at.Reader) -> Trained:
    """Everything."""
    return base, at.reader


def biases(rng: np.random.Generator, base: at.Reader) -> Trained:
    """BitFit."""
    return bitfit(base), at.reader_of(base)


def low_rank(rng: np.random.Generator, base: at.Reader, *, rank: int, patterns: Sequence[str] = EVERYWHERE, change: Callable = lora) -> Trained:
    """LoRA of a scale of 1, or its like under a mask."""
    trained = at_targets(lambda weight: init_lora(rng, *weight.shape, rank=rank), base, patterns)
    return trained, at.reader_of(base, partial(change, scale=1.0))


def lengths_apart(rng: np.random.Generator, base: at.Reader, *, rank: int) -> Trained:
    """DoRA."""
    return at_targets(lambda weight: init_dora(rng, weight, rank=rank), base, EVERYWHERE), at.reader_of(base, partial(dora, scale=1.0))


def stretched(rng: np.random.Generator, base: at.Reader) -> Trained:
    """(IA)³."""
    return init_ia3(base), _made_by(lambda trained: with_ia3(trained, base=base))


# Functions between functions: adapters stand in the slots of every block
def bottlenecks(rng: np.random.Generator, base: at.Reader, *, width: int) -> Trained:
    """Two adapters in each block."""
    trained = [tuple(init_bottleneck_adapter(rng, at.WIDTH, d_bottleneck=width, std=0.1, residual_std=0.0) for _ in range(2)) for _ in base.blocks]
    return trained, partial(at.reader_between, base)


def compacter(rng: np.random.Generator, base: at.Reader, *, width: int) -> Trained:
    """Two in each block whose maps share rules."""

    def apply(params: Any, x: Array) -> tuple[Array, Backward]:
        own, rules = params
        out, backward = compacter_adapter(own, rules, x)

        def pair(dout: Array) -> Any:
            dparams, drules, dx = backward(dout)
            return (dparams, drules), dx

        return out, pair

    def run(trained: Any, ids: Array) -> tuple[Array, Backward]:
        own, rules = trained
        logits, backward = at.reader_between(base, [[(one, rules) for one in pair] for pair in own], ids, adapter=apply)

        def shared(dlogits: Array) -> Any:                   # one array of rules for all: its gradients add
            found = backward(dlogits)
            return [tuple(down for down, _ in pair) for pair in found], sum(drules for pair in found for _, drules in pair)

        return logits, shared

    own = [tuple(init_compacter_adapter(rng, at.WIDTH, d_bottleneck=width, n=4, rank=1) for _ in range(2)) for _ in base.blocks]
    return (own, init_phm_rules(rng, 4)), run


# Words and keys that nobody wrote
def prefixes(rng: np.random.Generator, base: at.Reader, *, length: int) -> Trained:
    """Keys and values in front of each block's."""
    trained = init_prefixes(rng, num_layers=at.LAYERS, num_kv_heads=at.HEADS, length=length, d_head=at.WIDTH // at.HEADS, std=0.5)
    return trained, _made_by(lambda trained: with_prefixes(*trained, base=base), core=prefix_attention)


def prompt(rng: np.random.Generator, base: at.Reader, *, length: int) -> Trained:
    """Words in front of a text."""
    return init_prompt_tuning(rng, length, at.WIDTH), lambda prompt, ids: prompted(prompt, base=base, ids=ids, model=at.reader)


def _made_by(make: Callable, **settings: Any) -> Callable:
    """``run(trained, ids)``: the reader of the tree that ``make(trained) -> tree, backward`` gives."""

    def run(trained: trees.Tree, ids: Array) -> tuple[Array, Backward]:
        tree, back = make(trained)
        logits, backward = at.reader(tree, ids, **settings)
        return logits, lambda dlogits: back(backward(dlogits))

    return run
