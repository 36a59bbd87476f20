"""Diverse beam search: groups that avoid each other's tokens; without a penalty each is the plain search."""

from itertools import pairwise

import numpy as np
import pytest

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.bias_mitigation.diverse_beam import diverse_beam_search
from minitransformers.models.beam_search import beam_search


def toy(seed, vocabulary=5):
    table = 2 * np.random.default_rng(seed).normal(size=(vocabulary, vocabulary))
    return table, lambda ids, state: (table[ids], state)


def side_by_side(table, start, length, num_beams, num_groups, strength):
    """All groups one place further at a time, as the paper's algorithm has it; no end."""
    log_p = log_softmax(table)[0]
    groups = [[([], 0.0)] for _ in range(num_groups)]
    for _ in range(length):
        chosen = []
        for g in range(num_groups):
            options = []
            for text, total in groups[g]:
                for token in range(len(table)):
                    worth = total + log_p[text[-1] if text else start, token]
                    options.append((worth - strength * chosen.count(token), [*text, token], worth))
            options.sort(key=lambda option: -option[0])
            groups[g] = [(text, worth) for _, text, worth in options[: num_beams // num_groups]]
            chosen += [text[-1] for text, _ in groups[g]]
    return [sorted(group, key=lambda found: -found[1]) for group in groups]


@pytest.mark.parametrize("strength", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_one_group_after_the_other_finds_what_all_side_by_side_find(seed, strength):
    table, step = toy(seed)
    found = diverse_beam_search(step, np.array([1]), num_tokens=6, num_beams=6, num_groups=3, strength=strength)
    expected = side_by_side(table, 1, 6, 6, 3, strength)
    for group, others in zip(found, expected, strict=True):
        assert [hypothesis.ids for hypothesis in group] == [text for text, _ in others]
        np.testing.assert_allclose([hypothesis.log_probability for hypothesis in group], [worth for _, worth in others], rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_without_a_penalty_each_group_is_the_plain_search(num_groups):
    _, step = toy(5)
    settings = {"num_tokens": 7, "end": 0}
    plain = beam_search(step, np.array([1]), num_beams=4 // num_groups, **settings)
    assert diverse_beam_search(step, np.array([1]), num_beams=4, num_groups=num_groups, strength=0.0, **settings) == [plain] * num_groups


def test_the_first_group_is_plain_whatever_the_penalty():
    _, step = toy(6)
    groups = diverse_beam_search(step, np.array([1]), num_tokens=7, num_beams=4, num_groups=2, strength=5.0, end=0)
    assert groups[0] == beam_search(step, np.array([1]), num_tokens=7, num_beams=2, end=0)


def test_with_a_large_penalty_groups_of_one_never_say_the_same_at_the_same_place():
    _, step = toy(7)
    groups = diverse_beam_search(step, np.array([1]), num_tokens=6, num_beams=3, num_groups=3, strength=1e6)
    texts = [group[0].ids for group in groups]
    assert all(len({text[t] for text in texts}) == 3 for t in range(6))


def test_the_penalty_is_not_in_what_a_text_is_worth():
    table, step = toy(8)
    log_p = log_softmax(table)[0]
    for group in diverse_beam_search(step, np.array([1]), num_tokens=5, num_beams=4, num_groups=2, strength=3.0):
        for hypothesis in group:
            whole = [1, *hypothesis.ids]
            assert hypothesis.log_probability == pytest.approx(sum(log_p[a, b] for a, b in pairwise(whole)), abs=1e-12)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_groups: got 3, wants a number that divides the 4 beams"):
        diverse_beam_search(toy(0)[1], np.array([1]), num_tokens=3, num_beams=4, num_groups=3)
