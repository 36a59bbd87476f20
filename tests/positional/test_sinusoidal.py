"""Sinusoidal positions: the formula of the paper, what its dot products know, and its kin with other layouts."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.positional.sinusoidal import sinusoidal


def textbook_table(positions, d_model, base=10_000.0):
    """One entry at a time."""
    table = np.zeros((len(positions), d_model))
    for i, p in enumerate(positions):
        for m in range(d_model // 2):
            table[i, 2 * m] = np.sin(p / base ** (2 * m / d_model))
            table[i, 2 * m + 1] = np.cos(p / base ** (2 * m / d_model))
    return table


def table_of(positions, d_model, **config):
    return sinusoidal(np.zeros((len(positions), d_model)), positions=np.asarray(positions), **config)[0]


@pytest.mark.parametrize("base", [10_000.0, 50.0])
def test_equals_the_formula_of_the_paper(base):
    rng = np.random.default_rng(0)
    x, dout, positions = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 6)), np.array([4, 0, 4])
    out, backward = sinusoidal(x, positions=positions, base=base)
    np.testing.assert_allclose(out, x + textbook_table(positions, 6, base), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda x: anp.sum(dout * (x + textbook_table(positions, 6, base))))(x)
    np.testing.assert_array_equal(backward(dout), expected)


def test_positions_count_from_zero_unless_told_otherwise():
    x = np.random.default_rng(1).normal(size=(2, 5, 4))
    np.testing.assert_array_equal(sinusoidal(x)[0], sinusoidal(x, positions=np.arange(5))[0])
    np.testing.assert_array_equal(sinusoidal(x)[0][:, 3:], sinusoidal(x[:, 3:], positions=np.array([3, 4]))[0])  # a cache needs no more


def test_dot_products_depend_on_the_offset_alone():
    table = table_of(range(2000), 16)
    frequency = 10_000.0 ** (-np.arange(8) / 8)
    for offset in (0, 1, 7, 500):
        expected = np.cos(offset * frequency).sum()
        for p in (0, 3, 1400):
            np.testing.assert_allclose(table[p] @ table[p + offset], expected, atol=1e-12)


def test_every_position_has_the_same_length():
    np.testing.assert_allclose((table_of([0, 5, 10**6], 10) ** 2).sum(-1), 5, rtol=1e-14)


def test_a_shift_is_one_rotation_for_all_positions():
    offset, d_model = 9, 8
    shift = np.zeros((d_model, d_model))
    for m in range(d_model // 2):
        c, s = np.cos(offset * 10_000.0 ** (-2 * m / d_model)), np.sin(offset * 10_000.0 ** (-2 * m / d_model))
        shift[2 * m : 2 * m + 2, 2 * m : 2 * m + 2] = [[c, s], [-s, c]]
    positions = np.array([0, 1, 50, 4000])
    np.testing.assert_allclose(table_of(positions, d_model) @ shift.T, table_of(positions + offset, d_model), atol=1e-12)


def test_the_first_pair_is_the_fastest():
    table = table_of(range(2), 8)
    np.testing.assert_allclose(table[1, :2], [np.sin(1), np.cos(1)])
    turned = np.arctan2(table[1, ::2], table[1, 1::2])
    assert (np.diff(turned) < 0).all()


def test_float32_keeps_the_exact_angle_of_a_far_position():
    far = np.array([123_457])
    single = sinusoidal(np.zeros((1, 4), np.float32), positions=far)[0]
    np.testing.assert_allclose(single, textbook_table(far, 4), atol=1e-7)
    in_single = np.sin(np.float32(123_457) * (10_000.0 ** -(np.arange(2) / 2)).astype(np.float32))
    assert np.abs(in_single - textbook_table(far, 4)[:, ::2]).max() > 1e-5         # what a float32 angle would give


def wrong_sinusoidal(x):
    """As if the input were scaled by sqrt(d_model) on the way back but not on the way there."""
    out, backward = sinusoidal(x)
    return out, lambda dout: backward(dout) * x.shape[-1] ** 0.5


def test_the_checker_refuses_a_factor_that_belongs_to_the_embedding():
    report = check_gradients(wrong_sinusoidal, np.random.default_rng(2).normal(size=(3, 4)))
    assert not report.passed and "2 times what it should be" in report.worst.cause


def test_the_error_says_how_the_pairs_do_not_come_out():
    with pytest.raises(ValueError, match=r"x: got d_model = 5, wants an even d_model"):
        sinusoidal(np.ones((3, 5)))


@pytest.mark.parity
def test_parity_with_hugging_face_marian_which_concatenates():
    pytest.importorskip("torch")
    marian = pytest.importorskip("transformers.models.marian.modeling_marian")
    theirs = marian.MarianSinusoidalPositionalEmbedding(num_positions=20, embedding_dim=6).create_weight().numpy()
    sines_then_cosines = np.concatenate([np.arange(0, 6, 2), np.arange(1, 6, 2)])
    np.testing.assert_allclose(table_of(range(20), 6)[:, sines_then_cosines], theirs, rtol=0, atol=1e-7)  # theirs is float32
