"""Where a text ends: stop sequences, of tokens or of text, which are not shown, not even their beginning.

A stop sequence may come in pieces: its first half at the end of one token, its second in the next. What could be the beginning
of one is held back until it is clear that it is none. So nothing is ever shown that would have to be taken back, and what is
shown is the same however the text is cut into pieces. Both functions read what they are given only as far as they must: behind
``generate``, no token is computed after the one that completes a stop.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from minitransformers.foundation import checked, invalid


@checked
def until(ids: Iterable[int], *, stop: Sequence[Sequence[int]]) -> Iterator[int]:
    """The ids before the first of the stop sequences, each a sequence of ids: a token that ends a text is one of length 1.

    The first is the one that is complete first; of several that are complete at once, the longest.
    Raises ValueError for a stop sequence of nothing.
    """
    return chain.from_iterable(_shown(ids, checked_stops(stop)))


@checked
def until_text(pieces: Iterable[str], *, stop: Sequence[str]) -> Iterator[str]:
    """The text before the first of the stop texts, in pieces that may be shown at once.

    pieces are those of a text, cut anywhere; characters must be whole (a byte-level tokenizer's tokens may end within one).
    Raises ValueError for a stop text of nothing.
    """
    shown = _shown(chain.from_iterable(pieces), checked_stops(stop))
    return ("".join(some) for some in shown if some)


def checked_stops(stop: Sequence) -> list[list]:
    """The stop sequences as lists. Raises ValueError where one is empty, or is no sequence."""
    for place, sequence in enumerate(stop):
        if not isinstance(sequence, Sequence) or len(sequence) == 0:
            raise invalid(f"stop.{place}", got=repr(sequence), wants="a sequence of at least one element: nothing is everywhere")
    return [list(sequence) for sequence in stop]


def completed(held: list, stops: list[list]) -> int:
    """How many elements at the end of held are a stop sequence: of the longest, or 0."""
    return max((len(stop) for stop in stops if held[-len(stop) :] == stop), default=0)


def _shown(elements: Iterable, stops: list[list]) -> Iterator[list]:
    """For each element what may be shown from then on, and at the end what was held back for nothing."""
    held: list = []
    for element in elements:
        held.append(element)
        if size := completed(held, stops):
            yield held[:-size]
            return
        begun = max((size for stop in stops for size in range(1, len(stop)) if held[-size:] == stop[:size]), default=0)
        yield held[: len(held) - begun]
        held = held[len(held) - begun :]
    yield held
