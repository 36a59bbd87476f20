"""ALiBi: take a penalty off every score that grows with the distance, at a steeper or gentler slope in each head.

No embedding says where a token stands. A far key just has to fit better, and a distance that was never seen in training
is one more step down the same line: a model may read longer texts than it was trained on.

Source: Press, Smith and Lewis 2021, arXiv:2108.12409, section 3 and figure 3. The first `power` heads, power the largest
power of two up to num_heads, have the slopes (1); the others take every second slope of twice as many heads, as in the
authors' code and in Bloom. Differs from the paper: slopes are parameters. learned=False keeps them what they are, as the
paper recommends. The penalty is the same on both sides of a query; the paper has only the causal side.

    slope_h = 2^(-8 (h + 1) / power)  for h = 0 .. power - 1  (1)
    distance_ij = |j - (i + num_keys - num_queries)|         (2)
    out_hij = -slope_h distance_ij                           (3)
    dslope_h = -sum over i, j of dout_hij distance_ij        (4)
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import bad, concept, example, invalid, trees, whole_number


class Alibi(NamedTuple):
    """What one position of distance costs in each head, in units of the score."""

    slopes: Float[Array, "heads"]


def init_alibi(rng: np.random.Generator, *, num_heads: int, dtype: type = np.float32) -> Alibi:
    """The slopes of the paper, between 0 and 1; nothing is drawn. Raises ValueError unless num_heads is a whole number from 1."""
    num_heads = whole_number("num_heads", num_heads, least=1)
    power = 1 << (num_heads.bit_length() - 1)                # the largest power of two up to num_heads
    steps = np.arange(1, power + 1) / power
    between = np.arange(1, 2 * (num_heads - power), 2) / (2 * power)  # every second step of twice as many heads
    return Alibi((2.0 ** (-8 * np.concatenate([steps, between]))).astype(dtype))  # (1)


@concept(
    title="Attention with linear biases (ALiBi)",
    source="Press, Smith and Lewis 2021, arXiv:2108.12409, section 3",
    example=lambda rng: example(Alibi(rng.normal(size=3)), num_queries=4, num_keys=6),
    roles=("position/bias",),
    rejects=[
        bad("params.slopes", params=Alibi(np.ones((3, 1)))),
        bad(num_queries=0),
        bad(num_queries=7),
        bad("num_queries", num_keys=3),
        bad(num_queries=1.5),
        bad(num_keys=4.5),
    ],
)
def alibi(params: Alibi, *, num_queries: int, num_keys: int, learned: bool = True):
    """A bias (heads, num_queries, num_keys) for the scores, after their scaling.

    The queries are the last of the positions that the keys span, so a cache of earlier keys needs no offset. Where
    learned is false the slopes are constants: their gradient is exactly 0.
    Returns out, and backward: dout -> Alibi(dslopes).
    Raises ValueError unless 1 <= num_queries <= num_keys, whole numbers.
    """
    num_queries, num_keys = whole_number("num_queries", num_queries, least=1), whole_number("num_keys", num_keys, least=1)
    if num_queries > num_keys:
        raise invalid("num_queries", got=num_queries, wants=f"1 to num_keys = {num_keys}: queries are the last of the keys' positions")
    query, key = np.arange(num_keys - num_queries, num_keys), np.arange(num_keys)
    distance = np.abs(key - query[:, None]).astype(params.slopes.dtype)  # (num_queries, num_keys)  (2)
    out = -params.slopes[:, None, None] * distance           # (3)

    def backward(dout):
        if not learned:
            return trees.zeros_like(params)
        return Alibi(-(dout * distance).sum(axis=(1, 2)))    # (4)

    return out, backward
