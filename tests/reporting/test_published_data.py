"""Published data, read as they lie in their packages: known sizes and known numbers."""

import numpy as np
import pytest

from minitransformers.models.published import published_file
from minitransformers.reporting.bias_mitigation.decisions import load_adult, load_compas
from minitransformers.reporting.bias_mitigation.stereotypes import load_crows_pairs, load_stereoset
from minitransformers.reporting.bias_mitigation.word_vectors import (
    WordVectors,
    analogies,
    association_tests,
    both_ends,
    gender_lists,
    load_glove,
    load_word2vec,
    similarity_pairs,
)

pytestmark = pytest.mark.weights


def wanted(name, role):
    try:
        published_file(name, role)
    except ValueError as error:
        pytest.skip(str(error))


def test_glove_has_its_words_in_order_and_the_effect_sizes_that_are_known():
    wanted("glove", "words")
    wanted("fairness", "weat")
    pytest.importorskip("pyarrow")
    glove = load_glove()
    assert glove.words[:3] == ["the", ",", "."] and glove.vectors.shape == (400_000, 50)
    assert np.abs(np.linalg.norm(glove.vectors, axis=1) - 1).max() < 1e-12
    known = [1.080, 1.544, 1.093, 0.959, 1.072, 1.708, 1.495, 1.485, 1.137, 1.002]
    for test, size in zip(association_tests(), known, strict=True):
        x, y, a, b = (glove.of(glove.known(words)) for words in test[1:5])
        scores = [(of @ a.T).mean(1) - (of @ b.T).mean(1) for of in (x, y)]
        assert abs((scores[0].mean() - scores[1].mean()) / np.concatenate(scores).std(ddof=1) - size) < 6e-4, test.name

    some = load_glove(first=10, asked=["queen", "the", "no such word"])
    assert some.words == [*glove.words[:10], "queen"]
    np.testing.assert_array_equal(some.vectors, glove.of(some.words))


def test_word2vec_finds_the_queen():
    wanted("fairness", "vectors")
    vectors = load_word2vec()
    assert vectors.vectors.shape == (26_423, 300)
    king, man, woman = vectors.of(["king", "man", "woman"])
    nearest = np.argsort(-(vectors.vectors @ (king - man + woman)))[:4]
    assert "queen" in [vectors.words[place] for place in nearest]
    lists = gender_lists()
    assert [len(part) for part in lists] == [10, 320, 1441, 52]


def test_pairs_and_questions_are_whole():
    wanted("fairness", "similarity")
    pairs = similarity_pairs()
    assert len(pairs) == 2997 and {0.0, 49.0} == {min(related for *_, related in pairs), max(related for *_, related in pairs)}
    assert len(analogies("family")) == 506 and all(len(question) == 4 for question in analogies("family"))
    with pytest.raises(ValueError, match="family"):
        analogies("families")


def test_both_ends_are_the_smallest_and_the_largest():
    rows, labels = both_ends(np.array([3.0, -1.0, 0.0, 9.0, -5.0]), 2)
    assert rows.tolist() == [4, 1, 0, 3] and labels.tolist() == [0, 0, 1, 1]


def test_a_word_without_a_vector_is_named():
    vectors = WordVectors(["one"], np.ones((1, 3)))
    assert vectors.known(["two", "one"]) == ["one"]
    with pytest.raises(ValueError, match="'two'"):
        vectors.of(["one", "two"])


def test_adult_has_its_rows_and_base_rates_and_not_the_sex():
    wanted("fairness", "adult_train")
    known, asked = load_adult()
    assert known.features.shape == (32_561, 105) and asked.features.shape == (16_281, 105)
    assert [round(float(asked.labels[asked.groups == group].mean()), 3) for group in (0, 1)] == [0.109, 0.300]
    assert np.abs(known.features[:, :5].mean(0)).max() < 1e-3
    assert not any(np.array_equal(column, known.groups) for column in known.features.T)


def test_compas_has_the_rates_that_are_known():
    wanted("fairness", "compas")
    scored = load_compas()
    assert len(scored.labels) == 6172
    for group, wrong in (("African-American", 0.423), ("Caucasian", 0.220)):
        free = (scored.groups == group) & (scored.labels == 0)
        assert round(float((scored.scores[free] >= 5).mean()), 3) == wrong


def test_the_stereotype_tests_are_whole():
    wanted("stereotypes", "crows_pairs")
    assert len(load_crows_pairs()) == 1018 and len(load_stereoset()) == 4229
