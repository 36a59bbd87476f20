import json
import shutil
from typing import Any, NamedTuple

import numpy as np
import pytest
from small_run import classes_task, corpus, init_classifier, run, small_train

from minitransformers.foundation import trees
from minitransformers.foundation.safetensors import read_safetensors, write_safetensors
from minitransformers.training import checkpoint
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
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.state == json.loads(json.dumps(state))
    assert set(loaded.arrays) == {f"{group}.{place}" for group in ("parameters", "sums") for place in ("0.weight", "1.weight", "1.bias")}
    trees.map(np.testing.assert_array_equal, loaded.tree("parameters", trees.zeros_like(TREE)), TREE)
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


def set_to(value, *path):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


def without(*path):
    def change(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


WRONG = [
    *((set_to(value, "step"), rf"step: got {got}, wants a whole number from 0 to the 12 steps")
      for value, got in [(None, "None"), (-1, "-1"), (13, "13"), (4.0, "4.0"), (True, "True"), ("4", "'4'"), ([], r"\[\]"), (10**30, "10+")]),
    *((set_to(value, "seconds"), rf"seconds: got {got}, wants a finite number of at least 0")
      for value, got in [(None, "None"), (-0.5, "-0.5"), (float("inf"), "inf"), (float("nan"), "nan"), ("1", "'1'"), (10**400, "10+…0+")]),
    *((set_to(value, "counted"), rf"counted: got {got}, wants a whole number of at least 0")
      for value, got in [(None, "None"), (-1, "-1"), (1.5, "1.5"), (10**400, "10+…0+")]),
    *((without(name), rf"{name}: got (nothing|None), wants") for name in ("step", "seconds", "counted", "random", "history")),
    (without("config"), "another configuration: config is None there"),
    (set_to([], "config"), r"another configuration: config is \[\] there"),
    (set_to(None, "config", "task"), "another configuration: config.task is None there"),
    (set_to(None, "random"), "random: got None, wants the state of each generator"),
    (without("random", "data"), "random.data: got None, wants the state of a PCG64"),
    (set_to(3, "random", "dropout"), "random.dropout: got 3, wants the state of a PCG64"),
    (without("random", "data", "state", "inc"), "random.data: got .*, wants the state of a PCG64"),
    *((set_to(value, "random", "data", "state", "state"), "random.data: got .*, wants the state of a PCG64") for value in (-1, 1.5, None, "1", 2**128, [1])),
    *((set_to(value, "history"), f"history: got {got}, wants 12 records, one a step") for value, got in [(None, "None"), ({}, "{}"), ([], "0 records"), (7, "7")]),
    (without("history", 3), "history: got 11 records, wants 12 records, one a step"),
    *((set_to(value, "history", 3), r"history.3: got .*, wants step 4 and its learning_rate, loss") for value in (None, [], 4, {}, [4, 1, 1, 1, 1])),
    *((set_to(value, "history", 3, 0), r"history.3: got .*, wants step 4") for value in (None, 3, "4", 4.0)),
    *((set_to(value, "history", 3, 2), r"history.3: got .*, wants step 4") for value in (None, "1", float("nan"), float("inf"), 10**400, [1], True)),
    *((set_to(value, "history", 4, 5), r"history.4: got .*, wants step 5") for value in ({}, [], 3, {"bits": None}, {"bits": float("nan")})),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_state_that_no_run_can_have_is_refused_by_file_and_field_and_no_file_is_harmed(finished, tmp_path, change, message):
    loaded = load_checkpoint(finished / CHECKPOINT)
    change(loaded.state)
    rewrite(tmp_path, loaded.arrays, json.dumps(loaded.state))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        small_train(folder=tmp_path, resume=True)
    assert str(caught.value).startswith(f"{tmp_path / CHECKPOINT}: ") and len(str(caught.value)) < 500
    assert contents(tmp_path) == before


@pytest.mark.parametrize("state", ["", "{", "[1, 2]", "null", "7", "[" * 100_000, '{"step": ' + "9" * 5000 + "}", '{"config": ' + "[" * 900 + "]" * 900 + "}"])
def test_a_state_that_is_no_object_of_json_is_refused(finished, tmp_path, state):
    rewrite(tmp_path, load_checkpoint(finished / CHECKPOINT).arrays, state)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors: (state: (is not JSON|got)|was made with another configuration)") as caught:
        small_train(folder=tmp_path, resume=True)
    assert len(str(caught.value)) < 500


def test_a_generator_goes_on_where_it_stood(finished, tmp_path):
    """What is refused is the wrong state, not a generator's."""
    loaded = load_checkpoint(finished / CHECKPOINT)
    rewrite(tmp_path, loaded.arrays, json.dumps(loaded.state))
    assert small_train(folder=tmp_path, resume=True).history == small_train(folder=finished, resume=True).history


@pytest.mark.parametrize("garbled", [b"", b"step,loss\n1,", b"\xff\xfe", None])
def test_a_history_csv_that_is_cut_or_garbled_is_written_anew_on_resume(finished, tmp_path, garbled):
    """The history is in the checkpoint; the file is a copy."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    whole = (folder / "history.csv").read_bytes()
    (folder / "history.csv").unlink()
    if garbled is not None:
        (folder / "history.csv").write_bytes(garbled)
    small_train(folder=folder, resume=True)
    assert (folder / "history.csv").read_bytes() == whole


def rewrite(folder, arrays, state):
    """A checkpoint of these arrays and this state, with the fingerprint of that."""
    metadata = {"format": checkpoint._FORMAT, "state": state, "sha256": checkpoint._fingerprint(arrays, state)}
    write_safetensors(folder / CHECKPOINT, arrays, metadata=metadata)


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
