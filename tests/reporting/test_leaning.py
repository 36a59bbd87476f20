"""Loops of models that count what the last one wrote."""

import numpy as np

from minitransformers.reporting.bias_mitigation.leaning import (
    MEASURES,
    ROUNDS,
    SHARES,
    WORDS,
    ZIPF,
    Written,
    generations,
    loop,
    measured,
    real,
)


def test_of_many_real_sentences_the_measures_are_those_of_the_truth():
    rng = np.random.default_rng(0)
    found = measured(real(rng, 400_000), real(rng, 100_000))
    p = ZIPF / ZIPF.sum()
    entropy = -np.sum(p * np.log(p))
    assert np.isclose(found["words"], np.exp(entropy), rtol=0.01) and np.isclose(found["rarer"], np.minimum(SHARES, 1 - SHARES).mean(), atol=0.01)
    assert np.isclose(found["gap"], np.abs(np.log(SHARES / (1 - SHARES))).mean(), atol=0.03)
    pronouns = -np.mean(SHARES * np.log(SHARES) + (1 - SHARES) * np.log(1 - SHARES))
    assert np.isclose(found["nats"], entropy + pronouns, atol=0.02) and found["nats"] < np.log(2 * WORDS)


def test_who_keeps_the_first_sentences_never_changes():
    steps = list(loop(Written({"temperature": 0.5}, lambda written, first: first), np.random.default_rng(1), sentences=300))
    assert len(steps) == ROUNDS + 1 and all(step == steps[0] for step in steps)


def test_the_first_generation_is_measured_on_real_sentences_whatever_is_kept():
    ways = (Written({}), Written({}, lambda written, first: np.concatenate([written[: len(first)], 0 * first])))
    starts = [next(loop(way, np.random.default_rng(3), sentences=300)) for way in ways]
    assert starts[0] == starts[1]


def test_generations_are_means_of_loops_within_their_ends():
    found = dict(generations(Written({"temperature": 0.7}), np.random.default_rng(2), quick=True))
    assert found[0]["drift"] == 0 and found[0]["least growth"] == 1
    assert all(set(MEASURES) < set(numbers) and numbers["low"] <= numbers["gap"] <= numbers["high"] for numbers in found.values())
    assert found[ROUNDS]["gap"] > found[0]["gap"] and found[ROUNDS]["words"] < found[0]["words"]
