"""Weights by a table of names, for a model of any kind: plain, transposed and packed arrays, in and out, from files of either format."""

import json
from typing import Annotated, Any, NamedTuple

import numpy as np
import pytest
from jaxtyping import Float
from numpy import ndarray as Array
from torch_files import torch_file

from minitransformers import trees
from minitransformers.basics.linear import Linear
from minitransformers.foundation.safetensors import write_safetensors
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


# --- files of PyTorch's first format ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(torch_file(theirs()))
    return tmp_path


def test_a_file_of_pytorch_is_read_by_its_name_or_from_its_folder(folder):
    expected = load(theirs())
    for source in (folder / "pytorch_model.bin", str(folder / "pytorch_model.bin"), folder):
        trees.map(np.testing.assert_array_equal, load(source), expected)
    half = {name: array.astype(np.float16) for name, array in theirs().items()}
    (folder / "half.bin").write_bytes(torch_file(half))
    assert {array.dtype for array in read_arrays(folder / "half.bin").values()} == {np.dtype(np.float32)}


def test_of_a_folder_with_both_safetensors_is_read(folder):
    write_safetensors(folder / "model.safetensors", {"a": np.ones(2, np.float32)})
    assert list(read_arrays(folder)) == ["a"]


def test_the_shards_of_an_index_may_be_files_of_pytorch(tmp_path):
    arrays = theirs()
    names = list(arrays)
    places = {name: f"part-{i % 2}.bin" for i, name in enumerate(names)}
    for file in set(places.values()):
        (tmp_path / file).write_bytes(torch_file({name: arrays[name] for name in names if places[name] == file}))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    read = read_arrays(tmp_path / "pytorch_model.bin.index.json")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {**places, "lost": "part-0.bin"}}))
    with pytest.raises(ValueError, match=r"part-0\.bin: lacks lost, which pytorch_model\.bin\.index\.json says is in it"):
        read_arrays(tmp_path / "pytorch_model.bin.index.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch_file(theirs())[:-1], r"pytorch_model\.bin: is cut off"),
        (torch_file(theirs())[:200], r"pytorch_model\.bin: "),
        (torch_file(theirs()) + b"!", r"pytorch_model\.bin: goes on behind its last storage"),
        (torch_file({"wte.weight": np.ones((3, 4))}), r"names such as wte\.weight, wants those of one model"),
        (torch_file({**theirs(), "lm_head.weight": np.ones(2)}), r"unexpected lm_head\.weight"),
        (torch_file({**theirs(), "model.layers.2.down.weight": np.ones((4, 6))}), r"layers\.2\.down\.weight of shape \(4, 6\), wants"),
        (b"PK\x03\x04", r"pytorch_model\.bin: is a zip archive, as PyTorch writes since version 1\.6"),
        (b"", r"pytorch_model\.bin: "),
    ],
    ids=["cut off by a byte", "cut off early", "with more behind", "another model", "an array more", "another shape", "the later format", "empty"],
)
def test_a_file_of_pytorch_that_does_not_fit_is_refused(content, message, folder):
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_named_as_before(tmp_path):
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        read_arrays(tmp_path)
