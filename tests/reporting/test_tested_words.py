"""Association tests of the vectors of several ways, on words that were made up."""

import numpy as np

from minitransformers.bias_mitigation.weat import weat
from minitransformers.reporting.bias_mitigation.decisions import Scored, numbered
from minitransformers.reporting.bias_mitigation.tested_words import associations, sets_of
from minitransformers.reporting.bias_mitigation.word_vectors import AssociationTest


def test_a_set_has_the_words_that_are_known_in_their_order():
    test = AssociationTest("made up", ["c", "a"], ["no"], ["b"], ["a", "b"], None)
    assert [rows.tolist() for rows in sets_of(test, ["a", "b", "c"])] == [[2, 0], [], [1], [0, 1]]


def test_each_way_has_the_numbers_of_the_test_itself():
    rng = np.random.default_rng(0)
    sets, published = np.split(np.arange(32), 4), rng.normal(size=(32, 5))
    published[sets[0]] += 2 * published[sets[2]].mean(axis=0)
    ways = {"as published": published, "turned round": published * [-1, 1, 1, 1, 1]}
    found = associations(sets, ways, rng, resamples=100, splits=500)
    for way, vectors in ways.items():
        known = weat(*(vectors[rows] for rows in sets), splits=0)
        assert np.isclose(found[way]["d"], known.effect_size) and found[way]["d low"] <= found[way]["d high"]
        assert np.isclose(found[way]["apart"], known.associations_x.mean() - known.associations_y.mean())
    assert found["as published"]["d more"] == 0 and 0 < found["as published"]["p"] <= 1
    assert np.isclose(found["turned round"]["d more"], found["turned round"]["d"] - found["as published"]["d"])


def test_groups_are_numbered_from_the_largest():
    data = Scored(np.arange(7), np.array([0, 1, 0, 1, 0, 1, 0]), np.array(["b", "a", "c", "a", "b", "a", "a"]))
    kept, names = numbered(data, least=2)
    assert names == ["a", "b"] and kept.groups.tolist() == [1, 0, 0, 1, 0, 0] and kept.scores.tolist() == [0, 1, 3, 4, 5, 6]
    assert numbered(data, most=1)[1] == ["a"]
