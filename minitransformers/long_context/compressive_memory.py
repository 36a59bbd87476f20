"""The two memories of a layer of the Compressive Transformer, after one more segment: two queues, one behind the other.

The segment enters the memory of recent rows. The oldest rows leave it, and are compressed; what is made of them enters the
compressed memory, and the oldest of that are forgotten. Source: Rae et al. 2019, arXiv:1911.05507, section 3. The equations are
numbered as on the page of ``compressive_transformer``:

    [old; recent'] = [recent; x], cut before the last R rows   (2)
    compressed' = the last C rows of [compressed; f(old)]    (3)
    [dcompressed; dsmall] = dcompressed' in the last rows, else 0   (6)
    dold = f*(dsmall)                                        (7)
    [drecent; dx] = [dold; drecent']                         (8)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.linear import Linear
from minitransformers.foundation import Backward, bad, concept, example, invalid, trees
from minitransformers.long_context.attention_with_memory import below
from minitransformers.long_context.convolution_compression import Rate, convolution_compression
from minitransformers.long_context.transformer_xl import Size


@concept(
    title="Compressive memory",
    source="Rae et al. 2019, arXiv:1911.05507, section 3",
    example=lambda rng: _example(rng),
    rejects=[
        bad("x", x=np.ones((2, 3, 3))), bad("memory_length", memory_length=2), bad("memory_length", memory_length=7), bad("recent", recent=np.ones((2, 5, 3))),
        bad(recent=np.ones((3, 6, 3))), bad(compressed=np.ones((2, 2, 4))), bad("params.weight", rate=1),
    ],
    form_of="compressive_transformer",
)  # fmt: skip
def compressive_memory(
    params: Any, x: Float[Array, "*batch positions d_model"], recent: Float[Array, "*batch kept d_model"] | None = None,
    compressed: Float[Array, "*batch fewer d_model"] | None = None, *, memory_length: Size, compressed_length: Size, rate: Rate,
    compress: Callable = convolution_compression, usage: Callable | None = None,
) -> tuple[tuple[Array, Array | None], Backward]:  # fmt: skip
    """The recent rows and the compressed ones after the rows of x have entered; None in the place of a memory that is empty.

    memory_length and compressed_length are the most rows that each holds. compress(params, old, rate=..., usage=...) -> small,
    backward is a slot; usage() -> (*batch, kept + positions) is what a compression may ask about the rows, see most_used_compression.
    Returns (recent, compressed), arrays of their own, and backward: (drecent, dcompressed) -> dparams, dx, drecent, dcompressed of
    before (None for None).
    Raises ValueError where rate does not divide the positions, the recent rows or memory_length, or memory_length is less than the
    positions: a segment would push out its own rows.
    """
    both, new = below(recent, x), x.shape[-2]
    if new % rate:
        raise invalid("x", got=f"{new} positions", wants=f"a number of positions that rate = {rate} divides")
    if memory_length < new or memory_length % rate:
        raise invalid("memory_length", got=memory_length, wants=f"at least the {new} positions, and a number that rate = {rate} divides")
    if both.shape[-2] % rate:
        raise invalid("recent", got=f"{both.shape[-2] - new} rows", wants=f"a number of rows that rate = {rate} divides")
    pushed = max(both.shape[-2] - memory_length, 0)
    kept = both[..., pushed:, :].copy()                      # (2)
    if not pushed:                                           # there is room for all of them
        def passed_on(dafter):
            dkept, dcompressed = dafter
            return trees.zeros_like(params), dkept[..., -new:, :], None if recent is None else dkept[..., :-new, :], dcompressed

        return (kept, None if compressed is None else compressed.copy()), passed_on

    received = None if usage is None else lambda: usage()[..., :pushed]
    small, compress_backward = compress(params, both[..., :pushed, :], rate=rate, usage=received)
    queue = below(compressed, small)
    held = queue[..., -compressed_length:, :].copy()         # (3)

    def backward(dafter):
        dkept, dheld = dafter
        dqueue = np.zeros_like(queue)
        dqueue[..., -held.shape[-2] :, :] = dheld            # what was forgotten gets nothing  (6)
        dparams, dold = compress_backward(dqueue[..., -small.shape[-2] :, :])  # (7)
        dboth = np.concatenate([dold, dkept], axis=-2)       # (8)
        dcompressed = None if compressed is None else dqueue[..., : -small.shape[-2], :]
        return dparams, dboth[..., -new:, :], None if recent is None else dboth[..., :-new, :], dcompressed

    return (kept, held), backward


def _example(rng: np.random.Generator):
    arrays = (rng.normal(size=(2, rows, 3)) for rows in (4, 6, 3))
    params = Linear(rng.normal(size=(6, 3)) / 2, rng.normal(size=3))
    return example(params, *arrays, memory_length=6, compressed_length=4, rate=2)
