"""Gated feed-forward network: the formula position by position, what the gate can do, the count, two wrong backwards."""

import math

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers.basics.feed_forward import FeedForward, feed_forward, init_feed_forward
from minitransformers.basics.gated_feed_forward import GatedFeedForward, gated_feed_forward, init_gated_feed_forward
from minitransformers.basics.gelu import gelu, gelu_exact
from minitransformers.basics.linear import Linear
from minitransformers.basics.relu import relu
from minitransformers.basics.silu import silu
from minitransformers.foundation import check_gradients, slot, trees

PHI = {function.__name__: slot(function) for function in (silu, gelu, gelu_exact, relu)}
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


def textbook_gated(gate, up, down, x, activation):
    """One position after the other."""
    return anp.stack([anp.dot(phi(activation, anp.dot(row, gate)) * anp.dot(row, up), down) for row in x])


def random_params(rng, d_model=3, d_hidden=7, bias=False):
    def one(d_in, d_out):
        return Linear(rng.normal(size=(d_in, d_out)), rng.normal(size=d_out) if bias else None)

    return GatedFeedForward(one(d_model, d_hidden), one(d_model, d_hidden), one(d_hidden, d_model))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_textbook_formula_and_its_gradients(activation):
    rng = np.random.default_rng(0)
    params, x, dout = random_params(rng), rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    flat = (params.gate.weight, params.up.weight, params.down.weight, x)
    out, backward = gated_feed_forward(params, x, activation=PHI[activation])
    np.testing.assert_allclose(out, textbook_gated(*flat, activation), rtol=0, atol=1e-12)
    loss = lambda *arrays: anp.sum(dout * textbook_gated(*arrays, activation))  # noqa: E731
    expected = autograd.grad(loss, argnum=(0, 1, 2, 3))(*flat)
    dparams, dx = backward(dout)
    for own, theirs in zip((dparams.gate.weight, dparams.up.weight, dparams.down.weight, dx), expected, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_with_every_activation_with_and_without_biases(activation, bias):
    rng = np.random.default_rng(1)
    assert check_gradients(gated_feed_forward, random_params(rng, bias=bias), rng.normal(size=(4, 3)), activation=PHI[activation]).passed


def test_every_position_is_on_its_own():
    rng = np.random.default_rng(2)
    params, x = random_params(rng), rng.normal(size=(5, 3))
    changed = x.copy()
    changed[2] += 1.0
    differs = np.any(gated_feed_forward(params, changed)[0] != gated_feed_forward(params, x)[0], axis=-1)
    np.testing.assert_array_equal(differs, [False, False, True, False, False])


def test_a_closed_gate_lets_nothing_through():
    rng = np.random.default_rng(3)
    params, x = random_params(rng, bias=True), rng.normal(size=(4, 3))
    closed = params._replace(gate=Linear(params.gate.weight, np.full(7, -100.0)))
    for activation in ACTIVATIONS:
        out, backward = gated_feed_forward(closed, x, activation=PHI[activation])
        np.testing.assert_allclose(out, np.broadcast_to(params.down.bias, out.shape), atol=1e-12)
        np.testing.assert_allclose(backward(np.ones_like(out))[1], 0, atol=1e-12)


def test_with_values_of_one_it_is_the_plain_network():
    rng = np.random.default_rng(4)
    params, x = random_params(rng, bias=True), rng.normal(size=(4, 3))
    params = params._replace(up=Linear(np.zeros((3, 7)), np.ones(7)))
    for activation in ACTIVATIONS:
        gated, _ = gated_feed_forward(params, x, activation=PHI[activation])
        plain, _ = feed_forward(FeedForward(params.gate, params.down), x, activation=PHI[activation])
        np.testing.assert_allclose(gated, plain, rtol=1e-13)


def test_far_into_an_open_gate_it_is_quadratic():
    """Where the gate is large, out is a product of two linear maps: with ReLU, doubling x makes four times as much."""
    rng = np.random.default_rng(5)
    params = random_params(rng)
    params = params._replace(gate=Linear(np.abs(params.gate.weight), None))
    x = np.abs(rng.normal(size=(4, 3)))
    once, _ = gated_feed_forward(params, x, activation=PHI["relu"])
    twice, _ = gated_feed_forward(params, 2 * x, activation=PHI["relu"])
    np.testing.assert_allclose(twice, 4 * once, rtol=1e-12)


@pytest.mark.parametrize(("d_model", "d_hidden"), [(1, 8), (12, 32), (64, 176), (100, 272)])
def test_the_hidden_width_is_two_thirds_rounded_up_to_a_multiple_of_eight(d_model, d_hidden):
    assert 0 <= d_hidden - 8 * d_model / 3 < 8
    params = init_gated_feed_forward(np.random.default_rng(6), d_model)
    assert params.gate.weight.shape == params.up.weight.shape == params.down.weight.shape[::-1] == (d_model, d_hidden)


@pytest.mark.parametrize("d_model", [12, 96, 384])
def test_it_holds_as_many_parameters_as_the_plain_network(d_model):
    rng = np.random.default_rng(7)
    gated, plain = init_gated_feed_forward(rng, d_model), init_feed_forward(rng, d_model, bias=False)
    assert trees.count_parameters(gated) == trees.count_parameters(plain) == 8 * d_model**2  # d_model divides by 3: no rounding


def test_init_scales():
    rng = np.random.default_rng(8)
    params = init_gated_feed_forward(rng, 96, std=0.02, residual_std=0.005, dtype=np.float64)
    found = [params.gate.weight.std(), params.up.weight.std(), params.down.weight.std()]
    np.testing.assert_allclose(found, [0.02, 0.02, 0.005], rtol=0.03)
    assert params.gate.bias is None and params.gate.weight.dtype == np.float64
    by_default = init_gated_feed_forward(rng, 96, d_hidden=128, bias=True)
    np.testing.assert_allclose([by_default.gate.weight.std(), by_default.down.weight.std()], [96**-0.5, 128**-0.5], rtol=0.03)
    assert not by_default.gate.bias.any() and by_default.gate.weight.dtype == np.float32


def with_the_value_path_forgotten(params, x):
    out, backward = gated_feed_forward(params, x)

    def wrong(dout):
        dparams, dx = backward(dout)
        gate = x @ params.gate.weight
        dvalue = dout @ params.down.weight.T * gate / (1 + np.exp(-gate))
        return dparams, dx - dvalue @ params.up.weight.T

    return out, wrong


def test_the_checker_refuses_a_backward_in_which_x_feeds_the_gate_alone():
    rng = np.random.default_rng(9)
    report = check_gradients(with_the_value_path_forgotten, random_params(rng), rng.normal(size=(2, 3)))
    assert {argument.path for argument in report.arguments if not argument.error <= report.bound} == {"x"}


def with_gate_and_values_swapped(params, x):
    out, backward = gated_feed_forward(params, x)

    def swapped(dout):
        dparams, dx = backward(dout)
        return dparams._replace(gate=dparams.up, up=dparams.gate), dx

    return out, swapped


def test_the_checker_sees_gate_and_values_swapped():
    rng = np.random.default_rng(10)
    report = check_gradients(with_gate_and_values_swapped, random_params(rng), rng.normal(size=(4, 3)))
    assert not report.passed and "returned in the wrong order" in report.worst.cause


@pytest.mark.parity
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_parity_with_llama(activation):
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    rng = np.random.default_rng(11)
    params, x, dout = random_params(rng, 4, 6), rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 4))
    theirs_name = {"silu": "silu", "gelu": "gelu_pytorch_tanh", "relu": "relu"}[activation]
    theirs_layer = llama.LlamaMLP(llama.LlamaConfig(hidden_size=4, intermediate_size=6, num_attention_heads=2, hidden_act=theirs_name)).double()
    pairs = [(theirs_layer.gate_proj, "gate"), (theirs_layer.up_proj, "up"), (theirs_layer.down_proj, "down")]
    with torch.no_grad():
        for layer, name in pairs:
            layer.weight.copy_(torch.tensor(getattr(params, name).weight.T))
    theirs_x = torch.tensor(x, requires_grad=True)
    theirs = theirs_layer(theirs_x)
    theirs.backward(torch.tensor(dout))
    out, backward = gated_feed_forward(params, x, activation=PHI[activation])
    dparams, dx = backward(dout)
    np.testing.assert_allclose(out, theirs.detach().numpy(), atol=1e-11)
    np.testing.assert_allclose(dx, theirs_x.grad.numpy(), atol=1e-11)
    for layer, name in pairs:
        np.testing.assert_allclose(getattr(dparams, name).weight, layer.weight.grad.numpy().T, atol=1e-11)
