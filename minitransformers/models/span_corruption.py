"""Span corruption: take whole spans out of a text, leave a mark for each, and have a model write what was taken.

Source: Raffel et al. 2020, arXiv:1910.10683, section 3.1.4 and, for spans of a chosen mean length, 3.3.4; the published code for
what the paper leaves open. How many tokens are taken, and in how many spans, follows from the settings alone; only where they
lie is drawn. So the sources of a batch are equally long, and the targets too: no padding. A text of L tokens is cut into as
many kept spans as hidden ones, in turns, a kept one first. The i-th sentinel is the id vocabulary - 1 - i.

    hidden = round(rate L), within 1 .. L - 1                (1)
    spans = round(hidden / mean_span), within 1 .. min(hidden, L - hidden)   (2)
    cuts of n tokens into s spans: s - 1 of the n - 1 places between two, all choices alike   (3)
    hides_t = 1 within the spans that are hidden, the second, the fourth, ..., else 0   (4)
    side(h) = the tokens whose h is 0, in order; for each run of 1 in h a sentinel, where it began   (5)
    source = side(hides), end                                (6)
    target = side(1 - hides), end                            (7)

One rule makes both sides: what one drops, the other keeps. Each token of the text is in exactly one of them.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, between, checked, example, invalid, procedure


class SpanCorrupted(NamedTuple):
    """What the encoder reads, and what the decoder is to write. The decoder reads the target moved one to the right."""

    source: Int[Array, "*batch source"]
    target: Int[Array, "*batch target"]


@checked
def span_counts(length: Annotated[int, at_least(2)], *, rate: Annotated[float, between(0, 1)] = 0.15, mean_span: Annotated[float, at_least(1)] = 3.0) -> tuple[int, int]:
    """How many tokens of a text are hidden, and in how many spans. Halves are rounded to the even number."""
    hidden = min(max(round(rate * length), 1), length - 1)   # (1)
    spans = min(max(round(hidden / mean_span), 1), hidden, length - hidden)  # (2)
    return hidden, spans


@procedure(
    title="Random spans",
    source="Raffel et al. 2020, arXiv:1910.10683, section 3.3.4",
    example=lambda rng: example(11, rng=rng, batch=(2, 3), rate=0.4, mean_span=2.0),
    rejects=[bad(batch=(2, -1)), bad(batch=(0.5,))],
)
def random_spans(
    length: Annotated[int, at_least(2)], *, rng: np.random.Generator, batch: tuple[int, ...] = (), rate: Annotated[float, between(0, 1)] = 0.15,
    mean_span: Annotated[float, at_least(1)] = 3.0,
) -> Bool[Array, "*batch length"]:  # fmt: skip
    """Which tokens of each text are hidden: the same number in the same number of spans for all texts of the batch.

    A text begins with a kept token and ends with a hidden one. rate is how many tokens are hidden, mean_span how many of them
    stand together on average.
    """
    if any(not isinstance(size, (int, np.integer)) or size < 0 for size in batch):
        raise invalid("batch", got=batch, wants="sizes of at least 0")
    hidden, spans = span_counts(length, rate=rate, mean_span=mean_span)
    kept_lengths, hidden_lengths = _cut(rng, batch, length - hidden, spans), _cut(rng, batch, hidden, spans)
    lengths = np.stack([kept_lengths, hidden_lengths], axis=-1).reshape(*batch, 2 * spans)
    turns = np.zeros((*batch, length), int)                  # 1 where a span begins, but for the first
    np.put_along_axis(turns, lengths.cumsum(axis=-1)[..., :-1], 1, axis=-1)
    return turns.cumsum(axis=-1) % 2 == 1                    # (4)


def _cut(rng: np.random.Generator, batch: tuple[int, ...], tokens: int, spans: int) -> Int[Array, "*batch spans"]:
    """The lengths of so many spans, each at least 1, of so many tokens."""
    places = np.broadcast_to(np.arange(tokens - 1) < spans - 1, (*batch, tokens - 1))
    cuts = np.nonzero(rng.permuted(places, axis=-1))[-1].reshape(*batch, spans - 1) + 1  # (3)
    return np.diff(cuts, prepend=0, append=tokens, axis=-1)


@checked
def side(ids: Int[Array, "*batch positions"], drops: Bool[Array, "*#batch positions"], *, vocabulary: Annotated[int, at_least(1)]) -> Int[Array, "*batch kept"]:
    """The tokens that are not dropped, and a sentinel in the place of each run that is: one side of the exercise.

    Raises ValueError where texts of a batch would not be equally long, or a sentinel's id is that of a token of the text.
    """
    begins = drops & ~np.concatenate([np.zeros_like(drops[..., :1]), drops[..., :-1]], axis=-1)
    number = begins.cumsum(axis=-1)                          # how many runs have begun, the one here included
    counts = (~drops | begins).sum(axis=-1)
    if counts.size and (counts != counts.flat[0]).any():
        raise invalid("drops", got=f"sides of {counts.min()} to {counts.max()} tokens", wants="the same number in each text of a batch")
    last, lowest = int(ids.max()), vocabulary - int(number.max())
    if ids.min() < 0 or last >= lowest:
        wants = f"0 to {lowest - 1}: those from {lowest} to {vocabulary - 1} are the sentinels of {number.max()} spans"
        raise invalid("ids", got=f"ids from {ids.min()} to {last}", wants=wants)
    marked = np.where(begins, vocabulary - number, ids)      # (5)
    return marked[np.broadcast_to(~drops | begins, ids.shape)].reshape(*ids.shape[:-1], -1)


@procedure(
    title="Span corruption",
    source="Raffel et al. 2020, arXiv:1910.10683, sections 3.1.4 and 3.3.4",
    example=lambda rng: example(rng.integers(2, 9, size=(2, 3, 11)), rng=rng, vocabulary=12, rate=0.4, mean_span=2.0),
    rejects=[
        bad("ids", vocabulary=10), bad("ids", ids=np.array([[3, -1, 4]])), bad(ids=np.array([[3]])), bad(end=12), bad(vocabulary=0),
    ],
)  # fmt: skip
def span_corruption(
    ids: Int[Array, "*batch positions"], *, rng: np.random.Generator, vocabulary: Annotated[int, at_least(1)], end: Annotated[int, at_least(0)] | None = 1,
    rate: Annotated[float, between(0, 1)] = 0.15, mean_span: Annotated[float, at_least(1)] = 3.0,
) -> SpanCorrupted:  # fmt: skip
    """A text with spans of it hidden, and the spans. Draw anew at each step of training.

    vocabulary counts all ids, the sentinels at its end included (32,100 in T5's, of which 100 are sentinels; its table of
    embeddings has 28 rows more, which nobody uses). end comes behind both sides, None for no such token.
    Returns SpanCorrupted(source, target), int64: of L - hidden + spans and hidden + spans tokens, and the end (span_counts).
    Raises ValueError where a text has fewer than two tokens, ids are no tokens or those of sentinels, or end is no token.
    """
    if ids.shape[-1] < 2:
        raise invalid("ids", got=f"{ids.shape[-1]} token", wants="at least 2: one to keep and one to hide")
    if end is not None and end >= vocabulary:
        raise invalid("end", got=end, wants=f"an id from 0 to {vocabulary - 1}, as vocabulary says")
    hides = random_spans(ids.shape[-1], rng=rng, batch=ids.shape[:-1], rate=rate, mean_span=mean_span)
    ends = np.full((*ids.shape[:-1], 0 if end is None else 1), end or 0)
    text = ids.astype(np.int64)
    source = np.concatenate([side(text, hides, vocabulary=vocabulary), ends], axis=-1)  # (6)
    target = np.concatenate([side(text, ~hides, vocabulary=vocabulary), ends], axis=-1)  # (7)
    return SpanCorrupted(source, target)
