"""The base without the parts that matter least, in smaller arrays for the same code; and a student that is smaller from the start."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.core import causal_attention
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.compression.gated_heads import HeadGates, gated_heads
from minitransformers.compression.head_pruning import head_importance, without_heads
from minitransformers.compression.layer_pruning import without_layers
from minitransformers.compression.neuron_pruning import neuron_importance, without_neurons
from minitransformers.models.llama import Llama, init_llama, llama
from minitransformers.reporting.base import LENGTH, SETTINGS, SIZES, load_base
from minitransformers.reporting.compression.smaller import corpora


def slopes(base: Llama, rng: np.random.Generator) -> Llama:
    """The slopes of the loss of 64 texts by all numbers, and by a gate of 1 at each head, for each text: core.gates of each attention."""
    ids, answers = corpora()[True].batch(rng, batch_size=64, context=LENGTH)
    gates = HeadGates(np.ones((len(ids), SIZES["num_heads"]), np.float32))
    gated = base._replace(blocks=[block._replace(attention=block.attention._replace(core=gates)) for block in base.blocks])
    logits, backward = llama(gated, ids=ids, core=partial(gated_heads, core=causal_attention), **SETTINGS)
    return backward(cross_entropy(logits, targets=answers)[1](np.float32(1.0)))


def better_half(scores: Array) -> list[int]:
    """The places of the larger half of scores."""
    return [int(place) for place in np.argsort(-scores, kind="stable")[: len(scores) // 2]]


def fewer_units(rng: np.random.Generator) -> Llama:
    """Without the half of each layer's hidden units by whose gates the loss changes least."""
    base, blocks = load_base(), []
    for block, own in zip(base.blocks, slopes(base, rng).blocks, strict=True):
        kept = better_half(neuron_importance(block.feed_forward, own.feed_forward))
        blocks.append(block._replace(feed_forward=without_neurons(block.feed_forward, kept=kept)))
    return base._replace(blocks=blocks)


def fewer_heads(rng: np.random.Generator) -> Llama:
    """Without the half of each layer's heads by whose gates the loss of a text changes least."""
    base, blocks = load_base(), []
    for block, own in zip(base.blocks, slopes(base, rng).blocks, strict=True):
        kept = better_half(head_importance(own.attention.core.gates))
        blocks.append(block._replace(attention=without_heads(block.attention, kept=kept, num_heads=SIZES["num_heads"])))
    return base._replace(blocks=blocks)


def fewer_layers(rng: np.random.Generator) -> Llama:
    """Without the middle of three layers."""
    base = load_base()
    return base._replace(blocks=without_layers(base.blocks, kept=[0, 2]))


def student(rng: np.random.Generator) -> Llama:
    """A model of half the base's width that has learned nothing yet."""
    halves = {name: SIZES[name] // 2 for name in ("d_model", "num_heads", "num_kv_heads", "d_hidden")}
    return init_llama(rng, **{**SIZES, **halves}, std=0.1)
