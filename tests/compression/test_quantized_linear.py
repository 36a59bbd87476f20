"""A weight that is kept as codes: the map is that of the restored weight, and so is the gradient of x."""

import tracemalloc
from functools import partial
from typing import Any, NamedTuple

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.basics.linear import Linear, linear
from minitransformers.compression.packed_codes import pack_codes, unpack_codes
from minitransformers.compression.quantize import (
    Symmetric,
    dequantize_affine,
    dequantize_symmetric,
    in_groups,
    quantize_affine,
    quantize_symmetric,
)
from minitransformers.compression.quantized_linear import quantized_linear
from minitransformers.peft.lora_linear import Lora
from minitransformers.peft.nf4 import dequantize_double_nf4, dequantize_nf4, quantize_double_nf4, quantize_nf4
from minitransformers.peft.qlora_linear import QuantizedLinear, qlora_linear

RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.normal(size=(6, 4)), RNG.normal(size=4)
X, DOUT = RNG.normal(size=(2, 3, 6)), RNG.normal(size=(2, 3, 4))


class Packed(NamedTuple):
    """Codes of four bits, two a byte, and their steps, of which there are as many columns."""

    codes: Any
    step: Any


def packed(weight):
    stored = quantize_symmetric(weight, bits=4)
    return Packed(pack_codes(stored.codes, bits=4), stored.step)


def unpacked(stored, shape=(6, 4)):
    return dequantize_symmetric(Symmetric(unpack_codes(stored.codes, bits=4, shape=shape), stored.step))


# How a weight is stored, and how it is restored.
WAYS = {
    "columns": (partial(quantize_symmetric, bits=4), dequantize_symmetric),
    "one step": (partial(quantize_symmetric, bits=8, axis=None), dequantize_symmetric),
    "groups": (lambda weight: quantize_symmetric(in_groups(weight, size=3), bits=4), dequantize_symmetric),
    "affine groups": (lambda weight: quantize_affine(in_groups(weight, size=2), bits=3), dequantize_affine),
    "packed": (packed, unpacked),
    "NF4": (partial(quantize_nf4, block=8), dequantize_nf4),
    "NF4 twice": (partial(quantize_double_nf4, block=8), dequantize_double_nf4),
    "outputs first": (lambda weight: quantize_symmetric(weight.T, bits=4, axis=-1), lambda stored: dequantize_symmetric(stored).T),
}


def rounded_in_groups(size, bits):
    """Each weight of WEIGHT, rounded to the steps of its own group of rows and its own column."""
    most, out = 2 ** (bits - 1) - 1, np.empty_like(WEIGHT)
    for i in range(len(WEIGHT)):
        for j in range(WEIGHT.shape[1]):
            first = i - i % size
            step = max(abs(w) for w in WEIGHT[first : first + size, j]) / most
            out[i, j] = step * round(WEIGHT[i, j] / step)
    return out


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("bias", [BIAS, None])
def test_it_is_the_textbook_map_of_each_rounded_weight_and_its_gradient_is_autograd_s(size, bias):
    base = QuantizedLinear(quantize_symmetric(in_groups(WEIGHT, size=size), bits=4), bias)
    weight, added = rounded_in_groups(size, 4), np.zeros(4) if bias is None else bias

    def textbook(x):
        return anp.stack([anp.sum(x * weight[:, j], axis=-1) + added[j] for j in range(4)], axis=-1)

    out, backward = quantized_linear(X, base=base)
    np.testing.assert_allclose(out, textbook(X), rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(DOUT), autograd.grad(lambda x: anp.sum(DOUT * textbook(x)))(X), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_however_it_is_stored_it_is_linear_with_the_restored_weight_to_the_last_bit(name, dtype):
    store, restore = WAYS[name]
    stored, x, bias, dout = store(WEIGHT.astype(dtype)), X.astype(dtype), BIAS.astype(dtype), DOUT.astype(dtype)
    out, backward = quantized_linear(x, base=QuantizedLinear(stored, bias), dequantize=restore)
    plain, plain_backward = linear(Linear(restore(stored).reshape(6, 4), bias), x)
    np.testing.assert_array_equal(out, plain)
    np.testing.assert_array_equal(backward(dout), plain_backward(dout)[1])
    assert out.dtype == backward(dout).dtype == dtype


@pytest.mark.parametrize("name", WAYS)
def test_it_is_qlora_with_thin_matrices_of_zeros(name):
    store, restore = WAYS[name]
    base = QuantizedLinear(store(WEIGHT), BIAS)
    out, backward = quantized_linear(X, base=base, dequantize=restore)
    zero = Lora(np.zeros((6, 2)), np.zeros((2, 4)))
    other, other_backward = qlora_linear(zero, X, base=base, scale=1.0, dequantize=lambda stored: restore(stored).reshape(6, 4))
    np.testing.assert_array_equal(out, other)
    np.testing.assert_array_equal(backward(DOUT), other_backward(DOUT)[1])


@pytest.mark.parametrize("name", WAYS)
def test_the_gradient_of_x_is_right_however_the_weight_is_stored(name):
    store, restore = WAYS[name]
    report = check_gradients(quantized_linear, X, base=QuantizedLinear(store(WEIGHT), BIAS), dequantize=restore)
    assert report.passed and report.error < 1e-10, str(report)


def test_a_single_position_needs_no_leading_axis():
    base = QuantizedLinear(quantize_symmetric(WEIGHT, bits=4), BIAS)
    out, backward = quantized_linear(X[1, 2], base=base)
    np.testing.assert_allclose(out, quantized_linear(X, base=base)[0][1, 2], rtol=0, atol=1e-14)
    assert backward(DOUT[1, 2]).shape == (6,)


def test_four_bits_in_groups_of_32_take_a_seventh_of_the_bytes_of_floats():
    weight = np.random.default_rng(1).standard_normal((256, 64), np.float32)
    stored = quantize_symmetric(in_groups(weight, size=32), bits=4)
    codes = pack_codes(stored.codes, bits=4)
    assert codes.nbytes + stored.step.nbytes == weight.size // 2 + 4 * (256 // 32) * 64 == weight.size * (4 + 32 / 32) / 8
    x = np.random.default_rng(2).standard_normal((3, 256), np.float32)
    out = quantized_linear(x, base=QuantizedLinear(Packed(codes, stored.step), None), dequantize=partial(unpacked, shape=(8, 32, 64)))[0]
    np.testing.assert_array_equal(out, quantized_linear(x, base=QuantizedLinear(stored, None))[0])


def test_the_restored_weight_is_not_kept():
    rng = np.random.default_rng(3)
    weight, x = rng.standard_normal((512, 512), np.float32), rng.standard_normal((3, 512), np.float32)
    base = QuantizedLinear(quantize_symmetric(in_groups(weight, size=64), bits=4), None)
    quantized_linear(x, base=base)[1](x)                     # imports and tables, once
    tracemalloc.start()
    try:
        out, backward = quantized_linear(x, base=base)
        after_forward = tracemalloc.get_traced_memory()[0]
        dx = backward(out)
        after_backward, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert dx.shape == x.shape and peak > weight.nbytes      # it was there
    assert after_forward < weight.nbytes / 8 and after_backward < weight.nbytes / 8


def test_training_through_it_leaves_codes_and_steps_as_they_are():
    stored = Symmetric(*(part.copy() for part in quantize_symmetric(WEIGHT, bits=4)))
    for part in stored:
        part.flags.writeable = False
    before = [part.copy() for part in stored]
    x, losses = X, []
    for _ in range(40):                                      # inputs are trained, to make the outputs zero
        out, backward = quantized_linear(x, base=QuantizedLinear(stored, BIAS))
        losses.append(np.sum(out**2))
        x = x - 0.02 * backward(out)
    assert losses[-1] < 0.1 * losses[0]
    for part, own in zip(stored, before, strict=True):
        np.testing.assert_array_equal(part, own)


@pytest.mark.parametrize("mistake", ["the float weight", "groups side by side", "codes without steps", "the transpose forgotten"])
def test_the_checker_refuses_a_backward_through_another_weight(mistake):
    weight = WEIGHT @ WEIGHT.T                               # square: a forgotten transpose has the right shape
    stored = quantize_symmetric(in_groups(weight, size=2), bits=4)
    restored = dequantize_symmetric(stored)
    through = {
        "the float weight": weight.T,
        "groups side by side": restored.transpose(1, 0, 2).reshape(6, 6).T,
        "codes without steps": (stored.codes * 1.0).reshape(6, 6).T,
        "the transpose forgotten": restored.reshape(6, 6),
    }[mistake]

    def wrong(x):
        return quantized_linear(x, base=QuantizedLinear(stored, None))[0], lambda dout: dout @ through

    assert not check_gradients(wrong, X).passed


def test_what_does_not_fit_is_refused():
    base = QuantizedLinear(quantize_symmetric(WEIGHT, bits=4), BIAS)
    with pytest.raises(ValueError, match=r"base\.weight: got float64 of shape \(4, 6\), wants float64 of shape \(6, 4\)"):
        quantized_linear(X, base=base._replace(weight=quantize_symmetric(WEIGHT.T, bits=4)))
    with pytest.raises(ValueError, match=r"base\.weight: got float64 of shape \(6, 4\), wants float64 of shape \(6, 3\)"):
        quantized_linear(X, base=base._replace(bias=np.ones(3)))
    with pytest.raises(ValueError, match=r"base\.weight: got float32 of"):
        quantized_linear(X, base=base, dequantize=lambda stored: dequantize_symmetric(stored).astype(np.float32))
    with pytest.raises(ValueError, match=r"base\.weight: got float64 of shape \(24,\)"):
        quantized_linear(X, base=base, dequantize=lambda stored: dequantize_symmetric(stored).ravel())
