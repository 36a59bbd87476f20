"""Diverse beam search: groups of beams that are kept from saying the same thing.

The texts that a beam finds differ in a word or two. Here the beams are cut into groups, and a group that chooses its next tokens gives
less to those that earlier groups chose at the same place. One text of each group can then be looked at side by side, or one can be
picked by a measure that the model does not know. Of n groups each is a beam search of its own, so time is that of n of them.

Source: Vijayakumar et al. 2016, arXiv:1610.02424, section 4, with Hamming diversity. Differs from common code: the penalty decides what is
chosen and is not added to what a text is worth, as in the paper; groups run one after the other, which gives the same texts.

    count(t, w) = how many live texts of earlier groups have w as their token t   (1)
    rank = log P(y w) - strength count(t, w)                 (2)
    chosen: the continuations of largest rank in the group   (3)
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, invalid, procedure
from minitransformers.models.beam_search import Hypothesis, length_penalty, search


@procedure(
    title="Diverse beam search",
    source="Vijayakumar et al. 2016, arXiv:1610.02424, section 4",
    example=lambda rng: _example(rng),
    rejects=[bad(num_groups=3), bad(num_groups=5), bad(end=7), bad(ids=np.zeros(0, int)), bad(step=lambda ids, state: (np.full((*ids.shape, 7), np.nan), state))],
)  # fmt: skip
def diverse_beam_search(
    step: Callable, ids: Int[Array, "positions"], *, num_tokens: Annotated[int, at_least(1)], num_beams: Annotated[int, at_least(1)] = 4,
    num_groups: Annotated[int, at_least(1)] = 2, strength: Annotated[float, at_least(0)] = 0.5, end: Annotated[int, at_least(0)] | None = None,
    penalty: Callable = length_penalty, processors: Sequence[Callable] = (),
) -> list[list[Hypothesis]]:  # fmt: skip
    """The best continuations of a prompt that each group found, the best first; groups in their order.

    num_beams are those of all groups together. strength, in nats, is what each earlier text with the same token at the same place
    costs; at 0 every group is the plain beam search. Scores and log-probabilities are those of beam_search, without the
    penalty. Other arguments as there.
    Raises ValueError where the groups do not share the beams evenly, and as beam_search does.
    """
    if num_beams % num_groups:
        raise invalid("num_groups", got=num_groups, wants=f"a number that divides the {num_beams} beams")
    taken: dict[int, Counter[int]] = {}

    def rank(continued: Array, length: int) -> Array:
        count = np.zeros(continued.shape[-1])
        for token, times in taken.get(length, {}).items():
            count[token] = times                             # (1)
        return continued - strength * count                  # (2)

    groups = []
    for _ in range(num_groups):
        new: dict[int, list[int]] = {}

        def chosen(texts: list[list[int]], length: int, new: dict = new) -> None:
            new[length] = [text[-1] for text in texts]

        groups.append(  # (3)
            search(step, ids, num_tokens=num_tokens, num_beams=num_beams // num_groups, end=end, penalty=penalty, processors=processors, rank=rank, chosen=chosen)
        )
        for length, tokens in new.items():
            taken.setdefault(length, Counter()).update(tokens)
    return groups


def _example(rng: np.random.Generator):
    table = 2 * rng.normal(size=(7, 7))
    return example(lambda ids, state: (table[ids], state), rng.integers(7, size=3), num_tokens=5, num_beams=4, num_groups=2, end=2)
