"""Masked language modelling: hide some tokens of a text, so that a model that sees both sides has something to find out.

Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1 (task 1) and appendix A.1. Differs from the paper: there a text has a
fixed share of its tokens chosen, at most 20 of 128, once, before training; here each token is chosen by a draw of its own, anew
at every call (Liu et al. 2019, arXiv:1907.11692, section 4.1, found that at least as good). u and v are uniform from 0 to 1, one
of each a token; r is a uniform id.

    eligible = id is neither mask_id nor one of specials     (1)
    chosen = eligible and u < rate                           (2)
    hidden = chosen and v < to_mask                          (3)
    replaced = chosen and v < to_mask + to_random            (4)
    ids = mask_id where hidden, else r where replaced, else the id that was there   (5)
    labels = the id that was there where chosen, else -100   (6)
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, between, example, invalid, procedure


class Masked(NamedTuple):
    """What the model reads, and what it is asked: -100 where it is asked nothing, which cross_entropy ignores."""

    ids: Int[Array, "*batch positions"]
    labels: Int[Array, "*batch positions"]


@procedure(
    title="Masked language modelling",
    source="Devlin et al. 2018, arXiv:1810.04805, section 3.1",
    example=lambda rng: example(rng.integers(4, 9, size=(2, 7)), rng=rng, mask_id=3, vocabulary=9, specials=(0, 1, 2), rate=0.5),
    rejects=[bad("ids", ids=np.array([[4, 9]])), bad("ids", ids=np.array([[4, -1]])), bad(mask_id=9), bad(to_random=0.3), bad(specials=(0.5,))],
)
def masked_language_modelling(
    ids: Int[Array, "*batch positions"], *, rng: np.random.Generator, mask_id: Annotated[int, at_least(0)],
    vocabulary: Annotated[int, at_least(1)], specials: Sequence[int] = (), rate: Annotated[float, between(0, 1)] = 0.15,
    to_mask: Annotated[float, between(0, 1)] = 0.8, to_random: Annotated[float, between(0, 1)] = 0.1,
) -> Masked:  # fmt: skip
    """A text with some of its tokens hidden, and which they were. Draw anew at each step of training.

    rate is how many of the eligible tokens are chosen. Of the chosen, to_mask become mask_id, to_random become any id of the
    vocabulary with equal chances, and the rest stay: they are asked for all the same. specials are ids that are never chosen
    (padding, [CLS], [SEP]), and mask_id is one of them. What is not chosen stays as it is.
    Returns Masked(ids, labels), both int64 and shaped like ids. None may be chosen in a short text.
    Raises ValueError where ids or mask_id lie outside the vocabulary, or to_mask and to_random exceed 1 together.
    """
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise invalid("ids", got=f"ids from {ids.min()} to {ids.max()}", wants=f"0 to {vocabulary - 1}, as vocabulary says")
    if mask_id >= vocabulary:
        raise invalid("mask_id", got=mask_id, wants=f"an id from 0 to {vocabulary - 1}, as vocabulary says")
    if to_mask + to_random > 1:
        raise invalid("to_random", got=f"{to_random}, and to_mask of {to_mask}", wants="no more than 1 together")
    u, v, r = rng.random(ids.shape), rng.random(ids.shape), rng.integers(vocabulary, size=ids.shape)
    before = ids.astype(np.int64)

    eligible = ~np.isin(before, [mask_id, *specials])        # (1)
    chosen = eligible & (u < rate)                           # (2)
    hidden = chosen & (v < to_mask)                          # (3)
    replaced = chosen & (v < to_mask + to_random)            # (4)
    after = np.where(hidden, mask_id, np.where(replaced, r, before))  # (5)
    labels = np.where(chosen, before, -100)                  # (6)
    return Masked(after, labels)
