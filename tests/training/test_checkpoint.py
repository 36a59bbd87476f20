import json
import shutil
from typing import Any, NamedTuple

import numpy as np
import pytest
from small_run import classes_task, corpus, init_classifier, run, small_train

from minitransformers.foundation import trees
from minitransformers.foundation.safetensors import read_safetensors, write_safetensors
from minitransformers.training.checkpoint import differences, load_checkpoint, save_checkpoint
from minitransformers.training.loop import CHECKPOINT


class Pair(NamedTuple):
    weight: Any
    bias: Any


TREE = [Pair(np.arange(6.0).reshape(2, 3), None), Pair(np.ones((3, 1)), np.zeros(1))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    small_train(folder=folder)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    state = {"step": 3, "random": np.random.default_rng(0).bit_generator.state, "history": [[1, 0.1, None]]}
    save_checkpoint(tmp_path / "a.safetensors", {"parameters": TREE, "sums": trees.zeros_like(TREE)}, state)
    checkpoint = load_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.state == json.loads(json.dumps(state))
    assert set(checkpoint.arrays) == {f"{group}.{place}" for group in ("parameters", "sums") for place in ("0.weight", "1.weight", "1.bias")}
    trees.map(np.testing.assert_array_equal, checkpoint.tree("parameters", trees.zeros_like(TREE)), TREE)
    assert json.loads((tmp_path / "a.json").read_text()) == {"step": 3}  # for people


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ([TREE[0]], "unexpected: 1.bias, 1.weight"),
        ([*TREE, np.ones(1)], "missing: 2"),
        ([TREE[0], Pair(np.ones((1, 3)), np.zeros(1))], r"wrong shape: 1.weight is \(3, 1\), should be \(1, 3\)"),
        (trees.cast(TREE, np.float32), "0.weight is float64, should be float32"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, template, message):
    save_checkpoint(tmp_path / "a.safetensors", {"parameters": TREE}, {})
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(tmp_path / "a.safetensors").tree("parameters", template)
    assert "a.safetensors: parameters" in str(caught.value)


def test_differences_are_told_field_by_field():
    saved = {"d_model": 128, "options": {"mixer": {"window": 4}}, "gone": 1, "betas": [0.9, 0.99]}
    wanted = {"d_model": 64, "options": {"mixer": {"window": 8}}, "new": None, "betas": [0.9, 0.99]}
    assert differences(saved, wanted, "model") == [
        "model.d_model is 128 there and 64 here",
        "model.options.mixer.window is 4 there and 8 here",
        "model.gone is 1 there and None here",
    ]
    assert differences(saved, saved, "model") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 7}, "config.task.model.d_model is 5 there and 7 here"),
        ({"batch_size": 3}, "config.task.batch_size is 6 there and 3 here"),
        ({"eval_windows": 3}, "config.task.eval_windows is None there and 3 here"),
        ({"learning_rate": 0.5}, r"config.training.learning_rate is 0.001 there and 0.5 here"),
        ({"betas": (0.5, 0.99)}, r"config.training.betas is \[0.9, 0.99\] there and \[0.5, 0.99\] here"),
        ({"steps": 13}, "config.training.steps is 12 there and 13 here"),
        ({"text": corpus(validation_fraction=0.2)}, "config.task.corpus.train_characters"),
        ({"text": corpus(vocabulary="bytes")}, "config.task.corpus.vocabulary.kind is 'characters' there and 'bytes' here"),
    ],
)
def test_another_configuration_is_refused_and_no_file_is_harmed(finished, change, message):
    folder = finished
    before = contents(folder)
    with pytest.raises(ValueError, match=message) as caught:
        small_train(folder=folder, resume=True, **change)
    assert str(folder / CHECKPOINT) in str(caught.value) and "another configuration" in str(caught.value)
    assert contents(folder) == before


def test_another_task_is_refused(finished):
    with pytest.raises(ValueError, match=r"another configuration: config\.task"):
        run(classes_task(), init_classifier, folder=finished, resume=True)


def test_a_damaged_checkpoint_is_refused_and_no_file_is_harmed(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    whole, rng = (folder / CHECKPOINT).read_bytes(), np.random.default_rng(0)
    flipped = []
    for place in (len(whole) - 3, len(whole) // 2):  # a number; the file is still a .safetensors file
        damaged = bytearray(whole)
        damaged[place] ^= 1
        flipped.append(bytes(damaged))
    for damaged in [*(whole[: rng.integers(len(whole))] for _ in range(20)), whole + b"more", b"", *flipped]:
        (folder / CHECKPOINT).write_bytes(damaged)
        before = contents(folder)
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors: is (not a whole|damaged)"):
            small_train(folder=folder, resume=True)
        assert contents(folder) == before


def test_missing_extra_and_misshapen_weights_are_refused(finished, tmp_path):
    arrays, metadata = read_safetensors(finished / CHECKPOINT)
    path = tmp_path / CHECKPOINT
    state = json.loads(metadata["state"])
    for change, message in [
        (lambda a: a.pop("parameters.head.bias"), "parameters: missing: head.bias"),
        (lambda a: a.update({"square_sum.other": np.ones(2)}), "square_sum: unexpected: other"),
        (lambda a: a.update({"gradient_sum.hidden.bias": np.ones(9, np.float32)}), r"gradient_sum: wrong shape: hidden.bias is \(9,\)"),
    ]:
        changed = dict(arrays)
        change(changed)
        groups = {}
        for name, array in changed.items():  # a whole file with an honest fingerprint, of another model
            group, place = name.split(".", 1)
            groups.setdefault(group, {})[place] = array
        save_checkpoint(path, {group: flat_places(places) for group, places in groups.items()}, state)
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=message):
            small_train(folder=tmp_path, resume=True)
        assert contents(tmp_path) == before


def flat_places(places):
    """A tree whose paths are these names, dots and all."""

    class Places(tuple):
        _fields = tuple(places)

    return Places(places.values())


def test_other_files_are_not_taken_for_a_checkpoint(tmp_path):
    write_safetensors(tmp_path / CHECKPOINT, {"x": np.ones(2)})
    with pytest.raises(ValueError, match="is not a checkpoint of this version"):
        load_checkpoint(tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_a_checkpoint_of_the_first_format_is_refused_by_name(finished, tmp_path):
    arrays, metadata = read_safetensors(finished / CHECKPOINT)
    write_safetensors(tmp_path / CHECKPOINT, arrays, metadata=metadata | {"format": "minitransformers checkpoint 1"})
    with pytest.raises(ValueError, match="is not a checkpoint of this version: its format is 'minitransformers checkpoint 1', wants 'minitransformers checkpoint 2'"):
        load_checkpoint(tmp_path / CHECKPOINT)
