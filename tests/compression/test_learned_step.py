"""LSQ: the step of a quantiser learns from rounding errors and from what is cut off."""

from functools import partial
from math import sqrt

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import MODELS, PATTERNS, changed, checked, whole_model

from minitransformers import check_gradients, trees
from minitransformers.compression.fake_quantize import change_by
from minitransformers.compression.integer_matmul import symmetric_matmul
from minitransformers.compression.learned_step import Stepped, init_step, learned_step, quantize_learned
from minitransformers.compression.quantize import dequantize_symmetric
from minitransformers.foundation import reparameterize
from minitransformers.peft.targets import at_targets

RNG = np.random.default_rng(0)
WEIGHT, STEP, DOUT = RNG.normal(size=(7, 5)), RNG.uniform(0.2, 0.5, size=(1, 5)), RNG.normal(size=(7, 5))
KINDS = [(bits, signed) for bits in (2, 3, 8) for signed in (True, False)]


def ends(bits, signed):
    """How far codes reach below zero and above it: the paper's Q_N and Q_P."""
    return (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def one_by_one(values, step, dout, bits, signed):
    """The paper's equations 1 to 3 and 5 for each value, and the sums for each column."""
    below, above = ends(bits, signed)
    out, dvalues, dstep = np.zeros_like(values), np.zeros_like(values), np.zeros_like(step)
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            v = values[i, j] / step[0, j]
            code = round(max(-below, min(above, v)))
            out[i, j] = step[0, j] * code
            slope = -below if v <= -below else above if v >= above else code - v
            dvalues[i, j] = dout[i, j] if -below < v < above else 0.0
            dstep[0, j] += dout[i, j] * slope / sqrt(values.shape[0] * above)
    return out, dvalues, dstep


def not_rounded(values, step, bits=3, signed=True, scale=1.0):
    """The function whose gradient it is, for autograd: rounding errors stay as they are at values and step."""
    below, above = ends(bits, signed)
    clipped = np.clip(values / step, -below, above)
    error = np.rint(clipped) - clipped

    def at(new_values, new_step):
        moved = step + scale * (new_step - step)
        return moved * (anp.clip(new_values / moved, -below, above) + error)

    return at


@pytest.mark.parametrize("bits, signed", KINDS)
def test_it_is_the_paper_s_equations_for_each_value(bits, signed):
    step = STEP / 2 ** (bits - 3)
    out, backward = learned_step(WEIGHT, step, bits=bits, signed=signed)
    dvalues, dstep = backward(DOUT)
    for own, expected in zip((out, dvalues, dstep), one_by_one(WEIGHT, step, DOUT, bits, signed), strict=True):
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-10)
    assert 0 < np.count_nonzero(dvalues == 0) < dvalues.size  # some are cut off, some are not


@pytest.mark.parametrize("bits, signed", KINDS)
def test_its_gradients_are_autograd_s_of_the_function_that_does_not_round(bits, signed):
    step = STEP / 2 ** (bits - 3)
    at, scale = not_rounded(WEIGHT, step, bits, signed), 1 / sqrt(7 * ends(bits, signed)[1])
    dvalues, dstep = autograd.grad(lambda *both: anp.sum(DOUT * at(*both)), (0, 1))(WEIGHT, step)
    own = learned_step(WEIGHT, step, bits=bits, signed=signed)[1](DOUT)
    np.testing.assert_allclose(own[0], dvalues, rtol=0, atol=1e-10)
    np.testing.assert_allclose(own[1], scale * dstep, rtol=0, atol=1e-10)


def difference_by_the_step(values, h=1e-6):
    """Of the staircase itself, at a step of 1 with three bits."""
    more, less = (learned_step(values, np.array([[1 + way * h]]), bits=3)[0] for way in (1, -1))
    return (more - less) / (2 * h)


def test_the_true_slope_by_the_step_is_the_code_and_lsq_s_is_the_rounding_error():
    """A difference of the staircase knows nothing of how near a value is to the next code."""
    values, step = np.array([[0.4], [0.6], [1.2], [2.9], [-1.7]]), np.array([[1.0]])  # between -4 and 3, none near a half
    code = np.array([[0.0], [1.0], [1.0], [3.0], [-2.0]])
    np.testing.assert_allclose(difference_by_the_step(values), code, rtol=0, atol=1e-8)  # digits lost by h
    unscaled = sqrt(5 * 3) * learned_step(values, step, bits=3)[1](np.ones((5, 1)))[1].item()
    assert unscaled == pytest.approx((code - values).sum(), abs=1e-12)
    assert unscaled != pytest.approx(code.sum(), abs=1)


def test_what_is_cut_off_has_the_bound_for_a_slope_in_both():
    values = np.array([[3.7], [9.0], [-4.2], [-6.0]])
    np.testing.assert_allclose(difference_by_the_step(values), [[3], [3], [-4], [-4]], rtol=0, atol=1e-8)  # digits lost by h
    for i, bound in enumerate((3, 3, -4, -4)):
        dvalues, dstep = learned_step(values, np.array([[1.0]]), bits=3)[1](np.eye(4)[:, i : i + 1])
        assert dstep.item() == pytest.approx(bound / sqrt(4 * 3)) and not dvalues.any()


@pytest.mark.parametrize("bits, signed", KINDS)
def test_the_gradient_scale_is_an_exact_factor(bits, signed):
    """One over the root of N P, and nothing else of N: of a weight that is repeated the sum doubles and its root divides."""
    above = ends(bits, signed)[1]
    for values, step, count in (
        (WEIGHT, STEP, 7),
        (WEIGHT, STEP[:, :1], 35),
        (WEIGHT, np.repeat(STEP[:, :1], 7, axis=0), 5),
        (WEIGHT, np.broadcast_to(STEP, (7, 5)).copy(), 1),
    ):
        _, backward = learned_step(values, step, bits=bits, signed=signed)
        slope = autograd.elementwise_grad(not_rounded(values, np.broadcast_to(step, (7, 5)), bits, signed), 1)(
            values, np.broadcast_to(step, (7, 5)).copy()
        )
        shared = tuple(axis for axis in (0, 1) if step.shape[axis] == 1)
        expected = (DOUT * slope).sum(axis=shared, keepdims=True) / sqrt(count * above)
        np.testing.assert_allclose(backward(DOUT)[1], expected, rtol=0, atol=1e-12)
    once, twice = (learned_step(np.tile(WEIGHT, (n, 1)), STEP, bits=bits, signed=signed)[1](np.tile(DOUT, (n, 1)))[1] for n in (1, 2))
    np.testing.assert_allclose(twice, sqrt(2) * once, rtol=1e-12)


def test_values_on_the_grid_pass_through_and_leave_the_step_alone():
    codes = RNG.integers(-3, 3, size=(7, 5))                 # inside, not at -4 and 3
    out, backward = learned_step(STEP * codes, STEP, bits=3)
    np.testing.assert_array_equal(out, STEP * codes)
    dvalues, dstep = backward(DOUT)
    np.testing.assert_array_equal(dvalues, DOUT)
    np.testing.assert_allclose(dstep, 0, atol=1e-14)


@pytest.mark.parametrize("bits, signed", KINDS)
def test_what_is_quantised_is_quantised_to_itself(bits, signed):
    out = learned_step(WEIGHT, STEP, bits=bits, signed=signed)[0]
    np.testing.assert_array_equal(learned_step(out, STEP, bits=bits, signed=signed)[0], out)


def test_with_many_bits_it_is_the_identity():
    step = np.full((1, 5), 2e-4)
    out, backward = learned_step(WEIGHT, step, bits=16)
    assert np.abs(out - WEIGHT).max() <= 1e-4 + 1e-12
    np.testing.assert_array_equal(backward(DOUT)[0], DOUT)


def test_at_the_very_ends_a_value_counts_as_cut_off():
    values = np.array([[3.0], [-4.0], [2.999], [-3.999]])
    out, backward = learned_step(values, np.ones((1, 1)), bits=3)
    dvalues, _ = backward(np.ones((4, 1)))
    assert dvalues.ravel().tolist() == [0, 0, 1, 1] and out.ravel().tolist() == [3, -4, 3, -4]
    for i, slope in enumerate((3, -4)):
        assert backward(np.eye(4)[:, i : i + 1])[1].item() == pytest.approx(slope / sqrt(12))


def test_codes_reach_one_further_below_zero_and_unsigned_ones_start_at_it():
    values = np.array([[-99.0], [99.0], [0.2]])
    assert learned_step(values, np.ones((1, 1)), bits=4)[0].ravel().tolist() == [-8, 7, 0]
    assert learned_step(values, np.ones((1, 1)), bits=4, signed=False)[0].ravel().tolist() == [0, 15, 0]


def test_of_a_squared_error_rounding_makes_the_step_smaller_and_cutting_off_makes_it_larger():
    for seed in range(10):
        values = np.random.default_rng(seed).normal(size=(30, 1))
        out, backward = learned_step(values, np.array([[0.4]]), bits=3)
        dout, cut = 2 * (out - values), (values > 1.2) | (values < -1.6)
        assert backward(dout * ~cut)[1].item() > 0           # a descent goes against it
        assert backward(dout * cut)[1].item() < 0


@pytest.mark.parametrize("start", [0.02, 0.1, 1.0])
def test_descending_finds_a_better_step_from_below_and_from_above(start):
    values, step = np.random.default_rng(1).normal(size=(200, 1)), np.array([[start]])
    first = np.mean((learned_step(values, step, bits=3)[0] - values) ** 2)
    for _ in range(200):
        out, backward = learned_step(values, step, bits=3)
        step = np.maximum(step - 0.01 * backward(2 * (out - values))[1], 1e-3)  # never to 0
    assert np.mean((learned_step(values, step, bits=3)[0] - values) ** 2) < 0.8 * first
    assert 0.3 < step.item() < 0.8                           # both directions end near one place


def test_the_first_step_is_twice_the_mean_magnitude_over_the_root_of_the_largest_code():
    for bits, signed in KINDS:
        above = ends(bits, signed)[1]
        found = init_step(WEIGHT, bits=bits, axis=-2, signed=signed)
        for j in range(5):
            assert found[0, j] == pytest.approx(2 * sum(abs(v) for v in WEIGHT[:, j]) / 7 / sqrt(above), rel=1e-12)
        assert init_step(WEIGHT, bits=bits, signed=signed).item() == pytest.approx(2 * np.abs(WEIGHT).mean() / sqrt(above))
    assert init_step(WEIGHT, bits=3).shape == (1, 1)
    narrow = init_step(np.zeros((3, 2), np.float32), bits=3, axis=-2)
    assert narrow.dtype == np.float32 and narrow.tolist() == [[1, 1]]


@pytest.mark.parametrize("bits, signed", [*KINDS, (16, True), (16, False)])
def test_after_training_codes_and_steps_are_what_the_model_ran_on(bits, signed):
    stored = quantize_learned(WEIGHT, STEP, bits=bits, signed=signed)
    np.testing.assert_array_equal(dequantize_symmetric(stored), learned_step(WEIGHT, STEP, bits=bits, signed=signed)[0])
    extreme = quantize_learned(1e9 * WEIGHT, STEP, bits=bits, signed=signed).codes
    below, above = ends(bits, signed)
    assert extreme.min() == -below and extreme.max() == above
    assert extreme.dtype.itemsize == (1 if bits <= 8 else 2) and extreme.dtype.kind == ("i" if signed else "u")


def test_a_linear_map_of_learned_codes_is_a_product_of_whole_numbers():
    x, weight, step = RNG.normal(size=(3, 7)), WEIGHT, np.array([[0.05]])
    left, right = quantize_learned(x, step, bits=8), quantize_learned(weight, STEP / 10, bits=8)
    expected = learned_step(x, step, bits=8)[0] @ learned_step(weight, STEP / 10, bits=8)[0]
    np.testing.assert_allclose(symmetric_matmul(left, right), expected, rtol=0, atol=1e-12)


def quantized_linear(x, x_step, weight, weight_step):
    """Activations with one step and weights with one a column: the product's rules, then LSQ's."""
    a, a_backward = learned_step(x, x_step, bits=4)
    w, w_backward = learned_step(weight, weight_step, bits=3)
    return a @ w, lambda dout: (*a_backward(dout @ w.T), *w_backward(a.T @ dout))


def test_the_gradients_of_a_quantised_linear_map():
    def at(x, x_step, weight, weight_step):
        left = not_rounded(x, x_step, 4, scale=1 / sqrt(x.size * 7))
        right = not_rounded(weight, weight_step, 3, scale=1 / sqrt(len(weight) * 3))
        return lambda a, sa, w, sw: anp.dot(left(a, sa), right(w, sw))

    report = check_gradients(quantized_linear, RNG.normal(size=(4, 7)), np.array([[0.21]]), WEIGHT, STEP, gradient_of=at)
    assert report.passed, str(report)


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_weights_and_steps_of_a_model_whose_code_is_not_touched(name):
    base, run = whole_model(name)
    patterns, count = PATTERNS[name]
    trained = at_targets(lambda leaf: Stepped(leaf, init_step(leaf, bits=3, axis=-2)), base, patterns)
    assert len(list(trees.leaves(trained))) == 2 * count
    model = changed(run, base, change_by(partial(learned_step, bits=3)))

    def frozen_rounding(trained):
        frozen = []

        def keep(own, *, base):
            frozen.append(not_rounded(*own, scale=1 / sqrt(len(own.weight) * 3)))
            return base, None

        reparameterize(trained, base=base, change=keep)

        def at(new):
            each = iter(frozen)
            return run(reparameterize(new, base=base, change=lambda own, *, base: (next(each)(*own), None))[0])[0]

        return at

    report = checked(model, trained, gradient_of=frozen_rounding)
    assert report.passed, str(report)


MISTAKES = ["the staircase's own slope", "no scale", "nothing of what is cut off", "all columns in one", "a gradient beyond the ends"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_checker_refuses_a_backward_with_a_mistake(mistake):
    def wrong(values, step):
        out, backward = learned_step(values, step, bits=3)
        v, scale = values / step, 1 / sqrt(7 * 3)
        code, inside = np.rint(np.clip(v, -4, 3)), (v > -4) & (v < 3)

        def back(dout):
            dvalues, dstep = backward(dout)

            def column(slope):
                return scale * np.sum(dout * slope, axis=0, keepdims=True)

            return {
                "the staircase's own slope": (dvalues, column(code)),
                "no scale": (dvalues, dstep / scale),
                "nothing of what is cut off": (dvalues, column(np.where(inside, code - v, 0))),
                "all columns in one": (dvalues, np.full_like(dstep, dstep.sum())),
                "a gradient beyond the ends": (dout, dstep),
            }[mistake]

        return out, back

    at = partial(not_rounded, scale=1 / sqrt(7 * 3))
    assert check_gradients(partial(learned_step, bits=3), WEIGHT, STEP, gradient_of=at).passed
    assert not check_gradients(wrong, WEIGHT, STEP, gradient_of=at).passed


def test_bad_calls_are_refused():
    for call in (learned_step, quantize_learned):
        for bits in (1, 17):
            with pytest.raises(ValueError, match=f"bits: got {bits}"):
                call(WEIGHT, STEP, bits=bits)
        for step in (np.zeros((1, 5)), -STEP, np.full((1, 5), np.nan)):
            with pytest.raises(ValueError, match="step: got"):
                call(WEIGHT, step, bits=3)
        for step in (np.ones(5), np.ones((2, 5)), np.ones((1, 4))):
            with pytest.raises(ValueError, match=r"step: got shape .*, wants the 2 axes of codes \(7, 5\)"):
                call(WEIGHT, step, bits=3)
        with pytest.raises(ValueError, match="values"):
            call(np.full((2, 2), np.inf), np.ones((1, 2)), bits=3)
    with pytest.raises(ValueError, match="axis: got 2"):
        init_step(WEIGHT, bits=3, axis=2)
    with pytest.raises(ValueError, match="bits: got 1"):
        init_step(WEIGHT, bits=1)


@pytest.mark.parity
@pytest.mark.parametrize("bits, signed", KINDS)
def test_the_gradients_are_those_of_lsq_written_in_torch(bits, signed):
    """As its implementations do it: a gradient is scaled, and rounding passed over, by what is detached."""
    torch = pytest.importorskip("torch")
    below, above = ends(bits, signed)
    values, step = torch.tensor(WEIGHT, requires_grad=True), torch.tensor(STEP, requires_grad=True)
    scaled = (step - step / sqrt(7 * above)).detach() + step / sqrt(7 * above)
    code = torch.clamp(values / scaled, -below, above)
    theirs = ((torch.round(code) - code).detach() + code) * scaled
    theirs.backward(torch.tensor(DOUT))
    out, backward = learned_step(WEIGHT, STEP, bits=bits, signed=signed)
    dvalues, dstep = backward(DOUT)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(dvalues, values.grad.numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(dstep, step.grad.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parity
def test_the_gradients_are_those_of_torch_s_learnable_fake_quantisation():
    torch = pytest.importorskip("torch")
    weight, step, dout = (array.astype(np.float32) for array in (WEIGHT, STEP, DOUT))
    beyond = (weight / step > 3) & (weight / step < 3.5) | (weight / step < -4) & (weight / step > -4.5)
    weight[beyond] = 0.1                                     # for half a step more torch counts as inside
    values, scale = torch.tensor(weight, requires_grad=True), torch.tensor(step[0], requires_grad=True)
    theirs = torch._fake_quantize_learnable_per_channel_affine(values, scale, torch.zeros(5), 1, -4, 3, 1 / sqrt(7 * 3))
    theirs.backward(torch.tensor(dout))
    out, backward = learned_step(weight, step, bits=3)
    dvalues, dstep = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-6)  # float32
    np.testing.assert_array_equal(dvalues, values.grad.numpy())
    np.testing.assert_allclose(dstep[0], scale.grad.numpy(), rtol=0, atol=1e-6)  # float32
