"""Biased memory normalisation: each slot is drawn a little to a place of its own, then scaled to length 1. So a memory forgets.

A slot that is never written to would keep what it has for ever. Here a learned vector is added to it at every step. The sum is
scaled back to length 1, so what was there fades and the direction of the vector is what is left. The same vector says how a
memory starts: an empty slot that is normalised in this way lies in its direction.

Source: Wu et al. 2020 (Memformer), arXiv:2010.06891, section 3. Differs from the paper: how long the vector is at first, and
so how fast a slot forgets, is said in init.

    moved_i = slot_i + bias_i, or bias_i where nothing was written yet   (1)
    length_i = |moved_i|                                     (2)
    out_i = moved_i / length_i                               (3)
    along_i = dout_i . out_i                                 (4)
    dslot_i = (dout_i - along_i out_i) / length_i            (5)
    dbias_i = sum over the batch of dslot_i                  (6)
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.attention.heads import sum_to
from minitransformers.foundation import Backward, at_least, bad, checked, concept, example, invalid, positive


class BiasedMemoryNorm(NamedTuple):
    """Where each slot starts, and where it goes when it forgets; the longer, the sooner."""

    bias: Float[Array, "slots d_model"]


@checked
def init_biased_memory_norm(
    rng: np.random.Generator, num_slots: Annotated[int, at_least(1)], d_model: Annotated[int, at_least(1)], *,
    length: Annotated[float, positive] = 0.1, dtype: type = np.float32,
) -> BiasedMemoryNorm:  # fmt: skip
    """A random direction for each slot. length is that of the bias, beside the 1 of a slot: about what is forgotten in a step."""
    direction = rng.standard_normal((num_slots, d_model))
    return BiasedMemoryNorm((length * direction / np.linalg.norm(direction, axis=-1, keepdims=True)).astype(dtype))


@concept(
    title="Biased memory normalisation",
    source="Wu et al. 2020 (Memformer), arXiv:2010.06891, section 3",
    example=lambda rng: example(BiasedMemoryNorm(rng.normal(size=(3, 5))), rng.normal(size=(2, 3, 5))),
    rejects=[
        bad("slots", params=BiasedMemoryNorm(np.ones((3, 5))), slots=np.full((2, 3, 5), -1.0)),
        bad("slots", params=BiasedMemoryNorm(np.zeros((3, 5))), slots=None),
        bad(slots=np.ones((2, 4, 5))),
    ],
)
def biased_memory_norm(params: BiasedMemoryNorm, slots: Float[Array, "*batch slots d_model"] | None = None) -> tuple[Array, Backward]:
    """Add to each slot its bias, and divide by the length. Without slots: the memory before anything was read, (slots, d_model).

    Returns out, shaped like slots, each slot of length 1, and backward: dout -> BiasedMemoryNorm(dbias), dslots (None
    without slots).
    Raises ValueError where a slot and its bias cancel, so that there is no direction, or there is another number of slots.
    """
    moved = params.bias if slots is None else slots + params.bias  # (1)
    length = np.sqrt(np.vecdot(moved, moved))[..., None]     # (2)
    if not (length > 0).all():
        raise invalid("slots", got="a slot that is 0, or NaN, when its bias is added", wants="slots that their biases do not cancel")
    out = moved / length                                     # (3)

    def backward(dout):
        along = np.vecdot(dout, out)[..., None]              # to make a slot longer changes nothing  (4)
        dslots = (dout - along * out) / length               # (5)
        dbias = sum_to(dslots, params.bias.shape)            # (6)
        return BiasedMemoryNorm(dbias), None if slots is None else dslots

    return out, backward
