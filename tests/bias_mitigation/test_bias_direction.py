"""The direction of published pairs, its sign and its share; and what words have of it, directly and between them."""

import numpy as np
import pytest

from minitransformers.bias_mitigation.bias_direction import bias_direction, direct_bias, indirect_bias

RNG = np.random.default_rng(0)
MIDDLE = RNG.normal(size=(4, 6))
APART = np.eye(6)[0] + 0.2 * RNG.normal(size=(4, 6))
FIRST, SECOND = MIDDLE + APART, MIDDLE - APART
WORDS = RNG.normal(size=(7, 6))


def unit(vector):
    return vector / np.sqrt(sum(v * v for v in vector))


def covariance(first, second):
    """What is left within pairs, summed up one row at a time."""
    total = np.zeros((first.shape[1], first.shape[1]))
    for u, v in zip(first, second, strict=True):
        u, v = unit(u), unit(v)
        for row in (u - (u + v) / 2, v - (u + v) / 2):
            total += np.outer(row, row)
    return total


def test_it_is_the_leading_eigenvector_of_what_differs_within_pairs():
    found = bias_direction(FIRST, SECOND, k=2)
    values, vectors = np.linalg.eigh(covariance(FIRST, SECOND))
    for j in (0, 1):
        assert abs(abs(found.basis[:, j] @ vectors[:, -1 - j]) - 1) < 1e-10
    np.testing.assert_allclose(found.shares[:6], values[::-1] / values.sum(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(2), rtol=0, atol=1e-12)


def test_of_one_pair_it_is_the_difference():
    found = bias_direction(FIRST[:1], SECOND[:1])
    np.testing.assert_allclose(found.basis[:, 0], unit(unit(FIRST[0]) - unit(SECOND[0])), rtol=0, atol=1e-12)
    assert abs(found.shares[0] - 1) < 1e-12


def test_exchanging_the_pair_that_fixes_the_sign_turns_every_direction():
    found, turned = bias_direction(FIRST, SECOND, k=2), bias_direction(SECOND, FIRST, k=2)
    np.testing.assert_allclose(turned.basis, -found.basis, rtol=0, atol=1e-12)
    assert np.all((unit(FIRST[3]) - unit(SECOND[3])) @ bias_direction(FIRST, SECOND, k=2, sign_pair=3).basis > 0)


def test_lengths_and_the_order_of_pairs_do_not_matter():
    found = bias_direction(FIRST, SECOND).basis
    np.testing.assert_allclose(bias_direction(7 * FIRST, SECOND / 9).basis, found, rtol=0, atol=1e-12)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(bias_direction(FIRST[order], SECOND[order]).basis, found, rtol=0, atol=1e-12)


def test_centring_all_words_at_once_is_another_direction():
    rows = np.array([unit(w) for w in [*FIRST, *SECOND]])
    other = np.linalg.svd(rows - rows.mean(axis=0))[2][0]
    assert abs(other @ bias_direction(FIRST, SECOND).basis[:, 0]) < 0.99


def test_pairs_that_do_not_agree_give_a_warning():
    with pytest.warns(UserWarning, match=r"the pairs agree little: first shares 0\.250, 0\.250"):
        bias_direction(np.eye(4, 9), np.eye(4, 9, 4))        # four orthogonal differences
    with pytest.warns(UserWarning, match=r"0\.500, 0\.500") as warned:
        bias_direction(np.eye(2), -np.eye(2))
    assert warned[0].filename == __file__
    assert bias_direction(np.ones((2, 1)), -np.ones((2, 1))).shares.tolist() == [1.0]  # one feature: there is no second share


def test_direct_bias_is_the_mean_of_powers_of_cosines():
    g = bias_direction(FIRST, SECOND).basis[:, 0]
    for c in (0.5, 1.0, 2.0):
        expected = np.mean([abs(float(unit(w) @ g)) ** c for w in WORDS])
        assert abs(direct_bias(3 * WORDS, -2 * g, strictness=c) - expected) < 1e-12
    assert direct_bias(np.eye(3, 6, 1), np.eye(6)[0]) == 0 and direct_bias(np.eye(1, 6), -np.eye(6)[0]) == 1


def test_direct_bias_is_nothing_once_the_direction_is_taken_out():
    g = bias_direction(FIRST, SECOND).basis[:, 0]
    neutral = WORDS - np.outer(WORDS @ g, g)
    assert direct_bias(neutral, g) < 1e-15 < direct_bias(WORDS, g)


def by_hand(word, other, g):
    w, v, g = unit(word), unit(other), unit(g)
    w_rest, v_rest = w - sum(w * g) * g, v - sum(v * g) * g
    return (sum(w * v) - sum(unit(w_rest) * unit(v_rest))) / sum(w * v)


def test_indirect_bias_is_the_formula_word_by_word():
    word, other, g = RNG.uniform(0.5, 1, size=(2, 3, 6)), RNG.uniform(0.5, 1, size=(2, 3, 6)), RNG.normal(size=6)
    found = indirect_bias(word, other, g)
    for i in np.ndindex(2, 3):
        assert abs(found[i] - by_hand(word[i], other[i], g)) < 1e-12


def test_indirect_bias_is_none_without_a_part_along_the_direction_and_all_where_nothing_else_is_shared():
    g = np.eye(4)[0]
    assert abs(indirect_bias(np.array([0.0, 1, 2, 0]), np.array([0.0, 2, 1, 0]), g)) < 1e-12
    assert abs(indirect_bias(np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 1, 0]), g) - 1) < 1e-12
    assert indirect_bias(np.array([1.0, 1, 0, 0]), np.array([-1.0, 1.2, 0.1, 0]), g) < 0


def without_lengths(word, other, g):
    """A plausible slip: the rests are not brought to length 1 again."""
    w, v = unit(word), unit(other)
    return ((w @ g) * (v @ g)) / (w @ v)


def test_the_rests_are_of_length_one_again():
    g = np.eye(4)[0]
    w, v = np.array([2.0, 1, 0, 0]), np.array([2.0, 1, 0, 0])
    assert abs(indirect_bias(w, v, g)) < 1e-12               # the same word without g is still the same word
    assert abs(without_lengths(w, v, g) - 0.8) < 1e-12


def test_what_has_no_direction_or_no_similarity_is_refused():
    with pytest.raises(ValueError, match="second: got zeros in row 2"):
        bias_direction(FIRST, SECOND * np.array([[1], [1], [0], [1]]))
    with pytest.raises(ValueError, match="first: got pairs of one direction each"):
        bias_direction(FIRST, 2 * FIRST)
    with pytest.raises(ValueError, match="k: got 3, wants at most 2: in no other direction"):
        bias_direction(FIRST[:2], SECOND[:2], k=3)
    with pytest.raises(ValueError, match="k: got 7, wants at most the 8 rows of pairs and the 6 features"):
        bias_direction(FIRST, SECOND, k=7)
    with pytest.raises(ValueError, match="strictness: got 0"):
        direct_bias(WORDS, WORDS[0], strictness=0.0)
    with pytest.raises(ValueError, match="word: got one that is orthogonal"):
        indirect_bias(np.eye(3)[0], np.eye(3)[1], np.ones(3))
    with pytest.raises(ValueError, match="other: got one that lies along direction"):
        indirect_bias(np.array([1.0, 1, 0]), np.array([1.0, 0, 0]), np.eye(3)[0])


@pytest.mark.parity
def test_basis_and_shares_are_those_of_scikit_learn_s_principal_components():
    PCA = pytest.importorskip("sklearn.decomposition").PCA
    rows = []
    for u, v in zip(FIRST, SECOND, strict=True):
        middle = (unit(u) + unit(v)) / 2
        rows += [unit(u) - middle, unit(v) - middle]
    theirs, found = PCA(n_components=3, svd_solver="full").fit(np.array(rows)), bias_direction(FIRST, SECOND, k=3)
    np.testing.assert_allclose(np.abs(np.sum(theirs.components_.T * found.basis, axis=0)), 1, rtol=0, atol=1e-10)
    np.testing.assert_allclose(theirs.explained_variance_ratio_, found.shares[:3], rtol=0, atol=1e-10)
