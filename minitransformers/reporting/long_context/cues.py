"""A cue that is shown once, and asked for at the end of later segments: the texts, a reader with a memory, and what it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.linear import init_linear, linear
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.reporting.long_context.memories import init_stack, steps, through
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Loss, Task

SEGMENTS, LENGTH, CUES, NOISE, WIDTH, ROWS, RATE, BATCH = 6, 8, 8, 8, 32, 16, 4, 64
ASK = CUES + NOISE
STEP = steps(length=LENGTH, rows=ROWS, rate=RATE)


def draw_cues(rng: np.random.Generator, *, texts: int = BATCH, last: bool = False) -> tuple[Array, Array]:
    """Ids (texts, segments, tokens), and what is to be said at the end of each segment; last: of the last alone."""
    ids = rng.integers(CUES, CUES + NOISE, size=(texts, SEGMENTS, LENGTH))
    cue = rng.integers(CUES, size=texts)
    ids[np.arange(texts), 0, rng.integers(LENGTH, size=texts)] = cue
    asks = np.arange(SEGMENTS) >= (SEGMENTS - 1 if last else 1)
    ids[:, asks, -1] = ASK
    return ids, np.where(asks, cue[:, None], IGNORED)


def _reader(params: Any, ids: Array, name: str) -> tuple[Array, Any, Callable]:
    """Logits (texts, segments, ids), what squeezing adds to the loss, and backward: (dlogits, dadded) -> the gradient of params."""
    words, stack, norm, head = params
    x, words_backward = embedding(words, ids=ids)
    (outs, added), stack_backward = through(stack, x, step=STEP[name], rate=RATE)
    normed, norm_backward = layer_norm(norm, outs[:, :, -1])  # what stands at the end of each segment is asked
    logits, head_backward = linear(head, normed)

    def backward(dlogits, dadded):
        dhead, dnormed = head_backward(dlogits)
        dnorm, dends = norm_backward(dnormed)
        douts = np.zeros_like(outs)
        douts[:, :, -1] = dends
        dstack, dx = stack_backward((douts, dadded))
        return words_backward(dx), dstack, dnorm, dhead

    return logits, added, backward


class _Remembering(Task):
    """Saying the cue wherever it is asked for."""

    def __init__(self, name: str, last: bool) -> None:
        self.name, self.last = name, last

    def batch(self, rng: np.random.Generator) -> tuple[Array, Array]:
        return draw_cues(rng, last=self.last)

    def loss(self, params: Any, batch: Any, *, rng: np.random.Generator) -> Loss:
        ids, targets = batch
        logits, added, backward = _reader(params, ids, self.name)
        total, loss_backward = cross_entropy(logits, targets=targets, reduction="sum")
        count = int((targets != IGNORED).sum())
        return (total + count * added, count), lambda dloss: backward(loss_backward(dloss[0]), dloss[0] * count)


def remembering(name: str, rng: np.random.Generator, *, rate: float, steps: int, last: bool = False) -> Any:
    """Parameters after so many updates of a model of one layer with that kind of memory."""
    params = init_embedding(rng, ASK + 1, WIDTH, std=0.5), init_stack(name, rng, WIDTH, rate=RATE), init_layer_norm(rng, WIDTH), init_linear(rng, WIDTH, ASK + 1)
    return fit(params, _Remembering(name, last), steps=steps, peak=rate, rng=rng, warmup=0.1, floor=0.05)


def remembered(params: Any, name: str, rng: np.random.Generator, *, texts: int, last: bool = False) -> tuple[dict[int, float], float]:
    """The share of right answers by segments since the cue, and the mean loss in nats."""
    ids, targets = draw_cues(rng, texts=texts, last=last)
    logits, _, _ = _reader(params, ids, name)
    asks = targets[0] != IGNORED
    right = (logits[..., :CUES].argmax(axis=-1) == targets)[:, asks].mean(axis=0)
    return dict(zip(np.flatnonzero(asks).tolist(), right.tolist(), strict=True)), float(cross_entropy(logits, targets=targets)[0])
