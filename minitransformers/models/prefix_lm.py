"""Prefix language modelling: a text whose beginning is read in both directions, and whose rest is written from left to right.

A question is there as a whole before its answer is begun, so nothing forbids its first word to look at its last. One stack with
one mask does what encoder and decoder do: the prefix is the source. Sources: Raffel et al. 2020, arXiv:1910.10683, section
3.2.1 ("prefix LM"); Dong et al. 2019 (UniLM), arXiv:1905.03197, section 2.3 ("sequence-to-sequence"). Differs from the latter:
there tokens of the second part are hidden and asked for, here each position is asked for the one behind it. A text has n
tokens, of which the first m are its prefix; positions and keys count from 0.

    prefix_key = key < m                                     (1)
    visible = prefix_key or key <= query                     (2)
    mask = visible and key < n                               (3)
    labels_t = token t + 1, where m <= t + 1 < n, else -100   (4)

Within the prefix a position may already see the token behind it: a label there would ask for what stands there.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array

from minitransformers.attention.masks import causal_mask
from minitransformers.foundation import at_least, bad, example, invalid, procedure


class PrefixTask(NamedTuple):
    """Who may see whom, as attention takes it, and what is asked: -100 where nothing is, which cross_entropy ignores."""

    mask: Bool[Array, "*batch one positions positions"]
    labels: Int[Array, "*batch positions"]


@procedure(
    title="Prefix language modelling",
    source="Raffel et al. 2020, arXiv:1910.10683, section 3.2.1",
    example=lambda rng: example(rng.integers(9, size=(2, 6)), prefixes=np.array([1, 4]), lengths=np.array([6, 5])),
    rejects=[
        bad(prefixes=np.array([7, 1])), bad(prefixes=np.array([1, 6])), bad(lengths=np.array([7, 5])), bad(prefixes=np.array([-1, 2])),
        bad("ids", ids=np.array([[3, -1, 4, 2, 2, 2], [1, 1, 1, 1, 1, 1]])),
    ],
)  # fmt: skip
def prefix_lm(
    ids: Int[Array, "*batch positions"], *, prefixes: Annotated[Int[Array, "*batch"], at_least(0)],
    lengths: Annotated[Int[Array, "*batch"], at_least(1)] | None = None,
) -> PrefixTask:  # fmt: skip
    """The mask and the labels of texts that are each written from where their prefix ends.

    prefixes, in tokens, are how much of each text is given; lengths, in tokens, are how much of each is no padding, all where
    None. The mask goes to a core that does not look back only (softmax_attention): one that does takes the prefix's sight away.
    Labels are in place: the logits at a position are about the token behind it, and the last position has none. A prefix as long
    as its text is read in both directions, and nothing is asked.
    Returns PrefixTask(mask, labels). Raises ValueError where a prefix is longer than its text, or a length exceeds the positions.
    """
    positions = ids.shape[-1]
    ends = np.full(prefixes.shape, positions) if lengths is None else lengths
    if ids.min() < 0:
        raise invalid("ids", got=f"the id {ids.min()}", wants="ids of at least 0")
    if ends.max() > positions:
        raise invalid("lengths", got=f"{ends.min()} to {ends.max()}", wants=f"numbers from 1 to the {positions} positions of ids")
    if (prefixes > ends).any():
        raise invalid("prefixes", got=f"{prefixes.tolist()}", wants=f"at most the tokens of the texts, {ends.tolist()}")
    key = np.arange(positions)
    prefix_key = key < prefixes[..., None, None, None]       # (*batch, one, one, positions)  (1)
    visible = prefix_key | causal_mask(positions)            # (2)
    mask = visible & (key < ends[..., None, None, None])     # (3)
    behind = key + 1
    asked = (behind >= prefixes[..., None]) & (behind < ends[..., None])
    labels = np.where(asked, np.roll(ids.astype(np.int64), -1, axis=-1), -100)  # (4)
    return PrefixTask(mask, labels)
