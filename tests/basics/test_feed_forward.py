"""Feed-forward network: the formula position by position, its neurons, its initial scale, and the forgotten activation."""

import math

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.feed_forward import FeedForward, feed_forward, init_feed_forward
from minitransformers.basics.gelu import gelu, gelu_exact
from minitransformers.basics.linear import Linear, linear
from minitransformers.basics.relu import relu
from minitransformers.basics.silu import silu
from minitransformers.foundation import check_gradients, slot

PHI = {function.__name__: slot(function) for function in (relu, gelu, gelu_exact, silu)}
ACTIVATIONS = list(PHI)


def phi(name, a):
    from autograd.scipy.special import erf

    if name == "relu":
        return anp.maximum(a, 0.0)
    if name == "gelu":
        return 0.5 * a * (1 + anp.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a * a * a)))
    if name == "gelu_exact":
        return 0.5 * a * (1 + erf(a / math.sqrt(2)))
    return a / (1 + anp.exp(-a))


def textbook_feed_forward(up, up_bias, down, down_bias, x, activation):
    """One position after the other."""
    return anp.stack([anp.dot(phi(activation, anp.dot(row, up) + up_bias), down) + down_bias for row in x])


def random_params(rng, d_model=3, d_hidden=7, bias=True):
    def one(d_in, d_out):
        return Linear(rng.normal(size=(d_in, d_out)), rng.normal(size=d_out) if bias else None)

    return FeedForward(one(d_model, d_hidden), one(d_hidden, d_model))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_textbook_formula_and_its_gradients(activation):
    rng = np.random.default_rng(0)
    params, x, dout = random_params(rng), rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    flat = (*params.up, *params.down, x)
    out, backward = feed_forward(params, x, activation=PHI[activation])
    np.testing.assert_allclose(out, textbook_feed_forward(*flat, activation), rtol=0, atol=1e-12)
    loss = lambda *arrays: anp.sum(dout * textbook_feed_forward(*arrays, activation))  # noqa: E731
    expected = autograd.grad(loss, argnum=(0, 1, 2, 3, 4))(*flat)
    dparams, dx = backward(dout)
    for own, theirs in zip((*dparams.up, *dparams.down, dx), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_with_every_activation_with_and_without_biases(activation, bias):
    rng = np.random.default_rng(1)
    assert check_gradients(feed_forward, random_params(rng, bias=bias), rng.normal(size=(4, 3)), activation=PHI[activation]).passed


def test_every_position_is_on_its_own():
    rng = np.random.default_rng(2)
    params, x = random_params(rng), rng.normal(size=(5, 3))
    changed = x.copy()
    changed[2] += 1.0
    differs = np.any(feed_forward(params, changed)[0] != feed_forward(params, x)[0], axis=-1)
    np.testing.assert_array_equal(differs, [False, False, True, False, False])


def test_the_order_of_the_hidden_features_does_not_matter():
    rng = np.random.default_rng(3)
    params, x, order = random_params(rng), rng.normal(size=(4, 3)), rng.permutation(7)
    shuffled = FeedForward(Linear(params.up.weight[:, order], params.up.bias[order]), Linear(params.down.weight[order], params.down.bias))
    np.testing.assert_allclose(feed_forward(shuffled, x)[0], feed_forward(params, x)[0], rtol=1e-12)


def test_with_relu_a_hidden_feature_and_its_outgoing_weights_trade_scale():
    rng = np.random.default_rng(4)
    params, x, scale = random_params(rng), rng.normal(size=(4, 3)), np.array([1, 2, 3, 0.5, 1, 7, 0.1])
    rescaled = FeedForward(Linear(params.up.weight * scale, params.up.bias * scale), Linear(params.down.weight / scale[:, None], params.down.bias))
    np.testing.assert_allclose(feed_forward(rescaled, x, activation=PHI["relu"])[0], feed_forward(params, x, activation=PHI["relu"])[0], rtol=1e-12)


def test_far_on_the_positive_side_it_is_one_linear_map():
    rng = np.random.default_rng(5)
    params, x = random_params(rng), rng.normal(size=(4, 3))
    params = params._replace(up=params.up._replace(bias=params.up.bias + 100))
    one_map = Linear(params.up.weight @ params.down.weight, params.up.bias @ params.down.weight + params.down.bias)
    for activation in ACTIVATIONS:
        np.testing.assert_allclose(feed_forward(params, x, activation=PHI[activation])[0], linear(one_map, x)[0], rtol=1e-10)


def test_init_shapes_and_scales():
    params = init_feed_forward(np.random.default_rng(6), 64)
    assert params.up.weight.shape == (64, 256) and params.down.weight.shape == (256, 64)
    assert params.up.weight.dtype == np.float32 and not params.up.bias.any() and not params.down.bias.any()
    np.testing.assert_allclose(params.up.weight.std(), 64**-0.5, rtol=0.03)
    np.testing.assert_allclose(params.down.weight.std(), 256**-0.5, rtol=0.03)


def test_init_takes_another_std_for_the_map_into_the_residual_stream():
    rng = np.random.default_rng(7)
    params = init_feed_forward(rng, 64, d_hidden=128, std=0.02, residual_std=0.005, bias=False, dtype=np.float64)
    np.testing.assert_allclose([params.up.weight.std(), params.down.weight.std()], [0.02, 0.005], rtol=0.03)
    assert params.up.bias is None and params.down.weight.shape == (128, 64) and params.down.weight.dtype == np.float64
    same = init_feed_forward(rng, 64, std=0.02)
    np.testing.assert_allclose(same.down.weight.std(), 0.02, rtol=0.03)


def with_the_activations_derivative_forgotten(params, x):
    out, _ = feed_forward(params, x, activation=PHI["relu"])
    hidden, up_backward = linear(params.up, x)
    _, down_backward = linear(params.down, np.maximum(hidden, 0))

    def backward(dout):
        ddown, dactive = down_backward(dout)
        dup, dx = up_backward(dactive)
        return FeedForward(dup, ddown), dx

    return out, backward


def test_the_checker_refuses_a_backward_that_forgets_the_activation():
    rng = np.random.default_rng(8)
    report = check_gradients(with_the_activations_derivative_forgotten, random_params(rng), rng.normal(size=(4, 3)))
    wrong = {argument.path for argument in report.arguments if not argument.error <= report.bound}
    assert wrong == {"params.up.weight", "params.up.bias", "x"}  # the map down comes before the activation


@pytest.mark.parity
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_parity_with_torch(activation):
    torch = pytest.importorskip("torch")
    layers = torch.nn
    theirs_phi = {
        "relu": layers.ReLU(), "gelu": layers.GELU(approximate="tanh"), "gelu_exact": layers.GELU(), "silu": layers.SiLU(),
    }[activation]  # fmt: skip
    rng = np.random.default_rng(9)
    params, x, dout = random_params(rng), rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 3))
    up, down = layers.Linear(3, 7, dtype=torch.float64), layers.Linear(7, 3, dtype=torch.float64)
    with torch.no_grad():
        for layer, own in ((up, params.up), (down, params.down)):
            layer.weight.copy_(torch.tensor(own.weight.T))
            layer.bias.copy_(torch.tensor(own.bias))
    theirs_x = torch.tensor(x, requires_grad=True)
    theirs = down(theirs_phi(up(theirs_x)))
    theirs.backward(torch.tensor(dout))
    out, backward = feed_forward(params, x, activation=PHI[activation])
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), atol=1e-11)
    np.testing.assert_allclose(dx, theirs_x.grad.numpy(), atol=1e-11)
    for layer, own in ((up, dparams.up), (down, dparams.down)):
        np.testing.assert_allclose(own.weight, layer.weight.grad.numpy().T, atol=1e-11)
        np.testing.assert_allclose(own.bias, layer.bias.grad.numpy(), atol=1e-11)


@pytest.mark.parity
def test_parity_with_gpt2():
    torch = pytest.importorskip("torch")
    gpt2 = pytest.importorskip("transformers.models.gpt2.modeling_gpt2")
    rng = np.random.default_rng(10)
    params, x, dout = random_params(rng, 4, 12), rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 4))
    theirs_layer = gpt2.GPT2MLP(12, gpt2.GPT2Config(n_embd=4, resid_pdrop=0.0)).double()
    with torch.no_grad():  # GPT-2's weights are (in, out), as ours
        for layer, own in ((theirs_layer.c_fc, params.up), (theirs_layer.c_proj, params.down)):
            layer.weight.copy_(torch.tensor(own.weight))
            layer.bias.copy_(torch.tensor(own.bias))
    theirs_x = torch.tensor(x, requires_grad=True)
    theirs = theirs_layer(theirs_x)
    theirs.backward(torch.tensor(dout))
    out, backward = feed_forward(params, x)
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), atol=1e-11)
    np.testing.assert_allclose(dx, theirs_x.grad.numpy(), atol=1e-11)
    np.testing.assert_allclose(dparams.up.weight, theirs_layer.c_fc.weight.grad.numpy(), atol=1e-11)
    np.testing.assert_allclose(dparams.down.weight, theirs_layer.c_proj.weight.grad.numpy(), atol=1e-11)
