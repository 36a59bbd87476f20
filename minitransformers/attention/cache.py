"""The key-value cache: keys and values of the past are kept, so that a new position costs one row of scores.

Keys are kept after their norm and their rotation, so their absolute positions are already in them. Source: Shazeer 2019,
arXiv:1911.02150, section 2.4; a cache that forgets what no window reaches is from Jiang et al. 2023, arXiv:2310.06825,
section 2. Differs from the latter: what is kept stays in its order, in a room of about twice the window, and moves to its
front when that is full, where their buffer is a ring.

Appending is pure: a cache that was appended to is as it was, and can be continued in two ways (two beams of a search). It is
fast all the same: the room behind the last position is written to where nobody else has done so, and doubles when it
runs out. Only the second way to continue one cache costs a copy.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, invalid, procedure


class KeyValueCache(NamedTuple):
    """Keys and values that the positions appended last may look at, in order, and how many positions were seen in all.

    With a window these are the last window - 1 positions before the new ones, and the new ones; otherwise all. room is the
    larger buffer that the two are views of, and end is where they end in it.
    """

    keys: Float[Array, "... heads seen d_head"]
    values: Float[Array, "... heads seen d_value"]
    length: int
    window: int | None
    room: Any
    end: int

    @property
    def positions(self) -> Array:
        """The absolute positions of the keys."""
        return np.arange(self.length - self.keys.shape[-2], self.length)

    @property
    def bytes(self) -> int:
        """The size of what the last position may look at: 2 arrays * batch * heads * positions * width * bytes a number."""
        kept = min(self.length, self.window or self.length)
        return sum(a[..., -kept:, :].size * a.itemsize for a in (self.keys, self.values))


def positions_before(state: KeyValueCache | None) -> int:
    """How many positions a layer has seen before. Raises ValueError where the state is that of another kind of layer."""
    if state is not None and not isinstance(state, KeyValueCache):
        raise invalid("state", got=type(state).__name__, wants="KeyValueCache, or None at the start of a text")
    return 0 if state is None else state.length


class _Room:
    """Buffers for keys and values, and up to where they are filled, whoever filled them."""

    def __init__(self, key: Array, value: Array, capacity: int) -> None:
        self.keys, self.values = (np.empty((*a.shape[:-2], capacity, a.shape[-1]), a.dtype) for a in (key, value))
        self.capacity, self.filled = capacity, 0

    def put(self, key: Array, value: Array) -> None:
        end = self.filled + key.shape[-2]
        self.keys[..., self.filled : end, :], self.values[..., self.filled : end, :] = key, value
        self.filled = end


@procedure(
    title="Key-value cache",
    source="Shazeer 2019, arXiv:1911.02150, section 2.4; Jiang et al. 2023, arXiv:2310.06825, section 2",
    example=lambda rng: example(None, rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(2, 3, 5, 2)), window=3),
    rejects=[bad(value=np.ones((2, 3, 4, 2)))],
)
def key_value_cache(
    past: KeyValueCache | None, key: Float[Array, "*batch new d_head"], value: Float[Array, "*batch new d_value"], *, window: Annotated[int, at_least(1)] | None = None
) -> KeyValueCache:
    """The cache after some new positions; past is the cache before them, None at the start.

    window, in positions, is given at the start; a later position may look at so many, its own included. The keys and values
    of the result are what the new positions may look at, the earliest first.
    Raises ValueError where the batch, the heads or the widths are not those of past, or past has another window.
    """
    new = key.shape[-2]
    if past is None:
        past = KeyValueCache(key[..., :0, :], value[..., :0, :], 0, window, None, 0)
    elif window is not None and window != past.window:
        raise invalid("window", got=window, wants=f"{past.window}, as the cache was started with, or None")
    for name, held, own in (("key", past.keys, key), ("value", past.values, value)):
        if held.shape[:-2] != own.shape[:-2] or held.shape[-1] != own.shape[-1] or held.dtype != own.dtype:
            wants = f"{held.dtype} of shape {held.shape} at any length, as the cache has"
            raise invalid(name, got=f"{own.dtype} of shape {own.shape}", wants=wants)
    kept = past.keys.shape[-2] if past.window is None else min(past.keys.shape[-2], past.window - 1)
    room, capacity = past.room, max(16, 2 * (kept + new))
    # There is none yet, or somebody has continued the same cache already, or it is full, or far too large: a long text has passed.
    if room is None or room.filled != past.end or past.end + new > room.capacity or room.capacity > 2 * capacity:
        room = _Room(key, value, capacity)
        if kept:
            room.put(past.keys[..., -kept:, :], past.values[..., -kept:, :])
    room.put(key, value)
    seen = slice(room.filled - kept - new, room.filled)
    return KeyValueCache(room.keys[..., seen, :], room.values[..., seen, :], past.length + new, past.window, room, room.filled)

