import json
import math
import re
import threading

import numpy as np
import pytest
from small_run import Small, SmallConfig, corpus, init_small, small, small_train

from minitransformers.foundation import trees
from minitransformers.training.config import TrainingConfig
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.history import read_history
from minitransformers.training.loop import CHECKPOINT, accumulate_gradient, evaluate
from minitransformers.training.optimizer import TrainingDiverged
from minitransformers.training.text import Corpus


def forward(params, *, ids):
    return small(params, ids=ids, config=SmallConfig(corpus().vocabulary.size))


def test_a_model_learns():
    result = small_train(steps=300, learning_rate=0.02, dropout=0.1)
    assert result.history[0].loss == pytest.approx(math.log(corpus().vocabulary.size), abs=1.0)
    assert result.final_validation < 2.6 < 3.5 < result.history[0].loss / math.log(2)
    assert result.best_validation <= result.final_validation and result.tokens_per_second > 0


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    one, same, other = (small_train(seed=seed, dropout=0.1).params for seed in (1, 1, 2))
    trees.map(np.testing.assert_array_equal, one, same)
    assert not np.array_equal(one.head.weight, other.head.weight)


def test_evaluating_and_saving_do_not_change_the_run(tmp_path):
    often = small_train(eval_every=1, checkpoint_every=1, folder=tmp_path, dropout=0.1)
    seldom = small_train(eval_every=0, checkpoint_every=0, dropout=0.1)
    trees.map(np.testing.assert_array_equal, often.params, seldom.params)
    assert [record.validation is None for record in seldom.history] == [True] * 11 + [False]


@pytest.mark.parametrize("micro_batches", [2, 3, 6])
def test_micro_batches_equal_one_batch(micro_batches):
    rng = np.random.default_rng(0)
    params = FlatTree.pack(init_small(rng, SmallConfig(corpus().vocabulary.size), dtype=np.float64))
    inputs, targets = corpus().batch(rng, batch_size=6, context=6)
    whole, parts = params.zeros_like(), params.zeros_like()
    parts.flat[:] = np.nan  # what was there before must not matter
    loss = accumulate_gradient(params.tree, whole, inputs, targets, forward=forward)
    same = accumulate_gradient(params.tree, parts, inputs, targets, forward=forward, micro_batches=micro_batches)
    assert same == pytest.approx(loss, abs=1e-12)
    for (path, wanted), (_, got) in zip(trees.leaves(whole.tree), trees.leaves(parts.tree), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12, err_msg=path)


def test_a_run_in_micro_batches_ends_where_a_run_in_batches_does():
    whole, parts = (small_train(dtype="float64", micro_batches=k).params for k in (1, 3))
    for _, leaf in trees.leaves(trees.map(np.subtract, whole, parts)):
        assert np.abs(leaf).max() < 1e-9


def test_micro_batches_side_by_side_end_where_they_end_one_after_another():
    pytest.importorskip("threadpoolctl")
    one, two = (small_train(dtype="float64", micro_batches=6, threads=k).params for k in (1, 2))
    for _, leaf in trees.leaves(trees.map(np.subtract, one, two)):
        assert np.abs(leaf).max() < 1e-12  # the sums have one order; only BLAS may split a product otherwise
    again = small_train(dtype="float64", micro_batches=6, threads=2).params
    trees.map(np.testing.assert_array_equal, two, again)


def test_threads_are_at_work():
    pytest.importorskip("threadpoolctl")
    names = set()

    def model(*args, **config):
        names.add(threading.current_thread().name)
        return small(*args, **config)

    small_train(micro_batches=2, threads=2, eval_every=0, model=model)
    assert any("minitransformers" in name for name in names)


def test_threads_and_dropout_are_refused_together():
    with pytest.raises(ValueError, match="threads: got more than 1 with dropout"):
        small_train(micro_batches=2, threads=2, dropout=0.1)


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
        logits, _ = forward(params, ids=window[None, :-1])
        logits -= logits.max(-1, keepdims=True)
        for row, target in zip(logits[0], window[1:], strict=True):
            total -= row[target] - np.log(np.exp(row).sum())
            count += 1
    assert count == len(text.validation) - 1
    for batch_size in (1, 5):
        bits = evaluate(params, text, forward=forward, context=6, batch_size=batch_size)
        assert bits == pytest.approx(total / count / np.log(2), rel=1e-12)


def test_bits_per_character_do_not_depend_on_the_vocabulary():
    def uniform(params, *, ids):  # a model that knows nothing: log2(size) bits a token
        return np.zeros((*ids.shape, params)), None

    text = Corpus.from_text("aé" * 100, context=6, vocabulary="bytes")  # three bytes for two characters
    assert evaluate(256, text, forward=uniform, context=6, batch_size=4) == pytest.approx(8 * 3 / 2)


def test_the_folder_holds_what_happened(tmp_path):
    result = small_train(folder=tmp_path / "new" / "run")
    assert {path.name for path in (tmp_path / "new" / "run").iterdir()} >= {CHECKPOINT, "checkpoint.json", "history.csv", "history.json"}
    assert read_history(tmp_path / "new" / "run" / "history.csv") == result.history
    content = json.loads((tmp_path / "new" / "run" / "history.json").read_text())
    assert content["summary"]["final_validation"] == result.final_validation
    assert [record["step"] for record in content["history"]] == list(range(1, 13))
    assert [record.step for record in result.history if record.validation is not None] == [5, 10, 12]
    assert result.history[-1].learning_rate == pytest.approx(1e-4)  # the floor


def test_the_curve_is_drawn_where_matplotlib_is_installed(tmp_path):
    pytest.importorskip("matplotlib")
    small_train(folder=tmp_path)
    drawing = (tmp_path / "curve.svg").read_text()
    assert drawing.startswith("<?xml") and "bits per character" in drawing and "validation" in drawing


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
    assert out == "" and re.search(r"12/12 .*loss=.*tokens/s=.*validation=\d\.\d{3} bits", err)
    small_train(quiet=True)
    assert capsys.readouterr() == ("", "")


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    text = corpus()
    for change, message in [
        ({"model_config": SmallConfig(text.vocabulary.size + 1)}, r"model_config\.vocabulary_size"),
        ({"model_config": SmallConfig(text.vocabulary.size, context=100_000)}, r"model_config\.context"),
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
        {"steps": 0}, {"steps": 2.5}, {"steps": True}, {"batch_size": 0}, {"micro_batches": 5}, {"threads": 0}, {"threads": 2}, {"learning_rate": 0.0}, {"warmup": 1.5},
        {"learning_rate": float("nan")}, {"floor": -0.1}, {"betas": (0.9, 1.0)}, {"betas": (0.9,)}, {"eps": 0}, {"weight_decay": -1},
        {"clip": 0.0}, {"clip": float("inf")}, {"seed": -1}, {"dtype": "float16"}, {"eval_every": -1}, {"eval_windows": 0},
        {"checkpoint_every": -1},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))}: got"):
        TrainingConfig(**setting)


def test_a_configuration_survives_json():
    config = TrainingConfig(steps=7, betas=(0.5, 0.6), clip=None, eval_windows=3)
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ValueError, match="unknown fields colour, size"):
        TrainingConfig.from_json({"steps": 3, "size": 1, "colour": 2})


def test_gradients_have_the_type_of_the_parameters():
    params = FlatTree.pack(init_small(np.random.default_rng(0), SmallConfig(corpus().vocabulary.size), dtype=np.float32))
    inputs, targets = corpus().batch(np.random.default_rng(0), batch_size=2, context=6)
    logits, backward = forward(params.tree, ids=inputs)
    assert isinstance(backward(logits), Small) and logits.dtype == np.float32
    loss = accumulate_gradient(params.tree, params.zeros_like(), inputs, targets, forward=forward)
    assert type(loss) is float
