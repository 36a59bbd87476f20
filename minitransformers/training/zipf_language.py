"""A language whose probabilities are known: frequent and rare words, and what may follow decided by the class of a word.

Frequencies within a class fall as one over the rank (Zipf 1949, Human Behavior and the Principle of Least Effort). As all
probabilities are known, the cross-entropy of a model is a sum over all pairs of words, without sampling.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.foundation import at_least, checked, invalid


class ZipfLanguage(NamedTuple):
    """Probabilities of each next word, given a word, and of each word."""

    following: Float[Array, "words words"]
    share: Float[Array, "words"]

    @property
    def pairs(self) -> Float[Array, "words words"]:
        """The probability of each pair of neighbours."""
        return self.share[:, None] * self.following

    def draw(self, rng: np.random.Generator, count: int = 256) -> tuple[Array, Array]:
        """So many words, each as often as it occurs, and what follows them."""
        ids = rng.choice(len(self.share), size=count, p=self.share)
        above = rng.random((count, 1)) > self.following.cumsum(axis=1)[ids]
        return ids, np.minimum(above.sum(axis=1), len(self.share) - 1)


@checked
def zipf_language(rng: np.random.Generator, *, words: Annotated[int, at_least(1)], classes: Annotated[int, at_least(1)]) -> ZipfLanguage:
    """A language of its own for each generator: two classes, not always different ones, may follow each, and each follows as often.

    Words are dealt to the classes one after the other, so that each has frequent and rare ones.
    Raises ValueError where classes do not divide the words.
    """
    if words % classes:
        raise invalid("classes", got=classes, wants=f"a divisor of {words} words")
    of_word = np.arange(words) % classes
    within = np.where(of_word == np.arange(classes)[:, None], 1 / np.arange(1, words + 1), 0)
    within /= within.sum(axis=1, keepdims=True)
    follows = np.zeros((classes, classes))
    for _ in range(2):                                       # permutations: no class is more frequent than another
        follows[np.arange(classes), rng.permutation(classes)] += 0.5
    return ZipfLanguage((follows @ within)[of_word], within.mean(axis=0))
