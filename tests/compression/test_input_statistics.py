"""Sums over inputs: what remains of a calibration, however its texts are cut."""

import numpy as np
import pytest

from minitransformers.compression.input_statistics import input_gram, mean_magnitudes

RNG = np.random.default_rng(0)
BATCHES = [RNG.normal(size=(2, 4, 3)), RNG.normal(size=(5, 3)), RNG.normal(size=3)]
POSITIONS = [*BATCHES[0].reshape(8, 3), *BATCHES[1], BATCHES[2]]


def test_they_are_the_sums_of_the_textbook_one_position_at_a_time():
    gram, magnitudes = np.zeros((3, 3)), np.zeros(3)
    for x in POSITIONS:
        for i in range(3):
            magnitudes[i] += abs(x[i]) / 14
            for j in range(3):
                gram[i, j] += x[i] * x[j]
    np.testing.assert_allclose(input_gram(BATCHES), gram, rtol=0, atol=1e-12)
    np.testing.assert_allclose(mean_magnitudes(BATCHES), magnitudes, rtol=0, atol=1e-14)


def test_how_the_texts_are_cut_does_not_matter_and_a_generator_will_do():
    whole = np.stack(POSITIONS)
    for own in (input_gram, mean_magnitudes):
        np.testing.assert_allclose(own(x[None] for x in whole), own([whole]), rtol=0, atol=1e-13)


def test_the_gram_matrix_knows_the_squared_error_of_every_change_of_the_weight():
    change, x = RNG.normal(size=(3, 6)), np.stack(POSITIONS)
    np.testing.assert_allclose(np.vdot(change, input_gram(BATCHES) @ change), np.sum((x @ change) ** 2), rtol=1e-13)


def test_many_small_numbers_are_not_lost_beside_a_large_sum():
    """In float32, 2^25 and one is 2^25, however often; the sums are in float64, and only the result is rounded."""
    batch = np.full((2**13, 1), 64, np.float32)              # a square of 2^12 each
    tiny = [np.ones((1, 1), np.float32)] * 64
    gram = input_gram([batch, *tiny])
    assert gram.dtype == np.float32 and gram[0, 0] == 2**25 + 64
    assert mean_magnitudes([batch, *tiny]).dtype == np.float32


def test_what_is_no_calibration_is_refused():
    for own in (input_gram, mean_magnitudes):
        with pytest.raises(ValueError, match="batches: got no inputs, wants those of at least one text"):
            own([])
        with pytest.raises(ValueError, match="batches: got 3 and 4 features"):
            own([np.ones((2, 3)), np.ones((2, 4))])
        with pytest.raises(ValueError, match="batches: got a feature that is not finite"):
            own([np.ones((2, 3)), np.full((2, 3), np.inf)])
