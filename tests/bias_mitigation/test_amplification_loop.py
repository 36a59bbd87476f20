"""The loop of count models: what sharpening does to a gap, again and again."""

import math
from functools import partial

import numpy as np
import pytest

from minitransformers.bias_mitigation.amplification_loop import count_model, next_generation
from minitransformers.models.decoding import next_token_probabilities

RNG = np.random.default_rng(0)
SIZES = (3, 2, 5)
ROWS = np.stack([RNG.integers(size, size=60) for size in SIZES], axis=1)


def test_each_table_is_counted_one_by_one():
    for k, table in enumerate(count_model(ROWS, sizes=SIZES, smoothing=0.3)):
        for a in range(SIZES[k]):
            for b in range(SIZES[k + 1]):
                both = sum(1 for row in ROWS if row[k] == a and row[k + 1] == b)
                one = sum(1 for row in ROWS if row[k] == a)
                assert table[a, b] == pytest.approx(math.log((both + 0.3) / (one + 0.3 * SIZES[k + 1])), abs=1e-12)


def test_its_rows_are_distributions_even_for_what_was_never_seen():
    for table in count_model(ROWS[:2], sizes=SIZES):
        np.testing.assert_allclose(np.exp(table).sum(-1), 1, rtol=0, atol=1e-14)


def test_prompts_stay_and_the_rest_is_drawn_one_by_one():
    after = next_generation(ROWS, sizes=SIZES, rng=np.random.default_rng(1))
    rng, tables, expected = np.random.default_rng(1), count_model(ROWS, sizes=SIZES), [ROWS[:, 0].tolist()]
    for table in tables:
        drawn = []
        for before, u in zip(expected[-1], rng.random(len(ROWS)), strict=True):
            total, token = 0.0, 0
            for token in range(table.shape[1]):
                total += math.exp(table[before, token])
                if u < total:
                    break
            drawn.append(token)
        expected.append(drawn)
    np.testing.assert_array_equal(after, np.array(expected).T)


def gap(rows, sizes):
    table = count_model(rows, sizes=sizes)[0]
    return np.mean(np.abs(table[:, 0] - table[:, 1]))


def biased(seed, sentences=2000):
    """Ten prompts, two tokens in shares from .2 to .8, and one of thirty words, Zipf."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(10, size=sentences)
    second = (rng.random(sentences) < np.linspace(0.2, 0.8, 10)[prompt]).astype(int)
    zipf = 1 / np.arange(1, 31)
    return np.stack([prompt, second, rng.choice(30, p=zipf / zipf.sum(), size=sentences)], axis=1), rng


def loop(seed, rounds=5, real=0.0, **settings):
    rows, rng = biased(seed)
    first, kept = rows, rows[: int(real * len(rows))]
    for _ in range(rounds):
        rows = next_generation(rows, sizes=(10, 2, 30), rng=rng, probabilities=partial(next_token_probabilities, **settings))
        rows = np.concatenate([kept, rows[len(kept) :]])
    return gap(first, (10, 2, 30)), gap(rows, (10, 2, 30)), rows


@pytest.mark.parametrize("seed", range(3))
def test_sharpening_amplifies_and_the_loop_alone_does_not(seed):
    start, plain, _ = loop(seed)
    _, sharp, _ = loop(seed, temperature=0.8)
    _, mixed, _ = loop(seed, real=0.5, temperature=0.8)
    assert abs(plain - start) < 0.3 and sharp > 2 * start and mixed < 0.6 * sharp


def test_a_temperature_divides_the_gap_in_every_round():
    """In the limit of many sentences: a large sample stands for it, and smoothing for nothing."""
    rows, rng = biased(3, sentences=400_000)
    after = next_generation(rows, sizes=(10, 2, 30), rng=rng, smoothing=1e-6, probabilities=partial(next_token_probabilities, temperature=0.8))
    apart = [np.diff(count_model(r, sizes=(10, 2, 30), smoothing=1e-6)[0], axis=-1)[:, 0] for r in (rows, after)]
    np.testing.assert_allclose(apart[1], apart[0] / 0.8, rtol=0, atol=0.08)  # five errors of a log-ratio of 40,000 draws each


def test_words_are_lost_with_the_minority():
    def effective(rows):
        share = np.bincount(rows[:, 2], minlength=30) / len(rows)
        return np.exp(-np.sum(share * np.log(share, where=share > 0, out=np.zeros(30))))

    assert effective(loop(0, temperature=0.8)[2]) < 4 < 12 < effective(loop(0)[2])


def test_without_a_choice_everything_stays():
    """At temperature 0 the second generation equals the third."""
    cold = partial(next_token_probabilities, temperature=0)
    second = next_generation(ROWS, sizes=SIZES, rng=RNG, probabilities=cold)
    np.testing.assert_array_equal(next_generation(second, sizes=SIZES, rng=RNG, probabilities=cold), second)


def test_ids_and_sizes_must_agree():
    with pytest.raises(ValueError, match=r"sizes: got \(3, 2, 4\), wants more than \(2, 1, 4\)"):
        count_model(ROWS, sizes=(3, 2, 4))
