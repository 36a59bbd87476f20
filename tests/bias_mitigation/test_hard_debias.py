"""Hard debias: no part along the direction, equal products with equalized words; and what it leaves behind."""

import math

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.bias_mitigation.bias_direction import bias_direction, direct_bias
from minitransformers.bias_mitigation.hard_debias import equalize, hard_debias, neutralize, remove_subspace
from minitransformers.bias_mitigation.weat import weat

RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.normal(size=(6, 2)))[0]
WORDS = RNG.normal(size=(9, 6))
WORDS /= np.linalg.norm(WORDS, axis=1, keepdims=True)


def without(vector, basis):
    """The part of one vector outside of each column, one column at a time."""
    for column in basis.T:
        vector = vector - anp.sum(vector * column) * column
    return vector


def equalized_by_hand(members, basis):
    mean = sum(members) / len(members)
    common = without(mean, basis)
    rows = []
    for member in members:
        side = (member - without(member, basis)) - (mean - without(mean, basis))
        rows.append(common + math.sqrt(1 - sum(common * common)) * side / math.sqrt(sum(side * side)))
    return np.array(rows)


@pytest.mark.parametrize("k", [1, 2])
def test_removal_is_column_by_column_and_its_gradient_autograd_s(k):
    x, dout = RNG.normal(size=(2, 3, 6)), RNG.normal(size=(2, 3, 6))

    def textbook(x):
        return anp.stack([anp.stack([without(row, BASIS[:, :k]) for row in rows]) for rows in x])

    out, backward = remove_subspace(x, basis=BASIS[:, :k])
    np.testing.assert_allclose(out, textbook(x), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(dout), autograd.grad(lambda x: anp.sum(dout * textbook(x)))(x), rtol=0, atol=1e-12)
    assert check_gradients(remove_subspace, x, basis=BASIS[:, :k]).passed


def test_removing_twice_is_removing_once_and_forward_and_backward_are_one_map():
    out, backward = remove_subspace(WORDS, basis=BASIS)
    np.testing.assert_allclose(remove_subspace(out, basis=BASIS)[0], out, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(backward(WORDS), out)
    assert np.abs(out @ BASIS).max() < 1e-15


def test_the_subspace_counts_and_not_its_basis():
    turn = np.linalg.qr(RNG.normal(size=(2, 2)))[0]
    np.testing.assert_allclose(remove_subspace(WORDS, basis=BASIS @ turn)[0], remove_subspace(WORDS, basis=BASIS)[0], rtol=0, atol=1e-15)


def passes_all(x, *, basis):
    return remove_subspace(x, basis=basis)[0], lambda dout: dout


def passes_the_subspace(x, *, basis):
    return remove_subspace(x, basis=basis)[0], lambda dout: (dout @ basis) @ basis.T


@pytest.mark.parametrize("wrong", [passes_all, passes_the_subspace])
def test_the_check_refuses_a_backward_that_does_not_project(wrong):
    assert not check_gradients(wrong, WORDS, basis=BASIS).passed


def test_neutral_words_are_of_length_one_and_have_no_part_in_the_subspace():
    neutral = neutralize(WORDS, basis=BASIS)
    assert np.abs(neutral @ BASIS).max() < 2e-15
    np.testing.assert_allclose(np.linalg.norm(neutral, axis=1), 1, rtol=0, atol=1e-15)
    np.testing.assert_allclose(neutral, [without(w, BASIS) / np.linalg.norm(without(w, BASIS)) for w in WORDS], rtol=0, atol=1e-12)
    np.testing.assert_allclose(neutralize(neutral, basis=BASIS), neutral, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("k", "members"), [(1, 2), (1, 3), (2, 2), (2, 4)])
def test_equalized_words_are_those_of_the_formula_word_by_word(k, members):
    found = equalize(WORDS[:members], basis=BASIS[:, :k])
    np.testing.assert_allclose(found, equalized_by_hand(WORDS[:members], BASIS[:, :k]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize("k", [1, 2])
def test_a_neutral_word_has_one_product_with_all_members_of_a_set(k):
    basis = BASIS[:, :k]
    products = neutralize(WORDS[4:], basis=basis) @ equalize(WORDS[:3], basis=basis).T
    assert np.abs(products - products[:, :1]).max() < 2e-15
    before = neutralize(WORDS[4:], basis=basis) @ WORDS[:3].T
    assert np.abs(before - before[:, :1]).max() > 0.1


@pytest.mark.parametrize(("k", "members"), [(1, 2), (1, 3), (2, 2)])
def test_equalizing_twice_is_equalizing_once_for_pairs_and_for_one_direction(k, members):
    found = equalize(WORDS[:members], basis=BASIS[:, :k])
    np.testing.assert_allclose(equalize(found, basis=BASIS[:, :k]), found, rtol=0, atol=1e-12)


def test_for_three_members_and_two_directions_twice_is_not_once():
    found = equalize(WORDS[:3], basis=BASIS)
    assert np.abs(equalize(found, basis=BASIS) - found).max() > 0.01


def plus_and_minus(pair, direction):
    """The authors' code: the mean without its part along the direction, then plus and minus that direction."""
    mean = pair.mean(axis=0)
    common = mean - (mean @ direction) * direction
    room = math.sqrt(1 - common @ common)
    sign = 1 if (pair[0] - pair[1]) @ direction > 0 else -1
    return np.array([common + sign * room * direction, common - sign * room * direction])


def test_for_a_pair_and_one_direction_it_is_the_authors_plus_and_minus_and_for_two_it_is_not():
    np.testing.assert_allclose(equalize(WORDS[:2], basis=BASIS[:, :1]), plus_and_minus(WORDS[:2], BASIS[:, 0]), rtol=0, atol=1e-14)
    assert np.abs(equalize(WORDS[:2], basis=BASIS) - plus_and_minus(WORDS[:2], BASIS[:, 0])).max() > 0.1


def test_sets_along_leading_axes_are_sets_one_by_one():
    found = equalize(WORDS[:6].reshape(2, 3, 6), basis=BASIS)
    for i in (0, 1):
        np.testing.assert_allclose(found[i], equalize(WORDS[3 * i : 3 * i + 3], basis=BASIS), rtol=0, atol=1e-15)


def test_a_table_changes_where_it_is_told_and_nowhere_else():
    sets = [np.array([0, 3]), np.array([5, 2, 8])]
    found = hard_debias(WORDS, basis=BASIS, neutral=np.array([7, 1]), equal=sets)
    np.testing.assert_array_equal(found[[7, 1]], neutralize(WORDS[[7, 1]], basis=BASIS))
    for rows in sets:
        np.testing.assert_array_equal(found[rows], equalize(WORDS[rows], basis=BASIS))
    np.testing.assert_array_equal(found[[4, 6]], WORDS[[4, 6]])


def planted(rng, words=60, d=20):
    """Ten pairs along the first feature; words that lean to either side of it, and, as words do, of other features with it."""
    middle, apart = rng.normal(size=(10, d)), np.zeros((10, d))
    apart[:, 0] = 2
    leaning = np.repeat([1.0, -1.0], words // 2)
    given = rng.normal(size=(words, d))
    given[:, :4] += leaning[:, None] * np.array([2.0, 1.5, 1.5, 1.5])
    return middle + apart, middle - apart, given / np.linalg.norm(given, axis=1, keepdims=True), leaning


def two_means(points, rng, starts=5):
    """k-means with two clusters, the best of a few starts: which cluster each point is in."""
    best, least = None, np.inf
    for _ in range(starts):
        centres = points[rng.choice(len(points), 2, replace=False)]
        for _ in range(30):
            apart = ((points[:, None] - centres) ** 2).sum(axis=2)
            own = apart.argmin(axis=1)
            centres = np.array([points[own == c].mean(axis=0) if (own == c).any() else centres[c] for c in (0, 1)])
        if apart.min(axis=1).sum() < least:
            best, least = own, apart.min(axis=1).sum()
    return best


def test_the_measures_fall_and_yet_the_words_still_cluster_by_their_former_side():
    rng = np.random.default_rng(1)
    first, second, words, leaning = planted(rng)
    basis = bias_direction(first, second).basis
    neutral = neutralize(words, basis=basis)
    assert direct_bias(neutral, basis[:, 0]) < 1e-15
    x, y = words[leaning > 0], words[leaning < 0]
    effect = weat(x, y, first, second, splits=0).effect_size
    after = weat(neutral[leaning > 0], neutral[leaning < 0], first - second, second - first, splits=0)
    before = weat(x, y, first - second, second - first, splits=0)
    assert effect > 1 and before.effect_size > 1
    assert abs(after.statistic) < 0.02 * before.statistic
    recovered = np.mean((two_means(neutral, rng) == 1) == (leaning > 0))
    assert max(recovered, 1 - recovered) > 0.85


def test_words_chosen_along_a_random_direction_cluster_by_it_as_well():
    rng = np.random.default_rng(2)
    mixed = rng.normal(size=(400, 5)) @ rng.normal(size=(5, 20)) + 0.3 * rng.normal(size=(400, 20))  # features go together
    words = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    shares = []
    for _ in range(8):
        basis = np.linalg.qr(rng.normal(size=(20, 1)))[0]
        order = np.argsort(words @ basis[:, 0])
        chosen, side = order[[*range(40), *range(-40, 0)]], np.repeat([False, True], 40)
        share = np.mean((two_means(neutralize(words[chosen], basis=basis), rng) == 1) == side)
        shares.append(max(share, 1 - share))
    assert np.mean(shares) > 0.7                             # so recovery above a half says nothing of the direction of a bias


def test_float32_words_stay_float32_and_come_close():
    single = hard_debias(WORDS.astype(np.float32), basis=BASIS.astype(np.float32), neutral=np.array([1]), equal=[np.array([0, 3])])
    double = hard_debias(WORDS, basis=BASIS, neutral=np.array([1]), equal=[np.array([0, 3])])
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, rtol=0, atol=1e-6)  # float32


def test_what_cannot_be_moved_is_refused_by_name():
    with pytest.raises(ValueError, match="words: got row 1, which lies in the subspace"):
        neutralize(np.stack([WORDS[0], BASIS[:, 1]]), basis=BASIS)
    with pytest.raises(ValueError, match="members: got row 0, whose part in the subspace is the mean one"):
        equalize(WORDS[:1], basis=BASIS)
    with pytest.raises(ValueError, match="words: got a length off by 1 in row"):
        neutralize(2 * WORDS, basis=BASIS)
    with pytest.raises(ValueError, match=r"members: got a length off by 0\.5"):
        equalize(WORDS[:3] / 2, basis=BASIS)
    with pytest.raises(ValueError, match=r"^words: got a length off by 0\.5 in row 8"):
        hard_debias(np.concatenate([WORDS[:8], WORDS[8:] / 2]), basis=BASIS, neutral=np.array([1]))
    with pytest.raises(ValueError, match=r"^basis: got columns"):
        hard_debias(WORDS, basis=2 * BASIS, neutral=np.array([1]))
    with pytest.raises(ValueError, match="basis: got columns whose products are off"):
        remove_subspace(WORDS, basis=BASIS[:, [0, 0]])
    with pytest.raises(ValueError, match=r"equal\.1: got row 3, which is in equal\.0"):
        hard_debias(WORDS, basis=BASIS, neutral=np.array([1]), equal=[np.array([0, 3]), np.array([3, 4])])
    with pytest.raises(ValueError, match=r"equal\.0: got rows \[3\]: members"):
        hard_debias(WORDS, basis=BASIS, neutral=np.array([1]), equal=[np.array([3])])
    with pytest.raises(ValueError, match="neutral: got row 9, wants rows from 0 to 8"):
        hard_debias(WORDS, basis=BASIS, neutral=np.array([9]))
