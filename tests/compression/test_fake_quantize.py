"""Fake quantisation: rounded forward, straight through backward, and nothing for what was cut off."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import MODELS, PATTERNS, changed, checked, whole_model

from minitransformers import check_gradients, trees
from minitransformers.compression.calibration import least_error_magnitude, percentile_magnitude
from minitransformers.compression.fake_quantize import Latent, change_by, fake_quantize
from minitransformers.compression.learned_step import Stepped
from minitransformers.compression.quantize import dequantize_symmetric, in_groups, largest_magnitude, quantize_symmetric
from minitransformers.foundation import reparameterize
from minitransformers.peft.targets import at_targets

RNG = np.random.default_rng(0)
WEIGHT, DOUT = RNG.normal(size=(7, 5)), RNG.normal(size=(7, 5))
BOUND = np.array([[0.3, 0.5, 0.8, 1.0, 5.0]])


def fixed(values, *, axis, bits):
    return BOUND


def one_by_one(weight, bits, bounds, at):
    """Column by column for autograd: ``at`` says where the rounding errors, which stay as they are, come from."""
    most, columns = 2 ** (bits - 1) - 1, []
    for j, bound in enumerate(bounds):
        column = []
        for i in range(weight.shape[0]):
            step, w = bound / most, at[i, j]
            if abs(w) > bound:
                column.append(0 * weight[i, j] + np.sign(w) * bound)
            else:
                column.append(weight[i, j] + (step * round(w / step) - w))
        columns.append(anp.stack(column))
    return anp.stack(columns, axis=1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("clip", [largest_magnitude, fixed])
def test_it_rounds_one_value_after_the_other_and_its_gradient_is_that_of_the_values_not_rounded(clip, bits):
    bounds = clip(WEIGHT, axis=-2, bits=bits)[0]
    out, backward = fake_quantize(WEIGHT, bits=bits, clip=clip)
    np.testing.assert_allclose(out, one_by_one(WEIGHT, bits, bounds, WEIGHT), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda weight: anp.sum(DOUT * one_by_one(weight, bits, bounds, WEIGHT)))(WEIGHT)
    np.testing.assert_allclose(backward(DOUT), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("axis", [-2, -1, None])
def test_what_comes_out_is_what_the_codes_restore(axis):
    for clip in (largest_magnitude, percentile_magnitude, partial(least_error_magnitude, candidates=10)):
        out = fake_quantize(WEIGHT, bits=3, axis=axis, clip=clip)[0]
        np.testing.assert_array_equal(out, dequantize_symmetric(quantize_symmetric(WEIGHT, bits=3, axis=axis, clip=clip)))
    grouped = fake_quantize(in_groups(WEIGHT[:6], size=2), bits=3)[0].reshape(6, 5)
    np.testing.assert_array_equal(grouped[:2], fake_quantize(WEIGHT[:2], bits=3)[0])


def test_with_nothing_cut_off_the_gradient_goes_through_as_it_is():
    np.testing.assert_array_equal(fake_quantize(WEIGHT, bits=2)[1](DOUT), DOUT)


def test_what_is_cut_off_gets_no_gradient():
    gradient = fake_quantize(WEIGHT, bits=4, clip=fixed)[1](DOUT)
    cut = np.abs(WEIGHT) > BOUND
    assert 0 < cut.sum() < cut.size
    np.testing.assert_array_equal(gradient[cut], 0)
    np.testing.assert_array_equal(gradient[~cut], DOUT[~cut])


def test_the_largest_weight_of_each_column_can_learn_though_it_is_at_the_bound():
    place = np.abs(WEIGHT).argmax(axis=0)
    gradient = fake_quantize(WEIGHT, bits=4)[1](DOUT)
    np.testing.assert_array_equal(gradient[place, np.arange(5)], DOUT[place, np.arange(5)])
    strictly_inside = np.abs(WEIGHT) < np.abs(WEIGHT).max(axis=0)
    assert not strictly_inside[place, np.arange(5)].any()


def test_the_true_slope_is_zero_almost_everywhere():
    """So a difference of the staircase says nothing, and a check against it must fail."""
    moved = fake_quantize(WEIGHT + 1e-6, bits=4, clip=fixed)[0] - fake_quantize(WEIGHT - 1e-6, bits=4, clip=fixed)[0]
    np.testing.assert_array_equal(moved, 0)
    assert not check_gradients(partial(fake_quantize, bits=4, clip=fixed), WEIGHT).passed


def test_what_is_quantised_is_quantised_to_itself():
    out = fake_quantize(WEIGHT, bits=3)[0]
    np.testing.assert_allclose(fake_quantize(out, bits=3)[0], out, rtol=0, atol=1e-15)


def test_values_on_the_grid_pass_through():
    grid = 0.25 * np.concatenate([np.full((1, 5), 7.0), RNG.integers(-7, 8, size=(6, 5))])
    np.testing.assert_array_equal(fake_quantize(grid, bits=4)[0], grid)


def test_with_many_bits_it_is_the_identity():
    steps = np.abs(WEIGHT).max(axis=0) / (2**15 - 1)
    assert (np.abs(fake_quantize(WEIGHT, bits=16)[0] - WEIGHT) <= steps / 2 + 1e-15).all()
    errors = [np.abs(fake_quantize(WEIGHT, bits=bits)[0] - WEIGHT).max() for bits in (2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)


def test_small_updates_add_up_behind_the_rounded_weight_and_in_it_they_are_lost():
    """Ten updates of a fifth of a step each."""
    four_bits = partial(fake_quantize, bits=4, clip=lambda *_, **__: np.array([[7.0]]))  # a step of 1
    latent = rounded = np.array([[2.0], [7.0]])
    for _ in range(10):
        latent = latent - 0.2 * four_bits(latent)[1](np.array([[1.0], [0.0]]))
        rounded = four_bits(rounded - 0.2 * np.array([[1.0], [0.0]]))[0]
    assert four_bits(latent)[0].ravel().tolist() == [0.0, 7.0]
    assert rounded.ravel().tolist() == [2.0, 7.0]


def test_the_clip_is_asked_once():
    asked = []

    def counting(values, *, axis, bits):
        asked.append((axis, bits))
        return largest_magnitude(values, axis=axis, bits=bits)

    fake_quantize(WEIGHT, bits=5, axis=-1, clip=counting)
    assert asked == [(-1, 5)]


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_the_weights_behind_a_model_whose_code_is_not_touched(name):
    base, run = whole_model(name)
    patterns, count = PATTERNS[name]
    trained = at_targets(Latent, base, patterns)
    assert len(list(trees.leaves(trained))) == count
    model = changed(run, base, change_by(partial(fake_quantize, bits=3)))

    def not_rounded(trained):
        """The model as a function of the weights behind: nothing is cut off, and what rounding adds stays as it is here."""
        added = []

        def keep(own, *, base):
            added.append(fake_quantize(own.weight, bits=3)[0] - own.weight)
            return base, None

        reparameterize(trained, base=base, change=keep)

        def at(new):
            each = iter(added)
            return run(reparameterize(new, base=base, change=lambda own, *, base: (own.weight + next(each), None))[0])[0]

        return at

    report = checked(model, trained, gradient_of=not_rounded)
    assert report.passed, str(report)


def test_a_model_runs_on_what_its_codes_restore():
    base, run = whole_model("gpt2")
    patterns, _ = PATTERNS["gpt2"]
    tree, _ = reparameterize(at_targets(Latent, base, patterns), base=base, change=change_by(partial(fake_quantize, bits=3)))
    stored = at_targets(lambda leaf: dequantize_symmetric(quantize_symmetric(leaf, bits=3)), base, patterns)
    np.testing.assert_array_equal(run(tree)[0], run(reparameterize(stored, base=base)[0])[0])


def test_a_change_of_several_arrays_gets_a_gradient_for_each():
    def product(one, other):
        return one * other, lambda dout: (dout * other, dout * one)

    out, back = change_by(product)(Stepped(WEIGHT, DOUT), base=WEIGHT)
    np.testing.assert_array_equal(out, WEIGHT * DOUT)
    gradients = back(np.ones((7, 5)))
    assert type(gradients) is Stepped
    np.testing.assert_array_equal(gradients.weight, DOUT)
    np.testing.assert_array_equal(gradients.step, WEIGHT)
    assert type(change_by(partial(fake_quantize, bits=3))(Latent(WEIGHT), base=WEIGHT)[1](DOUT)) is Latent


@pytest.mark.parametrize("mistake", ["the mask is left out", "in steps", "of the rounded value", "the signs of what is cut off"])
def test_the_checker_refuses_a_backward_with_a_mistake(mistake):
    def wrong(values):
        out, backward = fake_quantize(values, bits=2, clip=fixed)
        return out, {
            "the mask is left out": lambda dout: dout,
            "in steps": lambda dout: backward(dout) / (BOUND),
            "of the rounded value": lambda dout: backward(dout) * (np.abs(out) < BOUND),
            "the signs of what is cut off": lambda dout: backward(dout) + np.sign(values) * (np.abs(values) > BOUND),
        }[mistake]

    def at(values):
        return lambda new: one_by_one(new, 2, BOUND[0], values)

    assert check_gradients(partial(fake_quantize, bits=2, clip=fixed), WEIGHT, gradient_of=at).passed
    assert not check_gradients(wrong, WEIGHT, gradient_of=at).passed


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="bits: got 1"):
        fake_quantize(WEIGHT, bits=1)
    with pytest.raises(ValueError, match="axis: got 2, wants None"):
        fake_quantize(WEIGHT, bits=4, axis=2)
    with pytest.raises(ValueError, match="values"):
        fake_quantize(np.full((2, 2), np.nan), bits=4)
    with pytest.raises(ValueError, match="clip: got"):
        fake_quantize(WEIGHT, bits=4, clip=lambda *_, **__: np.ones(5))


@pytest.mark.parity
def test_forward_and_backward_are_torch_s_per_channel():
    torch = pytest.importorskip("torch")
    weight, dout = WEIGHT.astype(np.float32), DOUT.astype(np.float32)
    for bits in (3, 8):
        most = 2 ** (bits - 1) - 1
        values = torch.tensor(weight, requires_grad=True)
        scale = torch.tensor(np.abs(weight).max(axis=0) / np.float32(most))
        theirs = torch.fake_quantize_per_channel_affine(values, scale, torch.zeros(5, dtype=torch.int32), 1, -most, most)
        theirs.backward(torch.tensor(dout))
        out, backward = fake_quantize(weight, bits=bits)
        np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-6)  # float32
        np.testing.assert_array_equal(backward(dout), values.grad.numpy())


@pytest.mark.parity
def test_torch_lets_a_gradient_through_for_half_a_step_more():
    """It asks whether the rounded code is within the bound. In float64, steps of a quarter, which torch's float32 holds."""
    torch = pytest.importorskip("torch")
    weight = np.concatenate([RNG.uniform(-3, 3, size=(200, 1)), [[1.75], [-1.8], [1.87], [1.88]]])
    values = torch.tensor(weight, requires_grad=True)
    theirs = torch.fake_quantize_per_tensor_affine(values, 0.25, 0, -7, 7)
    theirs.sum().backward()
    out, backward = fake_quantize(weight, bits=4, clip=lambda *_, **__: np.array([[1.75]]))
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-10)
    own, edge = backward(np.ones_like(weight)), (np.abs(weight) > 1.75) & (np.abs(weight) <= 1.875)
    np.testing.assert_array_equal(values.grad.numpy() - own, edge)
    assert edge.sum() >= 2
