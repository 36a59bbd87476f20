"""CapsuleNorm: the textbook loops, the map of lengths, directions that stay, capsules apart, and the dead spot at zero."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.foundation import check_gradients
from minitransformers.norms.capsule_norm import CapsuleNorm, capsule_norm, init_capsule_norm
from minitransformers.norms.scale_norm import ScaleNorm, scale_norm


def textbook_squash(gain, x, num_capsules):
    """Equation 1 of the paper as it is printed, one capsule at a time."""
    capsules = []
    for capsule in anp.reshape(x, (-1, x.shape[-1] // num_capsules)):
        norm = anp.sqrt(anp.sum(capsule**2))
        capsules.append(gain * norm**2 / (1 + norm**2) * capsule / norm)
    return anp.reshape(anp.stack(capsules), x.shape)


def random_call(rng, shape=(2, 3, 6)):
    return CapsuleNorm(np.array(1.3)), rng.normal(size=shape), rng.normal(size=shape)


def squash(x, **config):
    """Without a gain, as in the paper."""
    return capsule_norm(CapsuleNorm(None), x, **config)


@pytest.mark.parametrize("num_capsules", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6,), (2, 3, 6), (1, 1, 6)])
def test_equals_the_textbook_loops_and_their_gradients(shape, num_capsules):
    params, x, dout = random_call(np.random.default_rng(0), shape)
    out, backward = capsule_norm(params, x, num_capsules=num_capsules)
    np.testing.assert_allclose(out, textbook_squash(params.gain, x, num_capsules), rtol=0, atol=1e-12)
    expected = autograd.grad(lambda gain, x: anp.sum(dout * textbook_squash(gain, x, num_capsules)), (0, 1))(params.gain, x)
    (dgain,), dx = backward(dout)
    np.testing.assert_allclose(dgain, expected[0], rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, expected[1], rtol=0, atol=1e-11)


def test_without_a_gain_it_is_the_squashing_and_has_no_gradient_for_one():
    _, x, dout = random_call(np.random.default_rng(1))
    out, backward = squash(x)
    np.testing.assert_allclose(out, textbook_squash(1.0, x, 1), rtol=0, atol=1e-14)
    (dgain,), dx = backward(dout)
    assert dgain is None
    np.testing.assert_allclose(dx, autograd.grad(lambda x: anp.sum(dout * textbook_squash(1.0, x, 1)))(x), atol=1e-13)
    assert check_gradients(capsule_norm, CapsuleNorm(None), x).passed


def test_a_length_stays_below_one_grows_with_the_input_and_is_a_half_at_one():
    direction = np.array([0.6, 0.0, 0.8])
    lengths = np.array([0.01, 0.5, 1.0, 2.0, 10.0, 1e3])
    out, _ = squash(lengths[:, None] * direction)
    found = np.linalg.norm(out, axis=-1)
    assert np.all(found < 1) and np.all(np.diff(found) > 0)
    np.testing.assert_allclose(found[2], 0.5, rtol=1e-15)
    np.testing.assert_allclose(out, found[:, None] * direction, rtol=1e-14)


def test_a_long_vector_becomes_a_unit_vector_and_a_short_one_its_length_times_itself():
    _, x, _ = random_call(np.random.default_rng(2))
    unit, _ = scale_norm(ScaleNorm(np.array(1.0)), x)
    np.testing.assert_allclose(squash(1e4 * x)[0], unit, atol=1e-7)
    short = 1e-4 * x
    np.testing.assert_allclose(squash(short)[0], np.linalg.norm(short, axis=-1, keepdims=True) * short, rtol=1e-6)


def test_scaling_a_position_changes_the_output_unlike_scale_norm():
    _, x, _ = random_call(np.random.default_rng(3))
    assert np.abs(squash(2 * x)[0] - squash(x)[0]).max() > 0.05


def test_shifting_a_position_changes_the_output():
    _, x, _ = random_call(np.random.default_rng(4))
    assert np.abs(squash(x + 4)[0] - squash(x)[0]).max() > 0.1


def test_a_rotation_goes_through_one_capsule_and_not_through_two():
    rng = np.random.default_rng(5)
    _, x, _ = random_call(rng)
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    np.testing.assert_allclose(squash(x @ rotation)[0], squash(x)[0] @ rotation, atol=1e-14)
    assert np.abs(squash(x @ rotation, num_capsules=2)[0] - squash(x, num_capsules=2)[0] @ rotation).max() > 0.01


def test_capsules_do_not_depend_on_each_other():
    _, x, dout = random_call(np.random.default_rng(6))
    together, backward = squash(x, num_capsules=2)
    for cut in (slice(0, 3), slice(3, 6)):
        alone, backward_alone = squash(x[..., cut])
        np.testing.assert_allclose(together[..., cut], alone, rtol=1e-15)
        np.testing.assert_allclose(backward(dout)[1][..., cut], backward_alone(dout[..., cut])[1], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("n", [0.3, 1.0, 4.0])
def test_the_slopes_along_and_across_are_those_of_the_length_map(n):
    x = np.array([n, 0.0, 0.0])
    _, backward = squash(x)
    _, along = backward(np.array([1.0, 0.0, 0.0]))
    _, across = backward(np.array([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(along, [2 * n / (1 + n * n) ** 2, 0, 0], rtol=1e-14)
    np.testing.assert_allclose(across, [0, n / (1 + n * n), 0], rtol=1e-14)


def test_the_gradient_has_a_part_along_x_unlike_scale_norm():
    _, x, dout = random_call(np.random.default_rng(7))
    assert np.abs(np.vecdot(squash(x)[1](dout)[1], x)).max() > 0.05


def test_a_fresh_gain_gives_long_inputs_the_size_of_rms_norm():
    rng = np.random.default_rng(8)
    for num_capsules in (1, 4):
        params = init_capsule_norm(rng, 64, num_capsules=num_capsules, dtype=np.float64)
        out, _ = capsule_norm(params, 1e4 * rng.normal(size=(3, 64)), num_capsules=num_capsules)
        np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 8, rtol=1e-6)
    assert init_capsule_norm(rng, 64, gain=False).gain is None


def test_zero_is_a_dead_spot():
    params, _, dout = random_call(np.random.default_rng(9))
    for tiny in (0.0, 1e-200):                               # the second is not zero, but its square is
        out, backward = capsule_norm(params, np.full((2, 3, 6), tiny))
        (dgain,), dx = backward(dout)
        np.testing.assert_array_equal(out, 0)
        np.testing.assert_array_equal(dx, 0)
        assert dgain == 0


def with_the_length_taken_for_a_constant(params, x):
    out, backward = capsule_norm(params, x)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return out, lambda dout: (backward(dout)[0], params.gain * dout * length / (1 + length**2))


def test_the_checker_refuses_a_backward_that_takes_the_length_for_a_constant():
    params, x, _ = random_call(np.random.default_rng(10))
    report = check_gradients(with_the_length_taken_for_a_constant, params, x)
    assert not report.passed and report.worst.path == "x" and report.error > 1e-2


@pytest.mark.parametrize("size", [1e-18, 1e17])
def test_float32_stays_finite_as_far_as_its_squares_do(size):
    rng = np.random.default_rng(11)
    x, dout = rng.normal(size=(2, 3, 64)), rng.normal(size=(2, 3, 64)).astype(np.float32)
    out, backward = capsule_norm(init_capsule_norm(rng, 64), (x * size).astype(np.float32))
    (dgain,), dx = backward(dout)
    assert all(np.isfinite(a).all() for a in (out, dgain, dx))
    if size > 1:
        np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 8, rtol=1e-5)


def test_the_range_ends_where_the_sum_of_squares_overflows():
    dtype = np.float32
    limit = np.sqrt(float(np.finfo(dtype).max) / 768)
    params, x = init_capsule_norm(np.random.default_rng(0), 768, dtype=dtype), np.where(np.arange(768) % 2, limit, -limit)
    within, _ = capsule_norm(params, (0.98 * x).astype(dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        beyond, _ = capsule_norm(params, (1.02 * x).astype(dtype))
    assert within.dtype == dtype
    np.testing.assert_allclose(within, np.sign(x), rtol=2e-3)
    assert np.isnan(beyond).all()


@pytest.mark.parametrize("num_capsules", [0, -1, 4])
def test_init_refuses_capsules_that_do_not_divide(num_capsules):
    with pytest.raises(ValueError, match="num_capsules: got"):
        init_capsule_norm(np.random.default_rng(0), 6, num_capsules=num_capsules)


@pytest.mark.parity
def test_parity_with_the_formula_in_torch():
    # No library has a Transformer norm of this name: what is compared is the squashing of capsule networks.
    torch = pytest.importorskip("torch")
    params, x, dout = random_call(np.random.default_rng(12))
    their_x, their_gain = (torch.tensor(a, requires_grad=True) for a in (x, params.gain))
    capsules = their_x.reshape(2, 3, 2, 3)
    square = capsules.square().sum(-1, keepdim=True)
    theirs = (their_gain * square / (1 + square) * capsules / square.sqrt()).reshape(x.shape)
    theirs.backward(torch.tensor(dout))
    out, backward = capsule_norm(params, x, num_capsules=2)
    (dgain,), dx = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dx, their_x.grad.numpy(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dgain, their_gain.grad.numpy(), rtol=0, atol=1e-13)
