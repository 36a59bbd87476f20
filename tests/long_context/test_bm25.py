"""BM25: the formula, what each of its corrections does, and the scores of rank-bm25."""

import math

import numpy as np
import pytest

from minitransformers.long_context.bm25 import bm25, bm25_index, lucene_idf, robertson_idf

RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(12, size=length) for length in (5, 3, 8, 1, 20, 11, 7)]
QUERIES = [RNG.integers(14, size=length) for length in (1, 2, 4, 9)]


def naive(documents, query, k1=1.5, b=0.75, idf=lambda n, N: math.log(1 + (N - n + 0.5) / (n + 0.5))):
    """Word by word and text by text."""
    texts = [list(map(int, document)) for document in documents]
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for words in texts:
        score = 0.0
        for t in map(int, query):
            containing = sum(t in other for other in texts)
            f = words.count(t)
            if f:
                score += idf(containing, len(texts)) * f * (k1 + 1) / (f + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


def okapi_idf_of_rank_bm25(documents):
    """Negative weights become a quarter of the mean of all: that needs the whole corpus."""
    texts = [set(map(int, document)) for document in documents]
    words = set().union(*texts)
    weight = {t: math.log(len(texts) - n + 0.5) - math.log(n + 0.5) for t in words for n in [sum(t in text for text in texts)]}
    floor = 0.25 * sum(weight.values()) / len(weight)
    return {t: floor if w < 0 else w for t, w in weight.items()}


def as_rank_bm25(containing, num_documents):
    weights = robertson_idf(containing, num_documents)
    real = containing > 0
    return np.where(weights < 0, 0.25 * weights[real].mean(), weights)


@pytest.mark.parametrize("query", QUERIES, ids=len)
@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (1.2, 0.0), (2.0, 1.0), (0.0, 0.5)])
def test_scores_are_those_of_the_formula(query, k1, b):
    np.testing.assert_allclose(bm25(bm25_index(DOCUMENTS, k1=k1, b=b), query), naive(DOCUMENTS, query, k1, b), rtol=0, atol=1e-12)


@pytest.mark.parametrize("query", QUERIES, ids=len)
def test_another_idf_may_be_given(query):
    idf = lambda n, N: math.log((N - n + 0.5) / (n + 0.5))  # noqa: E731
    np.testing.assert_allclose(bm25(bm25_index(DOCUMENTS, idf=robertson_idf), query), naive(DOCUMENTS, query, idf=idf), rtol=0, atol=1e-12)


def test_a_common_word_never_counts_against_a_text_here_and_does_with_robertson_s_idf():
    documents = [np.array([0, 1]), np.array([0, 2]), np.array([0, 3]), np.array([4, 5])]
    query = np.array([0])
    assert (bm25(bm25_index(documents), query) >= 0).all() and bm25(bm25_index(documents), query)[0] > 0
    assert bm25(bm25_index(documents, idf=robertson_idf), query)[0] < 0
    counts = np.arange(1, 101)
    assert (lucene_idf(counts, 100) > 0).all() and (np.diff(lucene_idf(counts, 100)) < 0).all()
    assert (robertson_idf(counts, 100) < 0)[50:].all() and robertson_idf(np.array([50]), 100)[0] == 0


def test_repetition_counts_less_and_less_and_never_more_than_a_bound():
    """Texts of one length in which the word stands 1 to 40 times; b = 0, so length says nothing."""
    documents = [np.array([7] * n + [0] * (41 - n)) for n in range(1, 41)]
    documents += [np.array([0])] * 60
    index = bm25_index(documents, b=0.0)
    scores = bm25(index, np.array([7]))[:40]
    assert (np.diff(scores) > 0).all() and (np.diff(scores, 2) < 0).all()
    bound = lucene_idf(np.array([40]), 100)[0] * 2.5
    assert scores[-1] < bound and scores[-1] == pytest.approx(bound * 40 / 41.5)


def test_without_k1_it_only_counts_whether_a_word_is_there():
    index = bm25_index(DOCUMENTS, k1=0.0)
    for t in range(12):
        present = np.array([t in document for document in DOCUMENTS])
        scores = bm25(index, np.array([t]))
        np.testing.assert_allclose(scores, lucene_idf(np.array([present.sum()]), len(DOCUMENTS))[0] * present, rtol=0, atol=1e-15)


def test_of_two_texts_with_the_word_the_longer_scores_less_and_without_b_the_same():
    documents = [np.array([1, 2, 3]), np.array([1, 2, 3, 4, 5, 6, 0, 0])]
    short, long = bm25(bm25_index(documents), np.array([1]))
    assert short > long
    short, long = bm25(bm25_index(documents, b=0.0), np.array([1]))
    assert short == long


def test_a_rare_word_says_more_than_a_common_one():
    documents = [np.array([1, 9]), np.array([2, 9]), np.array([3, 9])]
    index = bm25_index(documents)
    assert bm25(index, np.array([1]))[0] > bm25(index, np.array([9]))[0] > 0


def test_the_index_holds_one_number_for_each_different_word_of_a_text():
    weights = bm25_index(DOCUMENTS).weights
    assert weights.shape == (12, 7) and weights.nnz == sum(len(set(document.tolist())) for document in DOCUMENTS)


def test_words_that_are_in_no_text_add_nothing_and_a_repeated_word_counts_again():
    index, query = bm25_index(DOCUMENTS), np.array([3, 5])
    np.testing.assert_array_equal(bm25(index, np.array([3, 5, 500, 13])), bm25(index, query))
    np.testing.assert_array_equal(bm25(index, np.array([500])), np.zeros(len(DOCUMENTS)))
    np.testing.assert_allclose(bm25(index, np.array([3, 5, 3])), bm25(index, query) + bm25(index, query[:1]), rtol=0, atol=1e-15)


def test_the_order_of_words_does_not_matter():
    query = QUERIES[-1]
    shuffled = bm25_index([RNG.permutation(document) for document in DOCUMENTS])
    np.testing.assert_array_equal(bm25(shuffled, query[::-1]), bm25(bm25_index(DOCUMENTS), query))


def test_the_sentence_that_the_words_were_taken_from_is_found_and_synonyms_are_not():
    """200 sentences of 12 words, a question of four words of one of them; then each word as another id."""
    rng = np.random.default_rng(1)
    found, synonyms = 0, 0
    other = np.roll(np.arange(800), 1)
    for _ in range(20):
        sentences = list(rng.integers(800, size=(200, 12)))
        answer = rng.integers(200)
        question = rng.choice(sentences[answer], size=4, replace=False)
        index = bm25_index(sentences)
        found += answer in np.argsort(-bm25(index, question))[:10]
        synonyms += answer in np.argsort(-bm25(index, other[question]))[:10]
    assert found == 20 and synonyms <= 5


def test_a_length_correction_with_the_sum_in_the_place_of_the_mean_is_told_apart():
    """A plausible slip that keeps all orders by frequency: b then does next to nothing."""

    def wrong(documents, query):
        texts = [list(map(int, d)) for d in documents]
        total = sum(map(len, texts))
        return [sum(words.count(int(t)) * 2.5 / (words.count(int(t)) + 1.5 * (0.25 + 0.75 * len(words) / total)) for t in query) for words in texts]

    documents = [np.array([1] + [2] * 4), np.array([1] + [2] * 39)]
    short, long = wrong(documents, [1])
    own_short, own_long = bm25(bm25_index(documents), np.array([1]))
    assert short / long < 1.6 < own_short / own_long


def test_bad_corpora_and_queries_are_refused():
    with pytest.raises(ValueError, match="documents: got none, wants at least one text"):
        bm25_index([])
    with pytest.raises(ValueError, match=r"documents\.1: got shape \(0,\), wants no empty axis"):
        bm25_index([np.array([1]), np.zeros(0, int)])
    with pytest.raises(ValueError, match="query: got shape"):
        bm25(bm25_index(DOCUMENTS), np.zeros(0, int))
    with pytest.raises(ValueError, match="query: got the id -1"):
        bm25(bm25_index(DOCUMENTS), np.array([2, -1]))
    with pytest.raises(ValueError, match="k1: got -1"):
        bm25_index(DOCUMENTS, k1=-1.0)
    with pytest.raises(ValueError, match=r"b: got 1\.5"):
        bm25_index(DOCUMENTS, b=1.5)


@pytest.mark.parametrize("query", QUERIES, ids=len)
def test_with_the_idf_of_rank_bm25_the_formula_is_its(query):
    weight = okapi_idf_of_rank_bm25(DOCUMENTS)
    expected = [
        sum(weight.get(int(t), 0) * f * 2.5 / (f + 1.5 * (0.25 + 0.75 * len(d) / np.mean([len(x) for x in DOCUMENTS]))) for t in query for f in [list(d).count(t)])
        for d in DOCUMENTS
    ]
    np.testing.assert_allclose(bm25(bm25_index(DOCUMENTS, idf=as_rank_bm25), query), expected, rtol=0, atol=1e-12)


@pytest.mark.parity
def test_with_its_idf_the_scores_are_those_of_rank_bm25():
    theirs = pytest.importorskip("rank_bm25").BM25Okapi([document.tolist() for document in DOCUMENTS])
    index = bm25_index(DOCUMENTS, idf=as_rank_bm25)
    for query in QUERIES:
        np.testing.assert_allclose(bm25(index, query), theirs.get_scores(query.tolist()), rtol=0, atol=1e-9)
