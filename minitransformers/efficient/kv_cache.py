"""Prefill and decode: a model with a step reads a prompt in pieces, then writes token by token, and computes no position twice.

    step(ids, state) -> logits, state                        ids (*batch, new); state is None at the start of a text

The keys and values of the past do not change when a text grows, so a step keeps them (key_value_cache; a recurrence keeps its
state). Here is what is made of a step, whatever the model: a text of n tokens in pieces of at most C, and then one token at a
time, each chosen from the logits at the last position. Sources: Shazeer 2019, arXiv:1911.02150, section 2.4; the two phases by
name, Pope et al. 2022, arXiv:2211.05102, section 2; a prompt in pieces, Agrawal et al. 2023 (SARATHI), arXiv:2308.16369.

    logits_c, state_c = step(ids_c, state_(c-1)), for the pieces c = 1 .. ceil(n / C) of ids   (1)
    ids = choose(logits at the last position), and on with (1)                                 (2)

A step keeps its promise where step(ids_c, state) gives the rows of the full pass that belong to ids_c. Then every cut gives
what the full pass gives, and the greedy text is the same with a cache and without. Scores of C queries at a time take memory
C n in the place of n^2. capacity, where it is given, bounds the text, and with it what a cache may grow to; what would not
fit is refused before anything is computed.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention_step
from minitransformers.foundation import at_least, bad, example, invalid, procedure


class Reading(NamedTuple):
    """What a model has read: the logits after the last token, its state, how many tokens, and how many there may be."""

    logits: Float[Array, "*batch vocabulary"]
    state: object                                            # the model's own affair
    length: int
    capacity: int | None = None


def most_likely(logits: Float[Array, "... vocabulary"]) -> Int[Array, "..."]:
    """The greedy choice; of equals the first."""
    return logits.argmax(axis=-1)


@procedure(
    title="Prefill",
    source="Pope et al. 2022, arXiv:2211.05102, section 2; Agrawal et al. 2023 (SARATHI), arXiv:2308.16369",
    example=lambda rng: _example(rng),
    rejects=[bad("ids", capacity=4), bad("step", step=lambda ids, state: (np.ones((2, 7)), state))],
)
def prefill(
    step: Callable, ids: Int[Array, "*batch positions"], past: Reading | None = None, *, chunk: Annotated[int, at_least(1)] | None = None,
    capacity: Annotated[int, at_least(1)] | None = None,
) -> Reading:  # fmt: skip
    """Read ids, which follow on past (None at the start of a text), at most chunk of them in one step; None for all.

    capacity, in tokens, is given at the start and bounds past and ids together; None for no bound. A reading that was
    continued is as it was, where step leaves the state of before alone, and can be continued in another way.
    Raises ValueError where ids outgrow the capacity or are another batch than past, past has another capacity, or step
    returns no logits for each of its ids.
    """
    return _read(step, ids, past, chunk, capacity)


@procedure(
    title="Decode",
    source="Shazeer 2019, arXiv:1911.02150, section 2.4; Pope et al. 2022, arXiv:2211.05102, section 2",
    example=lambda rng: _example(rng, num_tokens=4),
    rejects=[bad(num_tokens=6), bad(choose=lambda logits: logits), bad("ids", capacity=4)],
)
def decode(
    step: Callable, ids: Int[Array, "*batch positions"], past: Reading | None = None, *, num_tokens: Annotated[int, at_least(1)],
    choose: Callable = most_likely, chunk: Annotated[int, at_least(1)] | None = None, capacity: Annotated[int, at_least(1)] | None = None,
) -> tuple[Int[Array, "*batch num_tokens"], Reading]:  # fmt: skip
    """Read ids as prefill does, then write num_tokens tokens; returns them, and what was read.

    ``choose(logits) -> ids`` takes (*batch, vocabulary) to (*batch). The last token is written and not read: to go on, give it
    as the next ids.
    Raises ValueError as prefill does, where ids and all but the last of num_tokens outgrow the capacity, and where choose
    returns anything but an id for each text.
    """
    _check_past(ids, past, capacity)
    bound, before = _bound(past, capacity), ids.shape[-1] + (past.length if past else 0)
    if bound is not None and before + num_tokens - 1 > bound:
        raise invalid("num_tokens", got=f"{num_tokens} after {before}", wants=f"at most {bound - before + 1}, for a capacity of {bound}")
    written, readings = zip(*islice(tokens(step, ids, past, choose=choose, chunk=chunk, capacity=capacity), num_tokens), strict=True)
    return np.stack(written, axis=-1), readings[-1]


def tokens(
    step: Callable, ids: Array, past: Reading | None = None, *, choose: Callable, chunk: int | None = None, capacity: int | None = None
) -> Iterator[tuple[Array, Reading]]:
    """The tokens that follow ids, (*batch), without end, each with the reading that it was chosen after; arguments as in decode."""
    while True:
        past = _read(step, ids, past, chunk, capacity)
        chosen = choose(past.logits)                         # (2)
        if np.shape(chosen) != ids.shape[:-1] or getattr(chosen, "dtype", np.dtype(object)).kind not in "iu":
            raise invalid("choose", got=f"{getattr(chosen, 'dtype', type(chosen).__name__)} of shape {np.shape(chosen)}",
                          wants=f"whole numbers of shape {ids.shape[:-1]}, an id for each text")  # fmt: skip
        yield chosen, past
        ids = np.asarray(chosen)[..., None]


def _read(step: Callable, ids: Array, past: Reading | None, chunk: int | None, capacity: int | None) -> Reading:
    _check_past(ids, past, capacity)
    state, positions = past.state if past else None, ids.shape[-1]
    for start in range(0, positions, chunk or positions):
        piece = ids[..., start : start + (chunk or positions)]
        logits, state = step(piece, state)                   # (1)
        if np.shape(logits)[:-1] != piece.shape:
            raise invalid("step", got=f"logits of shape {np.shape(logits)}", wants=f"logits {(*piece.shape, 'vocabulary')}, for each of its ids")
    return Reading(logits[..., -1, :], state, positions + (past.length if past else 0), _bound(past, capacity))


def _bound(past: Reading | None, capacity: int | None) -> int | None:
    return past.capacity if past else capacity


def _check_past(ids: Array, past: Reading | None, capacity: int | None) -> None:
    """Raise ValueError where ids do not fit what was read, or do not fit in."""
    if past is not None and capacity is not None and capacity != past.capacity:
        raise invalid("capacity", got=capacity, wants=f"{past.capacity}, as the reading was started with, or None")
    before, bound = past.length if past else 0, _bound(past, capacity)
    if bound is not None and before + ids.shape[-1] > bound:
        raise invalid("ids", got=f"{ids.shape[-1]} tokens after {before}", wants=f"at most {bound - before}, for a capacity of {bound}")


def _example(rng: np.random.Generator, **config):
    """One layer of attention between a table and its transpose."""
    table, params = rng.normal(size=(7, 4)), init_multi_head_attention(rng, 4, num_heads=2, dtype=np.float64)

    def step(ids, state):
        mixed, state = multi_head_attention_step(params, table[ids], state, num_heads=2)
        return mixed @ table.T, state

    return example(step, rng.integers(7, size=(2, 5)), chunk=2, capacity=9, **config)
