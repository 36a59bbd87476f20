"""LoRA beside a weight in four bits: what is stored never moves, and the gradient of x goes through what is restored."""

import tracemalloc
from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients
from minitransformers.basics.dropout import dropout
from minitransformers.basics.linear import Linear, linear
from minitransformers.peft.lora_linear import Lora, init_lora, lora_linear
from minitransformers.peft.nf4 import Nf4Weight, dequantize_double_nf4, dequantize_nf4, quantize_double_nf4, quantize_nf4
from minitransformers.peft.qlora_linear import QuantizedLinear, qlora_linear

LEVELS = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip
RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.normal(size=(6, 4)), RNG.normal(size=4)
BASE = QuantizedLinear(quantize_nf4(WEIGHT, block=8), BIAS)
FACTORS = Lora(RNG.normal(size=(6, 2)), RNG.normal(size=(2, 4)))
X, DOUT = RNG.normal(size=(2, 3, 6)), RNG.normal(size=(2, 3, 4))


def rounded(weight, block):
    """The nearest of the published levels for each weight, times the largest of its block."""
    flat = []
    for start in range(0, weight.size, block):
        part = weight.ravel()[start : start + block]
        largest = max(abs(part))
        flat += [largest * min(LEVELS, key=lambda level: abs(level * largest - w)) for w in part]
    return np.reshape(flat, weight.shape)


def textbook(down, up, x, bias, keep):
    return x @ rounded(WEIGHT, 8) + bias + 0.7 * anp.dot(anp.dot(keep * x, down), up)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("bias", [BIAS, None])
def test_it_is_the_textbook_sum_and_its_gradients_are_autograd_s(rate, bias):
    drop = partial(dropout, rate=rate, rng=np.random.default_rng(5))
    keep = dropout(np.ones_like(X), rate=rate, rng=np.random.default_rng(5))[0]
    out, backward = qlora_linear(FACTORS, X, base=BASE._replace(bias=bias), scale=0.7, drop=drop)
    expected = partial(textbook, bias=np.zeros(4) if bias is None else bias, keep=keep)
    np.testing.assert_allclose(out, expected(*FACTORS, X), rtol=0, atol=1e-10)
    (ddown, dup), dx = backward(DOUT)
    theirs = autograd.grad(lambda *args: anp.sum(DOUT * expected(*args)), (0, 1, 2))(*FACTORS, X)
    for own, their in zip((ddown, dup, dx), theirs, strict=True):
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_at_the_start_it_is_the_rounded_map_to_the_last_bit_and_not_the_exact_one(dtype):
    stored, x = quantize_nf4(WEIGHT.astype(dtype), block=8), X.astype(dtype)
    params, bias = init_lora(np.random.default_rng(1), 6, 4, rank=3, dtype=dtype), BIAS.astype(dtype)
    out = qlora_linear(params, x, base=QuantizedLinear(stored, bias), scale=0.7)[0]
    np.testing.assert_array_equal(out, linear(Linear(dequantize_nf4(stored), bias), x)[0])
    exact = linear(Linear(WEIGHT.astype(dtype), bias), x)[0]
    assert 0.01 < np.linalg.norm(out - exact) / np.linalg.norm(exact) < 0.2
    assert out.dtype == dtype


def test_normal_weights_lose_about_a_tenth_of_what_they_make_of_x():
    rng = np.random.default_rng(2)
    weight, x = rng.normal(size=(256, 128)), rng.normal(size=(64, 256))
    base = QuantizedLinear(quantize_nf4(weight), None)
    out = qlora_linear(init_lora(rng, 256, 128, rank=1, dtype=np.float64), x, base=base, scale=1.0)[0]
    assert np.linalg.norm(out - x @ weight) / np.linalg.norm(x @ weight) == pytest.approx(0.00846**0.5, rel=0.05)


def test_it_is_lora_on_the_restored_weight():
    out, backward = qlora_linear(FACTORS, X, base=BASE, scale=0.7)
    other, other_backward = lora_linear(FACTORS, X, base=Linear(dequantize_nf4(BASE.weight), BIAS), scale=0.7)
    np.testing.assert_array_equal(out, other)
    for own, their in zip((*backward(DOUT)[0], backward(DOUT)[1]), (*other_backward(DOUT)[0], other_backward(DOUT)[1]), strict=True):
        np.testing.assert_array_equal(own, their)


def test_training_lowers_the_loss_and_leaves_codes_and_scales_as_they_are():
    stored = Nf4Weight(*(part.copy() for part in BASE.weight))
    for part in stored:
        part.flags.writeable = False
    params, losses = FACTORS, []
    for _ in range(50):
        out, backward = qlora_linear(params, X, base=QuantizedLinear(stored, BIAS), scale=0.7)
        losses.append(np.sum((out - X @ WEIGHT - BIAS) ** 2))
        (ddown, dup), _ = backward(out - X @ WEIGHT - BIAS)
        params = Lora(params.down - 0.01 * ddown, params.up - 0.01 * dup)
    assert losses[-1] < 0.5 * losses[0]
    for part, before in zip(stored, BASE.weight, strict=True):
        np.testing.assert_array_equal(part, before)


def test_other_ways_to_store_a_weight_fit_into_the_slot():
    double = QuantizedLinear(quantize_double_nf4(WEIGHT, block=8), BIAS)
    assert check_gradients(qlora_linear, FACTORS, X, base=double, scale=0.7, dequantize=dequantize_double_nf4).passed
    plain, plain_backward = lora_linear(FACTORS, X, base=Linear(WEIGHT, BIAS), scale=0.7)
    out, backward = qlora_linear(FACTORS, X, base=QuantizedLinear(WEIGHT, BIAS), scale=0.7, dequantize=lambda weight: weight)
    np.testing.assert_array_equal(out, plain)
    np.testing.assert_array_equal(backward(DOUT)[1], plain_backward(DOUT)[1])


def test_the_restored_weight_is_not_kept():
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((512, 512), np.float32)
    base, params = QuantizedLinear(quantize_nf4(weight), None), init_lora(rng, 512, 512, rank=2)
    x = rng.standard_normal((3, 512), np.float32)
    qlora_linear(params, x, base=base, scale=1.0)[1](x)      # fills the table that is made once
    tracemalloc.start()
    try:
        out, backward = qlora_linear(params, x, base=base, scale=1.0)
        after_forward = tracemalloc.get_traced_memory()[0]
        gradients = backward(out)
        after_backward = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(gradients) == 2
    assert after_forward < weight.nbytes / 8 and after_backward < weight.nbytes / 8


@pytest.mark.parametrize("forgotten", ["the scale", "that the weight was rounded", "the way through the thin matrices"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(params, x):
        out, backward = qlora_linear(params, x, base=BASE, scale=0.7)

        def careless(dout):
            (ddown, dup), dx = backward(dout)
            if forgotten == "the scale":
                return Lora(ddown / 0.7, dup), dx
            if forgotten == "that the weight was rounded":
                return Lora(ddown, dup), dx + dout @ (WEIGHT - dequantize_nf4(BASE.weight)).T
            return Lora(ddown, dup), dout @ dequantize_nf4(BASE.weight).T

        return out, careless

    assert not check_gradients(wrong, FACTORS, X).passed


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="rank: got 6, wants 1 to 4"):
        qlora_linear(Lora(np.ones((6, 6)), np.ones((6, 4))), X, base=BASE, scale=1.0)
    with pytest.raises(ValueError, match=r"base\.weight: got float64 of shape \(4, 6\), wants float64 of shape \(6, 4\)"):
        qlora_linear(FACTORS, X, base=BASE._replace(weight=quantize_nf4(WEIGHT.T, block=8)), scale=1.0)
    with pytest.raises(ValueError, match=r"base\.weight: got float32 of"):
        qlora_linear(FACTORS, X, base=BASE, scale=1.0, dequantize=lambda weight: dequantize_nf4(weight).astype(np.float32))
    with pytest.raises(ValueError, match=r"base\.weight\.scales"):
        qlora_linear(FACTORS, X, base=BASE._replace(weight=BASE.weight._replace(scales=np.ones(3, np.float32))), scale=1.0)


@pytest.mark.parity
def test_it_is_lora_on_what_bitsandbytes_restores():
    """Its weights lie as (outputs, inputs): restoring is then restoring and turning."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes").functional
    rng = np.random.default_rng(7)
    weight, x, dout = (rng.standard_normal(shape, np.float32) for shape in ((32, 64), (5, 64), (5, 32)))
    params = Lora(rng.standard_normal((64, 3), np.float32), rng.standard_normal((3, 32), np.float32))
    codes, state = functional.quantize_4bit(torch.tensor(weight), blocksize=64, quant_type="nf4")
    down, up, inputs = (torch.tensor(a, requires_grad=True) for a in (*params, x))
    theirs = inputs @ functional.dequantize_4bit(codes, state).T + 0.7 * (inputs @ down) @ up
    theirs.backward(torch.tensor(dout))
    stored = Nf4Weight(codes.numpy().reshape(32, 32), state.absmax.numpy())
    out, backward = qlora_linear(params, x, base=QuantizedLinear(stored, None), scale=0.7, dequantize=lambda w: dequantize_nf4(w).T)
    (ddown, dup), dx = backward(dout)
    pairs = zip((out, ddown, dup, dx), (theirs.detach(), down.grad, up.grad, inputs.grad), strict=True)
    for own, their in pairs:
        np.testing.assert_allclose(own, their, rtol=1e-5, atol=1e-4)
