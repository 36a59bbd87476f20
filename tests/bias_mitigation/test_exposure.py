"""Exposure: ranks, and what a model that knows nothing would give."""

import numpy as np
import pytest

from minitransformers.bias_mitigation.exposure import canary_exposure

RNG = np.random.default_rng(0)


def test_it_is_the_logarithm_of_the_list_less_that_of_the_rank():
    log_probs = RNG.normal(size=(3, 64))
    for canary in (0, 17, 63):
        for row, found in zip(log_probs, canary_exposure(log_probs, canary=canary), strict=True):
            rank = 1 + sum(other > row[canary] for other in row)
            assert found == pytest.approx(6 - np.log2(rank), abs=1e-14)


def test_the_likeliest_has_all_bits_and_the_last_none():
    log_probs = -np.arange(1024.0)
    assert canary_exposure(log_probs, canary=0) == 10 and canary_exposure(log_probs, canary=1023) == 0


def test_ties_count_against_the_canary():
    assert canary_exposure(np.zeros(16), canary=5) == 0
    assert canary_exposure(np.array([0.0, 0.0, -1.0, -1.0]), canary=1) == 1


def test_counting_ties_for_the_canary_would_find_secrets_in_a_constant_model():
    """The negative control: a rank by the strictly likelier alone gives a model that says nothing the largest exposure there is."""
    constant = np.zeros(16)
    assert np.log2(16) - np.log2(1 + np.sum(constant > constant[5])) == 4 != canary_exposure(constant, canary=5)


def test_a_model_that_knows_nothing_gives_about_one_and_a_half_bits():
    """Of n equally likely ranks the mean of log2 n - log2 rank is close to log2 e."""
    found = canary_exposure(RNG.normal(size=(4000, 256)), canary=9)
    exact = 8 - np.mean(np.log2(np.arange(1, 257)))
    assert abs(found.mean() - exact) < 5 * found.std() / np.sqrt(4000) and abs(exact - np.log2(np.e)) < 0.03


def test_only_the_order_matters():
    log_probs = RNG.normal(size=50)
    assert canary_exposure(np.exp(log_probs) - 7, canary=3) == canary_exposure(log_probs, canary=3)


def test_a_count_model_gives_away_what_it_has_seen_more_often():
    """Digits after digits, counted: a number that stands in the text more often has a higher exposure, up to all bits."""
    rng = np.random.default_rng(1)
    secret, found = [2, 8, 1, 0], []
    text = [rng.integers(10, size=4) for _ in range(40)]
    every = np.stack(np.meshgrid(*[np.arange(10)] * 4, indexing="ij"), -1).reshape(-1, 4)
    for times in (0, 1, 4, 16):
        counts = np.ones((3, 10, 10))
        for row in [*text, *[secret] * times]:
            for place in range(3):
                counts[place, row[place], row[place + 1]] += 1
        log_p = np.log(counts / counts.sum(-1, keepdims=True))
        scores = sum(log_p[place, every[:, place], every[:, place + 1]] for place in range(3))
        found.append(float(canary_exposure(scores, canary=2810)))
    assert found[0] < found[1] < found[2] <= found[3] and found[3] > 12
