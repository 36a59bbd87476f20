"""T5's relative bias: a learned number for every head and distance, where far distances share.

Near distances have a number each. Farther ones fall into buckets that grow with the distance, and everything from
max_distance on falls into the last. So a text of any length has a bias, from a table of a few rows.

Source: Raffel et al. 2020, arXiv:1910.10683, section 2.1; the buckets are those of the authors' code, which the paper
describes in words only. T5 does not divide its scores by sqrt(d_head): give its core scale=1. One table serves a stack.

    offset_ij = j - (i + num_keys - num_queries)             (1)
    side = num_buckets, or half of them each way where not causal;  near = floor(side / 2)
    distance = max(-offset, 0) if causal, else |offset|      (2)
    far = near + floor((side - near) log(distance / near) / log(max_distance / near)), at most side - 1  (3)
    bucket = distance if distance < near else far, and side more where offset > 0 and not causal         (4)
    out_hij = table of bucket_ij and h                       (5)
    dtable_bh = sum over i, j with bucket_ij = b of dout_hij (6)

The bucket is a whole number that positions decide: nothing is differentiated through it.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid
from minitransformers.positional.offsets import offsets


class T5Bias(NamedTuple):
    """What a distance adds to the score: a row for each bucket, a column for each head."""

    table: Float[Array, "num_buckets heads"]


@checked
def init_t5_bias(
    rng: np.random.Generator, *, num_heads: Annotated[int, at_least(1)], num_buckets: Annotated[int, at_least(4)] = 32,
    std: Annotated[float, at_least(0)] = 0.02, dtype: type = np.float32,
) -> T5Bias:  # fmt: skip
    """Normal numbers of deviation ``std``: at the start all distances are nearly alike."""
    return T5Bias((std * rng.standard_normal((num_buckets, num_heads))).astype(dtype))


@concept(
    title="T5's relative bias",
    source="Raffel et al. 2020, arXiv:1910.10683, section 2.1",
    example=lambda rng: example(T5Bias(rng.normal(size=(8, 3))), num_queries=4, num_keys=6, causal=False, max_distance=6),
    roles=("position/bias",),
    rejects=[
        bad("params.table", params=T5Bias(np.ones((7, 3)))),
        bad("params.table", params=T5Bias(np.ones((3, 3))), causal=True),
        bad(max_distance=2),
        bad("max_distance", max_distance=4, causal=True),
        bad(num_queries=10),
    ],
)
def t5_bias(
    params: T5Bias, *, num_queries: Annotated[int, at_least(1)], num_keys: Annotated[int, at_least(1)], causal: bool = True,
    max_distance: Annotated[int, at_least(2)] = 128,
) -> tuple[Array, Backward]:  # fmt: skip
    """A bias (heads, num_queries, num_keys) for the scores.

    The queries are the last of the positions that the keys span, so a cache of earlier keys needs no offset.
    max_distance, in positions, is where the last bucket is reached at the latest; causal gives all buckets to the past.
    Returns out, and backward: dout -> T5Bias(dtable). Buckets that no pair falls into get exactly 0.
    Raises ValueError when there are more queries than keys, the table has fewer than 4 rows, or an odd number where not causal,
    or max_distance does not exceed the distances that have a bucket of their own.
    """
    num_buckets = len(params.table)
    if num_buckets < 4 or (num_buckets % 2 and not causal):
        raise invalid("params.table", got=f"{num_buckets} buckets", wants="at least 4, an even number where not causal")
    side = num_buckets if causal else num_buckets // 2
    near = side // 2
    if max_distance <= near:
        raise invalid("max_distance", got=max_distance, wants=f"more than the {near} distances that have a bucket of their own")
    offset = offsets(num_queries, num_keys)                  # (queries, keys)  (1)
    distance = np.maximum(-offset, 0) if causal else np.abs(offset)  # (2)
    # The logarithm to the base 2 is exact where buckets begin at powers of two: no distance is rounded out of its own.
    growth = np.log2(np.maximum(distance, near) / near) / np.log2(max_distance / near)
    far = np.minimum(near + ((side - near) * growth).astype(int), side - 1)  # (3)
    bucket = np.where(distance < near, distance, far)
    if not causal:
        bucket += side * (offset > 0)                        # (4)
    out = np.moveaxis(params.table[bucket], -1, 0)           # (heads, num_queries, num_keys)  (5)

    def backward(dout):
        # A sum for each bucket, as np.add.at would make it, but many times faster.
        sums = [np.bincount(bucket.ravel(), weights=dhead.ravel(), minlength=num_buckets) for dhead in dout]
        return T5Bias(np.stack(sums, axis=1).astype(dout.dtype))  # (6)

    return out, backward
