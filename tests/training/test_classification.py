"""Classification: a classifier with dropout through the same loop, and what it measures."""

import csv
import json

import numpy as np
import pytest
from small_run import classes_task, classifier, init_classifier, points, run

from minitransformers import trees
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.training.classification import Classification
from minitransformers.training.fit import fit
from minitransformers.training.history import read_history


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run(classes_task(), init_classifier, folder=folder, steps=150, eval_every=30, learning_rate=0.02)


def test_it_learns_to_name_the_classes(finished):
    _, result = finished
    first, last = (record.measured for record in (result.history[29], result.history[-1]))
    assert last["accuracy"] > 0.9 and last["nats per example"] < first["nats per example"]
    assert result.final_validation == last["nats per example"]


def test_what_is_measured_stands_in_the_history(finished):
    folder, result = finished
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "learning_rate", "loss", "gradient_norm", "seconds", "nats per example", "accuracy"]
    assert [row[-2:] == ["", ""] for row in rows] == [step % 30 != 0 for step in range(1, 151)]
    assert float(rows[-1][-1]) == result.history[-1].measured["accuracy"]
    assert read_history(folder / "history.csv") == result.history
    content = json.loads((folder / "history.json").read_text())
    assert content["history"][29]["measured"] == result.history[29].measured and content["history"][28]["measured"] is None
    assert content["summary"]["final_validation"] == result.final_validation


def test_the_axis_of_the_curve_says_what_is_measured(finished):
    pytest.importorskip("matplotlib")
    drawing = (finished[0] / "curve.svg").read_text()
    assert "nats per example" in drawing and "bits per character" not in drawing


def test_the_measured_numbers_are_the_mean_loss_and_the_part_that_is_right():
    params = init_classifier(np.random.default_rng(0), dtype=np.float64)
    inputs, labels = points(1, 40, dtype=np.float64)
    task = Classification(classifier, points(0, 60, dtype=np.float64), (inputs, labels), batch_size=8)
    logits, _ = classifier(params, inputs)
    assert task.evaluate(params) == {
        "nats per example": pytest.approx(float(cross_entropy(logits, targets=labels)[0]), abs=1e-12),
        "accuracy": np.mean(logits.argmax(-1) == labels),
    }


def test_batches_are_drawn_from_the_training_examples_with_their_labels():
    inputs, labels = points(0, 60)
    drawn, named = classes_task(batch_size=500).batch(np.random.default_rng(0))
    assert drawn.shape == (500, 3) and named.shape == (500,)
    which = (drawn[:, None] == inputs).all(-1).argmax(1)
    np.testing.assert_array_equal(inputs[which], drawn)
    np.testing.assert_array_equal(labels[which], named)
    assert len(np.unique(which)) == 60


def test_inputs_may_be_a_tree():
    def model(params, inputs):
        both, shift = inputs
        return classifier(params, both + shift)

    (inputs, labels), shift = points(0, 60), np.full((60, 3), 0.5, np.float32)
    task = Classification(model, ((inputs, shift), labels), ((inputs, shift), labels), batch_size=5)
    (drawn, shifted), named = task.batch(np.random.default_rng(0))
    assert drawn.shape == shifted.shape == (5, 3) and named.shape == (5,)
    params = init_classifier(np.random.default_rng(0))
    assert fit(params, task, steps=2, peak=0.1) is not params


def test_dropout_acts_in_training_and_not_in_evaluation():
    given = []

    def watching(params, inputs, rng=None):
        given.append(rng is not None)
        return classifier(params, inputs, rng=rng)

    run(classes_task(model=watching), init_classifier, steps=2, eval_every=1)
    assert given == [True, False, True, False]


def test_the_same_seed_gives_the_same_bits():
    one, same, other = (run(classes_task(), init_classifier, seed=seed).params for seed in (1, 1, 2))
    trees.map(np.testing.assert_array_equal, one, same)
    assert not np.array_equal(one.head.weight, other.head.weight)


def test_other_examples_are_another_task():
    tasks = [classes_task(), classes_task(batch_size=9)]
    train, test = points(0, 60), points(1, 40)
    moved, renamed = (train[0] + 1, train[1]), (train[0], train[1][::-1].copy())
    tasks += [Classification(classifier, own, test, batch_size=8, described="small") for own in (moved, renamed)]
    tasks += [Classification(classifier, test, train, batch_size=8, described="small")]
    assert len({json.dumps(task.to_json()) for task in tasks}) == 5
    assert classes_task().to_json() == tasks[0].to_json()


def test_a_run_on_other_examples_is_not_resumed(tmp_path):
    run(classes_task(), init_classifier, folder=tmp_path, steps=2)
    inputs, labels = points(0, 60)
    other = Classification(classifier, (inputs + 1, labels), points(1, 40), batch_size=8, random=True, described="small")
    with pytest.raises(ValueError, match=r"config\.task\.sha256 is "):
        run(other, init_classifier, folder=tmp_path, steps=2, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": (np.ones((3, 2), np.float32), np.zeros(4, int))}, "train: got 3 in inputs and 4 labels, wants one label an example"),
        ({"test": ((np.ones((4, 2), np.float32), np.ones((5, 2), np.float32)), np.zeros(4, int))}, r"test: got 5 in inputs\.1 and 4 labels"),
        ({"train": (np.ones((0, 2), np.float32), np.zeros(0, int))}, "train"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"model": None}, "model: got None"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    good = {"model": classifier, "train": points(0, 6), "test": points(1, 6), "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        Classification(**{**good, **changes})
