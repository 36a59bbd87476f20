"""Feed-forward networks without some units compute what the gated ones compute, in arrays as much smaller as the formula says."""

from functools import partial

import numpy as np
import pytest

from minitransformers import trees
from minitransformers.basics.feed_forward import FeedForward, feed_forward
from minitransformers.basics.gated_feed_forward import GatedFeedForward, gated_feed_forward
from minitransformers.basics.gelu import gelu
from minitransformers.basics.linear import Linear
from minitransformers.basics.relu import relu
from minitransformers.basics.silu import silu
from minitransformers.compression.gated_neurons import NeuronGates, gated_neurons
from minitransformers.compression.neuron_pruning import neuron_importance, without_neurons
from minitransformers.foundation import slot
from minitransformers.models.gpt2 import gpt2, gpt2_step, init_gpt2
from minitransformers.models.llama import init_llama, llama, llama_step

RNG = np.random.default_rng(0)
X, G = RNG.normal(size=(2, 4, 3)), RNG.normal(size=(2, 4, 3))
IDS = np.array([[1, 4, 0], [2, 2, 3]])
PLAIN = FeedForward(*(Linear(RNG.normal(size=shape), RNG.normal(size=shape[1])) for shape in ((3, 7), (7, 3))))
GATED = GatedFeedForward(*(Linear(RNG.normal(size=shape), RNG.normal(size=shape[1])) for shape in ((3, 7), (3, 7), (7, 3))))
BARE = GatedFeedForward(*(Linear(part.weight, None) for part in GATED[:3]))
NETWORKS = {
    "gelu": (feed_forward, PLAIN, slot(gelu)), "relu": (feed_forward, PLAIN, slot(relu)), "swiglu": (gated_feed_forward, BARE, slot(silu)),
    "reglu with biases": (gated_feed_forward, GATED, slot(relu)),
}  # fmt: skip


def opened(kept, units=7):
    return np.isin(np.arange(units), kept).astype(float)


def of_gates(name, gates):
    """The network with these gates: its output, and its gradient at G."""
    function, params, activation = NETWORKS[name]
    gated = params._replace(activation=NeuronGates(gates))
    out, backward = function(gated, X, activation=partial(gated_neurons, activation=activation))
    return out, backward(G)


@pytest.mark.parametrize("name", NETWORKS)
def test_importance_is_the_size_of_the_slope_by_each_unit_s_gate(name):
    function, params, activation = NETWORKS[name]
    _, (gradient, _) = of_gates(name, np.ones(7))
    own = function(params, X, activation=activation)[1](G)[0]  # no gate is needed
    np.testing.assert_allclose(neuron_importance(params, own), np.abs(gradient.activation.gates), rtol=0, atol=1e-12)


def test_importance_is_the_sum_of_each_row_by_itself():
    gradient = feed_forward(PLAIN, X)[1](G)[0]
    expected = [abs(sum(PLAIN.down.weight[j, k] * gradient.down.weight[j, k] for k in range(3))) for j in range(7)]
    np.testing.assert_allclose(neuron_importance(PLAIN, gradient), expected, rtol=0, atol=1e-12)


def test_in_a_batch_slopes_of_texts_cancel_and_one_by_one_they_do_not():
    x, g = np.stack([X[0], X[0]]), np.stack([G[0], -G[0]])   # what the one text gains the other loses
    np.testing.assert_array_equal(neuron_importance(PLAIN, feed_forward(PLAIN, x)[1](g)[0]) < 1e-13, True)
    alone = [neuron_importance(PLAIN, feed_forward(PLAIN, x[n])[1](g[n])[0]) for n in range(2)]
    np.testing.assert_allclose(alone[0], alone[1], rtol=1e-13)
    assert alone[0].min() > 1e-3


def test_the_element_s_own_sizes_summed_are_another_score():
    """A plausible mistake: |w dw| of each weight, and then the sum."""
    gradient = feed_forward(PLAIN, X)[1](G)[0]
    summed_late = np.abs(PLAIN.down.weight * gradient.down.weight).sum(axis=1)
    assert np.all(summed_late >= neuron_importance(PLAIN, gradient))
    assert np.abs(summed_late - np.abs(of_gates("gelu", np.ones(7))[1][0].activation.gates)).max() > 0.1


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kept", [[0], [6, 2], [0, 1, 3, 4, 5], list(range(7))], ids=str)
def test_without_units_the_output_is_that_of_gates_of_zero(name, kept):
    function, params, activation = NETWORKS[name]
    gated, (gradient, dx) = of_gates(name, opened(kept))
    out, backward = function(without_neurons(params, kept=kept), X, activation=activation)
    np.testing.assert_allclose(out, gated, rtol=0, atol=1e-12)
    dparams, smaller_dx = backward(G)
    np.testing.assert_allclose(smaller_dx, dx, rtol=0, atol=1e-12)
    cut = without_neurons(gradient._replace(activation=None), kept=kept)
    trees.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-12), dparams, cut)


def test_the_arrays_are_columns_and_rows_and_nothing_else():
    smaller = without_neurons(GATED, kept=[5, 1])
    for name in ("gate", "up"):
        part, own = getattr(GATED, name), getattr(smaller, name)
        np.testing.assert_array_equal(own.weight, np.stack([part.weight[:, 1], part.weight[:, 5]], axis=1))
        np.testing.assert_array_equal(own.bias, [part.bias[1], part.bias[5]])
    np.testing.assert_array_equal(smaller.down.weight, np.stack([GATED.down.weight[1], GATED.down.weight[5]]))
    np.testing.assert_array_equal(smaller.down.bias, GATED.down.bias)


@pytest.mark.parametrize(("params", "each"), [(PLAIN, 2 * 3 + 1), (GATED, 3 * 3 + 2), (BARE, 3 * 3)], ids=["plain", "with biases", "SwiGLU"])
@pytest.mark.parametrize("pruned", [1, 4, 6])
def test_the_parameters_fall_by_the_formula(params, each, pruned):
    smaller = without_neurons(params, kept=list(range(pruned, 7)))
    assert trees.count_parameters(params) - trees.count_parameters(smaller) == pruned * each


def test_gates_of_the_units_that_stay_stay():
    gates = NeuronGates(RNG.normal(size=(2, 1, 7)) * opened([1, 5]))
    gated, _ = feed_forward(PLAIN._replace(activation=gates), X, activation=gated_neurons)
    smaller = without_neurons(PLAIN._replace(activation=gates), kept=[1, 5])
    np.testing.assert_array_equal(smaller.activation.gates, gates.gates[..., [1, 5]])
    np.testing.assert_allclose(feed_forward(smaller, X, activation=gated_neurons)[0], gated, rtol=0, atol=1e-12)


def noisy(params):
    rng = np.random.default_rng(4)
    return trees.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape), params)


SIZES = {"vocabulary": 5, "d_model": 4, "num_layers": 2, "num_heads": 2, "std": 0.5, "dtype": np.float64}
KEPT = [[0, 2, 3], [4]]                                      # another number in each layer: a model reads it off its arrays


def in_layers(params, change):
    return params._replace(blocks=[b._replace(feed_forward=change(b.feed_forward, layer)) for layer, b in enumerate(params.blocks)])


def test_a_whole_gpt2_with_units_less_is_gpt2():
    params = noisy(init_gpt2(np.random.default_rng(5), context=3, **SIZES))
    gated = in_layers(params, lambda own, layer: own._replace(activation=NeuronGates(opened(KEPT[layer], 16))))
    expected, _ = gpt2(gated, ids=IDS, num_heads=2, feed_forward=partial(feed_forward, activation=gated_neurons))
    smaller = in_layers(params, lambda own, layer: without_neurons(own, kept=KEPT[layer]))
    np.testing.assert_allclose(gpt2(smaller, ids=IDS, num_heads=2)[0], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(gpt2_step(smaller, IDS, None, num_heads=2)[0], expected, rtol=0, atol=1e-12)
    assert trees.count_parameters(params) - trees.count_parameters(smaller) == (13 + 15) * (2 * 4 + 1)


def test_a_whole_llama_with_units_less_is_llama():
    params = noisy(init_llama(np.random.default_rng(6), d_hidden=6, **SIZES))
    inside = partial(gated_feed_forward, activation=partial(gated_neurons, activation=slot(silu)))
    gated = in_layers(params, lambda own, layer: own._replace(activation=NeuronGates(opened(KEPT[layer], 6))))
    expected, _ = llama(gated, ids=IDS, num_heads=2, feed_forward=inside)
    smaller = in_layers(params, lambda own, layer: without_neurons(own, kept=KEPT[layer]))
    np.testing.assert_allclose(llama(smaller, ids=IDS, num_heads=2)[0], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(llama_step(smaller, IDS, None, num_heads=2)[0], expected, rtol=0, atol=1e-12)
    assert trees.count_parameters(params) - trees.count_parameters(smaller) == (3 + 5) * 3 * 4


def test_what_cannot_be_is_refused():
    for kept, words in (([], "no neurons"), ([0, 7], "got 7, wants neurons from 0 to 6"), ([-1, 2], "got -1"), ([2, 2], "at most once")):
        with pytest.raises(ValueError, match=f"kept: .*{words}"):
            without_neurons(PLAIN, kept=kept)
    with pytest.raises(ValueError, match="gradient: got FeedForward"):
        neuron_importance(GATED, PLAIN)
    with pytest.raises(ValueError, match=r"gradient\.up\.weight: got shape \(3, 2\)"):
        neuron_importance(PLAIN, without_neurons(PLAIN, kept=[0, 1]))


@pytest.mark.parity
def test_the_arrays_are_those_of_hugging_face_s_pruning_and_the_score_is_torch_s():
    torch, utils = pytest.importorskip("torch"), pytest.importorskip("transformers.pytorch_utils")
    params, index = trees.cast(PLAIN, np.float32), torch.tensor([1, 5])  # theirs makes layers of float32
    layers = []
    for part in params[:2]:
        layer = torch.nn.Linear(*part.weight.shape)
        layer.load_state_dict({"weight": torch.tensor(part.weight.T.copy()), "bias": torch.tensor(part.bias)})
        layers.append(layer)
    smaller = without_neurons(params, kept=[1, 5])
    for layer, own, dim in zip(layers, smaller[:2], (0, 1), strict=True):
        theirs = utils.prune_linear_layer(layer, index, dim=dim)
        np.testing.assert_allclose(own.weight, theirs.weight.detach().numpy().T, rtol=0, atol=0)
        np.testing.assert_allclose(own.bias, theirs.bias.detach().numpy(), rtol=0, atol=0)
    up, down = (layer.double() for layer in layers)
    active = torch.nn.functional.gelu(up(torch.tensor(X)), approximate="tanh")
    active.retain_grad()
    down(active).backward(torch.tensor(G))
    slopes = (active * active.grad).sum(dim=(0, 1)).abs().detach().numpy()
    params = trees.cast(params, np.float64)
    np.testing.assert_allclose(neuron_importance(params, feed_forward(params, X)[1](G)[0]), slopes, rtol=0, atol=1e-9)
