"""DExperts: the base says what comes into question, two others which way to lean."""

from functools import partial

import numpy as np
import pytest

from minitransformers.bias_mitigation.expert_decoding import expert_decoding
from minitransformers.bias_mitigation.self_debias import asking
from minitransformers.models.decoding import next_token_probabilities
from minitransformers.models.sampling import top_p

RNG = np.random.default_rng(0)
BASE, EXPERT, ANTI = RNG.normal(size=(3, 4, 9))


def word_by_word(base, expert, anti, strength, p):
    chances = np.exp(base) / np.exp(base).sum()
    order, kept, mass = sorted(range(len(base)), key=lambda w: -chances[w]), [], 0.0
    for w in order:
        if mass < p:
            kept.append(w)
        mass += chances[w]
    weights = [np.exp(base[w] + strength * (expert[w] - anti[w])) if w in kept else 0.0 for w in range(len(base))]
    return np.array(weights) / sum(weights)


@pytest.mark.parametrize(("strength", "p"), [(2.0, 0.9), (0.5, 0.6), (0.0, 0.9), (1.0, 1.0)])
def test_it_is_the_published_product_word_by_word(strength, p):
    found = np.exp(expert_decoding(BASE, expert=EXPERT, anti_expert=ANTI, strength=strength, p=p))
    for i in range(4):
        np.testing.assert_allclose(found[i], word_by_word(BASE[i], EXPERT[i], ANTI[i], strength, p), rtol=0, atol=1e-12)


def test_at_strength_zero_it_is_the_nucleus_of_the_base():
    expected = next_token_probabilities(BASE, top_p=0.8)
    np.testing.assert_allclose(np.exp(expert_decoding(BASE, expert=EXPERT, anti_expert=ANTI, strength=0.0, p=0.8)), expected, rtol=0, atol=1e-12)


def test_a_missing_expert_is_the_base():
    np.testing.assert_array_equal(expert_decoding(BASE, expert=EXPERT), expert_decoding(BASE, expert=EXPERT, anti_expert=BASE))
    np.testing.assert_array_equal(expert_decoding(BASE, anti_expert=ANTI), expert_decoding(BASE, expert=BASE, anti_expert=ANTI))


def test_constants_added_to_any_model_s_logits_change_nothing():
    found = expert_decoding(BASE, expert=EXPERT, anti_expert=ANTI)
    shifted = expert_decoding(BASE + 3, expert=EXPERT - 7, anti_expert=ANTI + 11)
    np.testing.assert_allclose(np.exp(found), np.exp(shifted), rtol=0, atol=1e-12)


def test_what_the_base_finds_absurd_no_expert_brings_in():
    expert = EXPERT.copy()
    least = BASE.argmin(axis=-1)
    expert[np.arange(4), least] = 100.0
    found = expert_decoding(BASE, expert=expert, anti_expert=ANTI, p=0.9)
    assert np.all(found[np.arange(4), least] == -np.inf)
    late = top_p(BASE + 2.0 * (expert - ANTI), p=0.9)        # the plausible wrong order: filtered after the sum
    assert np.all(np.isfinite(late[np.arange(4), least]))


def test_what_is_cut_off_may_be_anything_to_the_experts_and_what_is_kept_may_not():
    kept = np.isfinite(top_p(BASE, p=0.7))
    expert, anti = np.where(kept, EXPERT, -np.inf), np.where(kept, ANTI, -np.inf)
    np.testing.assert_array_equal(expert_decoding(BASE, expert=expert, anti_expert=anti, p=0.7), expert_decoding(BASE, expert=EXPERT, anti_expert=ANTI, p=0.7))
    with pytest.raises(ValueError, match="anti_expert: got NaN or infinity for a token that the base keeps"):
        expert_decoding(BASE, anti_expert=np.where(np.arange(9) == 0, 0.0, -np.inf) + np.zeros((4, 9)), p=1.0)
    with pytest.raises(ValueError, match="expert: got neither"):
        expert_decoding(BASE)


def test_as_a_processor_it_asks_its_experts_at_each_step():
    tables = RNG.normal(size=(3, 9, 9))
    process = asking(partial(expert_decoding, p=1.0), expert=lambda ids: tables[1][ids[..., -1]], anti_expert=lambda ids: tables[2][ids[..., -1]])
    found = next_token_probabilities(tables[0][4], np.array([2, 4]), processors=(process,))
    np.testing.assert_allclose(found, word_by_word(*(table[4] for table in tables), 2.0, 1.0), rtol=0, atol=1e-12)
