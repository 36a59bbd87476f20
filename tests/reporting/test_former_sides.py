"""Who tells on which side words lay, on words that were made up."""

import numpy as np

from minitransformers.reporting.bias_mitigation.former_sides import shares_told, told
from minitransformers.reporting.bias_mitigation.word_quality import beside_the_first, interval, span, with_ends


def test_two_heaps_are_told_by_all_and_shuffled_labels_by_none():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    x = rng.normal(size=(200, 4)) + 8 * np.where(labels == 1, 1, -1)[:, None]
    assert all(hits.all() for hits in told(x, labels, rng).values())
    shuffled = shares_told(x, rng.permutation(labels), rng, resamples=100)
    assert all(abs(shuffled[probe] - 0.5) < 0.15 and shuffled[f"{probe} low"] <= shuffled[probe] <= shuffled[f"{probe} high"] for probe in ("k-means", "linear", "neighbours"))


def test_a_way_stands_beside_the_first_with_the_interval_of_its_change():
    rows = np.random.default_rng(0).normal(size=(30, 2)) + [0.0, 1.0]
    found = interval(rows, lambda drawn: beside_the_first(drawn.mean(axis=0)), np.random.default_rng(1), resamples=200)
    first, second = (with_ends(found, way, "mean") for way in (0, 1))
    assert first["mean more"] == first["mean more low"] == first["mean more high"] == 0
    assert np.isclose(second["mean more"], second["mean"] - first["mean"]) and second["mean more low"] < second["mean more"] < second["mean more high"]
    assert span({"a": [0.5, 0.7], "a low": [0.1], "a high": [1.0]}, "a") == "0.60 (0.10 to 1.00)"
