"""Memory replay: the gradient through any number of segments, in the memory that one of them takes.

A step reads a segment and a memory and makes an output and the next memory. To go back through many steps one needs what each of
them kept, and that grows with the text. But everything that a step keeps follows from its segment, which the caller has, and from
the memory that it started with, which is small. So the way there keeps the memories alone. On the way back each step is made once
more, from its memory, and is undone at once. The gradients are those of back-propagation through time, bit by bit, for one more
forward pass.

Source: Wu et al. 2020 (Memformer), arXiv:2010.06891, section 3 and algorithm 1 (memory replay back-propagation). With a memory
kept for every segment it is the checkpointing of Chen et al. 2016, arXiv:1604.06174, cut where the memory is the only thing that
passes. S_t is the step on segment t, a star its backward, T the number of segments.

    out_t, memory_{t+1} = S_t(params, x_t, memory_t), of which memory_t is kept alone, t = 0 .. T - 1   (1)
    S_t once more, from memory_t, t = T - 1 .. 0             (2)
    dparams_t, dx_t, dmemory_t = S_t*(dout_t, dmemory_{t+1}) (3)
    dparams = sum over t of dparams_t                        (4)
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.dropout import dropout
from minitransformers.foundation import Backward, bad, concept, example, invalid, trees
from minitransformers.foundation.gradients import fresh
from minitransformers.long_context.memformer import init_memformer, memformer


@concept(
    title="Memory replay back-propagation",
    source="Wu et al. 2020 (Memformer), arXiv:2010.06891, algorithm 1",
    example=lambda rng: _example(rng),
    rejects=[
        bad(each=[{}]), bad("x", x=None, each=None), bad("x", x=None, each=[]), bad(each=[{"rng": np.random.default_rng(0)}] * 3), bad("slots", memory=np.ones((2, 4, 4))),
    ],
)  # fmt: skip
def memory_replay(
    params: Any, x: Float[Array, "segments ..."] | None, memory: Any = None, *, step: Callable,
    each: Sequence[dict[str, Any]] | None = None,
) -> tuple[tuple[Array, Any], Backward]:  # fmt: skip
    """The outputs of all segments, one after the other, and the memory after the last.

    step(params, x_t, memory, **each_t) -> (out_t, memory), backward is any that carries a memory, a tree of arrays, or None
    at the start: memformer with its settings, or a whole model around it whose out_t is the loss of a segment, one number. x
    holds the segments on its first axis; it may be None where a step reads only what each holds: a dict for each segment, of
    settings that have no gradient (ids, targets, masks). A generator in it is copied for both ways, and so draws the same
    numbers twice; each segment needs one of its own (``rng.spawn``).
    Returns (out, memory), out the steps' on a first axis (segments, ...), and backward: (dout, dmemory) -> dparams, dx (None
    without x), dmemory (None where the memory was None). Segments are not copied: backward reads them again.
    Raises ValueError where neither x nor each says how many segments there are, they differ, or segments share a generator.
    """
    if x is None and not each:
        raise invalid("x", got=None, wants="segments, where each has none either")
    xs = [None] * len(each or ()) if x is None else list(x)
    settings = [{} for _ in xs] if each is None else each
    if len(settings) != len(xs):
        raise invalid("each", got=f"settings of {len(settings)} segments", wants=f"{len(xs)}, as x has")
    if _share_a_generator(settings):
        raise invalid("each", got="one generator in several places", wants="generators of their own: rng.spawn makes them")

    settings = [fresh(own) for own in settings]              # generators as they are now, whoever draws from them later
    memories, outs = [memory], []                            # what is kept, and what is returned
    for t in range(len(xs)):
        # Its backward is dropped, and with it all that the step keeps.
        (out, after), _ = _run(step, params, xs[t], memories[t], settings[t])  # (1)
        memories += [after]
        outs += [out]

    def backward(dresult):
        douts, dmemory = dresult
        dparams, dx = trees.zeros_like(params), None if x is None else np.empty_like(x)
        for t in reversed(range(len(xs))):
            _, step_backward = _run(step, params, xs[t], memories[t], settings[t])  # (2)
            dparams_t, dx_t, dmemory = step_backward((douts[t], dmemory))  # (3)
            dparams = trees.map(np.add, dparams, dparams_t)  # (4)
            if dx is not None:
                dx[t] = dx_t
        return dparams, dx, dmemory

    return (np.stack(outs), memories[-1]), backward


def _run(step: Callable, params: Any, x: Array | None, memory: Any, settings: dict[str, Any]):
    """The step. It draws from copies of its generators, so that it can draw the same again."""
    return step(params, x, memory, **fresh(settings))


def _share_a_generator(settings: Sequence[dict[str, Any]]) -> bool:
    generators = [value for own in settings for value in own.values() if isinstance(value, np.random.Generator)]
    return len(set(generators)) < len(generators)


def _example(rng: np.random.Generator):
    params = init_memformer(rng, 4, num_slots=3, num_layers=1, num_heads=2, d_hidden=3, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), params)
    generators = np.random.default_rng(1).spawn(3)
    each = [{"temperature": temperature, "rng": own} for temperature, own in zip((0.7, 1.1, 0.9), generators, strict=True)]
    return example(params, rng.normal(size=(3, 2, 5, 4)), rng.normal(size=(2, 3, 4)), step=_with_dropout, each=each)


def _with_dropout(params, x, memory, *, temperature, rng):
    """A step that draws random numbers: the same on the way back."""
    (out, after), step_backward = memformer(params, x, memory, num_heads=2, temperature=temperature)
    out, drop_backward = dropout(out, rate=0.4, rng=rng)

    def backward(dresult):
        return step_backward((drop_backward(dresult[0]), dresult[1]))

    return (out, after), backward
