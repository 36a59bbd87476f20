"""Decisions about groups, with intervals of the people about whom they were taken."""

import numpy as np
import pytest

from minitransformers.reporting.bias_mitigation.rated import MEASURES, lower, measured, told, with_intervals, worse


def people(rng, size=400):
    return {"labels": rng.integers(2, size=size), "groups": rng.integers(2, size=size)}


def test_the_measures_are_those_that_counting_gives():
    about = people(np.random.default_rng(0))
    said = np.random.default_rng(1).integers(2, size=400)
    own = [about["groups"] == group for group in (0, 1)]
    right = [(said == about["labels"])[rows].mean() for rows in own]
    gaps = [abs(np.subtract(*(said[rows & among].mean() for rows in own))) for among in (True, about["labels"] == 1, about["labels"] == 0)]
    np.testing.assert_allclose(measured(said, **about), [(said == about["labels"]).mean(), min(right), *gaps])


def test_the_estimate_is_what_was_measured_and_lies_within_its_ends():
    rng = np.random.default_rng(2)
    about, said, other = people(rng), rng.integers(2, size=400), rng.integers(2, size=400)
    found = with_intervals(said, other, rng=rng, resamples=200, **about)
    np.testing.assert_allclose([found[name] for name in MEASURES], measured(said, **about))
    np.testing.assert_allclose([found[f"{name} more"] for name in MEASURES], measured(said, **about) - measured(other, **about))
    assert all(found[f"{name} low"] < found[f"{name} high"] for name in MEASURES)
    assert found["accuracy low"] < found["accuracy"] < found["accuracy high"]


def test_decisions_are_no_better_than_themselves_on_any_draw():
    rng = np.random.default_rng(3)
    about, said = people(rng), rng.integers(2, size=400)
    found = with_intervals(said, said, rng=rng, resamples=100, **about)
    assert all(found[f"{name} more{end}"] == pytest.approx(0) for name in MEASURES for end in ("", " low", " high"))


def test_worse_and_lower_go_by_every_seed_and_by_the_interval():
    more = {"accuracy": [-0.1, -0.2], "worst group": [-0.1, 0.1], "parity gap": [0.1, 0.2], "tpr gap": [-0.2, -0.1], "fpr gap": [-0.2, -0.1]}
    found = {f"{name} more": {"way": {0: np.array(numbers)}} for name, numbers in more.items()}
    for end, sign in (("low", -1), ("high", 1)):
        found |= {f"{name} more {end}": {"way": {0: np.array(numbers) + sign * 0.15}} for name, numbers in more.items()}
    found["fpr gap more high"]["way"][0] = np.array([-0.1, -0.05])
    found["accuracy"] = {"way": {0: np.array([0.8, 0.8])}}
    assert worse(found, "way") == ["accuracy (perhaps)", "parity gap (perhaps)"]
    assert lower(found, "way") == ["fpr gap"]
    assert told(found, "way", measures=("accuracy",)) == "way: accuracy 0.800 ± 0.000"
