"""A text as streams that are read side by side, segment after segment, by a Transformer-XL that remembers what it has read, or does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.linear import init_linear, linear
from minitransformers.long_context.transformer_xl import XlMemory, init_transformer_xl, transformer_xl
from minitransformers.long_context.transformer_xl_layer import transformer_xl_pre_norm_layer
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.reporting.measures import bits
from minitransformers.training.task import Loss, Task

STREAMS, LENGTH, WIDTH, HEADS, LAYERS = 16, 32, 64, 2, 2


def init_model(rng: np.random.Generator, vocabulary: int) -> tuple[Any, ...]:
    """Words, layers, a norm and a head."""
    words, stack = init_embedding(rng, vocabulary, WIDTH, std=0.5), init_transformer_xl(rng, WIDTH, num_layers=LAYERS, num_heads=HEADS)
    return words, stack, init_layer_norm(rng, WIDTH), init_linear(rng, WIDTH, vocabulary)


def segment_model(params: Any, ids: Array, memory: XlMemory | None, *, length: int | None) -> tuple[Array, XlMemory, Callable]:
    """Logits of a segment, the next memory, and backward. length is how many positions a memory holds; None: a token at a time, alone."""
    words, stack, norm, head = params
    x, words_backward = embedding(words, ids=ids)
    cut = x if length is not None else x.reshape(-1, 1, WIDTH)
    (out, memory), stack_backward = transformer_xl(
        stack, cut, memory=memory if length else None, memory_length=max(length or 1, 1), num_heads=HEADS, layer=transformer_xl_pre_norm_layer
    )
    normed, norm_backward = layer_norm(norm, out.reshape(x.shape))
    logits, head_backward = linear(head, normed)

    def backward(dlogits):
        dhead, dnormed = head_backward(dlogits)
        dnorm, dout = norm_backward(dnormed)
        dstack, dx = stack_backward((dout.reshape(out.shape), None))
        return words_backward(dx.reshape(x.shape)), dstack, dnorm, dhead

    return logits, memory, backward


class Streams(Task):
    """Saying the next character, each segment of a stream with the memory of the one before."""

    def __init__(self, ids: Array, length: int | None, rng: np.random.Generator) -> None:
        self.length, self.place = length, 0
        self.memory: XlMemory | None = None
        span = (len(ids) - 1) // STREAMS
        begins = rng.integers(len(ids) - 1) + span * np.arange(STREAMS)
        self.ids = np.take(ids, begins[:, None] + np.arange(span), mode="wrap")

    def batch(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """The next segment of every stream, and what follows each of its characters."""
        if self.place + LENGTH >= self.ids.shape[1]:
            self.place, self.memory = 0, None
        part = self.ids[:, self.place : self.place + LENGTH + 1]
        self.place += LENGTH
        return part[:, :-1], part[:, 1:]

    def loss(self, params: Any, batch: Any, *, rng: np.random.Generator) -> Loss:
        """In nats, over the characters of the segment."""
        ids, targets = batch
        logits, self.memory, backward = segment_model(params, ids, self.memory, length=self.length)
        total, loss_backward = cross_entropy(logits, targets=targets, reduction="sum")
        return (total, targets.size), lambda dloss: backward(loss_backward(dloss[0]))


def bits_in_streams(params: Any, text: Array, length: int | None, *, segments: int | None = None) -> float:
    """Bits a character of the text in streams, of all or of so many segments, each with a memory of so many positions before it."""
    ids = text[: len(text) // STREAMS * STREAMS].reshape(STREAMS, -1)
    memory, nats, count = None, 0.0, 0
    for start in range(0, ids.shape[1] if segments is None else segments * LENGTH, LENGTH):
        part = ids[:, start : start + LENGTH + 1]
        if part.shape[1] < 2:
            break
        logits, memory, _ = segment_model(params, part[:, :-1], memory, length=length)
        nats, count = nats + float(cross_entropy(logits, targets=part[:, 1:], reduction="sum")[0]), count + part[:, 1:].size
    return bits(nats / count)
