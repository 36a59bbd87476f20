"""Group balancing: equal shares within a set, and nothing else moved."""

import numpy as np
import pytest

from minitransformers.bias_mitigation.balance_pairs import balance_pairs

RNG = np.random.default_rng(0)
LOGITS, SETS = RNG.normal(size=(2, 3, 8)), [[0, 4], [6, 1, 5]]
P = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)


def test_the_members_of_a_set_are_equally_likely_and_the_set_as_likely_as_before():
    found = np.exp(balance_pairs(LOGITS, sets=SETS))
    for members in SETS:
        for member in members:
            np.testing.assert_allclose(found[..., member], P[..., members].sum(-1) / len(members), rtol=0, atol=1e-15)


def test_every_other_token_is_left_as_it_was_to_the_last_bit():
    found = balance_pairs(LOGITS, sets=SETS)
    others = [2, 3, 7]
    np.testing.assert_array_equal(found[..., others], balance_pairs(LOGITS, sets=[[0, 4]])[..., others])
    np.testing.assert_allclose(np.exp(found[..., others]), P[..., others], rtol=0, atol=1e-15)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=0, atol=1e-14)


def test_done_twice_is_done_once():
    once = balance_pairs(LOGITS, sets=SETS)
    np.testing.assert_allclose(balance_pairs(once, sets=SETS), once, rtol=0, atol=1e-14)


def test_the_mean_of_the_logarithms_would_not_keep_what_the_set_has():
    """The plausible wrong variant: equal logits, which are the geometric mean."""
    logits = np.log(np.array([0.6, 0.1, 0.3]))
    assert np.exp(balance_pairs(logits, sets=[[0, 1]]))[:2].sum() == pytest.approx(0.7, abs=1e-15)
    assert 2 * np.exp(logits[:2].mean()) < 0.5


def test_members_that_are_ruled_out_get_their_share_and_sets_that_are_stay_so():
    logits = np.log(np.array([0.6, 1.0, 0.4]))
    logits[1] = -np.inf
    np.testing.assert_allclose(np.exp(balance_pairs(logits, sets=[[0, 1]])), [0.3, 0.3, 0.4], rtol=0, atol=1e-15)
    logits[0] = -np.inf
    assert np.all(balance_pairs(logits, sets=[[0, 1]])[:2] == -np.inf)


def test_bad_sets_are_refused():
    for sets, words in (([[0, 8]], "the id 8"), ([[1, 1]], "the id 1 twice"), ([[0, 1], [2, 1]], "the id 1 twice"), ([], "none")):
        with pytest.raises(ValueError, match=f"sets: got {words}"):
            balance_pairs(LOGITS, sets=sets)
    with pytest.raises(ValueError, match=r"sets\.1: got \[3\], wants at least two tokens"):
        balance_pairs(LOGITS, sets=[[0, 1], [3]])
