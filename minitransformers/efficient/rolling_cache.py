"""Rolling cache: with a window of W, a ring of W slots holds all that will be looked at again, however long the text gets.

Position t goes to slot t mod W, where it overwrites the one position that no window reaches any more. The order of the keys is
lost, and a softmax does not miss it: it sums over keys. What depends on where a key stands (a rotation) is put into it before it
is written; what depends on a distance (a bias) finds the position of each slot. Source: Jiang et al. 2023 (Mistral),
arXiv:2310.06825, section 2 (rolling buffer cache, pre-fill and chunking).

    slot of position t = t mod W                             (1)
    position in slot j = last - (last - j) mod W, last being the newest position   (2)
    ring with the new keys and values in their slots         (3)
    one query sees the ring, written, as it lies; several see the ring of before, in order, and the new, within a window   (4)
    out = core of the queries over these, the columns of bias and mask taken by position   (5)

Differs from the paper's: appending is pure, so it copies the ring; an engine that owns the memory overwrites it. Several queries
attend before their keys are written: the first of them still sees what the last one's key will overwrite. key_value_cache with a
window keeps the same positions in their order, in a room of twice the size; the page compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.attention.core import softmax_attention
from minitransformers.attention.masks import sliding_window_mask
from minitransformers.foundation import at_least, bad, example, invalid, procedure


class RollingCache(NamedTuple):
    """The ring, in the order of its slots, and how many positions were written in all. Slots that none has reached are 0."""

    keys: Float[Array, "*batch slots d_head"]
    values: Float[Array, "*batch slots d_value"]
    length: int

    @property
    def held(self) -> int:
        """How many slots are filled; they are the first."""
        return min(self.length, self.keys.shape[-2])

    @property
    def positions(self) -> Int[Array, " held"]:
        """The position that each filled slot holds."""
        last = self.length - 1
        return last - (last - np.arange(self.held)) % self.keys.shape[-2]  # (2)

    @property
    def bytes(self) -> int:
        """The size of the ring, the same from the first position on."""
        return self.keys.nbytes + self.values.nbytes

    def at(self, position: int) -> tuple[Array, Array]:
        """The key and the value of one position. Raises ValueError where it was overwritten, or was not there yet."""
        first = self.length - self.held
        if not first <= position < self.length:
            raise invalid("position", got=position, wants=f"from {first} to {self.length - 1}: the ring holds the last {self.held}")
        slot = position % self.keys.shape[-2]                # (1)
        return self.keys[..., slot, :], self.values[..., slot, :]

    def in_order(self) -> tuple[Array, Array]:
        """The keys and the values that are held, the earliest first, as copies."""
        slots = np.arange(self.length - self.held, self.length) % self.keys.shape[-2]
        return self.keys[..., slots, :], self.values[..., slots, :]


@procedure(
    title="Rolling cache",
    source="Jiang et al. 2023 (Mistral), arXiv:2310.06825, section 2",
    example=lambda rng: example(None, rng.normal(size=(2, 3, 2, 4)), rng.normal(size=(2, 3, 2, 5)), window=3),
    rejects=[bad("key", window=1), bad("window", past=RollingCache(np.ones((2, 3, 4, 4)), np.ones((2, 3, 4, 5)), 1))],
)
def rolling_cache(
    past: RollingCache | None, key: Float[Array, "*batch new d_head"], value: Float[Array, "*batch new d_value"], *, window: Annotated[int, at_least(1)]
) -> RollingCache:
    """The ring after at most window new positions; past is the ring before them, None at the start, and stays as it is.

    Raises ValueError where there are more new positions than window, or past has another window, batch or width.
    """
    past = _before(past, key, value, window)
    new = key.shape[-2]
    if new > window:
        raise invalid("key", got=f"{new} new positions", wants=f"at most the window of {window}: a longer text comes in pieces")
    slots = np.arange(past.length, past.length + new) % window  # (1)
    keys, values = past.keys.copy(), past.values.copy()
    keys[..., slots, :], values[..., slots, :] = key, value  # (3)
    return RollingCache(keys, values, past.length + new)


@procedure(
    title="Attention over a rolling cache",
    source="Jiang et al. 2023 (Mistral), arXiv:2310.06825, section 2",
    example=lambda rng: _example(rng),
    rejects=[bad("key", window=1), bad(bias=np.ones((2, 4))), bad(mask=np.ones((2, 4), bool))],
)
def rolling_attention(
    params: Any, query: Float[Array, "*#scores new d_head"], key: Float[Array, "*#scores new d_head"], value: Float[Array, "*#scores new d_value"],
    past: RollingCache | None = None, *, window: Annotated[int, at_least(1)], bias: Float[Array, "*#scores #new seen"] | None = None,
    mask: Bool[Array, "*#scores #new seen"] | None = None, core: Callable = softmax_attention,
) -> tuple[Float[Array, "*scores new d_value"], RollingCache]:  # fmt: skip
    """Each of at most window new positions attends to the last window positions, its own included; then their keys are written.

    core, any that takes a mask, gets params (see attention/core). bias and mask are about the new positions and all that the
    text has had so far, in its order, as in the steps of attention: (..., new, past.length + new).
    Returns out and the ring after them. Raises ValueError as rolling_cache does, and where bias or mask have other columns.
    """
    past = _before(past, key, value, window)
    after, new = rolling_cache(past, key, value, window=window), query.shape[-2]
    for name, scores in (("bias", bias), ("mask", mask)):
        if scores is not None and scores.shape[-1] != after.length:
            raise invalid(name, got=f"{scores.shape[-1]} columns", wants=f"{after.length}, for all positions so far")
    if new == 1:
        keys, values = after.keys[..., : after.held, :], after.values[..., : after.held, :]  # (4)
        positions, near = after.positions, None
    else:
        keys, values = (np.concatenate(both, axis=-2) for both in zip(past.in_order(), (key, value), strict=True))
        positions = np.arange(after.length - keys.shape[-2], after.length)
        near = sliding_window_mask(new, len(positions), window=window)  # (4)
    bias, mask = (None if scores is None else scores[..., positions] for scores in (bias, mask))
    near = mask if near is None else near if mask is None else near & mask
    out, _ = core(params, query, keys, values, bias, mask=near)  # (5)
    return out, after


def _before(past: RollingCache | None, key: Array, value: Array, window: int) -> RollingCache:
    """past, or an empty ring. Raises ValueError where the ring is another's."""
    if past is None:
        keys, values = (np.zeros((*a.shape[:-2], window, a.shape[-1]), a.dtype) for a in (key, value))
        return RollingCache(keys, values, 0)
    if past.keys.shape[-2] != window:
        raise invalid("window", got=window, wants=f"{past.keys.shape[-2]}, as the ring was started with")
    for name, held, own in (("key", past.keys, key), ("value", past.values, value)):
        if held.shape[:-2] != own.shape[:-2] or held.shape[-1] != own.shape[-1] or held.dtype != own.dtype:
            raise invalid(name, got=f"{own.dtype} of shape {own.shape}", wants=f"{held.dtype} of shape {held.shape} at any length, as the ring has")
    return past


def _example(rng: np.random.Generator):
    shapes = (2, 2, 3, 2, 4), (2, 2, 1, 2, 4), (2, 2, 1, 2, 5)
    return example(None, *(rng.normal(size=shape) for shape in shapes), None, window=3, bias=rng.normal(size=(3, 2, 2)))
