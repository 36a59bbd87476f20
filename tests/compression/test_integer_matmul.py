"""Products of codes: whole numbers are summed, exactly, and the steps come afterwards."""

import warnings

import numpy as np
import pytest

from minitransformers.compression.integer_matmul import (
    affine_matmul,
    exact_float,
    integer_matmul,
    integer_matmul_fast,
    symmetric_matmul,
)
from minitransformers.compression.quantize import (
    Affine,
    Symmetric,
    dequantize_affine,
    dequantize_symmetric,
    in_groups,
    quantize_affine,
    quantize_symmetric,
)

RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.integers(-127, 128, size=(3, 7)).astype(np.int8), RNG.integers(-127, 128, size=(7, 5)).astype(np.int8)
X, WEIGHT = RNG.normal(size=(2, 3, 40)), RNG.normal(size=(40, 5))
BOTH = [integer_matmul, integer_matmul_fast]


def one_by_one(left, right):
    """Python's whole numbers, which have no end."""
    left, right = left.tolist(), right.tolist()
    return [[sum(row[k] * right[k][n] for k in range(len(row))) for n in range(len(right[0]))] for row in left]


@pytest.mark.parametrize("multiply", BOTH)
def test_it_is_the_sum_of_products(multiply):
    out = multiply(LEFT, RIGHT)
    assert out.dtype == np.int32 and out.tolist() == one_by_one(LEFT, RIGHT)
    stacked = multiply(np.stack([LEFT, LEFT[::-1]]), RIGHT)
    assert stacked.shape == (2, 3, 5) and stacked[1].tolist() == one_by_one(LEFT[::-1], RIGHT)
    assert multiply(LEFT[0], RIGHT).tolist() == one_by_one(LEFT[:1], RIGHT)[0]


def test_numpy_s_own_product_of_bytes_wraps_around_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = LEFT @ RIGHT
    assert own.dtype == np.int8
    expected = np.array(one_by_one(LEFT, RIGHT))
    assert np.abs(expected).max() > 127 and (own != expected).any()
    np.testing.assert_array_equal(own, expected.astype(np.int8))  # the last eight bits are right, and the others gone


@pytest.mark.parametrize("pair", [(np.int8, np.int8), (np.uint8, np.uint8), (np.uint8, np.int8), (np.int16, np.int8)])
def test_the_fast_way_gives_the_same_numbers_to_the_last_bit(pair):
    for seed, inner in enumerate((1, 3, 64, 257, 1040, 1041)):
        rng = np.random.default_rng(seed)
        ends = [(np.iinfo(dtype).min, np.iinfo(dtype).max + 1) if dtype is not np.int16 else (-1000, 1001) for dtype in pair]
        left, right = rng.integers(*ends[0], size=(3, inner)).astype(pair[0]), rng.integers(*ends[1], size=(inner, 4)).astype(pair[1])
        slow, fast = integer_matmul(left, right), integer_matmul_fast(left, right)
        assert slow.dtype == fast.dtype == np.int32
        np.testing.assert_array_equal(slow, fast)


def test_float32_is_exact_for_1040_products_of_127_and_one_more_is_not():
    for inner, exact in ((1040, True), (1041, False)):
        left, right = np.full((1, inner), 127, np.int8), np.full((inner, 1), 127, np.int8)
        true = inner * 127**2
        assert (true <= 2**24) == exact
        assert ((left.astype(np.float32) @ right.astype(np.float32)).item() == true) == exact
        assert integer_matmul_fast(left, right).item() == true  # in float64, where float32 would not do


def test_up_to_two_to_the_24_a_float32_can_count_and_there_it_stops():
    assert np.float32(2**24) == 2**24 and np.float32(2**24 - 1) == 2**24 - 1
    assert np.float32(2**24 + 1) == 2**24
    assert exact_float(2**24) is np.float32 and exact_float(2**24 + 1) is np.float64


def test_131071_products_of_the_largest_bytes_fit_into_32_bits_and_one_more_is_refused():
    left, right = np.full((1, 131_072), -128, np.int8), np.full((131_072, 1), -128, np.int8)
    for multiply in BOTH:
        assert multiply(left[:, 1:], right[1:]).item() == 131_071 * 2**14
        with pytest.raises(ValueError, match=r"left: got sums of up to 2\.1e\+09, wants below 2\^31"):
            multiply(left, right)
    wrapped = left.astype(np.int32) @ right.astype(np.int32)
    assert wrapped.item() == -(2**31)                        # what would have come out
    assert integer_matmul(left[:, :2], right[:2]).item() == 2**15  # how large the codes are counts, not how large they might be


def test_one_code_that_is_large_is_enough():
    left, right = np.array([[2**20, 1]]), np.array([[2**11], [0]])
    for one in (left, -left):
        with pytest.raises(ValueError, match="left: got sums"):
            integer_matmul(one, right)
        with pytest.raises(ValueError, match="left: got sums"):
            integer_matmul(right.T, one.T)


@pytest.mark.parametrize("tokens, outputs", [(-1, -2), (None, -2), (-1, None), (None, None)])
@pytest.mark.parametrize("bits", [4, 8, 12])
def test_it_is_the_product_of_what_is_restored(bits, tokens, outputs):
    left, right = quantize_symmetric(X, bits=bits, axis=tokens), quantize_symmetric(WEIGHT, bits=bits, axis=outputs)
    expected = dequantize_symmetric(left) @ dequantize_symmetric(right)
    np.testing.assert_allclose(symmetric_matmul(left, right), expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    left, right = quantize_affine(X + 0.5, bits=bits, axis=tokens), quantize_affine(WEIGHT - 0.3, bits=bits, axis=outputs)
    expected = dequantize_affine(left) @ dequantize_affine(right)
    np.testing.assert_allclose(affine_matmul(left, right), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_the_correction_by_the_codes_of_zero_is_exact():
    """With steps of 1 there is nothing to round."""
    left = Affine(RNG.integers(0, 256, size=(3, 7)).astype(np.uint8), np.ones((3, 1)), np.array([[0], [100], [255]], np.int32))
    right = Affine(RNG.integers(0, 256, size=(7, 5)).astype(np.uint8), np.ones((1, 5)), np.array([[0, 1, 128, 254, 255]], np.int32))
    expected = one_by_one(left.codes.astype(int) - left.zero, right.codes.astype(int) - right.zero)
    assert affine_matmul(left, right).tolist() == expected


@pytest.mark.parametrize("forgotten", ["the rows", "the columns", "the product of both"])
def test_each_of_the_three_terms_is_needed(forgotten):
    left, right = quantize_affine(X[0] + 0.5, bits=8, axis=-1), quantize_affine(WEIGHT - 0.3, bits=8)
    p, q = left.codes.astype(int), right.codes.astype(int)
    terms = {
        "the rows": -right.zero * p.sum(axis=1, keepdims=True),
        "the columns": -left.zero * q.sum(axis=0, keepdims=True),
        "the product of both": len(q) * left.zero * right.zero,
    }
    scale, whole = left.step * right.step, p @ q + sum(terms.values())
    np.testing.assert_allclose(affine_matmul(left, right), scale * whole, rtol=1e-14)
    assert np.abs(scale * terms[forgotten]).max() > 0.1 * np.abs(scale * whole).max()


def test_affine_activations_meet_symmetric_weights_whose_code_of_zero_is_0():
    left, right = quantize_affine(np.maximum(X, 0), bits=8, axis=-1), quantize_symmetric(WEIGHT, bits=8)
    expected = dequantize_affine(left) @ dequantize_symmetric(right)
    found = affine_matmul(left, Affine(right.codes, right.step, np.zeros((1, 5), np.int32)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_eight_bits_on_both_sides_err_by_about_a_hundredth():
    """A step is 2 max / 254 and its error step / sqrt(12): of 512 normal numbers about 0.7 %, twice, and the squares add."""
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(64, 512)), rng.normal(size=(512, 64))
    found = symmetric_matmul(quantize_symmetric(x, bits=8, axis=-1), quantize_symmetric(weight, bits=8))
    error = np.linalg.norm(found - x @ weight) / np.linalg.norm(x @ weight)
    assert 0.008 < error < 0.012


def test_a_bias_in_whole_steps_of_the_sum_is_off_by_half_of_one():
    left, right = quantize_symmetric(X, bits=8, axis=None), quantize_symmetric(WEIGHT, bits=8)
    bias = RNG.normal(size=5)
    steps = left.step[0] * right.step
    codes = np.rint(bias / steps).astype(np.int32)
    with_bias = steps * (integer_matmul(left.codes, right.codes) + codes)
    error = np.abs(with_bias - (symmetric_matmul(left, right) + bias))
    assert (error <= steps / 2 + 1e-12).all() and np.abs(codes).max() > 127


def test_float32_steps_give_a_float32_product():
    left, right = quantize_symmetric(X.astype(np.float32), bits=8, axis=-1), quantize_symmetric(WEIGHT.astype(np.float32), bits=8)
    assert symmetric_matmul(left, right).dtype == np.float32
    pair = quantize_affine(X.astype(np.float32), bits=8, axis=-1), quantize_affine(WEIGHT.astype(np.float32), bits=8)
    assert affine_matmul(*pair).dtype == np.float32


def test_a_step_that_changes_within_a_sum_is_refused():
    tokens, columns = quantize_symmetric(X, bits=8, axis=-1), quantize_symmetric(WEIGHT, bits=8)
    with pytest.raises(ValueError, match=r"left\.step: got shape \(1, 1, 40\), wants a last axis of 1"):
        symmetric_matmul(Symmetric(tokens.codes, np.ones((1, 1, 40))), columns)
    with pytest.raises(ValueError, match=r"right\.step: got shape \(40, 1\)"):
        symmetric_matmul(tokens, quantize_symmetric(WEIGHT, bits=8, axis=-1))
    with pytest.raises(ValueError, match=r"right\.step: got shape \(4, 1, 5\)"):
        symmetric_matmul(tokens, quantize_symmetric(in_groups(WEIGHT, size=10), bits=8))
    with pytest.raises(ValueError, match=r"right\.step: got shape \(40, 1\)"):
        affine_matmul(quantize_affine(X, bits=8, axis=-1), quantize_affine(WEIGHT, bits=8, axis=-1))
    with pytest.raises(ValueError, match=r"right\.step: got shape \(1, 4\), wants the 2 axes of codes \(40, 5\)"):
        symmetric_matmul(tokens, Symmetric(columns.codes, np.ones((1, 4))))
    with pytest.raises(ValueError, match=r"left\.step: got shape \(3, 1\), wants the 3 axes of codes"):
        symmetric_matmul(Symmetric(tokens.codes, np.ones((3, 1))), columns)


def test_codes_that_do_not_meet_are_refused():
    for multiply in BOTH:
        with pytest.raises(ValueError, match=r"right: got shape \(6, 5\), wants \(inner, outer\) with inner = 7"):
            multiply(LEFT, RIGHT[:6])
        with pytest.raises(ValueError, match="left: got float64"):
            multiply(LEFT.astype(float), RIGHT)
    with pytest.raises(ValueError, match="right: got shape"):
        symmetric_matmul(quantize_symmetric(X, bits=8, axis=-1), quantize_symmetric(WEIGHT[:30], bits=8))
    with pytest.raises(ValueError, match="right: got shape"):
        affine_matmul(quantize_affine(X, bits=8, axis=-1), quantize_affine(WEIGHT[:30], bits=8))


@pytest.mark.parity
def test_it_is_torch_s_product_of_bytes():
    torch = pytest.importorskip("torch")
    left, right = (np.random.default_rng(2).integers(-128, 128, size=size).astype(np.int8) for size in ((32, 24), (24, 16)))
    theirs = torch._int_mm(torch.tensor(left), torch.tensor(right)).numpy()
    assert theirs.dtype == np.int32
    for multiply in BOTH:
        np.testing.assert_array_equal(multiply(left, right), theirs)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")                        # quantised tensors of torch are deprecated; what they hold is what counts
def test_it_is_the_product_of_torch_s_quantised_tensors():
    torch = pytest.importorskip("torch")
    x, weight = X[0].astype(np.float32), WEIGHT.astype(np.float32)
    left, right = quantize_affine(x, bits=8, axis=None), quantize_affine(weight, bits=8)
    theirs_left = torch.quantize_per_tensor(torch.tensor(x), left.step.item(), left.zero.item(), torch.quint8).dequantize()
    columns = torch.tensor(right.step[0]), torch.tensor(right.zero[0])
    theirs_right = torch.quantize_per_channel(torch.tensor(weight), *columns, 1, torch.quint8).dequantize()
    theirs = (theirs_left.double() @ theirs_right.double()).numpy()
    np.testing.assert_allclose(affine_matmul(left, right), theirs, rtol=0, atol=1e-5)  # float32
