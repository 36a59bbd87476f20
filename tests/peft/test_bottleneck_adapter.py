"""The bottleneck adapter: its formula, its start, and that it changes nothing where it says nothing."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.basics.feed_forward import FeedForward, feed_forward
from minitransformers.basics.gelu import gelu_exact
from minitransformers.basics.linear import Linear
from minitransformers.basics.relu import relu
from minitransformers.basics.residual import residual
from minitransformers.foundation import slot
from minitransformers.peft.bottleneck_adapter import BottleneckAdapter, bottleneck_adapter, init_bottleneck_adapter


def random_adapter(rng, d_model=5, d_bottleneck=3):
    down, up = rng.normal(size=(d_model, d_bottleneck)), rng.normal(size=(d_bottleneck, d_model))
    return BottleneckAdapter(Linear(down, rng.normal(size=d_bottleneck)), Linear(up, rng.normal(size=d_model)))


def case(seed=0):
    rng = np.random.default_rng(seed)
    return random_adapter(rng), rng.normal(size=(2, 4, 5)), rng.normal(size=(2, 4, 5))


def textbook(leaves, x, bend, scale):
    """One position at a time."""
    w, b, v, c = leaves
    return anp.stack([anp.stack([row + scale * (bend(row @ w + b) @ v + c) for row in text]) for text in x])


def tanh_gelu(z):
    return z / 2 * (1 + anp.tanh(anp.sqrt(2 / anp.pi) * (z + 0.044715 * z**3)))


BENDS = {"gelu": ({}, tanh_gelu), "relu": ({"activation": slot(relu)}, lambda z: anp.where(z > 0, z, 0 * z))}


@pytest.mark.parametrize("scale", [1.0, -0.3])
@pytest.mark.parametrize("bend", BENDS)
def test_it_is_the_textbook_formula_and_its_gradients_are_autograd_s(bend, scale):
    (config, formula), (params, x, dout) = BENDS[bend], case()
    leaves = [leaf for _, leaf in trees.leaves(params)]
    out, backward = bottleneck_adapter(params, x, scale=scale, **config)
    np.testing.assert_allclose(out, textbook(leaves, x, formula, scale), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda args: anp.sum(dout * textbook(*args, formula, scale)))((leaves, x))
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, expected[1], rtol=0, atol=1e-10)
    for (_, own), theirs in zip(trees.leaves(dparams), expected[0], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10)


def test_gradients_are_right_with_the_usual_activation():
    params, x, _ = case(1)
    report = check_gradients(bottleneck_adapter, params, x, scale=0.7)
    assert report.passed, str(report)


def test_it_is_a_narrow_feed_forward_network_with_a_way_around_it():
    params, x, dout = case(2)
    out, backward = bottleneck_adapter(params, x)
    theirs, their_backward = residual(FeedForward(params.down, params.up), x, part=feed_forward)
    np.testing.assert_array_equal(out, theirs)
    np.testing.assert_array_equal(backward(dout)[1], their_backward(dout)[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_with_nothing_in_the_map_up_it_is_the_identity_to_the_last_bit(dtype):
    rng = np.random.default_rng(3)
    params, x = init_bottleneck_adapter(rng, 7, d_bottleneck=2, std=7**-0.5, residual_std=0.0, dtype=dtype), rng.normal(size=(3, 7)).astype(dtype)
    out, backward = bottleneck_adapter(params, x)
    np.testing.assert_array_equal(out, x)
    dparams, dx = backward(x)
    np.testing.assert_array_equal(dx, x)
    assert dparams.up.weight.any() and not dparams.down.weight.any()  # the map up moves first, and then the map down


def test_it_starts_near_the_identity():
    rng = np.random.default_rng(4)
    params, x = init_bottleneck_adapter(rng, 64, d_bottleneck=8, std=1e-3), rng.normal(size=(100, 64)).astype(np.float32)
    moved = bottleneck_adapter(params, x)[0] - x
    assert 0 < np.linalg.norm(moved) < 1e-3 * np.linalg.norm(x)


def test_the_start_is_normal_and_cut_off_at_two_deviations():
    params = init_bottleneck_adapter(np.random.default_rng(5), 300, d_bottleneck=100, std=0.5, residual_std=0.1, dtype=np.float64)
    for weight, std in ((params.down.weight, 0.5), (params.up.weight, 0.1)):
        assert 1.99 * std < np.abs(weight).max() <= 2 * std
        assert abs(weight.std() / std - 0.8796) < 0.01       # of a normal number between -2 and 2
        assert abs(weight.mean()) < 0.02 * std
    assert not params.down.bias.any() and not params.up.bias.any()
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float64)}


def test_no_start_leaves_both_maps_at_zero():
    with pytest.raises(ValueError, match="std: got 0"):
        init_bottleneck_adapter(np.random.default_rng(0), 5, d_bottleneck=2, std=0.0, residual_std=0.0)


def test_two_maps_at_zero_would_never_move():
    params, x, dout = case(6)
    dead = params._replace(down=Linear(0 * params.down.weight, np.zeros(3)), up=Linear(0 * params.up.weight, np.zeros(5)))
    dparams, _ = bottleneck_adapter(dead, x)[1](dout)
    assert not dparams.down.weight.any() and not dparams.down.bias.any() and not dparams.up.weight.any()


def test_a_width_that_is_no_bottleneck_is_warned_of_and_none_is_refused():
    rng = np.random.default_rng(7)
    with pytest.warns(UserWarning, match="d_bottleneck: got 5, which is no bottleneck beside d_model = 5"):
        params = init_bottleneck_adapter(rng, 5, d_bottleneck=5)
    assert params.up.weight.shape == (5, 5)
    with pytest.raises(ValueError, match="d_bottleneck: got 0"):
        init_bottleneck_adapter(rng, 5, d_bottleneck=0)


def test_it_has_as_many_parameters_as_the_formula_says():
    params = init_bottleneck_adapter(np.random.default_rng(8), 11, d_bottleneck=3)
    assert trees.count_parameters(params) == 2 * 11 * 3 + 3 + 11


def test_maps_that_do_not_meet_are_refused():
    params, x, _ = case(9)
    with pytest.raises(ValueError, match=r"params.up.weight: got shape \(4, 5\)"):
        bottleneck_adapter(params._replace(up=Linear(np.ones((4, 5)), None)), x)
    with pytest.raises(ValueError, match=r"x: got shape \(2, 6\)"):
        bottleneck_adapter(params, np.ones((2, 6)))


@pytest.mark.parametrize("forgotten", ["the way around", "the scale"])
def test_the_checker_refuses_a_backward_that_forgets(forgotten):
    def wrong(params, x):
        out, backward = bottleneck_adapter(params, x, scale=0.5)

        def forgetful(dout):
            dparams, dx = backward(dout)
            return (dparams, dx - dout) if forgotten == "the way around" else (trees.map(lambda leaf: 2 * leaf, dparams), dx)

        return out, forgetful

    assert not check_gradients(wrong, *case(10)[:2]).passed


@pytest.mark.parity
def test_it_is_what_pytorch_computes():
    torch = pytest.importorskip("torch")
    params, x, dout = case(11)
    tensors = [torch.tensor(leaf, requires_grad=True) for leaf in (*params.down, *params.up, x)]
    w, b, v, c, t = tensors
    theirs = t + 0.3 * torch.nn.functional.linear(torch.nn.functional.gelu(torch.nn.functional.linear(t, w.T, b)), v.T, c)
    theirs.backward(torch.tensor(dout))
    out, backward = bottleneck_adapter(params, x, scale=0.3, activation=slot(gelu_exact))
    np.testing.assert_allclose(out, theirs.detach(), rtol=0, atol=1e-9)
    for (_, own), tensor in zip(trees.leaves(backward(dout)), tensors, strict=True):
        np.testing.assert_allclose(own, tensor.grad, rtol=0, atol=1e-9)
