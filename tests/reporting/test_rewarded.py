"""A policy that learns from rewards, and exact sums over its texts."""

import numpy as np

from minitransformers.basics.embedding import Embedding
from minitransformers.reporting.bias_mitigation import rewarded
from minitransformers.reporting.bias_mitigation.rewarded import (
    FLAGGED,
    LENGTH,
    SYMBOLS,
    Rewarded,
    drawn_reference,
    earned,
    judged,
    learned,
    masked,
)

FLAGS = np.where(np.arange(SYMBOLS) < FLAGGED, -1.0, 0.0)


def test_exact_sums_are_what_many_texts_show():
    rng = np.random.default_rng(0)
    table = drawn_reference(rng)
    np.testing.assert_allclose(rewarded.frequencies(table).sum(axis=1), 1)
    written = np.concatenate([rewarded.write(table, rng)[0] for _ in range(200)])
    found = judged(table, table)
    assert written.shape[1] == LENGTH and abs((written < FLAGGED).mean() - found["flagged"]) < 0.01
    np.testing.assert_allclose(earned(table, FLAGS), -found["flagged"])
    assert abs(found["divergence"]) < 1e-12 and found["effective"] < SYMBOLS


def test_the_mask_writes_nothing_that_is_flagged_and_nothing_is_nearer_to_clean_text():
    table = drawn_reference(np.random.default_rng(1))
    found = judged(masked(table), table)
    assert found["flagged"] == 0 and found["clean"] < judged(table, table)["clean"]
    np.testing.assert_allclose(found["clean"], found["entropy"])


def test_the_mean_gradient_is_that_of_the_exact_mean_reward():
    rng = np.random.default_rng(2)
    table, way = drawn_reference(rng), rng.normal(size=(SYMBOLS + 1, SYMBOLS))
    task = Rewarded(table, FLAGS, 0.0)
    drawn = []
    for _ in range(600):
        _, backward = task.loss(Embedding(table), None, rng=rng)
        drawn.append((backward((np.float64(1), None)).weight * way).sum())
    exact = -LENGTH * (earned(table + 1e-5 * way, FLAGS) - earned(table - 1e-5 * way, FLAGS)) / 2e-5
    assert abs(np.mean(drawn) - exact) < 4 * np.std(drawn) / np.sqrt(len(drawn)) and np.std(drawn) / np.sqrt(len(drawn)) < 0.3 * abs(exact)


def test_a_price_keeps_the_policy_near_its_reference():
    table = drawn_reference(np.random.default_rng(3))

    def after(price, **settings):
        return judged(learned(Rewarded(table, FLAGS, price), np.random.default_rng(4), steps=60, **settings), table)

    before, free, priced = judged(table, table), after(0.0, rate=0.1, plain=False), after(3.0, rate=1.0, plain=True)
    assert free["flagged"] < priced["flagged"] < before["flagged"] and 0 < priced["divergence"] < free["divergence"]
