"""Sparse forms of attention as cores, ``core(params, query, key, value, **settings) -> out, backward``: what they cost can be compared.

Each does the whole work of its form but for what is alike in all: projections, gates and sets of keys beside one.
"""

from __future__ import annotations

from typing import Any

from numpy import ndarray as Array

from minitransformers.attention.banded_attention_blocks import banded_attention_blocks
from minitransformers.foundation import Backward
from minitransformers.sparse_attention.compressed_attention import compressed_attention, most_read_blocks
from minitransformers.sparse_attention.longformer_blocks import longformer_blocks
from minitransformers.sparse_attention.lsh_attention import lsh_buckets, lsh_chunks
from minitransformers.sparse_attention.lsh_attention_sorted import lsh_attention_sorted
from minitransformers.sparse_attention.selected_block_attention_fast import selected_block_attention_fast

GLOBALS = (0, 1)                                             # the global tokens of Longformer


def longformer(params: Any, query: Array, key: Array, value: Array, **settings: Any) -> tuple[Array, Backward]:
    """The kernel with global rows; their projections are those of the window here, which costs the same."""
    return longformer_blocks(query, key, value, query[..., GLOBALS, :], key, value, global_positions=GLOBALS, **settings)


def lsh(params: Any, query: Array, key: Array, value: Array, **settings: Any) -> tuple[Array, Backward]:
    """Queries that are their own keys, hashed once for every round."""
    chunks = lsh_chunks(lsh_buckets(query, rounds=2, num_buckets=16), **settings)
    return lsh_attention_sorted(query, value, chunks=chunks)


def native(params: Any, query: Array, key: Array, value: Array, *, block: int, top: int, window: int) -> tuple[Array, Backward]:
    """The three branches of native sparse attention; with one set of keys, which costs the same, and without gates."""
    selected = most_read_blocks(query, key[0], block=block, top=top)[None]
    parts = [
        compressed_attention(query, key, value, block=block),
        selected_block_attention_fast(query, key, value, selected=selected, block=block),
        banded_attention_blocks(None, query, key, value, window=window),
    ]
    together: Any = sum(out for out, _ in parts)
    return together, lambda dout: [part_backward(dout) for _, part_backward in parts]
