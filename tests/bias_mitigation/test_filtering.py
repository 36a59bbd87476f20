"""Filtering: what stays, and whose texts are gone."""

import itertools

import numpy as np
import pytest

from minitransformers.bias_mitigation.filtering import filter_texts, lexicon_scores

RNG = np.random.default_rng(0)
SCORES, GROUPS = RNG.normal(size=200), RNG.integers(4, size=200)


def naive(scores, groups, threshold):
    kept = [abs(s) < threshold for s in scores]
    dropped = []
    for a in range(max(groups) + 1):
        own = [k for k, g in zip(kept, groups, strict=True) if g == a]
        dropped.append(sum(not k for k in own) / len(own))
    return kept, dropped


@pytest.mark.parametrize("threshold", [0.3, 1.0, 9.0])
def test_counts_are_those_of_a_loop(threshold):
    out, (kept, dropped) = filter_texts(SCORES, groups=GROUPS, threshold=threshold), naive(SCORES, GROUPS, threshold)
    np.testing.assert_array_equal(out.kept, kept)
    np.testing.assert_allclose(out.dropped, dropped, rtol=0, atol=1e-15)
    assert out.spread == pytest.approx(max(dropped) - min(dropped), abs=1e-15)
    np.testing.assert_array_equal(out.rows, [list(GROUPS).count(a) for a in range(4)])


def test_the_size_of_a_score_counts_and_the_threshold_itself_is_out():
    out = filter_texts(np.array([-2.0, -0.5, 0.5, 1.0]), groups=np.array([0, 0, 1, 1]), threshold=1.0)
    np.testing.assert_array_equal(out.kept, [False, True, True, False])


def test_a_lower_threshold_drops_no_fewer_of_any_group():
    shares = [filter_texts(SCORES, groups=GROUPS, threshold=t).dropped for t in (2.0, 1.0, 0.5, 0.1)]
    assert all((b >= a).all() for a, b in itertools.pairwise(shares))


def test_a_score_that_reads_the_group_drops_the_group():
    """A shift of one group's scores, with nothing else different, shows as a spread; without it there is none to speak of."""
    rng = np.random.default_rng(1)
    groups, scores = np.repeat([0, 1], 2000), np.abs(rng.normal(size=4000))
    fair, shifted = (filter_texts(scores + shift * groups, groups=groups, threshold=1.5) for shift in (0.0, 0.5))
    assert fair.spread < 0.05 < 0.1 < shifted.spread and shifted.dropped[1] > shifted.dropped[0]


def test_the_overall_share_does_not_show_it():
    """The negative control: one number for all texts is the same for two filters of which one drops a single group."""
    groups = np.array([0, 0, 1, 1])
    even = filter_texts(np.array([2.0, 0.0, 2.0, 0.0]), groups=groups, threshold=1.0)
    uneven = filter_texts(np.array([2.0, 2.0, 0.0, 0.0]), groups=groups, threshold=1.0)
    assert even.kept.mean() == uneven.kept.mean() and (even.spread, uneven.spread) == (0.0, 1.0)


def test_a_group_without_texts_is_named_or_nan():
    groups = np.array([0, 2, 2])
    with pytest.raises(ValueError, match="no text of group 1"):
        filter_texts(np.ones(3), groups=groups, threshold=1.0)
    out = filter_texts(np.array([0.0, 2.0, 0.0]), groups=groups, threshold=1.0, empty="nan")
    np.testing.assert_array_equal(out.dropped, [0.0, np.nan, 0.5])
    assert out.spread == 0.5


def test_the_score_is_the_mean_weight_of_a_text_s_tokens():
    texts = [["<word1>", "a"], ["a", "b", "c"], ["<word2>", "<word2>", "<word1>", "a"]]
    lexicon = {"<word1>": 1.0, "<word2>": -0.5}
    np.testing.assert_array_equal(lexicon_scores(texts, lexicon=lexicon), [0.5, 0.0, 0.0])
    with pytest.raises(ValueError, match="no token in text 1"):
        lexicon_scores([["a"], []], lexicon=lexicon)
    with pytest.raises(ValueError, match="'<word1>'"):
        lexicon_scores(texts, lexicon={"<word1>": np.inf})
