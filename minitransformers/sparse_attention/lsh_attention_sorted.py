"""LSH attention by sorting: each chunk meets itself and the chunk before, and no other scores are computed.

In each round the text is sorted by chunk number and laid out as rows of one chunk each; all chunks of all rounds, heads and
texts are one batch of small dense attentions. Time O(rounds (n log n + n chunk d_head)) and memory O(rounds n chunk), against
n^2 for the plain form. Source: Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451, section 2. Differs from the paper: chunks
that are not full are filled up, and chunk 0 looks back at nothing, where the authors' code makes a ring of all rounds.

The equations are those of lsh_attention, and so are the numbers on the lines. What differs:

- A position stands in one chunk a round. So a pair occurs once for every round that finds it, and (9) needs no factor times;
  for ``once`` each occurrence counts for 1 / times.
- One softmax goes over the rounds: top and the sums of (10) and (11) are first taken in a chunk, and then over the rounds.
- The backward needs no scatter. Sorting is a permutation, and its adjoint unsorts. What a chunk sent to the one before goes back
  by one chunk, and is added to what it sent to itself.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import Backward, concept, finite
from minitransformers.sparse_attention.lsh_attention import example_call, unit_vectors


@concept(
    title="LSH attention, by sorting",
    source="Kitaev, Kaiser and Levskaya 2020, arXiv:2001.04451, section 2",
    example=lambda rng: example_call(rng),
    form_of="lsh_attention",
)
def lsh_attention_sorted(
    shared: Float[Array, "*batch positions d_head"],
    value: Float[Array, "*batch positions d_value"],
    *,
    chunks: Int[Array, "*batch rounds positions"],
    causal: bool = True,
    once: bool = False,
    scale: Annotated[float, finite] = 1.0,
) -> tuple[Array, Backward]:
    """What lsh_attention gives, without the scores that its mask forbids; arguments and results are its own."""
    layout = _Chunks(chunks)
    unit, unit_backward = unit_vectors(shared)               # (5)
    query, near_unit, near_value = layout.cut(shared), layout.near(layout.cut(unit)), layout.near(layout.cut(value))
    scores = scale * (query @ near_unit.swapaxes(-1, -2))    # (chunks, size, 2 size)  (6)
    place, near_place = layout.place[:, :, None], layout.near(layout.place)[:, None]
    sees = layout.meets & (place > near_place if causal else place != near_place)  # (7) (8)
    logits = np.where(sees, scores, scores.dtype.type(-np.inf))
    top = layout.join(logits.max(-1, keepdims=True)).max(-3)  # (*batch, positions, 1), over the rounds
    exps = np.exp(logits - layout.cut(np.maximum(top, np.finfo(shared.dtype).min)))  # (9)
    if once:
        exps *= np.reciprocal(layout.times(chunks), dtype=exps.dtype)
    total = layout.join(exps.sum(-1, keepdims=True)).sum(-3)  # sums over the rounds
    mix, alone = layout.join(exps @ near_value).sum(-3), top == -np.inf
    total = np.where(alone, total.dtype.type(1), total)      # (10)
    out = np.where(alone, value, mix / total)                # (11)

    def backward(dout):
        dmix = dout / total
        near_dmix, near_shared = layout.cut(dmix), layout.cut(np.vecdot(dmix, out)[..., None])
        dvalue = layout.join(layout.from_near(exps.swapaxes(-1, -2) @ near_dmix)).sum(-3) + np.where(alone, dout, 0)  # (12)
        dscores = exps * (near_dmix @ near_value.swapaxes(-1, -2) - near_shared)  # (13)
        dshared = scale * layout.join(dscores @ near_unit).sum(-3)  # (14)
        dunit = scale * layout.join(layout.from_near(dscores.swapaxes(-1, -2) @ query)).sum(-3)  # (15)
        return dshared + unit_backward(dunit), dvalue        # (16)

    return out, backward


class _Chunks:
    """The positions sorted into chunks: a row for every chunk of every round, head and text, filled up to the size of the largest.

    place is each one's position in its text; meets, (chunks, size, 2 size), says which slots stand for a position on both sides,
    those of the chunk itself and those of the chunk before, where its number is one less.
    """

    def __init__(self, chunks: Array) -> None:
        self.shape, positions = chunks.shape, chunks.shape[-1]
        self.rounds = chunks.shape[-2]
        numbers = chunks.reshape(-1, positions)              # a row for every round of every text
        order = np.argsort(numbers, axis=-1, kind="stable")
        ordered = np.take_along_axis(numbers, order, axis=-1)
        begins = np.diff(ordered, axis=-1, prepend=ordered[:, :1] - 1).reshape(-1) != 0
        starts = np.flatnonzero(begins)                      # where a chunk begins, all texts and rounds one after the other
        row = np.cumsum(begins) - 1
        slot = np.arange(order.size) - starts[row]
        size = slot.max() + 1
        self.place = np.full((len(starts), size), positions)  # what fills up is no position
        self.place[row, slot] = order.reshape(-1)
        line = starts // positions                           # the text and round of each chunk
        self.text = (line // self.rounds)[:, None] * positions + np.minimum(self.place, positions - 1)
        self.back = np.empty(order.shape, int)               # the slot of each position
        np.put_along_axis(self.back, order, (row * size + slot).reshape(order.shape), axis=-1)
        number = ordered.reshape(-1)[starts]
        follows = np.diff(number, prepend=number[0]) == 1
        follows &= np.diff(line, prepend=-1) == 0
        filled = self.place < positions
        near_filled = np.concatenate([filled, np.roll(filled, 1, axis=0) & follows[:, None]], axis=1)
        self.meets = filled[:, :, None] & near_filled[:, None]

    def cut(self, x: Array) -> Array:
        """(*batch, positions, d) to (chunks, size, d)."""
        return x.reshape(-1, x.shape[-1]).take(self.text, axis=0)

    def join(self, cut: Array) -> Array:
        """(chunks, size, d) to (*batch, rounds, positions, d): every position's own. Summed over the rounds, the adjoint of cut."""
        return cut.reshape(-1, cut.shape[-1]).take(self.back, axis=0).reshape(*self.shape, cut.shape[-1])

    def near(self, cut: Array) -> Array:
        """Each chunk, and the one in the row before it, side by side: (chunks, size, ...) to (chunks, 2 size, ...)."""
        return np.concatenate([cut, np.roll(cut, 1, axis=0)], axis=1)

    def from_near(self, near: Array) -> Array:
        """The adjoint."""
        own, before = np.split(near, 2, axis=1)
        return own + np.roll(before, -1, axis=0)

    def times(self, chunks: Array) -> Array:
        """In how many rounds each pair meets; 1 where it does not meet here."""
        found = np.zeros(self.meets.shape, int)
        for r in range(self.rounds):
            number = self.cut(chunks[..., r, :, None])
            back = number - self.near(number).swapaxes(-1, -2)
            found += (back == 0) | (back == 1)
        return np.where(self.meets, found, 1)
