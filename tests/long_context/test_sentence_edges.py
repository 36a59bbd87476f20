"""Edges between sentences: order, sections and shared words, one kind a pair, sorted for graph attention."""

import math

import numpy as np
import pytest

from minitransformers.long_context.sentence_edges import (
    AFTER,
    ALIKE,
    BEFORE,
    ITSELF,
    SECTION,
    SentenceEdges,
    sentence_edges,
    similarities,
)
from minitransformers.long_context.sentence_graph import init_sentence_graph, sentence_graph


def random_document(seed, sentences=9, words=6, vocabulary=14):
    rng = np.random.default_rng(seed)
    mask = np.arange(words) < rng.integers(0, words + 1, size=sentences)[:, None]
    return rng.integers(vocabulary, size=(sentences, words)), mask, np.cumsum(rng.random(sentences) < 0.3)


def cosines(ids, mask):
    """Pairs of sentences as dictionaries of words."""
    texts = [[int(w) for w, real in zip(row, reals, strict=True) if real] for row, reals in zip(ids, mask, strict=True)]
    count = sum(1 for text in texts if text)
    idf = {w: math.log(count / sum(1 for text in texts if w in text)) for text in texts for w in text}
    vectors = [{w: text.count(w) * idf[w] for w in text} for text in texts]

    def dot(a, b):
        return sum(a[w] * b.get(w, 0.0) for w in a)

    found = np.zeros((len(texts), len(texts)))
    for i, a in enumerate(vectors):
        for j, b in enumerate(vectors):
            if dot(a, a) > 0 and dot(b, b) > 0:
                found[i, j] = dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))
    return found


def by_loops(ids, mask, sections, reach, threshold, most):
    """One pair at a time, the kinds asked for in their order."""
    n, close, edges = len(ids), cosines(ids, mask), []
    for i in range(n):
        nearest = sorted((j for j in range(n) if j != i), key=lambda j: -round(close[i, j], 12))[:most]
        for j in range(n):
            if not (mask[i].any() and mask[j].any()):
                continue
            if i == j:
                edges.append((j, i, ITSELF))
            elif abs(i - j) <= reach:
                edges.append((j, i, BEFORE if j < i else AFTER))
            elif sections is not None and sections[i] == sections[j]:
                edges.append((j, i, SECTION))
            elif j in nearest and close[i, j] > threshold:
                edges.append((j, i, ALIKE))
    return SentenceEdges(*(np.array(column) for column in zip(*edges, strict=True)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("settings", [{"reach": 1, "threshold": 0.2, "most": 3}, {"reach": 0, "threshold": 0.0, "most": 2}, {"reach": 3, "threshold": 0.5, "most": 9}])  # fmt: skip
def test_equals_the_loops_over_pairs(seed, settings):
    ids, mask, sections = random_document(seed)
    for parts in (sections, None):
        found = sentence_edges(ids, mask=mask, sections=parts, **settings)
        for own, their in zip(found, by_loops(ids, mask, parts, **settings), strict=True):
            np.testing.assert_array_equal(own, their)


@pytest.mark.parametrize("seed", range(4))
def test_similarities_equal_cosines_of_dictionaries(seed):
    ids, mask, _ = random_document(seed)
    np.testing.assert_allclose(similarities(ids, mask), cosines(ids, mask), rtol=0, atol=1e-14)


def test_a_document_by_hand():
    ids = np.array([[1, 2, 0], [3, 4, 0], [5, 6, 0], [1, 2, 0]])  # 0 is in all of them; the first and the last are alike
    edges = sentence_edges(ids, sections=np.array([0, 0, 1, 1]))
    triples = list(zip(*(part.tolist() for part in edges), strict=True))
    assert triples == [(0, 0, ITSELF), (1, 0, AFTER), (3, 0, ALIKE), (0, 1, BEFORE), (1, 1, ITSELF), (2, 1, AFTER),
                       (1, 2, BEFORE), (2, 2, ITSELF), (3, 2, AFTER), (0, 3, ALIKE), (2, 3, BEFORE), (3, 3, ITSELF)]  # fmt: skip


def test_a_word_of_every_sentence_makes_none_alike():
    ids = np.array([[7, 1], [7, 2], [7, 3], [7, 4]])
    assert not (sentence_edges(ids, threshold=0.0).kinds == ALIKE).any()
    plain = np.array([[len({a, b} & {c, d}) for c, d in ids] for a, b in ids])
    assert (plain > 0).all()                                 # without idf all pairs would share something


def test_empty_sentences_have_no_edge_and_graph_attention_gives_them_zero():
    ids, mask, sections = random_document(7)
    mask[[0, 4]] = False
    edges = sentence_edges(ids, mask=mask, sections=sections)
    empty = np.flatnonzero(~mask.any(axis=1))
    assert not np.isin(edges.sources, empty).any() and not np.isin(edges.targets, empty).any()
    np.testing.assert_array_equal(np.unique(edges.targets), np.flatnonzero(mask.any(axis=1)))
    rng = np.random.default_rng(8)
    params = init_sentence_graph(rng, 4, num_heads=2, kinds=5, dtype=np.float64)
    out, _ = sentence_graph(params, rng.normal(size=(9, 4)), **edges._asdict())
    np.testing.assert_array_equal(out[empty], 0)
    assert (np.delete(out, empty, axis=0) != 0).all()


def test_words_at_padding_do_not_count():
    ids, mask, sections = random_document(9)
    other = np.where(mask, ids, 999)
    for own, their in zip(sentence_edges(ids, mask=mask, sections=sections), sentence_edges(other, mask=mask, sections=sections), strict=True):
        np.testing.assert_array_equal(own, their)


def test_edges_come_sorted_and_each_pair_once():
    edges = sentence_edges(*random_document(10)[:1], reach=2)
    numbers = edges.targets * 9 + edges.sources
    assert (np.diff(numbers) > 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sections": np.array([0, 1, 0])}, "sections: got sections that go backwards"),
        ({"sections": np.array([0, 1])}, "sections: got shape"),
        ({"mask": np.zeros((3, 2), bool)}, "mask: got no word in any sentence"),
        ({"reach": -1}, "reach: got -1"),
        ({"threshold": 1.5}, "threshold: got 1.5"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        sentence_edges(np.ones((3, 2), int), **changes)
