"""Equalisation loss: where nothing in the text speaks for one group, the model shall find the words of both equally likely.

For each pair of words (the two forms of a noun, say) the loss is how far apart their log-probabilities are. The normaliser of the
softmax is the same for both and cancels, so what is compared are two logits, and no other logit gets a gradient. A mask says at which
positions neutrality is right: behind a word that names the group it is not.

Source: Qian, Muaz, Zhang and Hyun 2019, arXiv:1905.12801, section 3, where the loss is added to cross-entropy with a weight. Differs from
the paper: the mean is over positions that a mask chooses. The squared form has a slope that goes to zero; the form for sets compares
the probability of whole sets of words, of which there may be more than two. Costs two look-ups a pair and position. z are the
logits of a position, n counts all positions times pairs, N the positions, G the sets S_g.

    apart = z_f - z_m, which is log p_f - log p_m            (1)
    out = (1/n) sum |apart|                                  (2)
    dapart = dout/n sign(apart)                              (3)
    dz_f = sum over pairs of dapart, dz_m = - sum over pairs of dapart   (4)

squared:

    out = (1/n) sum apart^2                                  (5)
    dapart = dout 2/n apart                                  (6)

sets:

    total_g = log sum over i in S_g of exp(z_i)              (7)
    apart_g = total_g - (1/G) sum_h total_h                  (8)
    out = 2/(N (G-1)) sum over positions and sets of apart_g^2   (9)
    dtotal_g = dout 4/(N (G-1)) apart_g                      (10)
    dz_i = dtotal_g exp(z_i - total_g), i in S_g             (11)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.compression.counted import check_finite, check_ids, counted_by_mask
from minitransformers.foundation import Backward, bad, concept, example, invalid

_BAD_PAIRS = [bad(pairs=np.array([[0, 7]])), bad(pairs=np.array([[-1, 2]])), bad(pairs=np.array([[0, 1], [3, 3]]))]
_BAD_LOGITS = [bad(mask=np.zeros((2, 3), bool)), bad(logits=np.full((2, 3, 7), np.nan)), bad(logits=np.full((2, 3, 7), -np.inf))]


@concept(
    title="Equalisation loss",
    source="Qian, Muaz, Zhang and Hyun 2019, arXiv:1905.12801, section 3",
    example=lambda rng: _example(rng),
    rejects=[*_BAD_PAIRS, *_BAD_LOGITS],
)
def equalization_loss(
    logits: Float[Array, "*batch vocabulary"], *, pairs: Int[Array, "pairs 2"], mask: Bool[Array, "*batch"] | None = None
) -> tuple[Any, Backward]:
    """Mean distance, in nats, between the log-probabilities of the two words of a pair.

    pairs holds two token ids a row; a word may stand in several. mask is True where neither word has a claim to be likelier (None:
    everywhere); the other positions may hold anything. Where the two are equal the gradient is 0.
    Returns out, a scalar of the logits' dtype, and backward: dout -> dlogits.
    Raises ValueError where an id is no token, a pair is twice the same, no position counts, or a logit that counts is not finite.
    """
    counts = counted_by_mask(logits.shape[:-1], mask)
    apart = _apart(logits[counts], pairs)                    # (positions, pairs)
    out = np.abs(apart).sum() / apart.size                   # (2)

    def backward(dout):
        dapart = dout / apart.size * np.sign(apart)          # (3)
        return _at_the_words(dapart, pairs, counts, logits)

    return out, backward


@concept(
    title="Squared equalisation loss",
    source="Qian, Muaz, Zhang and Hyun 2019, arXiv:1905.12801, section 3; squared",
    example=lambda rng: _example(rng),
    rejects=[*_BAD_PAIRS, *_BAD_LOGITS],
    form_of="equalization_loss",
)
def squared_equalization_loss(
    logits: Float[Array, "*batch vocabulary"], *, pairs: Int[Array, "pairs 2"], mask: Bool[Array, "*batch"] | None = None
) -> tuple[Any, Backward]:
    """Mean square, in nats squared, of the difference of the log-probabilities of the two words of a pair.

    Arguments, what is returned and what raises are as for equalization_loss.
    """
    counts = counted_by_mask(logits.shape[:-1], mask)
    apart = _apart(logits[counts], pairs)
    out = (apart * apart).sum() / apart.size                 # (5)

    def backward(dout):
        dapart = dout * 2 / apart.size * apart               # (6)
        return _at_the_words(dapart, pairs, counts, logits)

    return out, backward


@concept(
    title="Equalisation loss of sets",
    source="Qian, Muaz, Zhang and Hyun 2019, arXiv:1905.12801, section 3; for sets of words",
    example=lambda rng: _example(rng, sets=(np.array([0, 3]), np.array([5]), np.array([2, 6, 1]))),
    rejects=[
        bad(sets=(np.array([0, 3]),)), bad(sets=(np.array([0]), np.array([7]))), bad(sets=(np.array([0]), np.array([-1]))),
        bad(sets=(np.array([0, 3]), np.array([2, 3]))), bad(sets=(np.array([0, 0]), np.array([2, 3]))),
        bad("sets.1", sets=(np.array([0]), np.array([], int))), *_BAD_LOGITS,
    ],
    form_of="equalization_loss",
)  # fmt: skip
def set_equalization_loss(
    logits: Float[Array, "*batch vocabulary"], *, sets: Sequence[Int[Array, "_"]], mask: Bool[Array, "*batch"] | None = None
) -> tuple[Any, Backward]:
    """Mean square, over positions and pairs of sets, of the difference of their log-probabilities, in nats squared.

    sets holds the token ids of each set of words, two sets or more, of any sizes. mask is that of equalization_loss.
    Returns out, a scalar of the logits' dtype, and backward: dout -> dlogits.
    Raises ValueError where there are fewer than two sets, one is empty, an id is no token or stands twice, no position counts, or a
    logit that counts is not finite.
    """
    if len(sets) < 2:
        raise invalid("sets", got=f"{len(sets)} of them", wants="at least two sets of words")
    words, firsts = np.concatenate(sets), np.cumsum([0, *map(len, sets[:-1])])
    check_ids("sets", words, logits.shape[-1])
    ids, times = np.unique(words, return_counts=True)
    if times.max() > 1:
        raise invalid("sets", got=f"the id {ids[times.argmax()]} twice", wants="each word in one set, once")
    counts = counted_by_mask(logits.shape[:-1], mask)
    z = logits[counts][:, words]                             # (positions, words)
    check_finite("logits", z)
    total = np.logaddexp.reduceat(z, firsts, axis=-1)        # (positions, sets)  (7)
    apart = total - total.mean(axis=-1, keepdims=True)       # (8)
    weight = 2 / (len(apart) * (len(sets) - 1))
    out = weight * (apart * apart).sum()                     # (9)

    def backward(dout):
        dtotal = dout * 2 * weight * apart                   # the mean in apart adds nothing: they sum to 0  (10)
        each = np.repeat(np.arange(len(sets)), list(map(len, sets)))  # the set of each word
        dz = dtotal[:, each] * np.exp(z - total[:, each])    # (11)
        drows = np.zeros((len(z), logits.shape[-1]), logits.dtype)
        drows[:, words] = dz                                 # no id stands twice
        dlogits = np.zeros_like(logits)
        dlogits[counts] = drows
        return dlogits

    return out, backward


def _apart(rows: Array, pairs: Array) -> Array:
    """The difference of the two logits of each pair, at each position."""
    check_ids("pairs", pairs, rows.shape[-1])
    if (same := pairs[:, 0] == pairs[:, 1]).any():
        raise invalid("pairs", got=f"the id {pairs[same][0, 0]} on both sides of pair {same.argmax()}", wants="two different words")
    check_finite("logits", rows[:, pairs])
    return rows[:, pairs[:, 0]] - rows[:, pairs[:, 1]]       # (1)


def _at_the_words(dapart: Array, pairs: Array, counts: Array, logits: Array) -> Array:
    """The gradient of all logits: at the words of the pairs, and 0 elsewhere."""
    dz = np.zeros((logits.shape[-1], len(dapart)), logits.dtype)
    np.add.at(dz, pairs[:, 0], dapart.T)                     # a word may stand in several pairs
    np.add.at(dz, pairs[:, 1], -dapart.T)                    # (4)
    dlogits = np.zeros_like(logits)
    dlogits[counts] = dz.T
    return dlogits


def _example(rng: np.random.Generator, **words: Any):
    words = words or {"pairs": np.array([[0, 1], [4, 2], [4, 6]])}
    return example(rng.normal(size=(2, 3, 7)), mask=np.array([[1, 0, 1], [1, 1, 1]], bool), **words)
