"""Packed codes: the bits of all codes one behind the other, eight to a byte."""

import numpy as np
import pytest

from minitransformers.compression.packed_codes import pack_codes, unpack_codes


def as_text(codes, bits, signed=True):
    """The bytes, by writing every code as a string of zeros and ones."""
    low = 2 ** (bits - 1) if signed else 0
    text = "".join(format(code + low, f"0{bits}b") for code in codes)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def some_codes(bits, count, signed=True, seed=0):
    low = -(2 ** (bits - 1)) if signed else 0
    return np.random.default_rng([seed, bits, count]).integers(low, low + 2**bits, size=count)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_bytes_are_the_codes_written_one_behind_the_other(bits, signed):
    for count in (1, 2, 5, 8, 13):
        codes = some_codes(bits, count, signed)
        packed = pack_codes(codes, bits=bits, signed=signed)
        assert packed.dtype == np.uint8 and packed.tolist() == as_text(codes.tolist(), bits, signed)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_comes_back_in_its_shape(bits, signed):
    low = -(2 ** (bits - 1)) if signed else 0
    every = np.arange(low, low + 2**bits)
    for codes in (every, every[::-1], some_codes(bits, 35, signed).reshape(5, 7), some_codes(bits, 30, signed).reshape(2, 3, 5)):
        restored = unpack_codes(pack_codes(codes, bits=bits, signed=signed), bits=bits, shape=codes.shape, signed=signed)
        np.testing.assert_array_equal(restored, codes)
        assert restored.dtype == (np.int8 if signed else np.uint8) and restored.shape == codes.shape


@pytest.mark.parametrize("bits", range(1, 9))
def test_no_bit_is_wasted_but_in_the_last_byte(bits):
    for count in (1, 7, 8, 9, 64):
        assert pack_codes(some_codes(bits, count), bits=bits).nbytes == -(-bits * count // 8)


def test_two_codes_of_four_bits_are_a_byte_and_eight_of_three_are_three():
    assert pack_codes(np.array([-8, 7], np.int8), bits=4).tolist() == [15]
    assert pack_codes(np.array([7, -8], np.int8), bits=4).tolist() == [240]
    assert pack_codes(np.array([3, -4, -4, -4, -4, -4, -4, -3], np.int8), bits=3).tolist() == [224, 0, 1]


def test_the_short_way_for_four_bits_is_the_long_way():
    for count in (1, 2, 5, 8):
        codes = some_codes(4, count)
        packed = pack_codes(codes, bits=4)
        long = np.unpackbits(packed)[: 4 * count].reshape(count, 4) @ [8, 4, 2, 1] - 8
        np.testing.assert_array_equal(unpack_codes(packed, bits=4, shape=(count,)), long)


def test_whoever_takes_the_lower_half_of_a_byte_first_reads_other_codes():
    codes = np.array([1, 2, 3, -4], np.int8)
    packed = pack_codes(codes, bits=4)
    lower_first = np.stack([packed & 15, packed >> 4], axis=-1).ravel().astype(int) - 8
    assert lower_first.tolist() == [2, 1, -4, 3]
    assert unpack_codes(packed, bits=4, shape=(4,)).tolist() == [1, 2, 3, -4]


def test_the_kind_of_whole_number_does_not_matter():
    codes = np.array([0, 1, 5, 7])
    for dtype in (np.int8, np.uint8, np.int64, np.uint64):
        np.testing.assert_array_equal(pack_codes(codes.astype(dtype), bits=4), pack_codes(codes, bits=4))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="codes: got from 0 to 4, wants from -4 to 3, in 3 bits"):
        pack_codes(np.array([0, 4]), bits=3)
    with pytest.raises(ValueError, match="codes: got from -5 to 0"):
        pack_codes(np.array([0, -5]), bits=3)
    with pytest.raises(ValueError, match="codes: got from -1 to 3, wants from 0 to 7"):
        pack_codes(np.array([3, -1]), bits=3, signed=False)
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"bits: got {bits}"):
            pack_codes(np.array([0]), bits=bits)
        with pytest.raises(ValueError, match=f"bits: got {bits}"):
            unpack_codes(np.zeros(1, np.uint8), bits=bits, shape=(1,))
    packed = pack_codes(some_codes(3, 10), bits=3)
    with pytest.raises(ValueError, match="packed: got 4 of uint8, wants 5 of uint8, for 11 codes of 3 bits"):
        unpack_codes(packed, bits=3, shape=(11,))
    with pytest.raises(ValueError, match="packed: got 4 of int64"):
        unpack_codes(packed.astype(int), bits=3, shape=(10,))
    with pytest.raises(ValueError, match="shape: got"):
        unpack_codes(packed, bits=3, shape=(-5, -2))
    with pytest.raises(ValueError, match="codes"):
        pack_codes(np.array([0.0, 1.0]), bits=3)


@pytest.mark.parity
def test_the_order_in_a_byte_is_that_of_bitsandbytes():
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes").functional
    weight = 0.02 * np.random.default_rng(1).standard_normal((6, 64), np.float32)
    packed, state = functional.quantize_4bit(torch.tensor(weight), blocksize=64, quant_type="nf4")
    codes = unpack_codes(packed.numpy().ravel(), bits=4, shape=(6, 64), signed=False)
    restored = state.code.numpy()[codes] * state.absmax.numpy()[:, None]
    np.testing.assert_allclose(restored, functional.dequantize_4bit(packed, state).numpy(), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(pack_codes(codes, bits=4, signed=False), packed.numpy().ravel())


@pytest.mark.parity
def test_llama_cpp_has_the_first_half_of_a_block_in_the_lower_halves_of_its_bytes():
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q4_0
    weight = np.random.default_rng(2).standard_normal((5, 32), np.float32)
    blocks = gguf.quants.quantize(weight, kind)              # a step of two bytes, and 16 bytes of codes
    step = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    pairs = unpack_codes(np.ascontiguousarray(blocks[:, 2:]).ravel(), bits=4, shape=(5, 16, 2))
    codes = np.concatenate([pairs[..., 1], pairs[..., 0]], axis=1)
    np.testing.assert_allclose(step * codes, gguf.quants.dequantize(blocks, kind), rtol=0, atol=1e-9)
