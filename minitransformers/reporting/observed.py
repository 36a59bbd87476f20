"""What each matrix of a Llama is multiplied with: seen, for calibration, or changed, by functions in the slots of its blocks.

Attention, its core and the feed-forward network are slots; what is put there computes what it always does, and hands what each matrix reads to a
function, which looks on or rounds it. No line of the model knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.heads import merge_heads, split_heads
from minitransformers.basics.linear import linear
from minitransformers.basics.silu import silu
from minitransformers.compression.calibration import activation_bounds
from minitransformers.compression.input_statistics import input_gram, mean_magnitudes
from minitransformers.models.llama import Llama, llama_attention, llama_body

# What reads the same inputs, in each block.
TOGETHER = (("attention.query", "attention.key", "attention.value"), ("attention.output",), ("feed_forward.gate", "feed_forward.up"), ("feed_forward.down",))


class Inputs(NamedTuple):
    """Of all rows that met a matrix: X^T X, the sum of magnitudes of each feature, the largest of them, and how many rows they were."""

    gram: Array
    magnitudes: Array
    largest: Array
    rows: int

    @property
    def norms(self) -> Array:
        """The Euclidean norm of each feature."""
        return np.sqrt(np.diag(self.gram))

    @property
    def mean_magnitudes(self) -> Array:
        """The mean of |x| of each feature."""
        return self.magnitudes / self.rows

    @property
    def root(self) -> Array:
        """As many rows as features that have the same X^T X, up to rounding: as good as the inputs, where that is all that counts of them."""
        values, vectors = np.linalg.eigh(self.gram.astype(np.float64))
        return (np.sqrt(np.maximum(values, 0))[:, None] * vectors.T).astype(self.gram.dtype)


def paths_of(block: int, parts: Iterable[str]) -> list[str]:
    """Of the weights of these parts of a block."""
    return [f"blocks.{block}.{part}.weight" for part in parts]


def slots_that_show(see: Callable[[list[str], Array], Array]) -> dict[str, Callable]:
    """Slots for one call of llama in which each matrix reads ``see(paths, x)`` in the place of x; paths are of all that reads x. Forward only."""
    block = -1

    def show(group: int, x: Array) -> Array:
        return see(paths_of(block, TOGETHER[group]), x)

    def attention(own: Any, x: Array, *, core: Callable, **rest: Any) -> Any:
        nonlocal block
        block += 1

        def showing(*args: Any, **kept: Any) -> Any:
            heads, backward = core(*args, **kept)            # (batch, heads of keys, group, positions, d_head)
            ungrouped = heads.reshape(*heads.shape[:-4], -1, *heads.shape[-2:])
            return split_heads(show(1, merge_heads(ungrouped)), ungrouped.shape[-3]).reshape(heads.shape), backward

        return llama_attention(own, show(0, x), core=showing, **rest)

    def feed_forward(own: Any, x: Array) -> Any:
        x = show(2, x)
        hidden = silu(linear(own.gate, x)[0])[0] * linear(own.up, x)[0]
        return linear(own.down, show(3, hidden))[0], None

    return {"attention": attention, "feed_forward": feed_forward}


def observed(params: Llama, batches: Iterable[Any], **settings: Any) -> dict[str, Inputs]:
    """The inputs of each matrix, by its path, as the model reads batches of ids; settings are those of llama."""
    found: dict[str, Inputs] = {}

    def note(paths: list[str], x: Array) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        own = Inputs(input_gram([rows]), mean_magnitudes([rows]) * len(rows), activation_bounds([rows]), len(rows))
        known = found.get(paths[0])
        if known is not None:
            own = Inputs(known.gram + own.gram, known.magnitudes + own.magnitudes, np.maximum(known.largest, own.largest), known.rows + own.rows)
        found.update(dict.fromkeys(paths, own))
        return x

    for ids in batches:
        slots: dict[str, Any] = slots_that_show(note)
        llama_body(params, ids=ids, **slots, **settings)
    return found
