"""A language with two attributes, and modules that hide one of them."""

import numpy as np
import pytest

from minitransformers.foundation import trees
from minitransformers.reporting.bias_mitigation import attribute_modules as put
from minitransformers.reporting.bias_mitigation import two_attributes as of


def test_of_the_language_itself_the_measures_are_those_of_its_shares():
    language = of.language(np.random.default_rng(0))
    assert np.allclose(language.sum(axis=-1), 1)
    rows = of.by_occupation(np.log(np.maximum(language, 1e-300)), language)
    shares = np.linspace(0.1, 0.9, of.OCCUPATIONS)
    np.testing.assert_allclose(rows[:, :2].mean(axis=0), np.abs(np.log(shares / (1 - shares))).mean())
    np.testing.assert_allclose(rows[: of.SEEN, 2].mean(), of.entropy(language))
    hidden = of.by_occupation(np.log(np.maximum(of.balanced(language, of.A), 1e-300)), language[: of.SEEN])
    assert (hidden[:, 0] == 0).all() and (hidden[:, 1:] == rows[: of.SEEN, 1:]).all()


def test_intervals_hold_their_estimate_and_leave_out_who_was_not_seen():
    language = of.language(np.random.default_rng(1))
    log_p = np.log(np.maximum(language, 1e-300))
    rows = of.by_occupation(log_p, language)
    found = of.with_intervals(log_p, language, np.random.default_rng(2), resamples=200)
    np.testing.assert_allclose([found[name] for name in of.MEASURES], rows[: of.SEEN].mean(axis=0))
    np.testing.assert_allclose([found[f"{name} unseen"] for name in of.MEASURES], rows[of.SEEN :].mean(axis=0))
    assert all(found[f"{name} low"] < found[name] < found[f"{name} high"] for name in of.MEASURES)


@pytest.mark.parametrize("way", put.WAYS)
def test_modules_go_on_and_come_off(way):
    language, base = of.known(0, rate=0.03, steps=20)
    rng = np.random.default_rng(3)
    modules = {name: put.learned(way, base, of.balanced(language, number), rng, rate=0.003, steps=3) for number, name in enumerate((put.A, put.B))}
    found = {}
    for which, numbers in put.measured(way, base, modules, language, rng, resamples=100):
        found.setdefault(which, {}).update(numbers)
    assert list(found) == [put.A, put.B, put.BOTH, put.OFF] and found[put.OFF]["restored"]
    assert found[put.BOTH]["size"] == found[put.A]["size"] + found[put.B]["size"] > 0
    assert np.isfinite(found[put.BOTH]["gap A"]) and ("open" in found[put.BOTH]) == (way == put.MASKS)
    with_a = dict(trees.leaves(put.on(way, base, modules, [put.A])))
    assert any(path not in with_a or not np.array_equal(leaf, with_a[path]) for path, leaf in trees.leaves(base)) or len(with_a) > len(list(trees.leaves(base)))


def test_overlap_counts_what_is_open_in_both():
    one, other = [np.array([1.0, 2.0, 0.0, 0.0]), None], [np.array([0.0, 3.0, 0.0, 0.0]), None]
    assert put.overlap(one, other) == {"open": 3 / 8, "in both": 1 / 4}
