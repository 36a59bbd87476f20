"""WEAT and SEAT: the published numbers on planted vectors, an exact test that is exact, and what depends on the templates."""

import importlib.util
import itertools
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from minitransformers.bias_mitigation.weat import seat, template_vectors, weat, word_vectors

RNG = np.random.default_rng(0)
X, Y, A, B = (RNG.normal(size=(n, 5)) for n in (4, 4, 3, 2))


def cosine(u, v):
    return sum(p * q for p, q in zip(u, v, strict=True)) / math.sqrt(sum(p * p for p in u) * sum(q * q for q in v))


def association(w, a, b):
    return sum(cosine(w, v) for v in a) / len(a) - sum(cosine(w, v) for v in b) / len(b)


def by_hand(x, y, a, b, ddof):
    """d, S and the exact p, one word and one split at a time."""
    s = [association(w, a, b) for w in [*x, *y]]
    n, mean = len(x), sum(s) / len(s)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in s) / (len(s) - ddof))
    statistic = sum(s[:n]) - sum(s[n:])
    reached, total = 0, 0
    for chosen in itertools.combinations(range(2 * n), n):
        other = sum(s[i] if i in chosen else -s[i] for i in range(2 * n))
        reached, total = reached + (other >= statistic - 1e-12), total + 1
    return statistic / n / deviation, statistic, reached / total


def spread(associations, d=6):
    """Words with given associations for the attributes e1 and e2: rows of length 1 whose first two numbers differ by so much."""
    words = np.zeros((len(associations), d))
    words[:, 0] = associations
    words[:, 2] = np.sqrt(1 - np.square(associations))
    return words


E1, E2 = np.eye(1, 6), np.eye(1, 6, 1)


@pytest.mark.parametrize("ddof", [0, 1])
def test_effect_statistic_and_p_are_those_of_counting_by_hand(ddof):
    found = weat(X, Y, A, B, ddof=ddof)
    np.testing.assert_allclose(found[:3], by_hand(X, Y, A, B, ddof), rtol=0, atol=1e-12)
    assert found.exact and found.splits == math.comb(8, 4)


@pytest.mark.parametrize(("ddof", "most"), [(0, 2.0), (1, 2 * math.sqrt(7 / 8))])
def test_the_effect_is_largest_where_each_set_has_one_association(ddof, most):
    assert abs(weat(spread([0.5] * 4), spread([-0.2] * 4), E1, E2, ddof=ddof).effect_size - most) < 1e-12
    assert abs(weat(X, Y, A, B, ddof=ddof).effect_size) < most


def test_exchanging_targets_or_attributes_turns_the_sign():
    found = weat(X, Y, A, B).effect_size
    assert abs(weat(Y, X, A, B).effect_size + found) < 1e-12
    assert abs(weat(X, Y, B, A).effect_size + found) < 1e-12


def test_the_lengths_of_vectors_do_not_matter():
    lengths = np.exp(RNG.normal(size=(4, 1)))
    np.testing.assert_allclose(weat(lengths * X, 1e-100 * Y, 1e100 * A, B)[:3], weat(X, Y, A, B)[:3], rtol=0, atol=1e-12)


def test_of_sets_that_do_not_overlap_one_split_in_all_is_as_far_apart():
    x, y = spread(np.linspace(0.1, 0.8, 8)), spread(np.linspace(-0.8, -0.1, 8))
    assert weat(x, y, E1, E2).p_value == 1 / math.comb(16, 8)
    assert f"{1 / math.comb(16, 8):.3g}" == "7.77e-05"
    assert weat(y, x, E1, E2).p_value == 1.0                 # one-sided: nothing is less in favour


def test_ties_count_as_reached_though_their_sums_differ_in_the_last_bit():
    s = [0.1, 0.2, 0.3]
    assert weat(spread(s), spread(s[::-1]), E1, E2).p_value == by_hand(spread(s), spread(s), E1, E2, 1)[2]
    x, y = np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.1, 0.2])
    strict = np.mean([sum(np.take([*x, *y], c)) > sum(x) for c in itertools.combinations(range(6), 3)])
    assert weat(spread(x), spread(y), E1, E2).p_value > strict


def test_drawn_splits_come_close_to_all_of_them_and_never_give_zero():
    exact = weat(X, Y, A, B)
    drawn = weat(X, Y, A, B, splits=69, rng=np.random.default_rng(1))
    assert not drawn.exact and drawn.splits == 69 and exact.splits == 70
    many = np.mean([weat(X, Y, A, B, splits=69, rng=np.random.default_rng(seed)).p_value for seed in range(200)])
    expected = (1 + 69 * exact.p_value) / 70
    assert abs(many - expected) < 4 * math.sqrt(0.25 / (69 * 200))  # four standard errors of a share
    x, y = spread(np.linspace(0.1, 0.8, 20)), spread(np.linspace(-0.8, -0.1, 20))
    assert weat(x, y, E1, E2, splits=12_345, rng=np.random.default_rng(2)).p_value == 1 / 12_346
    assert weat(y, x, E1, E2, splits=12_345, rng=np.random.default_rng(2)).p_value == 1  # every drawn split, and no more than were drawn


def test_all_splits_are_counted_where_they_are_as_many_as_allowed():
    assert weat(X, Y, A, B, splits=70)[:5] == weat(X, Y, A, B)[:5]


def test_under_chance_p_is_as_often_below_each_bound_as_the_bound_says():
    rng = np.random.default_rng(3)
    ps = [weat(*np.split(rng.normal(size=(10, 4)), 2), A[:, :4], B[:, :4]).p_value for _ in range(400)]
    for bound in (0.05, 0.25, 0.5, 0.75):
        assert abs(np.mean(np.array(ps) <= bound) - bound) < 4 * math.sqrt(bound * (1 - bound) / 400) + 1 / 252


def test_without_splits_the_sets_may_differ_in_size_and_p_is_unknown():
    found = weat(X[:3], Y, A, B, splits=0)
    assert math.isnan(found.p_value) and found.splits == 0 and not found.exact
    s = [association(w, A, B) for w in [*X[:3], *Y]]
    assert abs(found.effect_size - (np.mean(s[:3]) - np.mean(s[3:])) / np.std(s, ddof=1)) < 1e-12


def test_float32_vectors_are_computed_in_double():
    single = [each.astype(np.float32) for each in (X, Y, A, B)]
    double = [each.astype(np.float64) for each in single]
    assert weat(*single)[:3] == weat(*double)[:3]


def biased_deviation(x, y, a, b):
    """A plausible slip: the mean of the two sets' own deviations in the place of that of all words."""
    found = weat(x, y, a, b)
    own = (found.associations_x.std(ddof=1) + found.associations_y.std(ddof=1)) / 2
    return (found.associations_x.mean() - found.associations_y.mean()) / own


def test_the_bound_tells_the_deviation_within_sets_from_that_of_all_words():
    x, y = spread([0.5, 0.51]), spread([-0.5, -0.51])
    assert biased_deviation(x, y, E1, E2) > 2 > weat(x, y, E1, E2).effect_size


def test_a_word_without_a_vector_is_named_and_never_left_out():
    table, vocabulary = RNG.normal(size=(3, 5)), {"rose": 1, "ant": 0}
    np.testing.assert_array_equal(word_vectors(table, ["ant", "rose", "ant"], vocabulary=vocabulary), table[[0, 1, 0]])
    with pytest.raises(ValueError, match="words: got '<word1>', '<word2>', wants words of the vocabulary"):
        word_vectors(table, ["ant", "<word1>", "<word2>"], vocabulary=vocabulary)


def test_what_cannot_be_tested_is_refused():
    with pytest.raises(ValueError, match=r"targets_y: got 3 words, wants 4"):
        weat(X, Y[:3], A, B)
    with pytest.raises(ValueError, match="attributes_a: got zeros in row 1"):
        weat(X, Y, A * [[1], [0], [1]], B)
    with pytest.raises(ValueError, match="targets_x: got one association"):
        weat(np.tile(X[:1], (4, 1)), np.tile(2 * X[:1], (4, 1)), A, B)
    with pytest.raises(ValueError, match="rng: got None, wants a generator to draw 69 of the 70"):
        weat(X, Y, A, B, splits=69)
    with pytest.raises(ValueError, match="attributes_b"):
        weat(X, Y, A, B[:0])


# Sentences


def encode(sentence):
    """A word's vector, and a number for the rest of the sentence: contextual in the plainest way."""
    words = sentence.rstrip(".").split()
    vectors = [np.random.default_rng(sum(map(ord, word))).normal(size=6) for word in words]
    return np.mean(vectors, axis=0) + 0.3 * len(words)


def test_a_template_is_filled_once_for_each_word():
    found = template_vectors(["rose", "ant"], templates=["this is a {}.", "{}"], encode=encode)
    assert found.shape == (2, 2, 6)
    np.testing.assert_array_equal(found[0, 1], encode("this is a ant."))
    np.testing.assert_array_equal(found[1, 0], encode("rose"))


def sentences(strength=(0.0, 0.0, 0.0), seed=4):
    """The same words in three templates, each of which mixes the features of a word as strongly as told."""
    rng = np.random.default_rng(seed)
    maps = [np.eye(5) + much * rng.normal(size=(5, 5)) for much in strength]
    return [np.stack([each @ mixed for mixed in maps]) + 0.05 * rng.normal(size=(3, *each.shape)) for each in (X, Y, A, B)]


def test_each_template_is_a_test_of_its_own_and_all_together_are_one():
    given = sentences((0.0, 0.4, 0.8))
    found = seat(*given, splits=1_000, rng=np.random.default_rng(5))
    for t in range(3):
        alone = weat(*(each[t] for each in given))
        assert found.effect_sizes[t] == alone.effect_size and found.p_values[t] == alone.p_value
    together = weat(*(each.reshape(-1, 5) for each in given), splits=0)
    assert found.pooled.effect_size == together.effect_size and found.pooled.splits == 1_000


def test_settings_hold_for_every_test_within():
    given = sentences((0.0, 0.4, 0.8))
    found = seat(*given, ddof=0, splits=69, rng=np.random.default_rng(7))
    sample = seat(*given, splits=69, rng=np.random.default_rng(7))
    np.testing.assert_allclose(found.effect_sizes, sample.effect_sizes * math.sqrt(8 / 7), rtol=0, atol=1e-12)
    assert abs(found.pooled.effect_size / sample.pooled.effect_size - math.sqrt(24 / 23)) < 1e-12
    seventieths = 70 * found.p_values                        # of 69 drawn splits and the one that is tested
    np.testing.assert_allclose(seventieths, seventieths.round(), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="rng: got None, wants a generator to draw 69 of the 70"):
        seat(*given, splits=69)


def test_the_template_alone_can_move_the_effect():
    still, moved = seat(*sentences(), splits=70, rng=np.random.default_rng(0)), seat(*sentences((0.0, 1.0, 2.0)), splits=70, rng=np.random.default_rng(0))
    assert np.ptp(moved.effect_sizes) > 2 * np.ptp(still.effect_sizes)


def test_one_template_makes_it_the_test_on_words():
    found = seat(*(each[None] for each in (X, Y, A, B)))
    alone = weat(X, Y, A, B)
    assert found.pooled[:5] == alone[:5] and found.p_of_words == alone.p_value == found.p_values[0]


def test_repeating_sentences_makes_the_pooled_p_smaller_and_not_that_of_words():
    given = [np.repeat(each[None], 3, axis=0) for each in (X, Y, A, B)]
    if weat(X, Y, A, B).effect_size < 0:
        given[:2] = given[1::-1]
    found = seat(*given, splits=5_000, rng=np.random.default_rng(6))
    assert found.p_of_words == found.p_values[0]
    assert found.pooled.p_value < 0.7 * found.p_of_words
    assert abs(found.pooled.statistic / 3 - seat(*(each[:1] for each in given)).pooled.statistic) < 1e-12


def test_what_is_no_template_is_refused():
    for templates in (["a flower"], ["{} {}"], []):
        with pytest.raises(ValueError, match="templates"):
            template_vectors(["rose"], templates=templates, encode=encode)
    with pytest.raises(ValueError, match="encode: got"):
        template_vectors(["rose", "ant"], templates=["{}"], encode=lambda sentence: np.ones(len(sentence)))


# The field's implementation


def installed(package):
    """The folder of an installed package that is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def published():
    """The word lists and word vectors that wefe brings along."""
    import json

    data = installed("wefe") / "datasets" / "data"
    _, *rows = (data / "weat_w2v____old.txt").read_text(encoding="utf-8").splitlines()
    table = {row.split(" ")[0]: np.array(row.split(" ")[1:], dtype=np.float64) for row in rows}
    return json.loads((data / "WEAT.json").read_text()), table


SETS = {
    1: ("flowers", "insects", "pleasant_5", "unpleasant_5a"),
    7: ("math", "arts", "male_terms", "female_terms"), 8: ("science", "arts_2", "male_terms_2", "female_terms_2"),
}  # fmt: skip


def vectors_of(published, test):
    lists, table = published
    vocabulary = {word: i for i, word in enumerate(table)}
    return [word_vectors(np.array([*table.values()]), lists[name], vocabulary=vocabulary) for name in SETS[test]]


@pytest.mark.parity
def test_on_published_vectors_flowers_and_insects_give_the_known_effect(published):
    assert round(weat(*vectors_of(published, 1), splits=0).effect_size, 3) == 1.539


@pytest.mark.parity
@pytest.mark.parametrize("test", SETS)
def test_effect_and_statistic_are_those_of_wefe(published, test, monkeypatch):
    pytest.importorskip("sklearn")
    for name in ("gensim", "gensim.models", "semantic_version", "plotly"):  # what wefe loads and this does not need
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["gensim"], "__version__", "4.0", raising=False)
    monkeypatch.setattr(sys.modules["gensim.models"], "KeyedVectors", dict, raising=False)
    version = types.SimpleNamespace(coerce=lambda text: types.SimpleNamespace(major=4))
    monkeypatch.setattr(sys.modules["semantic_version"], "Version", version, raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "wefe"]:
        monkeypatch.delitem(sys.modules, name)
    theirs = importlib.import_module("wefe.metrics.WEAT").WEAT()
    given = vectors_of(published, test)
    found = weat(*given, ddof=0, splits=0)
    assert abs(found.effect_size - theirs._calc_effect_size(*given)) < 1e-12
    assert abs(found.statistic - theirs._calc_weat(*given)) < 1e-12
