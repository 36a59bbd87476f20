import numpy as np
import pytest

from minitransformers.training.zipf_language import zipf_language


def test_what_may_follow_is_decided_by_the_class_and_falls_as_one_over_the_rank():
    language = zipf_language(np.random.default_rng(0), words=12, classes=3)
    np.testing.assert_allclose(language.following.sum(axis=1), 1)
    np.testing.assert_allclose(language.share.sum(), 1)
    np.testing.assert_array_equal(language.following[0], language.following[9])
    for row in language.following:
        for first in range(3):
            of_class = row[first::3]
            assert of_class.sum() == pytest.approx(round(2 * of_class.sum()) / 2)
            np.testing.assert_allclose(of_class * (1 + first + 3 * np.arange(4)), of_class[0] * (1 + first))
    np.testing.assert_allclose(language.pairs.sum(axis=0), language.share, err_msg="as often as it follows")


def test_words_are_drawn_as_often_as_they_occur_and_follow_as_they_may():
    language = zipf_language(np.random.default_rng(1), words=6, classes=2)
    ids, after = language.draw(np.random.default_rng(2), 60_000)
    found = np.zeros((6, 6))
    np.add.at(found, (ids, after), 1 / 60_000)
    assert np.abs(found - language.pairs).max() < 5 * np.sqrt(0.25 / 60_000)
    assert not found[language.following == 0].any()
    assert len(language.draw(np.random.default_rng(2))[0]) == 256


def test_classes_share_the_words_evenly():
    with pytest.raises(ValueError, match="classes: got 5, wants a divisor of 12 words"):
        zipf_language(np.random.default_rng(0), words=12, classes=5)
