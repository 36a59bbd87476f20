"""A language that shifts, and a small model that knows it as it was: what ways of fine-tuning are compared on.

Symbols follow one another by a table of the two before them, so the best that a model can do is known exactly, and what it loses
beside that is an exact Kullback-Leibler divergence: 0 for a model that knows the table. A shift adds a low-rank change to the table.
A second model knows four languages, each announced by a word of its own in front: what can be asked of a model that has it already.
``python -m minitransformers.reporting.adaptation`` trains both, and writes adaptation.safetensors and announced.safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import multi_head_attention
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import Backward, reparameterize, trees
from minitransformers.foundation.safetensors import read_safetensors, write_safetensors
from minitransformers.models.gpt2 import Gpt2Block, gpt2_block, init_gpt2
from minitransformers.norms.layer_norm import LayerNorm, layer_norm
from minitransformers.peft.adapted import Adapted, adapted
from minitransformers.peft.bottleneck_adapter import bottleneck_adapter
from minitransformers.positional.learned import Learned, learned
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled

KNOWN, ANNOUNCED = (Path(__file__).with_name(f"{name}.safetensors") for name in ("adaptation", "announced"))
SYMBOLS, LENGTH, WIDTH, HEADS, LAYERS, HIDDEN = 16, 16, 32, 4, 2, 64
CONTEXT = 2 * LENGTH                                         # the model has read longer texts: a prompt has room before one
STEPS, BATCH, PEAK = 2000, 64, 3e-3
TASKS, ANNOUNCED_STEPS = 4, 3000
_LANGUAGE = 20                                               # the seed of the table as it was


class Language(NamedTuple):
    """Logits of the next symbol by the last one and by the one before it; they add."""

    last: Array
    before: Array

    @property
    def probabilities(self) -> Array:
        """Of each symbol (last axis) after each two."""
        return np.exp(log_softmax(self.before[:, None] + self.last)[0])


def language() -> Language:
    """The language that the model of adaptation.safetensors knows."""
    rng = np.random.default_rng(_LANGUAGE)
    return Language(*rng.normal(0, 1.2, size=(2, SYMBOLS, SYMBOLS)))


def languages() -> list[Language]:
    """The languages that the model of announced.safetensors knows; the word SYMBOLS + task announces each."""
    rng = np.random.default_rng(_LANGUAGE + 2)
    return [Language(*rng.normal(0, 1.2, size=(2, SYMBOLS, SYMBOLS))) for _ in range(TASKS)]


def shifted(known: Language, rng: np.random.Generator, *, size: float = 0.7, rank: int = 2) -> Language:
    """The same with a change of this rank in each table; size is the deviation of the product of two of its factors' numbers."""
    changes = [rng.normal(size=(SYMBOLS, rank)) @ rng.normal(size=(rank, SYMBOLS)) for _ in known]
    return Language(*(table + size * change for table, change in zip(known, changes, strict=True)))


def written(of: Language, rng: np.random.Generator, count: int, *, length: int = LENGTH) -> Array:
    """So many texts of the language, (count, length + 1); the first two symbols of each are any."""
    steps = np.cumsum(of.probabilities, axis=-1)
    ids = rng.integers(SYMBOLS, size=(count, length + 1))
    for i in range(2, length + 1):
        reached = steps[ids[:, i - 2], ids[:, i - 1]] < rng.random((count, 1))
        ids[:, i] = np.minimum(reached.sum(axis=-1), SYMBOLS - 1)
    return ids


def draw(of: Language, rng: np.random.Generator, *, count: int = 32, length: int = LENGTH) -> tuple[Array, Array]:
    """A batch to learn from: ids, and what follows each, where two symbols say what may."""
    ids = written(of, rng, count, length=length)
    targets = ids[:, 1:].copy()
    targets[:, 0] = IGNORED
    return ids[:, :-1], targets


def draw_announced(of: list[Language], rng: np.random.Generator, *, count: int = BATCH) -> tuple[Array, Array]:
    """A batch of texts of any of these languages, each behind the word that announces it."""
    tasks, length = rng.integers(len(of), size=count), CONTEXT - 1
    ids, targets = np.empty((count, length), int), np.empty((count, length), int)
    for task, own in enumerate(of):
        here = tasks == task
        ids[here], targets[here] = draw(own, rng, count=int(here.sum()), length=length)
    front = np.full((count, 1), IGNORED)
    return np.concatenate([SYMBOLS + tasks[:, None], ids], axis=1), np.concatenate([front, targets], axis=1)


def excess(logits: Array, ids: Array, of: Language) -> float:
    """Nats a symbol by which predictions after ids are worse than the language's own probabilities: exact, and never below 0."""
    wanted = of.probabilities[ids[:, :-1], ids[:, 1:]]
    got, _ = log_softmax(logits[:, 1:].astype(np.float64))
    return float((wanted * (np.log(wanted) - got)).sum(axis=-1).mean())


class Reader(NamedTuple):
    """Words, places, blocks of GPT-2, a norm, and a head of its own."""

    embedding: Embedding
    positions: Learned
    blocks: list[Gpt2Block]
    norm: LayerNorm
    head: Linear


def init_reader(rng: np.random.Generator, *, words: int = SYMBOLS, dtype: type = np.float32) -> Reader:
    """Its sizes are this file's: 19,216 numbers. words beside the symbols are read and never written."""
    made = init_gpt2(rng, vocabulary=words, context=CONTEXT, d_model=WIDTH, num_layers=LAYERS, num_heads=HEADS, std=0.1, dtype=dtype)
    blocks = [block._replace(feed_forward=init_feed_forward(rng, WIDTH, d_hidden=HIDDEN, std=0.1, dtype=dtype)) for block in made.blocks]
    return Reader(init_embedding(rng, words, WIDTH, std=0.5, dtype=dtype), made.positions, blocks, made.norm, init_linear(rng, WIDTH, SYMBOLS, dtype=dtype))


def reader(
    params: Reader, ids: Array, *, attention: Callable = multi_head_attention, feed_forward: Callable = feed_forward, **settings: Any
) -> tuple[Array, Backward]:
    """Logits of the next symbol, and backward: dlogits -> Reader of gradients. attention, feed_forward and core are slots of every block."""
    words, words_backward = embedding(params.embedding, ids=ids)
    x, places_backward = learned(params.positions, words)
    backwards = []
    for block in params.blocks:
        x, back = gpt2_block(block, x, num_heads=HEADS, attention=attention, feed_forward=feed_forward, **settings)
        backwards.append(back)
    normed, norm_backward = layer_norm(params.norm, x)
    logits, head_backward = linear(params.head, normed)

    def backward(dlogits):
        dhead, dnormed = head_backward(dlogits)
        dnorm, dx = norm_backward(dnormed)
        dblocks = []
        for back in reversed(backwards):
            dblock, dx = back(dx)
            dblocks.append(dblock)
        dplaces, dwords = places_backward(dx)
        return Reader(words_backward(dwords), dplaces, dblocks[::-1], dnorm, dhead)

    return logits, backward


def reader_between(
    base: Reader, adapters: Sequence[Sequence[Any]], ids: Array, *, adapter: Callable = bottleneck_adapter
) -> tuple[Array, Backward]:
    """The reader with an adapter behind attention and one behind the feed-forward network of each block, which stands still.

    Returns logits, and backward: dlogits -> the gradients of adapters, two for each block.
    """
    blocks = [block._replace(attention=Adapted(block.attention, first), feed_forward=Adapted(block.feed_forward, second))
              for block, (first, second) in zip(base.blocks, adapters, strict=True)]  # fmt: skip
    slots = {name: partial(adapted, part=part, adapter=adapter) for name, part in (("attention", multi_head_attention), ("feed_forward", feed_forward))}
    logits, backward = reader(base._replace(blocks=blocks), ids, **slots)
    return logits, lambda dlogits: [(block.attention.adapter, block.feed_forward.adapter) for block in backward(dlogits).blocks]


def load_reader() -> Reader:
    """The model that knows the language as it was, in float32."""
    return trees.from_paths(init_reader(np.random.default_rng(0)), read_safetensors(KNOWN)[0])


def load_announced() -> Reader:
    """The model that knows four languages, in float32."""
    return trees.from_paths(init_reader(np.random.default_rng(0), words=SYMBOLS + TASKS), read_safetensors(ANNOUNCED)[0])


def reader_of(base: Reader, change: Callable | None = None) -> Callable:
    """``run(trained, ids)``: the reader with weights that ``change`` makes of what is trained, or with what is trained in their place."""

    def run(trained: trees.Tree, ids: Array) -> tuple[Array, Backward]:
        tree, back = reparameterize(trained, base=base, change=change)
        logits, backward = reader(tree, ids)
        return logits, lambda dlogits: back(backward(dlogits))

    return run


def fine_tuned(
    params: trees.Tree, run: Callable, of: Language, rng: np.random.Generator, *, steps: int, peak: float, count: int = 32, length: int = LENGTH
) -> trees.Tree:
    """What is trained, after so many updates on fresh texts of a language: ``run(params, ids) -> logits, backward`` is the model."""
    return fit(params, Labelled(run, partial(draw, of, count=count, length=length)), steps=steps, peak=peak, rng=rng)


def own_reader(rng: np.random.Generator, *, steps: int | None) -> tuple[Language, Reader]:
    """A language that is drawn, and a reader that has learned it in so many updates; None: those that are kept."""
    if steps is None:
        return language(), load_reader()
    own = Language(*rng.normal(0, 1.2, size=(2, SYMBOLS, SYMBOLS)))
    return own, fine_tuned(init_reader(rng), reader, own, rng, steps=steps, peak=PEAK, count=BATCH, length=CONTEXT)


def left(params: trees.Tree, run: Callable, of: Language, *, count: int = 512) -> float:
    """The excess of a model on texts that it has not learned from, the same for all that are compared."""
    ids = written(of, np.random.default_rng(_LANGUAGE + 1), count)[:, :-1]
    return excess(run(params, ids)[0], ids, of)


def main() -> None:
    """Train both readers and write them."""
    rng, known = np.random.default_rng(0), language()
    params = fine_tuned(init_reader(rng), reader, known, rng, steps=STEPS, peak=PEAK, count=BATCH, length=CONTEXT)
    _write(KNOWN, params, left(params, reader, known))
    rng, several = np.random.default_rng(1), languages()
    task = Labelled(reader, partial(draw_announced, several))
    params = fit(init_reader(rng, words=SYMBOLS + TASKS), task, steps=ANNOUNCED_STEPS, peak=PEAK, rng=rng)
    _write(ANNOUNCED, params, float(np.mean([left(params, partial(behind, task), of) for task, of in enumerate(several)])))


def behind(task: int, params: Reader, ids: Array) -> tuple[Array, Backward]:
    """The reader's logits of texts that are announced as those of a task."""
    logits, backward = reader(params, np.concatenate([np.full((len(ids), 1), SYMBOLS + task), ids], axis=1))
    return logits[:, 1:], lambda dlogits: backward(np.concatenate([np.zeros_like(logits[:, :1]), dlogits], axis=1))


def _write(path: Path, params: Reader, lost: float) -> None:
    write_safetensors(path, dict(trees.leaves(params)), metadata={"excess nats": f"{lost:.4f}"})
    print(f"{path.name}: {trees.count_parameters(params):,} numbers, {lost:.4f} nats more than the language has, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
