"""Worlds of two groups, and who learns their records."""

import numpy as np

from minitransformers.reporting.bias_mitigation.two_groups import ASKED, NO, RULE, Learner, World, alike, decided, once


def test_a_world_is_as_it_says():
    world = World(minority=0.3, angle=90, lost=0.4)
    true, recorded = world.true_and_recorded(np.random.default_rng(0), 40_000)
    own = true.groups == 1
    assert abs(own.mean() - 0.3) < 0.01 and abs(true.labels.mean() - 0.5) < 0.01
    assert (true.labels == recorded.labels)[~own].all() and (recorded.labels <= true.labels).all()
    assert abs(recorded.labels[own & (true.labels == 1)].mean() - 0.6) < 0.02
    assert np.allclose(world.along(true.features[:, :-1], true.groups), np.where(own, true.features[:, 1], true.features[:, 0]))


def test_groups_weigh_alike_together():
    people, _ = World(minority=0.1).true_and_recorded(np.random.default_rng(0), 1000)
    weights = alike(people)
    assert np.isclose(weights[people.groups == 0].sum(), weights[people.groups == 1].sum()) and (once(people) == 1).all()


def test_who_learns_decides_and_the_rule_decides_better_than_no():
    world = World(minority=0.1)
    found = dict(decided({"linear": Learner(world)}, world, {"linear": 0.1}, np.random.default_rng(1), base="linear", steps=60, resamples=100))
    assert list(found) == ["linear", RULE, NO] and ASKED % 2 == 0
    assert found["linear"]["accuracy"] > 0.8 > 0.6 > found[NO]["accuracy"] and found[RULE]["accuracy"] >= found["linear"]["accuracy"] - 0.01
    assert found["linear"]["minority"] == found["linear"]["by the record"]  # nothing was lost


def test_the_loss_is_that_of_others():
    learner = Learner(World(minority=0.1, lost=0.4), weights=alike)
    losses = [learner.loss(np.random.default_rng(2), 0.1, steps=steps) for steps in (1, 60)]
    assert losses[1] < losses[0] < 1
