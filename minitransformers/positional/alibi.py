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

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, trees
from minitransformers.positional.offsets import offsets


class Alibi(NamedTuple):
    """What one position of distance costs in each head, in units of the score."""

    slopes: Float[Array, "heads"]


@checked
def init_alibi(rng: np.random.Generator, *, num_heads: Annotated[int, at_least(1)], dtype: type = np.float32) -> Alibi:
    """The slopes of the paper, between 0 and 1; nothing is drawn."""
    power = 1 << (num_heads.bit_length() - 1)                # the largest power of two up to num_heads
    steps = np.arange(1, power + 1) / power
    between = np.arange(1, 2 * (num_heads - power), 2) / (2 * power)  # every second step of twice as many heads
    return Alibi((2.0 ** (-8 * np.concatenate([steps, between]))).astype(dtype))  # (1)


@concept(
    title="Attention with linear biases (ALiBi)",
    source="Press, Smith and Lewis 2021, arXiv:2108.12409, section 3",
    example=lambda rng: example(Alibi(rng.normal(size=3)), num_queries=4, num_keys=6),
    roles=("position/bias",),
    rejects=[bad(num_queries=7), bad("num_queries", num_keys=3)],
)
def alibi(
    params: Alibi, *, num_queries: Annotated[int, at_least(1)], num_keys: Annotated[int, at_least(1)], learned: bool = True
) -> tuple[Array, Backward]:  # fmt: skip
    """A bias (heads, num_queries, num_keys) for the scores, after their scaling.

    The queries are the last of the positions that the keys span, so a cache of earlier keys needs no offset. Where
    learned is false the slopes are constants: their gradient is exactly 0.
    Returns out, and backward: dout -> Alibi(dslopes).
    Raises ValueError when there are more queries than keys.
    """
    distance = np.abs(offsets(num_queries, num_keys)).astype(params.slopes.dtype)  # (queries, keys)  (2)
    out = -params.slopes[:, None, None] * distance           # (3)

    def backward(dout):
        if not learned:
            return trees.zeros_like(params)
        return Alibi(-(dout * distance).sum(axis=(1, 2)))    # (4)

    return out, backward
