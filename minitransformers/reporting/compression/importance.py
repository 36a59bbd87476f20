"""How much each head and each hidden unit of a reader matters, by the scores that papers choose by."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.core import causal_attention
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.feed_forward import feed_forward
from minitransformers.basics.gelu import gelu
from minitransformers.compression.gated_heads import HeadGates, gated_heads
from minitransformers.compression.gated_neurons import NeuronGates, gated_neurons
from minitransformers.compression.head_pruning import head_importance
from minitransformers.foundation import slot
from minitransformers.reporting import adaptation as at

SLOPE, SUMMED, SIZE, REVERSE = "slope", "slope of the whole batch", "size of weights", "slope, reversed"
LAYERED, LEFT_OUT = "slope, a norm a layer", "loss without it"  # of heads alone
BUSY, LOT = "spread of activation and size", "by lot"        # of units alone


def head_scores(model: at.Reader, ids: Array, targets: Array) -> dict[str, Array]:
    """By name, how much each head matters, (layers, heads)."""
    ones = np.ones((at.LAYERS, len(ids), at.HEADS), np.float32)
    losses, slopes = with_gated_heads(model, ones, ids, targets)
    found = {SLOPE: head_importance(slopes), LAYERED: head_importance(slopes, per_layer=True), SUMMED: np.abs(slopes.mean(axis=0))}
    found[SIZE] = np.stack([head_sizes(block.attention) for block in model.blocks])
    found[LEFT_OUT] = np.zeros((at.LAYERS, at.HEADS))
    for place in np.ndindex(at.LAYERS, at.HEADS):
        without = ones.copy()
        without[place[0], :, place[1]] = 0
        found[LEFT_OUT][place] = with_gated_heads(model, without, ids, targets)[0].mean() - losses.mean()
    return {**found, REVERSE: -found[SLOPE]}


def with_gated_heads(model: at.Reader, gates: Array, ids: Array, targets: Array) -> tuple[Array, Array]:
    """The loss of each text with these gates (layers, texts, heads), and its slopes by them (texts, layers, heads)."""
    blocks = [block._replace(attention=block.attention._replace(core=HeadGates(own, None))) for block, own in zip(model.blocks, gates, strict=True)]
    logits, backward = at.reader(model._replace(blocks=blocks), ids, core=partial(gated_heads, core=causal_attention))
    losses, loss_backward = cross_entropy(logits, targets=targets, reduction="none")
    slopes = backward(loss_backward(np.ones_like(losses))).blocks
    return losses, np.stack([block.attention.core.gates for block in slopes], axis=1)


def head_sizes(attention: Any) -> Array:
    """The norm of all numbers that a head has to itself."""
    columns = [part.weight.reshape(at.WIDTH, at.HEADS, -1) for part in attention[:3]]
    rows = attention.output.weight.reshape(at.HEADS, -1, at.WIDTH).swapaxes(0, 1)
    return np.sqrt(sum(np.square(part).sum(axis=(0, 2)) for part in [*columns, rows]))


def unit_scores(model: at.Reader, ids: Array, targets: Array, rng: np.random.Generator) -> dict[str, Array]:
    """By name, how much each hidden unit matters, (layers, units)."""
    ones = np.ones((len(ids), 1, at.HIDDEN), np.float32)
    blocks = [block._replace(feed_forward=block.feed_forward._replace(activation=NeuronGates(ones))) for block in model.blocks]
    active = []

    def watched(params: NeuronGates, hidden: Array) -> Any:
        """The gated activation, and a note of what the units do."""
        active.append(gelu(hidden)[0].reshape(-1, at.HIDDEN))
        return gated_neurons(params, hidden, activation=slot(gelu))

    logits, backward = at.reader(model._replace(blocks=blocks), ids, feed_forward=partial(feed_forward, activation=watched))
    losses, loss_backward = cross_entropy(logits, targets=targets, reduction="none")
    slopes = np.stack([block.feed_forward.activation.gates[:, 0] for block in backward(loss_backward(np.ones_like(losses))).blocks])
    up, down = (np.stack([getattr(block.feed_forward, part).weight for block in model.blocks]) for part in ("up", "down"))
    reads, writes = np.linalg.norm(up, axis=1), np.linalg.norm(down, axis=2)
    found = {SLOPE: np.abs(slopes).mean(axis=1), SUMMED: np.abs(slopes.mean(axis=1)), SIZE: reads * writes, LOT: rng.random(reads.shape)}
    return {**found, BUSY: np.stack([part.std(axis=0) for part in active]) * writes, REVERSE: -found[SLOPE]}
