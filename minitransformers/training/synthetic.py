"""Synthetic tasks: what a mixer must be able to do, each asked alone, without a language around it.

Each function draws fresh batches: ids, and targets of the same shape. A target stands at the position whose output is the
answer; everywhere else it is IGNORED, which cross_entropy leaves out of its mean.

    copying              data at the start, then noise; give the data back in order: a fixed delay does it
    selective_copying    data anywhere among noise: what to keep depends on what it is
    induction_heads      what followed the special token the last time?
    associative_recall   which value stood beside this key?
    packed_recall        the same, with nothing between pairs and questions, or a gap

Those that ask for one thing anywhere in a text are in needles.py.

Sources: copying, Arjovsky et al. 2015, arXiv:1511.06464, section 4.1; selective copying and induction heads, Gu and Dao
2023, arXiv:2312.00752, section 3.1 and appendix E.1, the latter after Fu et al. 2022 (H3), arXiv:2212.14052, section 3.1,
and Olsson et al. 2022, arXiv:2209.11895; multi-query associative recall (MQAR), Arora et al. 2023 (Zoology),
arXiv:2312.04927, section 4.
Differs from their generators in what is counted (each docstring says it) and in drawing all rows at once. An answer is
asked for at the position where its last clue stands; only answers are asked for.
"""

from typing import Annotated

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import at_least, checked, invalid, positive
from minitransformers.training.task import IGNORED

NOISE = 0       # the token that means nothing, in copying and in recall without random filler
Size = Annotated[int, at_least(1)]


@checked
def selective_copying(
    rng: np.random.Generator, *, batch_size: Size, length: Size, num_tokens: Size, vocabulary_size: Annotated[int, at_least(4)]
) -> tuple[Array, Array]:
    """Data tokens at random places among noise, then as many markers, at which they are to be given back in order.

    length counts noise and data; num_tokens markers follow it. (The generator of S4 counts the noise alone.) Noise is token
    0, the marker is the last token, data are drawn evenly from the others, repeats allowed.
    Returns ids and targets, (batch_size, length + num_tokens). Guessing is right in 1 of vocabulary_size - 2.
    Raises ValueError for fewer than one data token or more than length, and for a vocabulary below 4: with one kind of
    data there is nothing to remember.
    """
    _check_room(length, num_tokens)
    return _copying(rng, _places(rng, batch_size, length, num_tokens), length, vocabulary_size)


@checked
def copying(
    rng: np.random.Generator, *, batch_size: Size, length: Size, num_tokens: Size, vocabulary_size: Annotated[int, at_least(4)]
) -> tuple[Array, Array]:
    """The same with all data at the start, so that every token has the same way to go: ``length`` positions.

    Arguments, results and errors are those of selective_copying.
    """
    _check_room(length, num_tokens)
    return _copying(rng, np.tile(np.arange(num_tokens), (batch_size, 1)), length, vocabulary_size)


@checked
def induction_heads(
    rng: np.random.Generator, *, batch_size: Size, length: Annotated[int, at_least(3)], vocabulary_size: Annotated[int, at_least(3)],
    num_questions: Size = 1,
) -> tuple[Array, Array]:  # fmt: skip
    """Random tokens; a special one stands among them, and again: what followed it the first time must follow each time.

    The special token is the last of the vocabulary and occurs nowhere else. It stands num_questions times anywhere, with the
    same token after it, and once more at the end. Each time but the first asks. (Mamba and H3 ask once, at the end; H3's
    generator can repeat the special token as well, keeps one more place free, and trains on the random tokens, too.)
    Returns ids and targets, (batch_size, length), with num_questions targets a row. Guessing is right in 1 of
    vocabulary_size - 1.
    Raises ValueError for no question or more than half the length has room for, for a length below 3 and a vocabulary below 3.
    """
    if 2 * num_questions >= length:
        raise invalid("num_questions", got=num_questions, wants=f"at most {(length - 1) // 2} in a length of {length}")
    special, rows = vocabulary_size - 1, np.arange(batch_size)[:, None]
    ids = rng.integers(special, size=(batch_size, length))
    # Each takes its follower's place, too: draw places in a shorter row, then move each by those before it.
    places = _places(rng, batch_size, length - 1 - num_questions, num_questions) + np.arange(num_questions)
    followers = ids[rows, places[:, :1] + 1]
    ids[rows, places + 1] = followers
    ids[rows, places] = ids[:, -1] = special
    targets = np.full_like(ids, IGNORED)
    targets[rows, places[:, 1:]] = followers
    targets[:, -1:] = followers
    return ids, targets


@checked
def associative_recall(
    rng: np.random.Generator, *, batch_size: Size, length: Size, num_pairs: Size, vocabulary_size: Size,
    power: Annotated[float, positive] = 0.01, random_filler: bool = True,
) -> tuple[Array, Array]:  # fmt: skip
    """MQAR: num_pairs of key and value, then each key once more, at which its value is the answer.

    Keys come from the first half of the vocabulary without 0, values from the second half, none twice in a row. The keys
    are asked for at even distances after the pairs; slot g = 1, 2, ... is drawn with a weight of g^(power - 1), so that
    most come soon, as repeats do in text; power = 1 makes all slots alike. Between them stand random tokens of the whole
    vocabulary, among which a key may come again, unasked; or noise, without random_filler.
    Returns ids and targets, (batch_size, length). Guessing among the values is right in 2 of vocabulary_size.
    Raises ValueError for an odd length, for pairs that take more than half of it, for fewer keys in the vocabulary than
    pairs, and for a power that is not above 0. (Zoology's code wants a vocabulary larger than length, too.)
    """
    half = vocabulary_size // 2
    if length % 2:
        raise invalid("length", got=length, wants="an even number: pairs take two places")
    if 4 * num_pairs > length:
        raise invalid("num_pairs", got=num_pairs, wants=f"at most {length // 4}: {length} positions hold each pair and ask for it")
    if num_pairs > half - 1:
        raise invalid("vocabulary_size", got=vocabulary_size, wants=f"at least {2 * num_pairs + 2}: {num_pairs} keys, as many values, and 0")

    keys = 1 + _distinct(rng, np.ones(half - 1), batch_size, num_pairs)
    values = half + _distinct(rng, np.ones(vocabulary_size - half), batch_size, num_pairs)
    slots = _distinct(rng, np.arange(1, length // 2 - num_pairs + 1) ** (power - 1), batch_size, num_pairs)
    rows, asked = np.arange(batch_size)[:, None], 2 * num_pairs + 2 * slots
    ids = rng.integers(vocabulary_size, size=(batch_size, length)) if random_filler else np.full((batch_size, length), NOISE)
    ids[:, 0 : 2 * num_pairs : 2], ids[:, 1 : 2 * num_pairs : 2], ids[rows, asked] = keys, values, keys
    targets = np.full_like(ids, IGNORED)
    targets[rows, asked] = values
    return ids, targets


@checked
def packed_recall(
    rng: np.random.Generator, *, batch_size: Size, num_pairs: Size, vocabulary_size: Size, gap: Annotated[int, at_least(0)] = 0
) -> tuple[Array, Array]:
    """Associative recall in which every place counts: the pairs, a gap of noise, and the keys in another order, each asking at once.

    Returns ids and targets, (batch_size, 3 num_pairs + gap). Naming some value of the text is right in 1 of num_pairs.
    Raises ValueError for fewer keys in the vocabulary than pairs.
    """
    sizes = {"batch_size": batch_size, "length": 4 * num_pairs, "num_pairs": num_pairs, "vocabulary_size": vocabulary_size}
    ids, targets = associative_recall(rng, **sizes, power=1.0, random_filler=False)
    pairs, asked, between = np.s_[:, : 2 * num_pairs], np.s_[:, 2 * num_pairs :: 2], np.full((batch_size, gap), NOISE)
    return np.concatenate([ids[pairs], between, ids[asked]], axis=1), np.concatenate([targets[pairs], between + IGNORED, targets[asked]], axis=1)


def few_first(steps: int, count: int) -> Array:
    """A curriculum: how many of ``count`` tasks, the easiest first, are drawn from at each step, (steps,).

    One for three tenths of the steps, then more, evenly, and from seven tenths on all. (Bengio et al. 2009, Curriculum Learning.)
    """
    done = np.arange(steps) / steps
    return 1 + np.clip(np.ceil((done - 0.3) / 0.4 * (count - 1)), 0, count - 1).astype(int)


def _copying(rng: np.random.Generator, places: Array, length: int, vocabulary_size: int) -> tuple[Array, Array]:
    """Data at the given places of each row, (batch_size, num_tokens), in order; then the markers."""
    data = rng.integers(1, vocabulary_size - 1, size=places.shape)
    ids = np.full((len(places), length + places.shape[1]), NOISE)
    np.put_along_axis(ids, places, data, axis=1)
    ids[:, length:] = vocabulary_size - 1
    targets = np.full_like(ids, IGNORED)
    targets[:, length:] = data
    return ids, targets


def _places(rng: np.random.Generator, batch_size: int, length: int, count: int) -> Array:
    """In each row ``count`` different places below length, in order: those of the smallest of random numbers."""
    return np.sort(rng.random((batch_size, length)).argpartition(count - 1, axis=1)[:, :count], axis=1)


def _distinct(rng: np.random.Generator, weights: Array, batch_size: int, count: int) -> Array:
    """In each row ``count`` different indices, drawn one after the other with the weights that are left.

    Independent clocks that ring at these rates ring in just such an order.
    """
    return rng.exponential(1 / weights, size=(batch_size, len(weights))).argsort(axis=1)[:, :count]


def _check_room(length: int, num_tokens: int) -> None:
    if num_tokens > length:
        raise invalid("num_tokens", got=num_tokens, wants=f"at most the length of {length}")
