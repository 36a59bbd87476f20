"""BM25: which of many texts speak of the words of a query, without anything learned.

A word that is in few texts says more than one that is in many; a word that stands ten times in a text does not say ten times as much
as one that stands there once; and a long text has more of every word, which proves nothing. Three corrections to counting words.
Each text's score for each word is computed once, so a query is a sum over its words of numbers that are stored.

Source: Robertson and Zaragoza 2009, The probabilistic relevance framework: BM25 and beyond, section 3; the form is that of the
library Lucene before it left out (k1 + 1), whose idf is never below 0 (Kamphuis et al. 2020, Which BM25 do you mean?). Differs from the
package rank-bm25: see robertson_idf. Costs one number for each different word of a text, and a query as many as its words occur in.
N texts, n_t of them with the word t, f_td how often t stands in text d, l_d the length of d, l their mean.

    idf_t = ln(1 + (N - n_t + 1/2) / (n_t + 1/2))            (1)
    size_d = 1 - b + b l_d / l                               (2)
    weight_td = idf_t f_td (k1 + 1) / (f_td + k1 size_d)     (3)
    score_d = sum over the words t of the query of weight_td, a word that stands there twice twice   (4)

Robertson and Sparck Jones 1976 have, in the place of (1), what falls below 0 for a word that is in more than half of the texts:

    idf_t = ln((N - n_t + 1/2) / (n_t + 1/2))                (5)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, between, example, invalid, procedure


@dataclass(frozen=True, eq=False)
class Bm25Index:
    """What each text scores for each word: a sparse array of (words, texts), a row for every id up to the largest."""

    weights: scipy.sparse.csr_array


def lucene_idf(containing: Array, num_documents: int) -> Array:
    """How much a word tells, always above 0, for words that are in so many of the texts."""
    return np.log(1 + (num_documents - containing + 0.5) / (containing + 0.5))  # (1)


def robertson_idf(containing: Array, num_documents: int) -> Array:
    """The same of Robertson and Sparck Jones; below 0 for words that are in more than half of the texts."""
    return np.log((num_documents - containing + 0.5) / (containing + 0.5))  # (5)


def _texts(rng: np.random.Generator) -> list[Array]:
    return [rng.integers(7, size=length) for length in (5, 3, 8, 1)]


@procedure(
    title="BM25: index",
    source="Robertson and Zaragoza 2009, The probabilistic relevance framework: BM25 and beyond, section 3",
    example=lambda rng: example(_texts(rng)),
    rejects=[
        bad(documents=[]), bad(documents=[np.array([1]), np.zeros(0, int)]), bad(documents=[np.array([[1]])]), bad(documents=[np.array([0.5])]),
        bad(documents=[np.array([1, -1])]), bad(idf=lambda containing, num_documents: np.ones(1)),
    ],
)  # fmt: skip
def bm25_index(
    documents: Sequence[Int[Array, "_"]], *, k1: Annotated[float, at_least(0)] = 1.5, b: Annotated[float, between(0, 1)] = 0.75,
    idf: Callable = lucene_idf,
) -> Bm25Index:  # fmt: skip
    """What bm25 looks up: the scores of all texts for all words, for texts as arrays of word ids.

    k1 is how slowly repetition stops to count: 0 means that it never counts. b is how far scores are corrected for length: 0 not at
    all, 1 fully. idf(containing, num_documents) -> weights says what a word tells: lucene_idf, robertson_idf.
    Raises ValueError where there is no text, where one has no words or a negative id, and where idf gives another number of weights.
    """
    if not documents:
        raise invalid("documents", got="none", wants="at least one text")
    lengths = np.array([len(document) for document in documents])
    words = np.concatenate(documents)
    if words.min() < 0:
        raise invalid("documents", got=f"the id {words.min()}", wants="ids of at least 0")
    ones = np.ones(len(words))
    texts = np.repeat(np.arange(len(documents)), lengths)
    counts = scipy.sparse.csr_array((ones, (words, texts)), shape=(int(words.max()) + 1, len(documents)))
    containing = np.diff(counts.indptr)                      # in how many texts each word stands
    rare = np.asarray(idf(containing, len(documents)))
    if rare.shape != containing.shape:
        raise invalid("idf", got=f"weights of shape {rare.shape}", wants=f"{containing.shape}, one a word")
    size = 1 - b + b * lengths / lengths.mean()              # (2)
    frequency = counts.data
    tells = np.repeat(rare, containing)                      # of the word of each number that is stored
    weights = tells * frequency * (k1 + 1) / (frequency + k1 * size[counts.indices])  # (3)
    return Bm25Index(scipy.sparse.csr_array((weights, counts.indices, counts.indptr), shape=counts.shape))


@procedure(
    title="BM25: scores",
    source="Robertson and Zaragoza 2009, The probabilistic relevance framework: BM25 and beyond, section 3",
    example=lambda rng: example(bm25_index(_texts(rng)), rng.integers(9, size=4)),
    rejects=[bad(query=np.zeros(0, int)), bad(query=np.array([3, -1])), bad(index=np.ones((7, 4)))],
)
def bm25(index: Bm25Index, query: Int[Array, "words"]) -> Float[Array, "documents"]:
    """The score of each text for a query of word ids, at least 0 with lucene_idf; words that are in no text add nothing.

    Raises ValueError for a query of no words and for negative ids.
    """
    if query.min() < 0:
        raise invalid("query", got=f"the id {query.min()}", wants="ids of at least 0")
    words, repeats = np.unique(query[query < index.weights.shape[0]], return_counts=True)
    return repeats @ index.weights[words]                    # (4)
