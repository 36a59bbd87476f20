import json
import math
import re
import threading
from functools import partial

import numpy as np
import pytest
from small_run import SmallConfig, corpus, init_small, language_task, run, small, small_train

from minitransformers.foundation import atomic, trees
from minitransformers.training.config import TrainingConfig
from minitransformers.training.history import read_history
from minitransformers.training.language_modelling import LanguageModelling
from minitransformers.training.loop import CHECKPOINT
from minitransformers.training.optimizer import TrainingDiverged
from minitransformers.training.text import Corpus


def test_a_model_learns():
    result = small_train(steps=300, learning_rate=0.02, dropout=0.1)
    assert result.history[0].loss == pytest.approx(math.log(corpus().vocabulary.size), abs=1.0)
    assert result.final_validation < 2.6 < 3.5 < result.history[0].loss / math.log(2)
    assert result.best_validation <= result.final_validation and result.labels_per_second > 0


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    one, same, other = (small_train(seed=seed, dropout=0.1).params for seed in (1, 1, 2))
    trees.map(np.testing.assert_array_equal, one, same)
    assert not np.array_equal(one.head.weight, other.head.weight)


def test_evaluating_and_saving_do_not_change_the_run(tmp_path):
    often = small_train(eval_every=1, checkpoint_every=1, folder=tmp_path, dropout=0.1)
    seldom = small_train(eval_every=0, checkpoint_every=0, dropout=0.1)
    trees.map(np.testing.assert_array_equal, often.params, seldom.params)
    assert [record.validation is None for record in seldom.history] == [True] * 11 + [False]


def test_a_run_in_micro_batches_ends_where_a_run_in_batches_does():
    whole, parts = (small_train(dtype=np.float64, micro_batches=k).params for k in (1, 3))
    for _, leaf in trees.leaves(trees.map(np.subtract, whole, parts)):
        assert np.abs(leaf).max() < 1e-9


def test_micro_batches_side_by_side_end_where_they_end_one_after_another():
    pytest.importorskip("threadpoolctl")
    one, two = (small_train(dtype=np.float64, micro_batches=6, threads=k).params for k in (1, 2))
    for _, leaf in trees.leaves(trees.map(np.subtract, one, two)):
        assert np.abs(leaf).max() < 1e-12  # the sums have one order; only BLAS may split a product otherwise
    again = small_train(dtype=np.float64, micro_batches=6, threads=2).params
    trees.map(np.testing.assert_array_equal, two, again)


def test_dropout_side_by_side_is_that_of_one_after_another_and_the_same_each_time():
    """Each part has a generator of its own, whichever thread is first."""
    pytest.importorskip("threadpoolctl")
    settings = {"dtype": np.float64, "micro_batches": 6, "dropout": 0.3}
    two = small_train(**settings, threads=2).params
    for _ in range(3):
        trees.map(np.testing.assert_array_equal, two, small_train(**settings, threads=2).params)
    for _, leaf in trees.leaves(trees.map(np.subtract, small_train(**settings).params, two)):
        assert np.abs(leaf).max() < 1e-12
    other, without = small_train(**settings, threads=2, seed=1).params, small_train(**{**settings, "dropout": 0.0}, threads=2).params
    assert np.abs(other.head.weight - two.head.weight).max() > 1e-3 and np.abs(without.head.weight - two.head.weight).max() > 1e-4


def test_the_parts_of_a_batch_drop_different_features():
    drawn = []

    def watching(*args, rng=None, **settings):
        if rng is not None:
            drawn.append(rng.random())
        return small(*args, **settings)

    small_train(model=watching, dropout=0.3, micro_batches=3, steps=2, eval_every=0)
    assert len(set(drawn)) == 6


def test_threads_are_at_work():
    pytest.importorskip("threadpoolctl")
    names = set()

    def model(*args, **config):
        names.add(threading.current_thread().name)
        return small(*args, **config)

    small_train(micro_batches=2, threads=2, eval_every=0, model=model)
    assert any("minitransformers" in name for name in names)


def test_an_error_in_one_thread_is_raised():
    from minitransformers.training.threads import side_by_side

    pytest.importorskip("threadpoolctl")
    with pytest.raises(ZeroDivisionError):
        side_by_side([1, 0], function=lambda i: 1 / i)


def test_evaluation_is_the_mean_over_every_validation_token():
    text = corpus()
    params = init_small(np.random.default_rng(1), SmallConfig(text.vocabulary.size), dtype=np.float64)
    total = count = 0
    for start in range(0, len(text.validation) - 1, 6):
        window = text.validation[start : start + 7]
        logits, _ = small(params, ids=window[None, :-1], config=SmallConfig(text.vocabulary.size))
        logits -= logits.max(-1, keepdims=True)
        for row, target in zip(logits[0], window[1:], strict=True):
            total -= row[target] - np.log(np.exp(row).sum())
            count += 1
    assert count == len(text.validation) - 1
    for batch_size in (1, 5):
        measured = language_task(batch_size=batch_size).evaluate(params)
        assert measured == {"bits per character": pytest.approx(total / count / np.log(2), rel=1e-12)}


def test_bits_per_character_do_not_depend_on_the_vocabulary():
    def uniform(params, *, ids):  # a model that knows nothing: log2(size) bits a token
        return np.zeros((*ids.shape, params)), None

    text = Corpus.from_text("aé" * 100, context=6, vocabulary="bytes")  # three bytes for two characters
    task = LanguageModelling(text, uniform, context=6, batch_size=4)
    assert task.evaluate(256)["bits per character"] == pytest.approx(8 * 3 / 2)
    assert task.per_nat == pytest.approx(3 / 2 / math.log(2))


def test_the_folder_holds_what_happened(tmp_path):
    result = small_train(folder=tmp_path / "new" / "run")
    assert {path.name for path in (tmp_path / "new" / "run").iterdir()} >= {CHECKPOINT, "checkpoint.json", "history.csv", "history.json"}
    assert read_history(tmp_path / "new" / "run" / "history.csv") == result.history
    content = json.loads((tmp_path / "new" / "run" / "history.json").read_text())
    assert content["summary"]["final_validation"] == result.final_validation
    assert [record["step"] for record in content["history"]] == list(range(1, 13))
    assert [record.step for record in result.history if record.validation is not None] == [5, 10, 12]
    assert [record.measured for record in result.history][3:5] == [None, {"bits per character": result.history[4].validation}]
    assert content["history"][4]["measured"] == result.history[4].measured
    assert result.history[-1].learning_rate == pytest.approx(1e-4)  # the floor


def test_the_curve_is_drawn_where_matplotlib_is_installed(tmp_path):
    pytest.importorskip("matplotlib")
    small_train(folder=tmp_path)
    drawing = (tmp_path / "curve.svg").read_text()
    assert drawing.startswith("<?xml") and "bits per character" in drawing and "validation" in drawing


def test_a_task_that_measures_nothing_has_no_validation():
    class Blind(LanguageModelling):
        def evaluate(self, params):
            return {}

    config = SmallConfig(corpus().vocabulary.size)
    task = Blind(corpus(), partial(small, config=config), context=6, batch_size=6)
    result = run(task, partial(init_small, config=config))
    assert (result.final_validation, result.best_validation, result.best_step) == (None, None, 0)
    assert all(record.validation is None for record in result.history)


def test_a_finished_run_can_be_asked_for_again(tmp_path):
    first = small_train(folder=tmp_path)
    again = small_train(folder=tmp_path, resume=True)
    trees.map(np.testing.assert_array_equal, first.params, again.params)
    assert again.history == first.history and again.best_step == first.best_step


def test_resume_starts_where_there_is_nothing_to_resume(tmp_path):
    trees.map(np.testing.assert_array_equal, small_train(folder=tmp_path, resume=True).params, small_train().params)


def test_a_checkpoint_is_not_overwritten_by_a_new_run(tmp_path):
    small_train(folder=tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors: there is a checkpoint already"):
        small_train(folder=tmp_path, seed=1)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


@pytest.mark.skipif(atomic.fcntl is None, reason="this system has no locks on folders")
@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_in_which_another_run_trains_is_refused_and_not_touched(tmp_path, resume):
    inner = []

    def second(*args, **settings):
        if not inner:
            before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
            with pytest.raises(ValueError, match="another run is training here") as caught:
                small_train(folder=tmp_path, resume=resume)
            inner.append(str(caught.value))
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        return small(*args, **settings)

    first = small_train(folder=tmp_path, model=second)
    assert inner[0].startswith(f"{tmp_path}: ")
    trees.map(np.testing.assert_array_equal, first.params, small_train().params)
    small_train(folder=tmp_path, resume=True)                # it has ended


class Breaking:
    """The small model until the step at which something in it becomes a number that is none."""

    def __init__(self, step, where):
        self.step, self.where, self.calls = step, where, 0

    def __call__(self, params, *, ids, config):
        logits, backward = small(params, ids=ids, config=config)
        self.calls += 1
        if self.calls < self.step:
            return logits, backward
        if self.where == "loss":
            return logits * np.nan, backward
        if self.where == "infinite loss":
            certain = np.where(np.arange(logits.shape[-1]) == 0, 3e38, -3e38).astype(logits.dtype)
            return np.broadcast_to(certain, logits.shape), backward  # of a character that never comes

        def broken_backward(dlogits):
            gradient = backward(dlogits)
            return gradient._replace(head=gradient.head._replace(bias=gradient.head.bias * np.inf))

        return logits, broken_backward


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("loss", "the loss is nan at step 7"),
        ("infinite loss", "the loss is inf at step 7"),
        ("gradient", r"the gradient norm is (nan|inf) at step 7"),
    ],
)
def test_numbers_that_are_not_finite_stop_the_run_and_leave_the_last_checkpoint(tmp_path, where, message):
    settings = {"folder": tmp_path, "checkpoint_every": 3, "eval_every": 0}
    with pytest.raises(TrainingDiverged, match=message) as caught:
        small_train(model=Breaking(7, where), **settings)
    assert isinstance(caught.value, FloatingPointError) and str(tmp_path / CHECKPOINT) in str(caught.value)
    assert [record.step for record in read_history(tmp_path / "history.csv")] == [1, 2, 3, 4, 5, 6]  # how it came to this
    resumed = small_train(resume=True, **settings)  # from step 6, with a model that is well again
    trees.map(np.testing.assert_array_equal, resumed.params, small_train(eval_every=0).params)


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(TrainingDiverged, match="a parameter is not finite after step 1"):
        small_train(folder=tmp_path, learning_rate=1e39, eval_every=0, warmup=0.0, checkpoint_every=1)
    assert not (tmp_path / CHECKPOINT).exists()


def test_progress_goes_to_stderr_and_quiet_is_quiet(capsys):
    small_train(quiet=False)
    out, err = capsys.readouterr()
    assert out == "" and re.search(r"12/12 .*loss=.*labels/s=.*bits per character=\d\.\d{3}", err)
    small_train(quiet=True)
    assert capsys.readouterr() == ("", "")


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    for change, message in [
        ({"context": 100_000}, "context: got 100000, wants fewer than the 3438 tokens to train on"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"eval_windows": 0}, "eval_windows: got 0"),
        ({"folder": None, "resume": True}, "resume: wants a folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            small_train(**{"folder": tmp_path / "new", **change})
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file: cannot be made a folder"):
        small_train(folder=tmp_path / "file")


@pytest.mark.parametrize(
    "setting",
    [
        {"steps": 0}, {"steps": 2.5}, {"steps": True}, {"micro_batches": 0}, {"threads": 0}, {"threads": 2}, {"learning_rate": 0.0}, {"warmup": 1.5},
        {"learning_rate": float("nan")}, {"floor": -0.1}, {"betas": (0.9, 1.0)}, {"betas": (0.9,)}, {"eps": 0}, {"weight_decay": -1},
        {"clip": 0.0}, {"clip": float("inf")}, {"seed": -1}, {"eval_every": -1}, {"checkpoint_every": -1},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))}: got"):
        TrainingConfig(**setting)


def test_micro_batches_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"micro_batches: got 5, wants a divisor of the 6 examples in batch\.0"):
        small_train(micro_batches=5)


def test_a_configuration_survives_json():
    config = TrainingConfig(steps=7, betas=(0.5, 0.6), clip=None, micro_batches=6, threads=3)
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ValueError, match="unknown fields colour, size"):
        TrainingConfig.from_json({"steps": 3, "size": 1, "colour": 2})
