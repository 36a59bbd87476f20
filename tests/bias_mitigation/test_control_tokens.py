"""Control tokens: which a text gets, and whether a model heeds it."""

from collections import Counter

import numpy as np
import pytest

from minitransformers.bias_mitigation.control_tokens import control_information, with_control_token

WORDS = {"<g1>": ["she", "her"], "<g2>": ["he", "him"], "<g3>": ["<word3>"]}


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("SHE saw a rose", "<g1>"), ("she saw her", "<g1>"), ("A rose saw him", "<g2>"), ("a rose", "<neutral>"), ("she saw him", "<neutral>"),
        ("the theme of heather", "<neutral>"), ("<word3> left", "<g3>"), ("she <word3>", "<neutral>"),
    ],
)  # fmt: skip
def test_the_one_group_that_is_spoken_of_gives_the_token(text, token):
    assert with_control_token(text.split(), words=WORDS) == [token, *text.split()]


@pytest.mark.parametrize("force", ["<g1>", "<g2>", "<g3>", "<neutral>"])
def test_at_inference_the_token_is_what_was_asked_for(force):
    assert with_control_token(["he", "left"], words=WORDS, force=force) == [force, "he", "left"]


def test_a_text_and_its_counterpart_get_each_other_s_token():
    swap = {"she": "he", "he": "she", "her": "him", "him": "her"}
    for text in (["she", "met", "her"], ["he", "left"], ["a", "rose"], ["he", "met", "her"]):
        one, other = (with_control_token(own, words=WORDS)[0] for own in (text, [swap.get(t, t) for t in text]))
        assert other == {"<g1>": "<g2>", "<g2>": "<g1>"}.get(one, one)


def test_a_text_that_has_a_token_is_refused():
    once = with_control_token(["he", "left"], words=WORDS)
    with pytest.raises(ValueError, match="the control token '<g2>'"):
        with_control_token(once, words=WORDS)
    with pytest.raises(ValueError, match="'he' for '<g3>'"):
        with_control_token(["x"], words={**WORDS, "<g3>": ["he"]})


def naive_information(logits):
    p = [np.exp(row) / np.exp(row).sum() for row in logits]
    total = 0.0
    for v in range(len(p[0])):
        mean = sum(row[v] for row in p) / len(p)
        total += sum(row[v] * np.log(row[v] / mean) for row in p) / len(p)
    return total


def test_information_is_the_mean_divergence_from_the_mean():
    logits = np.random.default_rng(0).normal(size=(2, 3, 7))
    np.testing.assert_allclose(control_information(logits), [naive_information(own) for own in logits], rtol=0, atol=1e-14)


def test_a_model_that_ignores_the_token_gives_none_and_one_that_obeys_gives_its_logarithm():
    row = np.random.default_rng(1).normal(size=5)
    assert control_information(np.stack([row, row + 3, row])) == pytest.approx(0, abs=1e-15)  # logits may differ by a constant
    obeys = np.where(np.eye(4, dtype=bool), 0.0, -np.inf)
    assert control_information(obeys) == pytest.approx(np.log(4), abs=1e-15)
    assert control_information(np.pad(obeys, ((0, 0), (0, 2)), constant_values=-np.inf)) == pytest.approx(np.log(4), abs=1e-15)  # tokens that nobody gives
    assert control_information(np.where(np.eye(4, dtype=bool), 0.0, -800.0)) == pytest.approx(np.log(4), abs=1e-12)


def test_the_entropy_of_the_mean_alone_would_not_tell():
    """The negative control: a plausible measure that is large for a model that ignores the token."""
    same = np.zeros((3, 6))
    p = np.full(6, 1 / 6)
    assert -np.sum(p * np.log(p)) > 1 and control_information(same) == pytest.approx(0, abs=1e-15)


def test_a_count_model_trained_with_tokens_heeds_them_and_one_trained_on_shuffled_tokens_does_not():
    rng = np.random.default_rng(2)
    texts = [[f"<job{j}>", ("she", "he")[int(rng.random() < share)]] for j, share in enumerate((0.2, 0.8)) for _ in range(400)]
    texts += [[f"<job{j}>", w, "and", "she" if w == "he" else "he"] for j in range(2) for w in ("she", "he") for _ in range(100)]
    tagged = [with_control_token(text, words=WORDS) for text in texts]

    def information(tokens):
        counts = Counter((token, text[1]) for token, text in zip(tokens, texts, strict=True))
        return control_information(np.log([[counts[k, w] + 0.5 for w in ("she", "he")] for k in ("<g1>", "<g2>", "<neutral>")]))

    tokens = [text[0] for text in tagged]
    shuffled = [tokens[i] for i in rng.permutation(len(tokens))]
    assert information(tokens) > 0.3 and information(shuffled) < 0.01
