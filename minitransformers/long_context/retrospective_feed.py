"""Retrospective feed: a text is read twice, and the second time the memory holds what the first time has left.

Recurrence looks back only: the first segment knows nothing of the last. So read once to skim, hand the memory at the end back to
the beginning, and read again. Now every segment is read by one who knows the text. Only the second reading is an output, and only
it has a gradient: memory is stopped, so the first passes on nothing to it but numbers. Costs the text's forward pass a second
time, and no backward.

Source: Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688, section 3.2. Differs from it: there are as many passes as one says; the
memory at the end stands for the text, as the paper has it with the recurrence of ernie_doc (without that, it puts all skimmed
states before each segment). S is the step, T the number of segments, a star its backward for parameters and segment.

    _, memory = S(params, x_t, memory), t = 1 .. T, in every pass but the last   (1)
    out_t, memory = S(params, x_t, memory), t = 1 .. T, in the last   (2)
    dparams_t, dx_t = S*(dout_t), of (2); what memory was read is a constant   (3)
    dparams = sum over t of dparams_t                        (4)
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, concept, example, trees
from minitransformers.long_context.ernie_doc import ernie_doc
from minitransformers.long_context.transformer_xl import XlMemory, init_transformer_xl


@concept(
    title="Retrospective feed",
    source="Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688, section 3.2",
    example=lambda rng: _example(rng),
    gradient_of=lambda params, x, *, step, memory=None, passes=2: _with_these_memories(params, x, step, memory, passes),
    rejects=[bad("memory.rows", memory=XlMemory([np.ones((2, 2, 6))]))],
)
def retrospective_feed(
    params: Any, x: Float[Array, "segments *batch positions d_model"], *, step: Callable, memory: Any = None,
    passes: Annotated[int, at_least(1)] = 2,
) -> tuple[tuple[Array, Any], Backward]:  # fmt: skip
    """What the segments of a text, on the first axis of x, become when they are read for the last of so many times.

    step(params, x_t, memory=memory) -> (out_t, memory), backward takes a memory that gets no gradient, None at the start:
    ernie_doc or transformer_xl with their settings. With passes=1 the text is only skimmed: that is the plain recurrence over
    segments.
    Returns (out, memory), out (segments, ...) and memory after the last segment, and backward: (dout, dmemory) -> dparams,
    dx. The gradient is that of the last pass with the memories as they were: where they came from, in this pass or before, is
    not asked.
    Raises ValueError as step does.
    """
    for _ in range(passes - 1):
        for segment in x:
            (_, memory), _ = step(params, segment, memory=memory)  # its backward is dropped  (1)
    outs, steps = [], []
    for segment in x:
        (out, memory), step_backward = step(params, segment, memory=memory)  # (2)
        outs += [out]
        steps += [(step_backward, memory)]

    def backward(dresult):
        douts, dlast = dresult
        dparams, dx = trees.zeros_like(params), np.empty_like(x)
        for t, (step_backward, after) in enumerate(steps):
            dafter = dlast if t == len(x) - 1 else trees.zeros_like(after)  # the last one's memory is an output, the others are stopped
            dparams_t, dx[t] = step_backward((douts[t], dafter))  # (3)
            dparams = trees.map(np.add, dparams, dparams_t)  # (4)
        return dparams, dx

    return (np.stack(outs), memory), backward


def _with_these_memories(params: Any, x: Array, step: Callable, memory: Any, passes: int) -> Callable:
    """The last pass as a function of parameters and segments, each segment's memory as it is now."""
    memories = [memory]
    for _ in range(passes):
        memories = memories[-1:]
        for segment in x:
            memories.append(step(params, segment, memory=memories[-1])[0][1])

    def last_pass(params, x):
        results = [step(params, segment, memory=before)[0] for segment, before in zip(x, memories, strict=False)]
        return np.stack([out for out, _ in results]), results[-1][1]

    return last_pass


def _example(rng: np.random.Generator):
    params = init_transformer_xl(rng, 6, num_layers=2, num_heads=3, d_hidden=5, dtype=np.float64)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape), params)
    return example(params, rng.normal(size=(3, 2, 3, 6)), step=partial(ernie_doc, num_heads=3, memory_length=4))
