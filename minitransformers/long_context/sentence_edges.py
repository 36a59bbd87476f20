"""Edges between sentences: which of them are related, and how, as a list that graph attention reads.

Sentences stand next to each other, belong to one section, or share words that are rare elsewhere. A pair gets one edge each way, of the
first kind that holds:

    0  itself                                                (1)
    1  source before target, at most ``reach`` sentences; 2  source after target, as near        (2)
    3  of one section                                        (3)
    4  source among the ``most`` most similar to target, and more similar than ``threshold``     (4)
    similarity_ij = v_i . v_j / (|v_i| |v_j|), v_iw = (times w is in sentence i) ln(n / n_w)     (5)

n is the number of sentences that are not empty, n_w of how many the word w is part. An empty sentence has no edge, not
even to itself. Time and memory O(sentences^2), of small whole numbers, once a document.

Source: the relations of Zheng and Lapata 2019, arXiv:1906.03508 (order and similarity of sentences), and Wang et al. 2020,
arXiv:2004.12393 (words as what joins sentences), in our own plain form; tf-idf after Sparck Jones 1972, J. Documentation 28:11.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, between, example, invalid, procedure

ITSELF, BEFORE, AFTER, SECTION, ALIKE = range(5)


class SentenceEdges(NamedTuple):
    """Edges sorted by target, and of one target by source; a kind for each."""

    sources: Int[Array, "edges"]
    targets: Int[Array, "edges"]
    kinds: Int[Array, "edges"]


@procedure(
    title="Edges between sentences",
    source="After Zheng and Lapata 2019, arXiv:1906.03508, and Wang et al. 2020, arXiv:2004.12393",
    example=lambda rng: _example(rng),
    rejects=[
        bad(sections=np.array([0, 0, 1, 0, 1])), bad(sections=np.array([0, 0, 1])), bad("mask", mask=np.zeros((5, 4), bool)),
        bad(mask=np.ones((5, 3), bool)),
    ],
)  # fmt: skip
def sentence_edges(
    ids: Annotated[Int[Array, "sentences words"], at_least(0)], *, mask: Bool[Array, "sentences words"] | None = None,
    sections: Int[Array, "sentences"] | None = None, reach: Annotated[int, at_least(0)] = 1,
    threshold: Annotated[float, between(0, 1)] = 0.2, most: Annotated[int, at_least(0)] = 3,
) -> SentenceEdges:  # fmt: skip
    """The edges of one document, from the word ids of its sentences and the number of the section that each stands in.

    mask is True where there is a word, None for everywhere. sections never go backwards, None for no edges of that kind. threshold is a
    cosine, from 0 to 1; with most=0 there are no edges of shared words.
    Raises ValueError where sections go backwards or are not one a sentence, or no sentence holds a word.
    """
    real = np.ones(ids.shape, bool) if mask is None else mask
    present: Array = np.any(real, axis=1)
    if not present.any():
        raise invalid("mask", got="no word in any sentence", wants="at least one sentence that is not empty")
    if sections is not None and (np.diff(sections) < 0).any():
        raise invalid("sections", got="sections that go backwards", wants="sections counted on through the document")
    order = np.arange(len(ids))
    offset = order - order[:, None]                          # (targets, sources): source minus target
    kinds = np.full(offset.shape, -1, np.int8)
    kinds[_most_similar(similarities(ids, real), threshold, most)] = ALIKE  # (4)
    if sections is not None:
        kinds[sections == sections[:, None]] = SECTION       # (3)
    near = np.abs(offset) <= reach
    kinds[near & (offset < 0)], kinds[near & (offset > 0)] = BEFORE, AFTER  # (2)
    kinds[offset == 0] = ITSELF                              # (1)
    targets, sources = np.nonzero((kinds >= 0) & present & present[:, None])  # row by row: sorted by target
    return SentenceEdges(sources, targets, kinds[targets, sources].astype(sources.dtype))


def similarities(ids: Int[Array, "sentences words"], real: Bool[Array, "sentences words"]) -> Float[Array, "sentences sentences"]:
    """The cosines of tf-idf vectors; 0 where a sentence has no word that tells it from the others."""
    from scipy.sparse import csr_array  # takes a tenth of a second to import

    sentence, word = np.nonzero(real)[0], np.unique(ids[real], return_inverse=True)[1]
    counts = csr_array((np.ones(len(word)), (sentence, word)), shape=(len(ids), word.max() + 1))  # repeated words add up
    counts.sum_duplicates()
    within = np.bincount(counts.indices)                     # in how many sentences each word is
    vectors = counts * np.log(np.any(real, axis=1).sum() / within)
    lengths = np.sqrt((vectors * vectors).sum(axis=1))
    products = (vectors @ vectors.T).toarray()
    return products / np.maximum(lengths[:, None] * lengths, np.finfo(float).tiny)  # (5)


def _most_similar(similarity: Array, threshold: float, most: int) -> Bool[Array, "sentences sentences"]:
    """In each row the ``most`` largest that are above the threshold, the diagonal left out; of equal ones the first."""
    similarity = np.where(np.eye(len(similarity), dtype=bool), -np.inf, similarity)
    rank = np.argsort(np.argsort(-similarity, axis=1, kind="stable"), axis=1)
    return (rank < most) & (similarity > threshold)


def _example(rng: np.random.Generator):
    """Five sentences of up to four words, the fourth of them empty."""
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 1]], bool)
    return example(rng.integers(6, size=(5, 4)), mask=mask, sections=np.array([0, 0, 1, 1, 1]))
