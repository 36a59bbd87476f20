"""Gates on hidden units: in the slot of an activation, plain or gated, and the slope that stands in the weights' gradients."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from changed_models import IDS, checked

from minitransformers import trees
from minitransformers.basics.feed_forward import FeedForward, feed_forward, init_feed_forward
from minitransformers.basics.gated_feed_forward import GatedFeedForward, gated_feed_forward, init_gated_feed_forward
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear
from minitransformers.basics.relu import relu
from minitransformers.basics.silu import silu
from minitransformers.compression.gated_neurons import NeuronGates, gated_neurons
from minitransformers.foundation import assert_gradients, check_gradients, slot
from minitransformers.models.gpt2 import gpt2, init_gpt2
from minitransformers.models.llama import init_llama, llama
from minitransformers.peft.ia3 import Ia3, ia3

RNG = np.random.default_rng(0)
HIDDEN, DOUT = RNG.normal(size=(2, 4, 7)), RNG.normal(size=(2, 4, 7))
X, G = RNG.normal(size=(2, 4, 3)), RNG.normal(size=(2, 4, 3))
ACTIVATIONS = {"relu": relu, "gelu": gelu, "silu": silu}


def textbook(gates, hidden):
    """One position of one text at a time, with a ReLU; gates (units,) or (texts, 1, units)."""
    def gate(n, j):
        return gates[n, 0, j] if gates.ndim == 3 else gates[j]

    return anp.stack([
        anp.stack([anp.stack([gate(n, j) * anp.where(row[j] > 0, row[j], 0.0) for j in range(7)]) for row in hidden[n]]) for n in range(2)
    ])  # fmt: skip


@pytest.mark.parametrize("shape", [(7,), (2, 1, 7)], ids=["gates of all texts", "gates of each text"])
def test_it_is_each_unit_times_its_gate_and_its_gradients_are_autograd_s(shape):
    gates = RNG.normal(size=shape)
    out, backward = gated_neurons(NeuronGates(gates), HIDDEN, activation=slot(relu))
    np.testing.assert_allclose(out, textbook(gates, HIDDEN), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda *a: anp.sum(DOUT * textbook(*a)), (0, 1))(gates, HIDDEN)
    dparams, dhidden = backward(DOUT)
    np.testing.assert_allclose(dparams.gates, expected[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(dhidden, expected[1], rtol=0, atol=1e-10)


def test_gates_of_one_change_nothing():
    out, backward = gated_neurons(NeuronGates(np.ones(7)), HIDDEN)
    plain, plain_backward = gelu(HIDDEN)
    np.testing.assert_array_equal(out, plain)
    np.testing.assert_array_equal(backward(DOUT)[1], plain_backward(DOUT))


def test_an_activation_inside_that_learns_gets_its_gradient():
    def leaky(slope, hidden):
        return np.where(hidden > 0, hidden, slope * hidden), lambda dout: (
            np.sum(np.where(hidden > 0, 0, hidden) * dout), np.where(hidden > 0, dout, slope * dout),
        )  # fmt: skip

    assert_gradients(gated_neurons, NeuronGates(RNG.normal(size=7), np.array(0.3)), HIDDEN, activation=leaky)


def plain(seed=1):
    rng = np.random.default_rng(seed)
    return FeedForward(Linear(rng.normal(size=(3, 7)), rng.normal(size=7)), Linear(rng.normal(size=(7, 3)), rng.normal(size=3)))


def gated(seed=2):
    rng = np.random.default_rng(seed)
    return GatedFeedForward(*(Linear(rng.normal(size=shape), rng.normal(size=shape[1])) for shape in ((3, 7), (3, 7), (7, 3))))


NETWORKS = {"plain": (feed_forward, plain()), "gated": (gated_feed_forward, gated())}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_a_network_a_gate_acts_as_a_factor_of_the_unit_s_row_of_the_map_down(network, activation):
    function, params = NETWORKS[network]
    gates, inside = RNG.normal(size=7), slot(ACTIVATIONS[activation])
    out, _ = function(params._replace(activation=NeuronGates(gates)), X, activation=partial(gated_neurons, activation=inside))
    folded = params._replace(down=Linear(ia3(Ia3(gates, None), base=params.down.weight)[0], params.down.bias))
    np.testing.assert_allclose(out, function(folded, X, activation=inside)[0], rtol=0, atol=1e-13)


def slopes(network, activation):
    """The gradient of a network at gates of one."""
    function, params = NETWORKS[network]
    inside = partial(gated_neurons, activation=slot(ACTIVATIONS[activation]))
    _, backward = function(params._replace(activation=NeuronGates(np.ones(7))), X, activation=inside)
    return params, backward(G)[0]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_slope_stands_in_the_gradient_of_the_map_down_whatever_the_activation(network, activation):
    params, dparams = slopes(network, activation)
    of_rows = np.sum(params.down.weight * dparams.down.weight, axis=1)
    np.testing.assert_allclose(dparams.activation.gates, of_rows, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("activation", "same"), [("relu", True), ("gelu", False), ("silu", False)])
def test_it_stands_in_that_of_the_map_up_for_a_relu_alone(activation, same):
    """phi(s z) = s phi(z) for s > 0, and so z phi'(z) = phi(z): of these three, ReLU."""
    params, dparams = slopes("plain", activation)
    of_columns = np.sum(params.up.weight * dparams.up.weight, axis=0) + params.up.bias * dparams.up.bias
    apart = np.abs(dparams.activation.gates - of_columns).max()
    assert apart < 1e-12 if same else apart > 1e-2


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_in_a_gated_network_it_stands_in_that_of_the_map_up_for_every_activation(activation):
    """The value enters as a factor, and no activation bends it."""
    params, dparams = slopes("gated", activation)
    of_columns = np.sum(params.up.weight * dparams.up.weight, axis=0) + params.up.bias * dparams.up.bias
    np.testing.assert_allclose(dparams.activation.gates, of_columns, rtol=0, atol=1e-12)


def test_a_unit_that_the_map_down_does_not_read_has_slope_exactly_zero():
    params = plain()
    weight = params.down.weight.copy()
    weight[4] = 0
    _, backward = feed_forward(FeedForward(params.up, Linear(weight, None), NeuronGates(np.ones(7))), X, activation=gated_neurons)
    dgates = backward(G)[0].activation.gates
    assert dgates[4] == 0 and np.count_nonzero(dgates) == 6


def test_a_gate_for_each_text_tells_in_one_backward_what_a_backward_for_each_text_tells():
    params = plain()._replace(activation=NeuronGates(np.ones((2, 1, 7))))
    together = feed_forward(params, X, activation=gated_neurons)[1](G)[0].activation.gates
    alone = params._replace(activation=NeuronGates(np.ones(7)))
    apart = [feed_forward(alone, X[n], activation=gated_neurons)[1](G[n])[0].activation.gates for n in range(2)]
    np.testing.assert_allclose(together[:, 0], apart, rtol=0, atol=1e-13)


def test_to_first_order_a_loss_changes_by_the_slope():
    params, dparams = slopes("plain", "gelu")
    loss = np.sum(G * feed_forward(params, X)[0])
    for unit in range(7):
        moved = np.ones(7)
        moved[unit] -= 1e-3                                  # the output is linear in a gate: exact but for rounding
        there = np.sum(G * feed_forward(params._replace(activation=NeuronGates(moved)), X, activation=gated_neurons)[0])
        np.testing.assert_allclose(there - loss, -1e-3 * dparams.activation.gates[unit], rtol=0, atol=1e-12)


def whole_models():
    rng = np.random.default_rng(6)
    sizes = {"vocabulary": 5, "d_model": 4, "num_layers": 2, "num_heads": 2, "std": 0.5, "dtype": np.float64}
    yield init_gpt2(rng, context=3, **sizes), partial(gpt2, num_heads=2, feed_forward=partial(feed_forward, activation=gated_neurons)), 16
    inside = partial(gated_neurons, activation=slot(silu))
    yield init_llama(rng, d_hidden=3, **sizes), partial(llama, num_heads=2, feed_forward=partial(gated_feed_forward, activation=inside)), 3


@pytest.mark.parametrize(("params", "run", "units"), whole_models(), ids=["gpt2", "llama"])
@pytest.mark.parametrize("texts", [(), (2, 1)], ids=["all", "each"])
def test_gates_fit_into_whole_models_whose_code_is_not_touched(params, run, units, texts):
    gates = np.random.default_rng(7).normal(size=(2, *texts, units))
    blocks = [
        b._replace(feed_forward=b.feed_forward._replace(activation=NeuronGates(own))) for b, own in zip(params.blocks, gates, strict=True)
    ]
    report = checked(partial(run, ids=IDS), params._replace(blocks=blocks))
    assert report.passed, str(report)


def open_to_all(params, hidden):
    out, backward = gated_neurons(params, hidden)
    return out, lambda dout: (backward(dout)[0], gelu(hidden)[1](dout))


def before_the_activation(params, hidden):
    """The slope as if the gate stood before the activation: hidden dhidden in the place of active dout."""
    out, backward = gated_neurons(params, hidden)
    return out, lambda dout: (NeuronGates(np.sum(hidden * gelu(hidden)[1](dout), axis=(0, 1))), backward(dout)[1])


@pytest.mark.parametrize("wrong", [open_to_all, before_the_activation])
def test_the_check_refuses_a_plausible_mistake(wrong):
    assert not check_gradients(wrong, NeuronGates(RNG.normal(size=7)), HIDDEN).passed


def test_gates_that_do_not_fit_are_refused():
    for shape in [(6,), (1,), (3, 1, 7), (2, 2, 4, 7)]:
        with pytest.raises(ValueError, match=r"params\.gates: got shape"):
            feed_forward(plain()._replace(activation=NeuronGates(np.ones(shape))), X, activation=gated_neurons)
    with pytest.raises(ValueError, match=r"params\.gates: got numbers from nan"):
        gated_neurons(NeuronGates(np.full(7, np.nan)), HIDDEN)


def test_a_network_s_parameters_with_gates_are_a_tree_like_any_other():
    rng = np.random.default_rng(8)
    for params in (init_feed_forward(rng, 3, d_hidden=7), init_gated_feed_forward(rng, 3, d_hidden=7)):
        with_gates = params._replace(activation=NeuronGates(np.ones(7, np.float32)))
        assert trees.count_parameters(with_gates) - trees.count_parameters(params) == 7
