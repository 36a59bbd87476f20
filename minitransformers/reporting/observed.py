"""What each matrix of a Llama is multiplied with: calibration, by functions in the slots of its blocks that look on.

Attention, its core and the feed-forward network are slots; what is put there computes what it always does and takes a note of its input. No line
of the model knows of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.attention.heads import merge_heads
from minitransformers.basics.gated_feed_forward import gated_feed_forward
from minitransformers.basics.linear import linear
from minitransformers.basics.silu import silu
from minitransformers.models.llama import Llama, llama_attention, llama_body


class Inputs(NamedTuple):
    """Of all rows that met a matrix: X^T X, the sum of magnitudes of each feature, and how many they were."""

    gram: Array
    magnitudes: Array
    rows: int

    @property
    def norms(self) -> Array:
        """The Euclidean norm of each feature."""
        return np.sqrt(np.diag(self.gram))

    @property
    def mean_magnitudes(self) -> Array:
        """The mean of |x| of each feature."""
        return self.magnitudes / self.rows


def observed(params: Llama, batches: Iterable[Any], **settings: Any) -> dict[str, Inputs]:
    """The inputs of each matrix, by its path, as the model reads batches of ids; settings are those of llama."""
    found: dict[str, Inputs] = {}

    def note(path: str, x: Array) -> None:
        rows = x.reshape(-1, x.shape[-1])
        gram, magnitudes, count = rows.T @ rows, np.abs(rows).sum(axis=0), len(rows)
        known = found.get(path)
        found[path] = Inputs(gram, magnitudes, count) if known is None else Inputs(known.gram + gram, known.magnitudes + magnitudes, known.rows + count)

    for ids in batches:
        order = iter(range(len(params.blocks)))
        block = 0

        def attention(own: Any, x: Array, *, core: Any, **rest: Any) -> Any:
            nonlocal block
            block = next(order)
            for name in ("query", "key", "value"):
                note(f"blocks.{block}.attention.{name}.weight", x)

            def watched(*args: Any, **kept: Any) -> Any:
                heads, backward = core(*args, **kept)        # (batch, heads of keys, group, positions, d_head)
                ungrouped = heads.reshape(*heads.shape[:-4], -1, *heads.shape[-2:])
                note(f"blocks.{block}.attention.output.weight", merge_heads(ungrouped))
                return heads, backward

            return llama_attention(own, x, core=watched, **rest)

        def feed_forward(own: Any, x: Array) -> Any:
            for name in ("gate", "up"):
                note(f"blocks.{block}.feed_forward.{name}.weight", x)
            note(f"blocks.{block}.feed_forward.down.weight", silu(linear(own.gate, x)[0])[0] * linear(own.up, x)[0])
            return gated_feed_forward(own, x)

        llama_body(params, ids=ids, attention=attention, feed_forward=feed_forward, **settings)
    return found
