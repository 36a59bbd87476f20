"""The key-value cache: keys and values of the past are kept, so that a new position costs one row of scores.

A cache is the one thing here that is owned and written to: it belongs to the generation that started it. A step
appends to it in place, which is what makes decoding fast; copy it (``copy.deepcopy``) to continue in two ways.
Keys are kept after their norm and their rotation, so their absolute positions are already in them. Source: Shazeer 2019,
arXiv:1911.02150, section 2.4; the rolling buffer is from Jiang et al. 2023, arXiv:2310.06825, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.heads import as_normalizer, as_weighting, check_core, merge_heads, named_core
from minitransformers.attention.masks import causal_mask, sliding_window_mask
from minitransformers.attention.scaled_dot_product_attention import weigh
from minitransformers.basics.linear import Linear
from minitransformers.foundation import invalid


class KeyValueCache:
    """Keys and values of all positions so far, or of the last ``window`` of them.

    keys and values are (..., heads, capacity, d_head) buffers, grown by doubling; with a window the capacity is the
    window, and position p lies in slot p mod window. length counts the positions seen, those forgotten included.
    """

    def __init__(self, *, window: int | None = None) -> None:
        if window is not None and window < 1:
            raise invalid("window", got=window, wants="at least 1 position")
        self.window = window
        self.length = 0
        self.keys: Any = None
        self.values: Any = None

    def append(self, key: Float[Array, "... heads new d_head"], value: Float[Array, "... heads new d_value"]) -> tuple[Array, Array]:
        """Add new positions; returns the keys and the values that the new positions may look at.

        They are in the order of their positions, except that one new position in a full window gets the slots as they
        lie: softmax does not mind the order. Raises ValueError where the batch, the heads or the widths have changed.
        """
        new, start = key.shape[-2], self.length
        if self.keys is None:
            capacity = self.window or max(16, 2 * new)
            self.keys, self.values = (np.empty((*a.shape[:-2], capacity, a.shape[-1]), a.dtype) for a in (key, value))
        for name, held, own in (("key", self.keys, key), ("value", self.values, value)):
            if held.shape[:-2] != own.shape[:-2] or held.shape[-1] != own.shape[-1]:
                raise invalid(name, got=f"shape {own.shape}", wants=f"the shape of the cache, {held.shape}, at any length")
        self.length = start + new
        if self.window is None:
            self._grow_to(self.length)
            self.keys[..., start : self.length, :], self.values[..., start : self.length, :] = key, value
        elif new == 1:
            slot = start % self.window
            self.keys[..., slot : slot + 1, :], self.values[..., slot : slot + 1, :] = key, value
        else:
            # The first of several new positions still sees what the last of them will overwrite: put them side by side.
            past = [p % self.window for p in range(max(0, start - self.window + 1), start)]
            keys, values = (np.concatenate([held[..., past, :], own], axis=-2) for held, own in ((self.keys, key), (self.values, value)))
            kept = min(new, self.window)
            slots = [p % self.window for p in range(self.length - kept, self.length)]
            self.keys[..., slots, :], self.values[..., slots, :] = key[..., new - kept :, :], value[..., new - kept :, :]
            return keys, values
        filled = min(self.length, self.keys.shape[-2])
        return self.keys[..., :filled, :], self.values[..., :filled, :]

    def _grow_to(self, length: int) -> None:
        capacity = self.keys.shape[-2]
        if length > capacity:
            more = [(0, 0)] * (self.keys.ndim - 2) + [(0, max(capacity, length - capacity)), (0, 0)]
            self.keys, self.values = np.pad(self.keys, more), np.pad(self.values, more)

    @property
    def positions(self) -> Array:
        """The absolute position in each slot that is filled: in order, or by position mod window."""
        filled = np.arange(min(self.length, self.window or self.length))
        return filled if self.window is None else self.length - 1 - (self.length - 1 - filled) % self.window

    @property
    def bytes(self) -> int:
        """What the filled slots take: 2 arrays * batch * heads * positions * width * bytes a number."""
        if self.keys is None:
            return 0
        filled = min(self.length, self.keys.shape[-2])
        return sum(a[..., :filled, :].size * a.itemsize for a in (self.keys, self.values))


def cached_attention(
    params: Any, x: Array, cache: KeyValueCache | None, *, num_heads: int, num_kv_heads: int, bias: Array | None = None,
    causal: bool = True, scale: float | None = None, rotate: Callable | None = None, window: int | None = None,
    weighting: str | Callable | None = None, normalize: str | Callable | None = None, attend: str | None = None,
) -> tuple[Array, KeyValueCache]:  # fmt: skip
    """One decoding step of multi-head (num_kv_heads = num_heads) or grouped-query attention: out and the cache.

    The new positions x (..., new, d_model) attend to themselves and to everything in the cache. It is the same
    arithmetic as the full causal pass, in few NumPy calls: at one position a call, calls are what costs.
    """
    if not causal:
        raise invalid("causal", got=causal, wants="True: a step cannot see what has not been generated")
    check_core(attend, getattr(params, "learned", None), weighting, bias=bias, scale=scale)
    if cache is None:
        cache = KeyValueCache(window=window)
    weighting, learned = as_weighting(weighting), getattr(params, "learned", None) or ()
    *batch, new, d_model = x.shape
    group = num_heads // num_kv_heads
    rows = x.reshape(-1, d_model)                            # one matrix product, however many leading axes
    query = _project(params.query, rows).reshape(*batch, new, num_heads, -1).swapaxes(-2, -3)
    key = _project(params.key, rows).reshape(*batch, new, num_kv_heads, -1).swapaxes(-2, -3)
    value = _project(params.value, rows).reshape(*batch, new, num_kv_heads, -1).swapaxes(-2, -3)
    normalizer = as_normalizer(normalize, params.normalizer, query.shape[-1])
    if normalizer is not None:
        query, key = normalizer(query, key)[0]
    if rotate is not None:
        positions = np.arange(cache.length, cache.length + new)
        query, key = rotate(query, positions=positions)[0], rotate(key, positions=positions)[0]
    d_head = query.shape[-1]
    keys, values = cache.append(key, value)
    if attend is not None:                                   # a core by its name
        grouped = query.reshape(*batch, num_kv_heads, group, new, d_head)
        heads, _ = named_core(attend, causal_mask(new, keys.shape[-2]))(grouped, keys[..., None, :, :], values[..., None, :, :])
        return _project(params.output, merge_heads(heads.reshape(*batch, num_heads, new, -1)).reshape(len(rows), -1)).reshape(*batch, new, -1), cache
    # The heads of a group read the same keys: their queries are rows of one product, and no key is copied.
    query = (query * (d_head**-0.5 if scale is None else scale)).reshape(*batch, num_kv_heads, group * new, d_head)
    scores = query @ keys.swapaxes(-1, -2)                   # (..., num_kv_heads, group * new, seen)
    if bias is not None or new > 1 or weighting is not None:
        seen = keys.shape[-2]
        scores = scores.reshape(*batch, num_heads, new, seen)
        if bias is not None:
            scores = scores + bias
        if new > 1:                                          # a single new position sees all: no mask
            mask = causal_mask(new, seen) if cache.window is None else sliding_window_mask(new, seen, window=cache.window)
            scores = np.where(mask, scores, -np.inf)
        weights = None if weighting is None else weigh(weighting, scores, *learned)[0].reshape(*batch, num_kv_heads, group * new, seen)
        scores = scores.reshape(*batch, num_kv_heads, group * new, seen)
    if weighting is None:
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
    heads = (weights @ values).reshape(*batch, num_heads, new, -1).swapaxes(-2, -3)  # (..., new, heads, d_value)
    return _project(params.output, heads.reshape(len(rows), -1)).reshape(*batch, new, -1), cache


def _project(params: Linear, rows: Array) -> Array:
    """linear without its backward, which a step has no use for."""
    out = rows @ params.weight
    if params.bias is not None:
        out += params.bias
    return out
