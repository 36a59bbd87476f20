"""The shifting language: its texts, the exact excess, and the model that is kept."""

import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.reporting.adaptation import (
    LENGTH,
    SYMBOLS,
    excess,
    init_reader,
    language,
    left,
    load_reader,
    reader,
    shifted,
    written,
)


def test_texts_are_of_the_language():
    known = language()
    ids = written(known, np.random.default_rng(0), 20_000)
    assert ids.shape == (20_000, LENGTH + 1) and ids.min() == 0 and ids.max() == SYMBOLS - 1
    pair = np.unravel_index(np.argmax(np.bincount((ids[:, 1:-1] + SYMBOLS * ids[:, :-2]).ravel())), (SYMBOLS, SYMBOLS))
    after = ids[:, 2:][(ids[:, :-2] == pair[0]) & (ids[:, 1:-1] == pair[1])]
    found = np.bincount(after, minlength=SYMBOLS) / len(after)
    np.testing.assert_allclose(found, known.probabilities[pair], atol=4 * 0.5 / len(after) ** 0.5)


def test_who_knows_the_table_loses_nothing_and_who_guesses_loses_what_it_is_worth():
    known = language()
    ids = written(known, np.random.default_rng(1), 50)[:, :-1]
    logits = np.zeros((*ids.shape, SYMBOLS))
    logits[:, 1:] = np.log(known.probabilities[ids[:, :-1], ids[:, 1:]]) + 3.0  # a constant changes no probability
    assert excess(logits, ids, known) == pytest.approx(0, abs=1e-14)
    p = known.probabilities[ids[:, :-1], ids[:, 1:]]
    guess = np.log(SYMBOLS) + (p * np.log(p)).sum(axis=-1).mean()
    assert excess(np.zeros_like(logits), ids, known) == pytest.approx(guess, rel=1e-12)


def test_a_shift_has_its_rank_and_leaves_the_language_as_it_was():
    known, before = language(), language()
    other = shifted(known, np.random.default_rng(2), rank=3)
    assert all(np.linalg.matrix_rank(a - b) == 3 for a, b in zip(other, known, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(known, before, strict=True))


def test_the_reader_that_is_kept_knows_the_language_and_no_other():
    params, known = load_reader(), language()
    assert trees.count_parameters(params) == 19_216
    assert left(params, reader, known) < 0.02 < 0.3 < left(params, reader, shifted(known, np.random.default_rng(0)))


def test_the_gradients_of_the_reader_are_right():
    rng = np.random.default_rng(3)
    params = trees.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape), init_reader(rng, dtype=np.float64))
    ids = rng.integers(SYMBOLS, size=(1, 4))
    assert check_gradients(lambda params: reader(params, ids), params, second_opinion=False).passed
