"""NF4: the published levels, the nearest of them for each weight, two codes a byte; and scales in a byte as well."""

from itertools import pairwise

import numpy as np
import pytest

from minitransformers.peft.nf4 import (
    DoubleNf4Weight,
    Nf4Weight,
    dequantize_double_nf4,
    dequantize_nf4,
    nf4_levels,
    quantize_double_nf4,
    quantize_nf4,
)

PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip
WEIGHT = np.random.default_rng(0).normal(size=(16, 24))


def one_by_one(weight, block):
    """Codes, scales and restored weights of a flat list of numbers, each compared with all sixteen levels."""
    codes, scales, restored = [], [], []
    for start in range(0, len(weight), block):
        scale = max(abs(w) for w in weight[start : start + block])
        scales.append(scale)
        for w in weight[start : start + block]:
            code = min(range(16), key=lambda k: abs(PUBLISHED[k] * scale - w))
            codes.append(code)
            restored.append(PUBLISHED[code] * scale)
    return codes, scales, restored


def dynamic_levels():
    """The second round's 256 levels, one at a time: 2^k of them between 10^(k-7) and 10^(k-6), on both sides; 0, and 1."""
    levels = [0.0, 1.0]
    for k in range(7):
        for i in range(2**k):
            middle = 10.0 ** (k - 6) * (0.1 + 0.9 * (i + 0.5) / 2**k)
            levels += [middle, -middle]
    return sorted(levels)


def unpacked(packed):
    return np.stack([packed // 16, packed % 16], axis=-1).reshape(*packed.shape[:-1], -1)


def test_the_levels_are_the_published_ones_to_the_last_bit():
    np.testing.assert_array_equal(nf4_levels(), np.float32(PUBLISHED))
    assert nf4_levels().dtype == np.float32


def test_the_levels_are_quantiles_of_the_normal_distribution():
    from scipy.special import ndtri

    below, above = -ndtri(np.linspace(0.9677083, 0.5, 8)[:-1]), ndtri(np.linspace(0.9677083, 0.5, 9)[:-1])
    np.testing.assert_allclose(nf4_levels(), np.sort([*below, 0, *above]) / above[0], rtol=0, atol=2e-7)


@pytest.mark.parametrize("block", [2, 6, 64])
def test_each_weight_takes_the_nearest_level_of_its_block(block):
    codes, scales, restored = one_by_one(WEIGHT.ravel().tolist(), block)
    found = quantize_nf4(WEIGHT, block=block)
    np.testing.assert_array_equal(unpacked(found.codes).ravel(), codes)
    np.testing.assert_array_equal(found.scales, scales)
    np.testing.assert_allclose(dequantize_nf4(found), np.reshape(restored, WEIGHT.shape), rtol=0, atol=1e-15)
    assert found.codes.dtype == np.uint8 and found.codes.shape == (16, 12)


def test_a_block_has_sixty_four_weights_where_nothing_is_said():
    np.testing.assert_array_equal(quantize_nf4(WEIGHT).scales, np.abs(WEIGHT.reshape(-1, 64)).max(axis=1))


def test_a_block_may_run_on_in_the_next_row_and_leading_axes_are_free():
    flat, stacked = quantize_nf4(WEIGHT.reshape(1, -1), block=48), quantize_nf4(WEIGHT.reshape(2, 8, 24), block=48)
    np.testing.assert_array_equal(flat.codes.ravel(), stacked.codes.ravel())
    np.testing.assert_array_equal(flat.scales, stacked.scales)
    np.testing.assert_array_equal(dequantize_nf4(stacked).reshape(1, -1), dequantize_nf4(flat))


def test_the_largest_and_zero_come_back_exactly():
    weight = np.array([[0.7, 0.0, -0.1, 0.3], [-3.0, 0.0, 1.0, 2.0]])
    restored = dequantize_nf4(quantize_nf4(weight, block=4))
    assert restored[0, 0] == 0.7 and restored[1, 0] == -3.0
    assert restored[0, 1] == restored[1, 1] == 0.0


def test_what_is_restored_is_quantised_to_the_same_bytes():
    first = quantize_nf4(WEIGHT, block=64)
    again = quantize_nf4(dequantize_nf4(first), block=64)
    np.testing.assert_array_equal(first.codes, again.codes)
    np.testing.assert_array_equal(first.scales, again.scales)


def test_every_byte_stands_for_its_two_levels():
    every = Nf4Weight(np.arange(256, dtype=np.uint8).reshape(16, 16), np.array([2.0], np.float32))
    expected = [[2 * PUBLISHED[byte // 16], 2 * PUBLISHED[byte % 16]] for byte in range(256)]
    np.testing.assert_array_equal(dequantize_nf4(every), np.float32(expected).reshape(16, 32))


def test_blocks_of_zeros_and_of_numbers_too_small_to_divide_by_come_back():
    weight = np.zeros((3, 64), np.float32)
    weight[1, ::2] = 1e-42                                   # its reciprocal is infinite
    weight[2] = 3e38
    with np.errstate(all="raise", under="ignore"):
        restored = dequantize_nf4(quantize_nf4(weight))
    np.testing.assert_array_equal(restored, weight)


def test_no_weight_is_off_by_more_than_half_the_widest_gap():
    restored, scales = dequantize_nf4(quantize_nf4(WEIGHT)), np.abs(WEIGHT.reshape(-1, 64)).max(axis=1)
    error = np.abs(restored - WEIGHT).reshape(-1, 64).max(axis=1) / scales
    assert error.max() <= (1 - 0.69619) / 2 and error.max() > 0.1


def evenly_spaced(weight):
    """Symmetric codes of four bits, -7 to 7, in blocks of 64."""
    blocks = weight.reshape(-1, 64)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 7
    return (np.rint(blocks / step) * step).reshape(weight.shape)


def test_it_beats_even_steps_on_normal_weights_and_loses_to_them_on_uniform_ones():
    rng, errors = np.random.default_rng(1), {}
    for name, weight in (("normal", rng.normal(size=(512, 256))), ("uniform", rng.uniform(-1, 1, size=(512, 256)))):
        restored = (dequantize_nf4(quantize_nf4(weight)), evenly_spaced(weight))
        errors[name] = [np.mean((weight - other) ** 2) for other in restored]
    assert errors["normal"][0] == pytest.approx(0.00846, rel=0.03) and errors["normal"][0] < 0.8 * errors["normal"][1]
    assert errors["uniform"][0] == pytest.approx(0.00279, rel=0.03) and errors["uniform"][0] > 1.5 * errors["uniform"][1]


def test_normal_weights_use_its_codes_more_evenly_than_even_steps():
    weight = np.random.default_rng(2).normal(size=(512, 256))

    def entropy(values):
        share = np.unique(values, return_counts=True)[1] / values.size
        return -np.sum(share * np.log2(share))

    steps = np.rint(7 * weight.reshape(-1, 64) / np.abs(weight.reshape(-1, 64)).max(axis=1, keepdims=True))
    assert 4 > entropy(unpacked(quantize_nf4(weight).codes)) > entropy(steps) + 0.2


def test_its_bytes_are_half_a_byte_a_weight_and_four_a_block():
    weight = np.ones((768, 512), np.float32)
    single, double = quantize_nf4(weight), quantize_double_nf4(weight)
    blocks = weight.size // 64
    assert sum(part.nbytes for part in single) == weight.size // 2 + 4 * blocks == weight.size * 4.5 / 8
    assert sum(part.nbytes for part in double) == weight.size // 2 + blocks + 4 * (blocks // 256) + 4
    assert 8 * sum(part.nbytes for part in double) / weight.size == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)


@pytest.mark.parametrize("group", [1, 5, 48])
def test_the_scales_take_the_nearest_of_256_levels_of_their_group(group):
    levels, scales = dynamic_levels(), quantize_nf4(WEIGHT, block=8).scales
    mean, found = scales.mean(), quantize_double_nf4(WEIGHT, block=8, group=group)
    restored = []
    for start in range(0, len(scales), group):
        centred = [s - mean for s in scales[start : start + group]]
        top = max(map(abs, centred))
        assert found.tops[start // group] == top
        restored += [mean + top * min(levels, key=lambda level: abs(level * top - c)) for c in centred]
    assert found.mean == mean and len(levels) == 256
    expected = dequantize_nf4(Nf4Weight(found.codes, np.array(restored)))
    np.testing.assert_allclose(dequantize_double_nf4(found, group=group), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.codes, quantize_nf4(WEIGHT, block=8).codes)


def test_blocks_and_groups_have_their_sizes_where_nothing_is_said():
    weight = np.random.default_rng(3).normal(size=(256, 128))
    found = quantize_double_nf4(weight)
    assert found.scale_codes.shape == (512,) and found.tops.shape == (2,)
    np.testing.assert_array_equal(dequantize_double_nf4(found), dequantize_double_nf4(found, group=256))


def test_a_scale_is_off_by_at_most_a_hundred_and_twenty_eighth_of_its_group_s_top():
    """Of nine tenths of top, which the 64 widest steps share."""
    weight = np.random.default_rng(4).normal(size=(512, 256))
    found, scales = quantize_double_nf4(weight), quantize_nf4(weight).scales
    whole, largest = dequantize_double_nf4(found).reshape(-1, 64), dequantize_nf4(quantize_nf4(weight)).reshape(-1, 64)
    place = np.abs(largest).argmax(axis=1)[:, None]
    restored = np.abs(np.take_along_axis(whole, place, axis=1)[:, 0])
    error = np.abs(restored - scales) / np.repeat(found.tops, 256)
    assert 0.9 * 0.9 / 128 < error.max() <= 1.001 * 0.9 / 128


def test_the_256_levels_are_those_of_the_authors_tool_to_the_last_bit():
    """Steps from 0.1 to 1 in float32, the first half of them counted up from 0.1 and the others down from 1."""
    levels, tenth = [0.0, 1.0], np.float32(0.1)
    for k in range(7):
        step = np.float32((1 - float(tenth)) / 2**k)
        edges = [np.float32(float(tenth) + i * float(step) if 2 * i < 2**k else 1 - (2**k - i) * float(step)) for i in range(2**k + 1)]
        edges[0] = tenth
        middles = [(a + b) / np.float32(2) * np.float32(10.0 ** (k - 6)) for a, b in pairwise(edges)]
        levels += [*middles, *(-middle for middle in middles)]
    every = DoubleNf4Weight(np.full((256, 1), 0xFF, np.uint8), np.arange(256, dtype=np.uint8), np.float32([1.0]), np.array(0, np.float32))
    np.testing.assert_array_equal(dequantize_double_nf4(every)[:, 0], np.sort(np.float32(levels)))


def test_equal_scales_come_back_exactly():
    weight = np.where(np.random.default_rng(5).random((8, 64)) < 0.5, -0.5, 0.5)
    np.testing.assert_array_equal(dequantize_double_nf4(quantize_double_nf4(weight)), weight)


@pytest.mark.parametrize("quantize", [quantize_nf4, quantize_double_nf4])
def test_float32_has_the_codes_of_float64(quantize):
    narrow = WEIGHT.astype(np.float32)
    wide, own = quantize(narrow.astype(np.float64)), quantize(narrow)
    np.testing.assert_array_equal(wide.codes, own.codes)
    assert {part.dtype for part in own} == {np.dtype(np.uint8), np.dtype(np.float32)}


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match="block: got 64, wants an even number that divides the 20 weights"):
        quantize_nf4(np.ones((5, 4)))
    with pytest.raises(ValueError, match=r"weight: .*last axis of even size"):
        quantize_nf4(np.ones((4, 5)), block=2)
    with pytest.raises(ValueError, match="weight: got numbers from nan"):
        quantize_nf4(np.full((4, 4), np.nan), block=2)
    with pytest.raises(ValueError, match=r"weight\.codes: got int64, wants uint8"):
        dequantize_nf4(Nf4Weight(np.full((2, 2), 300), np.ones(2)))
    with pytest.raises(ValueError, match=r"weight\.scales: got 3 of them"):
        dequantize_nf4(Nf4Weight(np.ones((2, 2), np.uint8), np.ones(3)))
    double = DoubleNf4Weight(np.ones((2, 2), np.uint8), np.ones(2, np.uint8), np.ones(1), np.ones(()))
    with pytest.raises(ValueError, match="group: got 1, for 2 scales in 1 groups"):
        dequantize_double_nf4(double, group=1)
    with pytest.raises(ValueError, match=r"weight\.codes: got int64, wants uint8"):
        dequantize_double_nf4(double._replace(codes=np.ones((2, 2), int)))
    with pytest.raises(ValueError, match=r"weight\.scales: got 2 of them"):
        dequantize_double_nf4(double._replace(codes=np.ones((3, 1), np.uint8)))


def test_nothing_that_is_kept_can_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        nf4_levels()[0] = 0


@pytest.mark.parity
def test_its_bytes_are_those_of_bitsandbytes():
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes").functional
    weight = 0.02 * np.random.default_rng(6).standard_normal((384, 256), np.float32)
    weight[3] = 0
    theirs, state = functional.quantize_4bit(torch.tensor(weight), blocksize=64, quant_type="nf4")
    own = quantize_nf4(weight)
    np.testing.assert_array_equal(own.codes.ravel(), theirs.numpy().ravel())
    np.testing.assert_array_equal(own.scales, state.absmax.numpy())
    np.testing.assert_allclose(dequantize_nf4(own), functional.dequantize_4bit(theirs, state).numpy(), rtol=0, atol=1e-9)


@pytest.mark.parity
def test_it_restores_what_bitsandbytes_has_quantised_twice():
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes").functional
    weight = 0.02 * np.random.default_rng(7).standard_normal((768, 256), np.float32)
    theirs, state = functional.quantize_4bit(torch.tensor(weight), blocksize=64, quant_type="nf4", compress_statistics=True)
    parts = theirs.numpy().reshape(768, 128), state.absmax.numpy(), state.state2.absmax.numpy(), state.offset.numpy()
    np.testing.assert_allclose(dequantize_double_nf4(DoubleNf4Weight(*parts)), functional.dequantize_4bit(theirs, state).numpy(), rtol=0, atol=1e-9)
    # On a CPU it looks for the nearest level in a coarse table, and sometimes takes the neighbour.
    own = quantize_double_nf4(weight)
    apart = own.scale_codes.astype(int) - parts[1]
    assert np.abs(apart).max() <= 1 and np.mean(apart != 0) < 0.01
    np.testing.assert_allclose(own.tops, parts[2], rtol=1e-6)
