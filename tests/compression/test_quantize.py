"""Uniform quantisation: whole numbers of steps, and steps that are shared by columns, tokens, groups or everything."""

from itertools import pairwise

import numpy as np
import pytest

from minitransformers.compression.packed_codes import pack_codes
from minitransformers.compression.quantize import (
    Affine,
    Symmetric,
    dequantize_affine,
    dequantize_symmetric,
    in_groups,
    quantize_affine,
    quantize_symmetric,
)

WEIGHT = np.random.default_rng(0).normal(size=(12, 5))
BITS = (2, 3, 4, 8, 9, 16)


def lists(weight, sharing):
    """The places of those that share a step, as lists of indices."""
    rows, columns = range(weight.shape[0]), range(weight.shape[1])
    if sharing == -2:
        return [[(i, j) for i in rows] for j in columns]
    if sharing == -1:
        return [[(i, j) for j in columns] for i in rows]
    return [[(i, j) for i in rows for j in columns]]


def symmetric_one_by_one(values, bits, bound=None):
    """Codes, the step and the restored values of a list. Python's round takes a half to the even side."""
    most = 2 ** (bits - 1) - 1
    step = (max(abs(v) for v in values) if bound is None else bound) / most
    codes = [max(-most, min(most, round(v / step))) for v in values]
    return codes, step, [step * code for code in codes]


def affine_one_by_one(values, bits):
    low, high, most = min([*values, 0.0]), max([*values, 0.0]), 2**bits - 1
    step = (high - low) / most
    zero = round(-low / step)
    codes = [max(0, min(most, round(v / step) + zero)) for v in values]
    return codes, step, zero, [step * (code - zero) for code in codes]


@pytest.mark.parametrize("sharing", [-2, -1, None])
@pytest.mark.parametrize("bits", BITS)
def test_symmetric_codes_are_the_nearest_whole_numbers_of_the_step_that_is_shared(bits, sharing):
    stored = quantize_symmetric(WEIGHT, bits=bits, axis=sharing)
    restored, steps = dequantize_symmetric(stored), np.broadcast_to(stored.step, WEIGHT.shape)
    for places in lists(WEIGHT, sharing):
        codes, step, expected = symmetric_one_by_one([WEIGHT[place] for place in places], bits)
        assert [stored.codes[place] for place in places] == codes
        np.testing.assert_allclose([steps[place] for place in places], step, rtol=1e-14)
        np.testing.assert_allclose([restored[place] for place in places], expected, rtol=0, atol=1e-14)
    assert stored.codes.dtype == (np.int8 if bits <= 8 else np.int16)
    assert stored.step.shape == {-2: (1, 5), -1: (12, 1), None: (1, 1)}[sharing]


@pytest.mark.parametrize("sharing", [-2, -1, None])
@pytest.mark.parametrize("bits", BITS)
def test_affine_codes_are_the_nearest_whole_numbers_counted_from_the_smallest(bits, sharing):
    weight = WEIGHT + np.array([0.0, 1.5, -1.5, 9.0, -9.0])  # two columns are on one side of zero
    stored = quantize_affine(weight, bits=bits, axis=sharing)
    restored = dequantize_affine(stored)
    steps, zeros = (np.broadcast_to(shared, weight.shape) for shared in (stored.step, stored.zero))
    for places in lists(weight, sharing):
        codes, step, zero, expected = affine_one_by_one([weight[place] for place in places], bits)
        assert [stored.codes[place] for place in places] == codes
        assert {int(zeros[place]) for place in places} == {zero}
        np.testing.assert_allclose([steps[place] for place in places], step, rtol=1e-14)
        np.testing.assert_allclose([restored[place] for place in places], expected, rtol=0, atol=1e-13)
    assert stored.codes.dtype == (np.uint8 if bits <= 8 else np.uint16)


@pytest.mark.parametrize("bits", BITS)
def test_no_value_is_off_by_more_than_half_a_step(bits):
    rng = np.random.default_rng(bits)
    weight = rng.normal(size=(200, 7)) + rng.normal(size=7)
    for stored, restored in (
        (one := quantize_symmetric(weight, bits=bits), dequantize_symmetric(one)),
        (two := quantize_affine(weight, bits=bits), dequantize_affine(two)),
    ):
        error = np.abs(restored - weight) / stored.step
        assert 0.4 < error.max() <= 0.5 + 1e-9


def test_what_is_cut_off_becomes_the_bound_and_the_rest_is_off_by_half_a_step():
    weight = np.random.default_rng(1).normal(size=(200, 3))
    bound = np.array([[0.5, 1.0, 2.0]])
    stored = quantize_symmetric(weight, bits=4, clip=lambda values, *, axis, bits: bound)
    restored, cut = dequantize_symmetric(stored), np.abs(weight) > bound
    np.testing.assert_allclose(stored.step, bound / 7, rtol=1e-15)
    assert cut.any(axis=0).all()
    np.testing.assert_allclose(restored[cut], (np.sign(weight) * bound)[cut], rtol=1e-15)
    assert (np.abs(restored - weight) / stored.step)[~cut].max() <= 0.5 + 1e-12


@pytest.mark.parametrize("bits", BITS)
def test_values_on_the_grid_come_back(bits):
    rng, most = np.random.default_rng(2), 2 ** (bits - 1) - 1
    codes = np.concatenate([[[most, most, -most]], rng.integers(-most, most + 1, size=(6, 3))])
    step = np.array([[0.25, 0.3, 1e-3]])
    stored = quantize_symmetric(step * codes, bits=bits)
    np.testing.assert_array_equal(stored.codes, codes)
    np.testing.assert_allclose(dequantize_symmetric(stored), step * codes, rtol=1e-15)

    codes = np.concatenate([[[0, 0, 0], [2**bits - 1] * 3], rng.integers(0, 2**bits, size=(6, 3))])
    zero = np.array([[0, 1, 2**bits - 1]])
    kept = quantize_affine(step * (codes - zero), bits=bits)
    np.testing.assert_array_equal(kept.codes, codes)
    np.testing.assert_array_equal(kept.zero, zero)
    np.testing.assert_allclose(dequantize_affine(kept), step * (codes - zero), rtol=1e-15)


@pytest.mark.parametrize("quantize, dequantize", [(quantize_symmetric, dequantize_symmetric), (quantize_affine, dequantize_affine)])
def test_what_is_restored_has_the_same_codes(quantize, dequantize):
    first = quantize(WEIGHT, bits=4)
    again = quantize(dequantize(first), bits=4)
    np.testing.assert_array_equal(first.codes, again.codes)
    np.testing.assert_allclose(dequantize(again), dequantize(first), rtol=0, atol=1e-15)


@pytest.mark.parametrize("offset", [-7.0, -0.3, 0.0, 0.3, 7.0])
def test_zero_comes_back_exactly_even_where_all_values_are_on_one_side(offset):
    weight = np.random.default_rng(3).uniform(-0.2, 0.2, size=(9, 4)) + offset
    weight[2] = 0
    for bits in BITS:
        stored = quantize_affine(weight, bits=bits)
        assert (dequantize_affine(stored)[2] == 0).all()
        assert (stored.zero >= 0).all() and (stored.zero <= 2**bits - 1).all()
        assert (dequantize_symmetric(quantize_symmetric(weight, bits=bits))[2] == 0).all()


def test_steps_from_smallest_to_largest_alone_would_lose_zero():
    weight = np.array([[3.0], [3.1], [3.7], [0.0]])
    low, high = weight[:3].min(), weight[:3].max()
    step = (high - low) / 15
    without_zero = step * np.clip(np.rint((weight - low) / step), 0, 15) + low
    assert without_zero[3] == 3.0
    assert dequantize_affine(quantize_affine(weight, bits=4))[3] == 0.0


def test_symmetric_codes_of_the_negative_are_the_negative_codes_and_the_lowest_is_never_used():
    for bits in BITS:
        codes, other = quantize_symmetric(WEIGHT, bits=bits).codes, quantize_symmetric(-WEIGHT, bits=bits).codes
        np.testing.assert_array_equal(codes, -other)
        assert codes.min() >= -(2 ** (bits - 1) - 1)


def test_a_value_that_is_cut_off_is_not_wrapped_around():
    weight = np.array([[200.0], [127.0], [-500.0]])
    codes = quantize_symmetric(weight, bits=8, clip=lambda *_, **__: np.array([[127.0]])).codes
    assert codes.ravel().tolist() == [127, 127, -127]
    cast_first = np.clip(np.rint(weight).astype(np.int64).astype(np.int8), -127, 127)
    assert cast_first.ravel().tolist() == [-56, 127, 12]


def test_a_half_goes_to_the_even_side():
    weight = np.array([[7.0], [0.5], [1.5], [2.5], [-0.5], [-1.5]])
    assert quantize_symmetric(weight, bits=4).codes.ravel().tolist() == [7, 0, 2, 2, 0, -2]
    assert quantize_affine(np.array([[0.0], [15.0], [0.5], [1.5], [2.5]]), bits=4).codes.ravel().tolist() == [0, 15, 0, 2, 2]


def test_columns_and_tokens_do_not_touch_each_other():
    louder = WEIGHT.copy()
    louder[:, 3] *= 100
    one, other = quantize_symmetric(WEIGHT, bits=4), quantize_symmetric(louder, bits=4)
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(np.delete(one.step, 3, axis=1), np.delete(other.step, 3, axis=1))
    tokens = np.stack([WEIGHT, louder])                      # leading axes are free
    np.testing.assert_array_equal(quantize_symmetric(tokens, bits=8, axis=-1).codes[0], quantize_symmetric(WEIGHT, bits=8, axis=-1).codes)


def test_the_fewer_share_a_step_the_smaller_it_is():
    groups = np.broadcast_to(quantize_symmetric(in_groups(WEIGHT, size=3), bits=4).step, (4, 3, 5)).reshape(12, 5)
    columns = quantize_symmetric(WEIGHT, bits=4).step
    everything = quantize_symmetric(WEIGHT, bits=4, axis=None).step
    assert (groups <= columns).all() and (columns <= everything).all()
    assert (groups < columns).any() and (columns < everything).any()


def test_a_group_is_inputs_that_follow_each_other_in_one_column():
    grouped = in_groups(WEIGHT, size=4)
    assert grouped.shape == (3, 4, 5)
    for i in range(12):
        np.testing.assert_array_equal(grouped[i // 4, i % 4], WEIGHT[i])
    stored = quantize_symmetric(grouped, bits=3)
    alone = [quantize_symmetric(WEIGHT[start : start + 4], bits=3) for start in (0, 4, 8)]
    np.testing.assert_array_equal(stored.codes.reshape(WEIGHT.shape), np.concatenate([part.codes for part in alone]))
    restored = np.concatenate([dequantize_symmetric(part) for part in alone])
    np.testing.assert_array_equal(dequantize_symmetric(stored).reshape(WEIGHT.shape), restored)


@pytest.mark.parametrize("bits, size", [(4, 32), (3, 64), (8, 32)])
def test_a_weight_takes_its_bits_and_its_share_of_a_step(bits, size):
    weight = np.random.default_rng(4).standard_normal((128, 6), np.float32)
    stored = quantize_symmetric(in_groups(weight, size=size), bits=bits)
    nbytes = pack_codes(stored.codes, bits=bits).nbytes + stored.step.nbytes
    assert 8 * nbytes / weight.size == bits + 32 / size


def test_a_bit_more_halves_the_step():
    steps = [quantize_symmetric(WEIGHT, bits=bits, axis=None).step.item() for bits in range(2, 17)]
    np.testing.assert_allclose([a / b for a, b in pairwise(steps)], [2 + 1 / (2**b - 1) for b in range(1, 15)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_of_zeros_and_of_numbers_too_small_to_divide_are_zeros(dtype):
    smallest = np.finfo(dtype).smallest_subnormal
    weight = np.array([[0, smallest, 160 * smallest, 1], [0, 0, -smallest, 2]], dtype)
    with np.errstate(all="raise", under="ignore"):
        symmetric, affine = quantize_symmetric(weight, bits=8), quantize_affine(weight, bits=8)
    for stored, restored in ((symmetric, dequantize_symmetric(symmetric)), (affine, dequantize_affine(affine))):
        assert stored.step.dtype == restored.dtype == dtype and (stored.step > 0).all()
        np.testing.assert_array_equal(restored[:, :3], 0)
        assert restored[1, 3] == 2


def test_the_smallest_number_with_all_its_digits_is_still_a_step():
    smallest = np.finfo(np.float64).tiny
    symmetric, affine = quantize_symmetric(np.array([[127 * smallest]]), bits=8), quantize_affine(np.array([[255 * smallest]]), bits=8)
    assert symmetric.step == affine.step == smallest and symmetric.codes == 127 and affine.codes == 255


def test_under_a_bound_of_zero_everything_is_cut_off():
    weight = np.array([[0.0, 1.0], [0.0, 2.0], [300.0, 3.0]])
    stored = quantize_symmetric(weight, bits=8, clip=lambda *_, **__: np.array([[0.0, 3.0]]))
    np.testing.assert_array_equal(stored.codes[:, 0], 0)
    assert stored.step[0, 0] == 1 and stored.codes[2, 1] == 127


@pytest.mark.parametrize("quantize, dequantize", [(quantize_symmetric, dequantize_symmetric), (quantize_affine, dequantize_affine)])
def test_float32_has_the_codes_of_float64(quantize, dequantize):
    narrow = WEIGHT.astype(np.float32)
    own, wide = quantize(narrow, bits=8), quantize(narrow.astype(np.float64), bits=8)
    np.testing.assert_array_equal(own.codes, wide.codes)
    assert own.step.dtype == dequantize(own).dtype == np.float32


def test_codes_of_zero_in_a_byte_do_not_wrap_around():
    stored = Affine(np.array([[3], [9]], np.uint8), np.array([[0.5]]), np.array([[5]], np.uint8))
    assert dequantize_affine(stored).ravel().tolist() == [-1.0, 2.0]


def test_bad_calls_are_refused():
    for quantize in (quantize_symmetric, quantize_affine):
        for bits in (1, 17):
            with pytest.raises(ValueError, match=f"bits: got {bits}"):
                quantize(WEIGHT, bits=bits)
        with pytest.raises(ValueError, match="axis: got 2, wants None, or an axis of values, which have 2"):
            quantize(WEIGHT, bits=4, axis=2)
        with pytest.raises(ValueError, match="values: got shape"):
            quantize(np.zeros((0, 3)), bits=4)
        for number in (np.nan, np.inf):
            with pytest.raises(ValueError, match="values"):
                quantize(np.full((2, 3), number), bits=4)
    with pytest.raises(ValueError, match="size: got 5, wants a number that divides the 12 inputs"):
        in_groups(WEIGHT, size=5)
    with pytest.raises(ValueError, match="size: got 0"):
        in_groups(WEIGHT, size=0)
    with pytest.raises(ValueError, match=r"stored\.step: got shape \(5,\)"):
        dequantize_symmetric(Symmetric(np.zeros((12, 5), np.int8), np.ones(5)))


@pytest.mark.parametrize(
    "bound",
    [np.ones(5), np.ones((12, 1)), np.float64(1.0), np.ones((1, 5), np.float32), np.full((1, 5), -1.0), np.full((1, 5), np.nan)],
    ids=["an axis is lost", "another axis", "one number", "another dtype", "negative", "not a number"],
)
def test_a_clip_must_give_a_magnitude_for_each_that_share_a_step(bound):
    with pytest.raises(ValueError, match=r"(?s)clip: got .* wants float64 of shape \(1, 5\), finite and not negative"):
        quantize_symmetric(WEIGHT, bits=4, clip=lambda *_, **__: bound)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")                        # quantised tensors of torch are deprecated; what they hold is what counts
def test_its_steps_and_codes_are_torch_s():
    torch = pytest.importorskip("torch")
    from torch.ao.quantization import PerChannelMinMaxObserver

    weight = np.random.default_rng(5).standard_normal((40, 6), np.float32) + np.float32([0, 0.5, -0.5, 3, -3, 0])
    for quantize, dtype, scheme, least, most in (
        (quantize_symmetric, torch.qint8, torch.per_channel_symmetric, -127, 127),
        (quantize_affine, torch.quint8, torch.per_channel_affine, 0, 255),
    ):
        observer = PerChannelMinMaxObserver(ch_axis=1, dtype=dtype, qscheme=scheme, quant_min=least, quant_max=most)
        observer(torch.tensor(weight))
        scale, zero = observer.calculate_qparams()
        stored = quantize(weight, bits=8)
        np.testing.assert_allclose(stored.step[0], scale.numpy(), rtol=2e-7)
        np.testing.assert_array_equal(getattr(stored, "zero", np.zeros((1, 6)))[0], zero.numpy())
        theirs = torch.quantize_per_channel(torch.tensor(weight), torch.tensor(stored.step[0]), zero, 1, dtype)
        np.testing.assert_array_equal(stored.codes, theirs.int_repr().numpy())
        own = dequantize_symmetric(stored) if dtype is torch.qint8 else dequantize_affine(stored)
        np.testing.assert_allclose(own, theirs.dequantize().numpy(), rtol=0, atol=1e-6)  # float32


@pytest.mark.parity
def test_in_float64_it_restores_what_torch_does():
    torch = pytest.importorskip("torch")
    step = 3 / 256                                           # torch multiplies codes and steps in float32: these products fit
    rng = np.random.default_rng(6)
    weight = step * np.concatenate([[[-100.0], [155.0]], rng.uniform(-100, 155, size=(300, 1))])
    theirs = torch.fake_quantize_per_tensor_affine(torch.tensor(weight), step, 100, 0, 255)
    np.testing.assert_allclose(dequantize_affine(quantize_affine(weight, bits=8)), theirs.numpy(), rtol=0, atol=1e-10)
    weight = step * np.concatenate([[[-127.0]], rng.uniform(-127, 127, size=(300, 1))])
    theirs = torch.fake_quantize_per_tensor_affine(torch.tensor(weight), step, 0, -127, 127)
    np.testing.assert_allclose(dequantize_symmetric(quantize_symmetric(weight, bits=8)), theirs.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parity
def test_the_eight_bit_blocks_of_llama_cpp_are_groups_of_32():
    gguf = pytest.importorskip("gguf")
    weight = np.random.default_rng(7).standard_normal((96, 5), np.float32)
    blocks = gguf.quants.quantize(np.ascontiguousarray(weight.T), gguf.GGMLQuantizationType.Q8_0).reshape(5, 3, 34)
    stored = quantize_symmetric(in_groups(weight, size=32), bits=8)
    np.testing.assert_array_equal(stored.codes.transpose(2, 0, 1), blocks[..., 2:].view(np.int8))
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    np.testing.assert_array_equal(stored.step[:, 0].T.astype(np.float16), scales)
