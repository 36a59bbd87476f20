"""The completion table: shares among the completions, and their mass."""

import numpy as np
import pytest

from minitransformers.bias_mitigation.harms import completion_table

JOBS, TEMPLATES, COMPLETIONS = ["clerk", "cook", "baker"], [["the", "{word}", "said", "that"], ["{word}", "left"]], ["<g1>", "<g2>", "<g3>"]
RNG = np.random.default_rng(0)
TABLE = {
    (" ".join(t).replace("{word}", j), c): float(x)
    for (j, t, c), x in zip([(j, t, c) for j in JOBS for t in TEMPLATES for c in COMPLETIONS], np.log(RNG.random(18)), strict=True)
}


def look_up(tokens, completion):
    return TABLE[" ".join(tokens), completion]


OUT = completion_table(look_up, words=JOBS, templates=TEMPLATES, completions=COMPLETIONS)


def test_each_share_is_the_probability_among_the_completions():
    for w, job in enumerate(JOBS):
        for t, template in enumerate(TEMPLATES):
            p = [np.exp(TABLE[" ".join(template).replace("{word}", job), c]) for c in COMPLETIONS]
            np.testing.assert_allclose(np.exp(OUT.log_shares[w, t]), np.array(p) / sum(p), rtol=1e-13)
            assert np.exp(OUT.log_mass[w, t]) == pytest.approx(sum(p), rel=1e-13)
            assert OUT.gap[w, t] == pytest.approx(np.log(max(p) / min(p)), rel=1e-12)


def test_with_two_completions_the_difference_is_their_log_odds():
    out = completion_table(look_up, words=JOBS, templates=TEMPLATES, completions=COMPLETIONS[:2])
    odds = [[look_up([job if x == "{word}" else x for x in t], "<g1>") - look_up([job if x == "{word}" else x for x in t], "<g2>") for t in TEMPLATES] for job in JOBS]
    np.testing.assert_allclose(out.log_shares[..., 0] - out.log_shares[..., 1], odds, rtol=0, atol=1e-13)
    np.testing.assert_allclose(out.gap, np.abs(odds), rtol=0, atol=1e-13)


def test_a_model_that_does_not_tell_completions_apart_has_no_gap():
    out = completion_table(lambda tokens, completion: -2.0, words=JOBS, templates=TEMPLATES, completions=COMPLETIONS)
    assert not out.gap.any()
    np.testing.assert_allclose(out.log_shares, -np.log(3), rtol=0, atol=1e-15)


def test_raw_probabilities_would_mix_the_gap_with_how_often_a_pronoun_follows_at_all():
    """The negative control: halving all of a word's probabilities changes raw differences and not the shares."""
    half = completion_table(lambda tokens, c: look_up(tokens, c) - np.log(2), words=JOBS, templates=TEMPLATES, completions=COMPLETIONS)
    np.testing.assert_allclose(half.log_shares, OUT.log_shares, rtol=0, atol=1e-14)
    np.testing.assert_allclose(half.log_mass, OUT.log_mass - np.log(2), rtol=0, atol=1e-14)


def test_very_unlikely_completions_do_not_vanish():
    out = completion_table(lambda tokens, c: -2000.0 - len(c) * (c == "<g2>"), words=JOBS, templates=TEMPLATES, completions=COMPLETIONS)
    np.testing.assert_allclose(out.gap, 4.0, atol=1e-12)
    assert np.isfinite(out.log_mass).all()


def test_every_template_is_asked_with_every_word_and_completion_once():
    asked = []
    completion_table(lambda tokens, c: asked.append((tuple(tokens), c)) or -1.0, words=JOBS, templates=TEMPLATES, completions=COMPLETIONS)
    assert len(asked) == len(set(asked)) == 18
