"""Weights by a table of names, for a model of any kind: plain, transposed and packed arrays, in and out."""

from typing import Annotated, Any, NamedTuple

import numpy as np
import pytest
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers import trees
from minitransformers.basics.linear import Linear
from minitransformers.models.weights import Names, packed, plain, read_arrays, transposed


class Layer(NamedTuple):
    gate: Annotated[Linear, "d_model d_hidden"]
    up: Annotated[Linear, "d_model d_hidden"]
    down: Annotated[Linear, "d_hidden d_model"]


class Model(NamedTuple):
    layers: list[Layer]
    gain: Float[Array, "d_model"]
    core: Any = None


NAMES = Names(
    {
        "layers.*.gate.weight": packed("layers.*.gate_up.weight", 0, of=2, transposed=True),
        "layers.*.up.weight": packed("layers.*.gate_up.weight", 1, of=2, transposed=True),
        "layers.*.gate.bias": packed("layers.*.gate_up.bias", 0, of=2),
        "layers.*.up.bias": packed("layers.*.gate_up.bias", 1, of=2),
        "layers.*.down.weight": transposed("layers.*.down.weight"),
        "gain": plain("norm.weight"),
    },
    prefix="model.",
)


def theirs(layers=3):
    """As torch.nn.Linear keeps them, (d_out, d_in), gate and up one below the other."""
    rng = np.random.default_rng(0)
    arrays = {"model.norm.weight": rng.normal(size=4)}
    for i in range(layers):
        arrays[f"model.layers.{i}.gate_up.weight"] = rng.normal(size=(10, 4))
        arrays[f"model.layers.{i}.gate_up.bias"] = rng.normal(size=10)
        arrays[f"model.layers.{i}.down.weight"] = rng.normal(size=(4, 5))
    return arrays


def load(arrays):
    found = NAMES.stripped(read_arrays(arrays))
    one = Layer(*(Linear(np.ones((1, 1)), bias) for bias in (np.ones(1), np.ones(1), None)))
    return NAMES.tree(Model([one] * NAMES.count("layers.*.", found), np.ones(1)), found)


def test_each_leaf_is_taken_from_its_place():
    arrays = theirs()
    model = load(arrays)
    for i, layer in enumerate(model.layers):
        weight, bias = arrays[f"model.layers.{i}.gate_up.weight"], arrays[f"model.layers.{i}.gate_up.bias"]
        np.testing.assert_array_equal(layer.gate.weight, weight[:5].T)
        np.testing.assert_array_equal(layer.up.weight, weight[5:].T)
        np.testing.assert_array_equal(layer.gate.bias, bias[:5])
        np.testing.assert_array_equal(layer.up.bias, bias[5:])
        np.testing.assert_array_equal(layer.down.weight, arrays[f"model.layers.{i}.down.weight"].T)
    np.testing.assert_array_equal(model.gain, arrays["model.norm.weight"])


def test_the_maps_act_as_theirs_do():
    arrays, x = theirs(), np.random.default_rng(1).normal(size=(2, 4))
    both = x @ arrays["model.layers.1.gate_up.weight"].T + arrays["model.layers.1.gate_up.bias"]
    layer = load(arrays).layers[1]
    np.testing.assert_allclose(np.concatenate([x @ part.weight + part.bias for part in layer[:2]], axis=-1), both, rtol=0, atol=1e-14)


def test_weights_and_gradients_go_back_to_where_they_came_from():
    arrays = theirs(11)                                      # a number of two digits is one number
    model = load(arrays)
    out = NAMES.arrays(model)
    assert out.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(out[name], array, err_msg=name)
    doubled = NAMES.arrays(trees.map(lambda leaf: 2 * leaf, model))
    np.testing.assert_array_equal(doubled["model.layers.10.gate_up.weight"], 2 * arrays["model.layers.10.gate_up.weight"])


def test_parts_are_arrays_of_their_own_in_c_order():
    arrays = theirs()
    model = load(arrays)
    for path, leaf in trees.leaves(model.layers):
        assert leaf.flags.c_contiguous and leaf.base is None, path
    model.layers[0].gate.weight[:] = 7
    assert (arrays["model.layers.0.gate_up.weight"] != 7).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.pop("model.layers.1.down.weight"), r"missing layers\.1\.down\.weight"),
        (lambda a: a.update({"lm_head.weight": np.ones(2)}), r"unexpected lm_head\.weight"),
        (lambda a: a.update({"model.layers.0.gate_up.weight": np.ones((9, 4))}), r"layers\.0\.gate_up\.weight of shape \(9, 4\), wants 2 equal parts"),
        (lambda a: a.update({"model.layers.2.down.weight": np.ones((4, 6))}), r"layers\.2\.down\.weight of shape \(4, 6\), wants .*d_in = 5"),
        (lambda a: a.update({"model.layers.2.down.weight": np.ones(20)}), r"layers\.2\.down\.weight of shape \(20,\)"),
        (lambda a: a.pop("model.norm.weight"), r"missing norm\.weight"),
        (lambda a: [a.pop(name) for name in list(a) if ".layers." in name], r"names such as norm\.weight, wants those of one model, which start with model\.layers\.0\."),
    ],
)
def test_what_does_not_fit_is_named_as_it_is_called_there(spoil, message):
    arrays = theirs()
    spoil(arrays)
    with pytest.raises(ValueError, match=message):
        load(arrays)


def test_a_leaf_that_the_table_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"skeleton: got a leaf core, wants leaves that the table of names knows"):
        NAMES.arrays(load(theirs())._replace(core=np.ones(2)))


def test_the_arrays_of_a_dict_keep_their_dtype_but_float16():
    arrays = {"a": np.ones(2, np.float16), "b": np.ones(2), "c": np.ones(2, np.float32), "d": [1, 2]}
    assert {name: array.dtype for name, array in read_arrays(arrays).items()} == {
        "a": np.float32, "b": np.float64, "c": np.float32, "d": np.int64,
    }  # fmt: skip
