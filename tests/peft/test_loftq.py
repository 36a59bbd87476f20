"""LoftQ's start: the thin matrices take the best part of what rounding took away."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from minitransformers.peft.loftq import loftq
from minitransformers.peft.lora_linear import Lora
from minitransformers.peft.nf4 import dequantize_double_nf4, dequantize_nf4, quantize_double_nf4, quantize_nf4
from minitransformers.peft.qlora_linear import QuantizedLinear, qlora_linear

WEIGHT = np.random.default_rng(0).normal(size=(24, 16))


def three_bits(weight):
    """Even steps of a quarter of the largest: codes from -3 to 3."""
    return np.rint(3 * weight / np.abs(weight).max()), np.abs(weight).max() / 3


def from_three_bits(stored):
    return stored[0] * stored[1]


QUANTISERS = [
    (quantize_nf4, dequantize_nf4),
    (partial(quantize_double_nf4, group=2), partial(dequantize_double_nf4, group=2)),
    (three_bits, from_three_bits),
]


def missing(weight, start, dequantize, scale=1.0):
    return np.linalg.norm(weight - dequantize(start.weight) - scale * start.params.down @ start.params.up)


def in_turns(weight, rank, turns, quantize, dequantize):
    """The same from eigenvectors of lost^T lost: the part of lost along the strongest of them."""
    change = 0 * weight
    for _ in range(turns):
        restored = dequantize(quantize(weight - change))
        lost = weight - restored
        strongest = np.linalg.eigh(lost.T @ lost)[1][:, -rank:]
        change = lost @ strongest @ strongest.T
    return restored, change


@pytest.mark.parametrize(("quantize", "dequantize"), QUANTISERS)
@pytest.mark.parametrize("turns", [1, 2, 5])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_each_turn_rounds_the_rest_and_keeps_the_strongest_directions_of_what_was_lost(quantize, dequantize, turns, scale):
    found = loftq(WEIGHT, rank=3, turns=turns, scale=scale, quantize=quantize, dequantize=dequantize)
    restored, change = in_turns(WEIGHT, 3, turns, quantize, dequantize)
    np.testing.assert_allclose(dequantize(found.weight), restored, rtol=0, atol=1e-10)
    np.testing.assert_allclose(scale * found.params.down @ found.params.up, change, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("quantize", "dequantize"), QUANTISERS)
def test_after_one_turn_no_more_is_missing_than_before(quantize, dequantize):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        weight = rng.normal(size=(24, 16)) * rng.exponential(size=16)
        before = np.linalg.norm(weight - dequantize(quantize(weight)))
        left = [missing(weight, loftq(weight, rank=rank, quantize=quantize, dequantize=dequantize), dequantize) for rank in (1, 4, 8, 16)]
        assert before > left[0] > left[1] > left[2] > left[3]
        assert left[3] < 1e-12 * before + 1e-12


def test_what_is_missing_after_a_turn_is_what_the_smaller_singular_values_hold():
    found = loftq(WEIGHT, rank=5)
    values = np.linalg.svd(WEIGHT - dequantize_nf4(quantize_nf4(WEIGHT)), compute_uv=False)
    assert missing(WEIGHT, found, dequantize_nf4) == pytest.approx(np.sqrt(np.sum(values[5:] ** 2)), rel=1e-12)


def test_with_a_coarse_quantiser_a_quarter_is_won_at_rank_four():
    """Codes of three bits, a normal matrix of 32 by 32: the first turn leaves about three quarters."""
    ratios = []
    for seed in range(10):
        weight = np.random.default_rng(seed).normal(size=(32, 32))
        before = np.linalg.norm(weight - from_three_bits(three_bits(weight)))
        ratios.append(missing(weight, loftq(weight, rank=4, quantize=three_bits, dequantize=from_three_bits), from_three_bits) / before)
    assert 0.6 < np.mean(ratios) < 0.9


def test_a_later_turn_may_lose_again_what_was_won():
    """Rounding anew knows nothing of the thin matrices: what is missing does not fall at every turn."""
    left = [missing(WEIGHT, loftq(WEIGHT, rank=3, turns=turns), dequantize_nf4) for turns in range(1, 12)]
    assert min(left) < left[0]
    assert any(later > earlier for earlier, later in pairwise(left))


def test_both_thin_matrices_carry_the_same_share():
    down, up = loftq(WEIGHT, rank=4, scale=0.5).params
    np.testing.assert_allclose(down.T @ down, up @ up.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(down.T @ down, np.diag(np.diag(down.T @ down)), rtol=0, atol=1e-12)
    assert np.all(np.diff(np.linalg.norm(down, axis=0)) < 0) and np.all(down.max(axis=0) > -down.min(axis=0))


def test_the_layer_starts_nearer_to_the_float_map_than_the_rounded_weight_alone():
    x = np.random.default_rng(1).normal(size=(50, 24))
    stored, params = loftq(WEIGHT, rank=6, scale=2.0)
    start = qlora_linear(params, x, base=QuantizedLinear(stored, None), scale=2.0)[0]
    nothing = Lora(params.down, 0 * params.up)
    plain = qlora_linear(nothing, x, base=QuantizedLinear(quantize_nf4(WEIGHT), None), scale=2.0)[0]
    assert np.linalg.norm(start - x @ WEIGHT) < 0.8 * np.linalg.norm(plain - x @ WEIGHT)


def test_the_dtype_is_that_of_the_weight():
    found = loftq(WEIGHT.astype(np.float32), rank=2, turns=2)
    assert {part.dtype for part in (found.weight.scales, *found.params)} == {np.dtype(np.float32)}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="rank: got 17, wants 1 to 16"):
        loftq(WEIGHT, rank=17)
    with pytest.raises(ValueError, match="block: got 64"):
        loftq(WEIGHT[:5], rank=2)
    with pytest.raises(ValueError, match="dequantize: got float64 of shape"):
        loftq(WEIGHT, rank=2, dequantize=lambda stored: dequantize_nf4(stored).T)


@pytest.mark.parity
def test_its_matrices_are_peft_s_up_to_their_signs():
    torch = pytest.importorskip("torch")
    decompose = pytest.importorskip("peft.utils.loftq_utils")._low_rank_decomposition
    left = torch.tensor(WEIGHT.T)                            # (outputs, inputs)
    for _ in range(3):
        restored = torch.tensor(dequantize_nf4(quantize_nf4(left.numpy().T)).T)
        parts = decompose(torch.tensor(WEIGHT.T) - restored, reduced_rank=4)
        left = torch.tensor(WEIGHT.T) - parts["L"] @ parts["R"]
    found = loftq(WEIGHT, rank=4, turns=3)
    np.testing.assert_allclose(found.params.down @ found.params.up, (parts["L"] @ parts["R"]).T, rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.abs(found.params.down), np.abs(parts["R"].T), rtol=0, atol=1e-9)
