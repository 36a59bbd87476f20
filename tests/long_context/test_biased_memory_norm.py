"""Biased memory normalisation: unit slots that drift to the direction of their bias when nothing is written."""

from itertools import pairwise

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.long_context.biased_memory_norm import BiasedMemoryNorm, biased_memory_norm, init_biased_memory_norm

RNG = np.random.default_rng(0)
BIAS, SLOTS, DOUT = RNG.normal(size=(3, 5)), RNG.normal(size=(2, 3, 5)), RNG.normal(size=(2, 3, 5))


def one_by_one(bias, slots):
    texts = []
    for text in range(len(slots)):
        rows = []
        for i in range(len(bias)):
            moved = [slots[text, i, d] + bias[i, d] for d in range(5)]
            length = anp.sqrt(sum(number**2 for number in moved))
            rows.append(anp.stack([number / length for number in moved]))
        texts.append(anp.stack(rows))
    return anp.stack(texts)


def test_it_is_the_sum_over_its_length_and_its_gradients_are_autograd_s():
    out, backward = biased_memory_norm(BiasedMemoryNorm(BIAS), SLOTS)
    np.testing.assert_allclose(out, one_by_one(BIAS, SLOTS), rtol=0, atol=1e-14)
    expected = autograd.grad(lambda bias, slots: anp.sum(DOUT * one_by_one(bias, slots)), (0, 1))(BIAS, SLOTS)
    (dbias,), dslots = backward(DOUT)
    np.testing.assert_allclose(dbias, expected[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(dslots, expected[1], rtol=0, atol=1e-12)


def test_every_slot_has_length_one():
    out, _ = biased_memory_norm(BiasedMemoryNorm(BIAS), 1e3 * SLOTS)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1, rtol=0, atol=1e-14)


def test_an_empty_memory_lies_in_the_direction_of_the_biases():
    start, backward = biased_memory_norm(BiasedMemoryNorm(BIAS))
    np.testing.assert_allclose(start, BIAS / np.linalg.norm(BIAS, axis=-1, keepdims=True), rtol=0, atol=1e-15)
    np.testing.assert_array_equal(start, biased_memory_norm(BiasedMemoryNorm(BIAS), np.zeros_like(BIAS))[0])
    (dbias,), dslots = backward(DOUT[0])
    assert dslots is None
    report = check_gradients(lambda params: biased_memory_norm(params), BiasedMemoryNorm(BIAS))
    assert report.passed, str(report)
    np.testing.assert_array_equal(dbias, biased_memory_norm(BiasedMemoryNorm(BIAS), np.zeros_like(BIAS))[1](DOUT[0])[0].bias)


def test_slots_that_nobody_writes_to_end_in_the_direction_of_their_biases():
    home = BIAS / np.linalg.norm(BIAS, axis=-1, keepdims=True)
    slots, apart = SLOTS, []
    for _ in range(60):
        slots, _ = biased_memory_norm(BiasedMemoryNorm(BIAS), slots)
        apart.append(np.abs(slots - home).max())
    assert apart[-1] < 1e-12 and all(later <= earlier for earlier, later in pairwise(apart) if earlier > 1e-12)


def test_a_longer_bias_forgets_sooner():
    direction = np.zeros((1, 4))
    direction[0, 0] = 1.0
    other = np.array([[0.0, 1.0, 0.0, 0.0]])
    left = [biased_memory_norm(BiasedMemoryNorm(length * direction), other)[0][0, 1] for length in (0.1, 0.5, 2.0)]
    np.testing.assert_allclose(left, [1 / np.sqrt(1 + length**2) for length in (0.1, 0.5, 2.0)], rtol=0, atol=1e-15)
    assert left[0] > left[1] > left[2]


def test_no_gradient_goes_along_a_slot():
    out, backward = biased_memory_norm(BiasedMemoryNorm(BIAS), SLOTS)
    _, dslots = backward(DOUT)
    np.testing.assert_allclose(np.vecdot(dslots, out), 0, rtol=0, atol=1e-15)


def test_biases_start_with_the_length_that_is_asked_for():
    params = init_biased_memory_norm(np.random.default_rng(1), 4, 7, length=0.3, dtype=np.float64)
    np.testing.assert_allclose(np.linalg.norm(params.bias, axis=-1), 0.3, rtol=0, atol=1e-15)
    assert init_biased_memory_norm(np.random.default_rng(1), 4, 7).bias.dtype == np.float32


@pytest.mark.parametrize("forgotten", ["the length in front", "what points along the slot", "the bias"])
def test_the_check_refuses_a_backward_that_forgets(forgotten):
    def wrong(params, slots):
        out, backward = biased_memory_norm(params, slots)
        length = np.linalg.norm(slots + params.bias, axis=-1, keepdims=True)

        def careless(dout):
            (dbias,), dslots = backward(dout)
            if forgotten == "the length in front":
                dslots = length * dslots
            elif forgotten == "what points along the slot":
                dslots = dout / length
            else:
                dbias = np.zeros_like(dbias)
            return BiasedMemoryNorm(dbias), dslots

        return out, careless

    assert not check_gradients(wrong, BiasedMemoryNorm(BIAS), SLOTS).passed


def test_a_slot_without_a_direction_is_refused():
    with pytest.raises(ValueError, match="slots: got a slot that is 0"):
        biased_memory_norm(BiasedMemoryNorm(BIAS), np.stack([BIAS, -BIAS]))
    with pytest.raises(ValueError, match="slots: got a slot that is 0, or NaN"):
        biased_memory_norm(BiasedMemoryNorm(BIAS), np.full_like(SLOTS, np.nan))
    with pytest.raises(ValueError, match="slots"):
        biased_memory_norm(BiasedMemoryNorm(BIAS), SLOTS[:, :2])
