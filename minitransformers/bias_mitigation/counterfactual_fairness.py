"""Counterfactual token fairness: exchange the term for a group, and see how far the model's score moves.

No labels are needed, and no groups of people: the sentence is its own comparison. In each sentence that has one of the terms, the
term is exchanged for each of the others, and the score of what comes out is held against that of the sentence. Some exchanges change
what is said (a proper name, a phrase that has a meaning of its own). Nothing in the words tells which, so they come as a list.
Costs a pass of the model for each sentence and each counterfactual.

Source: Garg et al. 2018, arXiv:1809.10610. Differs:
a sentence may hold several terms, of which one is exchanged at a time, wherever it stands.

    Phi(x) = x with all of one of its terms exchanged for another, for each of its terms and each other   (1)
    gap(x) = mean over x' in Phi(x) of |f(x) - f(x')|        (2)
    out = mean of gap(x) over the sentences that have a counterfactual   (3)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import bad, example, invalid, procedure


class CounterfactualGap(NamedTuple):
    """The mean gap, that of each sentence measured and which these are, and how many had no term or were excluded."""

    gap: float
    each: Float[Array, "measured"]
    places: Int[Array, "measured"]
    skipped: int
    excluded: int


_SENTENCES = [["<name1>", "likes", "tea"], ["rain", "fell"], ["<name2>", "met", "<name1>"], ["the", "<name2>", "prize"]]
_TERMS = ("<name1>", "<name2>", "<name3>")


@procedure(
    title="Identity substitutions",
    source="Garg et al. 2018, arXiv:1809.10610",
    example=lambda rng: example(_SENTENCES[2], terms=_TERMS),
    rejects=[bad(terms=()), bad(terms=("<name1>",)), bad(terms=("<name1>", "<name1>")), bad(terms=("<name1>", "")), bad(sentence=[])],
)
def identity_substitutions(sentence: Sequence[str], *, terms: Sequence[str]) -> list[list[str]]:
    """Every sentence that differs in which term it has: all places of one term hold another. None where it has no term.

    terms may stand for each other in any sentence of the language; a token is a term where it is equal to it, case included.
    Raises ValueError for an empty sentence, fewer than two terms, a term that is empty or stands there twice.
    """
    _check_terms(terms)
    if not sentence:
        raise invalid("sentence", got="no tokens", wants="at least one")
    present = [term for term in terms if term in sentence]
    exchanges = [(term, other) for term in present for other in terms if other != term]
    return [[other if token == term else token for token in sentence] for term, other in exchanges]  # (1)


@procedure(
    title="Counterfactual token fairness",
    source="Garg et al. 2018, arXiv:1809.10610",
    example=lambda rng: example(
        _SENTENCES, score=lambda sentences: np.array([0.1 * len("".join(s)) + s.count("<name3>") for s in sentences]),
        terms=_TERMS, exclude=(("<name2>", "prize"),),
    ),
    rejects=[
        bad(terms=()), bad(terms=("<name1>",)), bad(terms=("<name1>", "<name1>")), bad(sentences=[]), bad(sentences=[["tea"], []]),
        bad(sentences=[["rain", "fell"]]), bad(score=lambda sentences: np.zeros(2)), bad(score=lambda sentences: np.full(len(sentences), np.nan)),
        bad(exclude=((),)), bad("sentences", exclude=(("<name1>",), ("<name2>",))),
    ],
)  # fmt: skip
def counterfactual_token_fairness(
    sentences: Sequence[Sequence[str]], *, score: Callable, terms: Sequence[str], exclude: Sequence[Sequence[str]] = ()
) -> CounterfactualGap:
    """How far the score of a sentence moves, in its own units, when a term is exchanged: 0 for a model that does not see terms.

    score(sentences) -> numbers, one for each of a list of sentences; it is called once, for all sentences and counterfactuals.
    exclude lists phrases, as tokens: a sentence that has one keeps its term, because an exchange would change its meaning.
    Raises ValueError where terms do not do (see identity_substitutions), a sentence or a phrase has no tokens, no sentence has a
    counterfactual, or score gives another number of numbers, or one that is not finite.
    """
    _check_terms(terms)
    for name, given in (("sentences", sentences), ("exclude", exclude)):
        for place, tokens in enumerate(given):
            if not tokens:
                raise invalid(f"{name}.{place}", got="no tokens", wants="at least one")
    barred = np.array([any(_holds(sentence, phrase) for phrase in exclude) for sentence in sentences], bool)
    changed = [[] if bar else identity_substitutions(sentence, terms=terms) for bar, sentence in zip(barred, sentences, strict=True)]
    count = np.array([len(some) for some in changed], int)
    if not count.any():
        raise invalid("sentences", got="none that has a counterfactual", wants="at least one that holds a term and is not excluded")
    measured = np.flatnonzero(count)
    asked = [list(sentences[i]) for i in measured] + [other for some in changed for other in some]
    scores = np.asarray(score(asked))
    if scores.shape != (len(asked),) or not np.isfinite(scores).all():
        raise invalid("score", got=f"numbers of shape {scores.shape}" if scores.shape != (len(asked),) else "a number that is not finite",
                      wants=f"a finite number for each of {len(asked)} sentences")  # fmt: skip
    own, other = np.split(scores.astype(np.float64), [len(measured)])
    row = np.repeat(np.arange(len(measured)), count[measured])
    each = np.bincount(row, np.abs(own[row] - other)) / count[measured]  # (2)
    gap = float(each.mean())                                 # (3)
    return CounterfactualGap(gap, each, measured, int(np.sum((count == 0) & ~barred)), int(barred.sum()))


def _check_terms(terms: Sequence[str]) -> None:
    if len(terms) < 2:
        raise invalid("terms", got=f"{len(terms)} of them", wants="at least two, to exchange one for another")
    for place, term in enumerate(terms):
        if not term or term in terms[:place]:
            raise invalid("terms", got=repr(term) if not term else f"{term!r} twice", wants="different words")


def _holds(sentence: Sequence[str], phrase: Sequence[str]) -> bool:
    return any(list(sentence[i : i + len(phrase)]) == list(phrase) for i in range(len(sentence) - len(phrase) + 1))
