"""Truncation: of a text that is too long, what is kept, beside the special tokens that are put around it.

The cheapest way to read a long text is not to read it. What counts is which part is lost: summaries stand at the beginning,
conclusions at the end, and a cut at the end alone loses every one of the second kind. What is chosen are places, so labels and
offsets are cut with the same numbers. Costs nothing a token.

Source: Sun et al. 2019, arXiv:1905.05583, section 5.3.1: of 510 tokens the first 128 and the last 382. Differs from the paper: a text
that fits is kept whole by all three, so no token is ever kept twice.

    room = budget - len(before) - len(after)                 (1)
    head: i, for i below min(room, length)                   (2)
    tail: length - min(room, length) + i, for the same i     (3)
    head and tail: the first h, the last room - h; all where length <= room   (4)
    ids = before, the text at these places, after            (5)
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, invalid, procedure


class Truncated(NamedTuple):
    """What the model reads, special tokens included; where its other tokens stood in the text; and whether any was lost."""

    ids: Int[Array, "positions"]
    places: Int[Array, "kept"]
    lost: bool


@procedure(
    title="Truncation: keep the head",
    source="Sun et al. 2019, arXiv:1905.05583, section 5.3.1",
    example=lambda rng: example(11, room=5),
)
def keep_head(length: Annotated[int, at_least(0)], *, room: Annotated[int, at_least(1)]) -> Int[Array, "kept"]:
    """Places of the first ``room`` tokens of a text of so many."""
    return np.arange(min(room, length))                      # (2)


@procedure(
    title="Truncation: keep the tail",
    source="Sun et al. 2019, arXiv:1905.05583, section 5.3.1",
    example=lambda rng: example(11, room=5),
)
def keep_tail(length: Annotated[int, at_least(0)], *, room: Annotated[int, at_least(1)]) -> Int[Array, "kept"]:
    """Places of the last ``room`` tokens of a text of so many, in the text's order."""
    return np.arange(length - min(room, length), length)     # (3)


@procedure(
    title="Truncation: keep head and tail",
    source="Sun et al. 2019, arXiv:1905.05583, section 5.3.1",
    example=lambda rng: example(11, room=5, head=2),
    rejects=[bad(head=6)],
)
def keep_head_and_tail(
    length: Annotated[int, at_least(0)], *, room: Annotated[int, at_least(1)], head: Annotated[int, at_least(0)]
) -> Int[Array, "kept"]:
    """Places of the first ``head`` tokens and of the last ``room - head``; of all, once, where they fit.

    Raises ValueError where head is above room.
    """
    if head > room:
        raise invalid("head", got=head, wants=f"at most the room, {room}")
    if length <= room:
        return np.arange(length)
    return np.concatenate([np.arange(head), np.arange(length - (room - head), length)])  # (4)


@procedure(
    title="Truncation",
    source="Sun et al. 2019, arXiv:1905.05583, section 5.3.1",
    example=lambda rng: example(rng.integers(9, size=11), budget=7, before=np.array([101]), after=np.array([102])),
    rejects=[
        bad(budget=2), bad(budget=1), bad("budget", before=np.zeros(9, int)),
        bad("keep", keep=lambda length, *, room: np.arange(room + 1)), bad("keep", keep=lambda length, *, room: np.array([0, length])),
    ],
)  # fmt: skip
def truncate(
    ids: Int[Array, "positions"], *, budget: Annotated[int, at_least(1)], keep: Callable = keep_head,
    before: Int[Array, "special"] | None = None, after: Int[Array, "other_special"] | None = None,
) -> Truncated:  # fmt: skip
    """The text with its special tokens, in at most ``budget`` positions.

    keep(length, room=...) -> places says which tokens stay: keep_head, keep_tail, partial(keep_head_and_tail, head=128). before and
    after are the ids that are put around them, [CLS] and [SEP] in BERT; they count towards the budget.
    Raises ValueError where the special tokens leave no room for one token of the text, and where keep gives more places than there
    is room, or places that do not ascend within the text.
    """
    nothing = ids[:0]
    before, after = (nothing if special is None else special for special in (before, after))
    room = budget - len(before) - len(after)                 # (1)
    if room < 1:
        raise invalid("budget", got=budget, wants=f"at least {budget - room + 1}: {budget - room} special tokens, and one of the text")
    places = keep(len(ids), room=room)
    ascend = (np.diff(places, prepend=-1, append=len(ids)) > 0).all()
    if len(places) > room or not ascend:
        raise invalid("keep", got=f"{len(places)} places", wants=f"at most {room}, ascending from 0 to below {len(ids)}")
    return Truncated(np.concatenate([before, ids[places], after]), places, len(places) < len(ids))  # (5)
