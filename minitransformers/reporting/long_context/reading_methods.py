"""Every way of this library to read a text that is too long, of one layer each, as readers of one question about the same segments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minitransformers.basics.embedding import init_embedding
from minitransformers.basics.linear import init_linear, linear
from minitransformers.foundation import slot, trees
from minitransformers.long_context.attention_with_memory import attention_with_memory
from minitransformers.long_context.cross_segment import cross_segment
from minitransformers.long_context.mean_pooling import max_pooling, mean_pooling
from minitransformers.long_context.segment_reordering import count_orders
from minitransformers.long_context.transformer_xl_layer import transformer_xl_pre_norm_layer
from minitransformers.long_context.truncation import keep_head, keep_head_and_tail, keep_tail
from minitransformers.long_context.two_sided_relative import two_sided_relative
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.reporting.long_context.memories import (
    NOTHING,
    SAME_LAYER,
    SQUEEZED,
    WRITTEN,
    XL,
    init_stack,
    last_segment,
    last_segment_read_twice,
    steps,
)
from minitransformers.reporting.long_context.reading_tasks import Reordering, Retrieving, said
from minitransformers.reporting.long_context.segment_readers import (
    Reader,
    attentive,
    block,
    chunks,
    each_token,
    first,
    found,
    init_block,
    kept,
    parts,
    whole,
)
from minitransformers.reporting.long_context.structured_readers import first_tokens, levels, linked, related
from minitransformers.reporting.networks import network
from minitransformers.training.fit import fit
from minitransformers.training.task import Labelled


def read_at_once(*, segments: int, length: int, seen: int, marks: int) -> dict[str, tuple[str, Reader]]:
    """Of each by a key its name and the reader; those that see a part see so many segments, and marks are what BM25 looks for."""
    text, room = segments * length, seen * length
    units = np.repeat([np.arange(segments) // 4, np.arange(segments) // 2, np.arange(segments)], length, axis=1)
    return {
        "all": ("all at once", whole(text)),
        "deleted": ("all at once, attention deleted", each_token(text)),
        "head": ("the first segments", whole(room, sees=kept(keep_head, room=room))),
        "tail": ("the last segments", whole(room, sees=kept(keep_tail, room=room))),
        "ends": ("the first segment and the last", whole(room, sees=kept(keep_head_and_tail, room=room, head=length))),
        "mean": ("chunks, mean", chunks(room, overlap=length, pool=slot(mean_pooling))),
        "max": ("chunks, maximum", chunks(room, overlap=length, pool=slot(max_pooling))),
        "attentive": ("chunks, attentive pooling", chunks(room, overlap=length, **attentive)),
        "bm25": ("BM25, then read", whole(2 * length, sees=found(np.arange(marks), count=2))),
        "answers": ("retrieve, then read each", Reader(lambda rng, width: [init_block(rng, width), None], parts(block, first))),
        "levels": ("words, sentences, document", levels(segments)),
        "hat": ("HAT", first_tokens(segments, length)),
        "cross": ("summaries of segments", whole(text, core=partial(cross_segment, length=length))),
        "discourse": ("discourse bias, no positions", related(units)),
        "near": ("a graph, edges to neighbours", linked(segments, reach=1)),
        "graph": ("a graph, edges to all", linked(segments, reach=segments)),
    }


def memory_steps(length: int, *, rows: int) -> dict[str, Callable]:
    """``memories.steps`` of layers that look both ways, where a segment is squeezed into one row."""
    attention = partial(attention_with_memory, core=two_sided_relative)
    return steps(length=length, rows=rows, rate=length, layer=partial(transformer_xl_pre_norm_layer, attention=attention))


def read_with_memory(*, length: int, rows: int) -> dict[str, tuple[str, Reader]]:
    """The same of readers that go through the text segment by segment, with so many rows of memory."""
    step = memory_steps(length, rows=rows)

    def reader(name: str, read: Callable = partial(last_segment, rate=length)) -> Reader:
        return Reader(lambda rng, width: [init_stack(name, rng, width, rate=length), None], parts(read(step[name]), first))

    return {
        **{key: (name, reader(name)) for key, name in {"nothing": NOTHING, "xl": XL, "squeezed": SQUEEZED, "written": WRITTEN, "same": SAME_LAYER}.items()},
        "twice": (f"{SAME_LAYER}, read twice", reader(SAME_LAYER, last_segment_read_twice)),
        "order": (f"{SAME_LAYER}, and the order of parts", reader(SAME_LAYER)),
    }


def taught(
    key: str, reader: Reader, rng: np.random.Generator, *, draw: Callable, marks: int, tokens: int, width: int, length: int, rows: int, max_parts: int, **settings: Any
) -> tuple[Callable, int]:  # fmt: skip
    """``logits_of(ids)`` of a reader after fit with these settings, and how many parameters it has. draw(rng) gives ids and answers."""
    wide, answers = reader.wide * width, marks + (key == "answers")
    words, own = init_embedding(rng, tokens, width, std=0.5), reader.init(rng, width)
    params: Any = words, own, init_layer_norm(rng, wide), init_linear(rng, wide, answers)
    count, net = trees.count_parameters(params), network(reader.body, layer_norm, linear)

    def model(params, ids):
        return net(params, ids if reader.sees is None else reader.sees(ids))

    if key == "order":
        reads = network(last_segment(memory_steps(length, rows=rows)[SAME_LAYER], rate=length))
        task: Labelled = Reordering(reads, parts(first, layer_norm, linear), draw, max_chunks=max_parts)
        split = (words, own[0]), (None, *params[2:]), init_linear(rng, width, count_orders(max_parts))
        (words, stack), (_, *last), _ = fit(split, task, rng=rng, **settings)
        params = words, [stack, None], *last
    else:
        task = (Retrieving if key == "answers" else Labelled)(model, draw)
        params = fit(params, task, rng=rng, **settings)
    return lambda ids: (said if key == "answers" else np.asarray)(model(params, ids)[0]), count
