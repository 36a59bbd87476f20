"""The workbench's model in the real loop, and what is read back from the folder of a run."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from small_run import corpus

from minitransformers.foundation import trees
from minitransformers.models.decoding import generate
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model
from minitransformers.training.checkpoint import load_checkpoint, save_checkpoint
from minitransformers.training.config import TrainingConfig
from minitransformers.training.language_modelling import LanguageModelling
from minitransformers.training.loop import CHECKPOINT, train
from minitransformers.training.text import Corpus
from minitransformers.training.workbench import load_trained, workbench_task


def config(**changes):
    shape = {"context": 6, "d_model": 8, "num_layers": 2, "num_heads": 2, "dropout": 0.1}
    return LanguageModelConfig(**{"vocabulary_size": corpus().vocabulary.size, **shape, **changes})


def run(folder=None, model=None, dtype=np.float32, **settings):
    task = workbench_task(corpus(), config(), batch_size=4)
    if model is not None:                                    # the same task of a model that is watched
        task = LanguageModelling(
            corpus(), partial(model, config=config()), context=6, batch_size=4, random=True, described=config().to_json()
        )
    return train(
        task=task, init=partial(init_language_model, config=config(), dtype=dtype),
        config=TrainingConfig(**{"steps": 9, "checkpoint_every": 4, **settings}), folder=folder, quiet=True, resume=folder is not None,
    )  # fmt: skip


class Interrupted(Exception):
    pass


def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path):
    calls = 0

    def interrupted(*args, **settings):
        nonlocal calls
        calls += 1
        if calls == 7:
            raise Interrupted
        return language_model(*args, **settings)

    with pytest.raises(Interrupted):
        run(tmp_path, model=interrupted)
    resumed, whole = run(tmp_path), run()
    trees.map(np.testing.assert_array_equal, resumed.params, whole.params)
    trained = load_trained(tmp_path)
    trees.map(np.testing.assert_array_equal, trained.params, whole.params)
    assert trained.config == config() and trained.step == 9


def test_dropout_acts_in_training_and_not_in_evaluation():
    given = []

    def watched(*args, rng=None, **settings):
        given.append(rng is not None)
        return language_model(*args, rng=rng, **settings)

    run(model=watched, steps=2, eval_every=1)
    first_evaluation = given.index(False)
    assert given[:first_evaluation] == [True] and given.count(True) == 2 and not given[-1]


def test_one_batch_can_be_learned_by_heart():
    one_window = Corpus.from_text(corpus().train_text[:7] + "mow", context=6, validation_fraction=0.3)
    chosen = config(vocabulary_size=one_window.vocabulary.size, d_model=16, num_layers=1, dropout=0.0)
    settings = TrainingConfig(steps=150, learning_rate=1e-2, eval_every=0, weight_decay=0.0)
    task = workbench_task(one_window, chosen, batch_size=1)
    result = train(task=task, init=partial(init_language_model, config=chosen), config=settings, quiet=True)
    assert result.history[-1].loss < 0.05


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_trained_model_is_read_back_from_its_folder(tmp_path, dtype):
    result = run(tmp_path, dtype=dtype, steps=2)
    for path in (tmp_path, str(tmp_path), tmp_path / CHECKPOINT):
        trained = load_trained(path)
        trees.map(np.testing.assert_array_equal, trained.params, result.params)
        assert {leaf.dtype for _, leaf in trees.leaves(trained.params)} == {np.dtype(dtype)}
        assert trained.config == config() and trained.step == 2
        assert trained.vocabulary.decode(trained.vocabulary.encode("1 men went")) == "1 men went"
    for name, folder in (("checkpoint.safetensors", tmp_path / "empty"), ("elsewhere", tmp_path / "elsewhere")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=f"{name}: cannot be read"):
            load_trained(folder)


def test_a_trained_model_writes(tmp_path):
    run(tmp_path, steps=2)
    trained = load_trained(tmp_path)
    prompt = trained.vocabulary.encode("men went to mow")
    text = generate(trained.decode, prompt_ids=prompt, num_tokens=9, rng=np.random.default_rng(0), context=trained.config.context)
    assert len(trained.vocabulary.decode(text)) == 9


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state["config"].pop("task"), "it does not say what model it holds: KeyError, 'task'"),
        (lambda state: state["config"]["task"].pop("model"), "it does not say what model it holds: KeyError, 'model'"),
        (lambda state: state["config"]["task"].update(model=None), "it does not say what model it holds"),
        (lambda state: state["config"]["task"]["model"].update(mixer="mamboo"), "unknown mixer 'mamboo'; did you mean 'mamba'"),
        (lambda state: state["config"]["task"]["model"].update(d_model=16), "parameters: wrong shape: "),
        (lambda state: state["config"]["task"]["model"].update(depth=3), "configuration: unknown fields depth"),
        (lambda state: state["config"]["task"]["corpus"]["vocabulary"].update(symbols="abc"), "vocabulary_size: got .*, wants 3, as the vocabulary has"),
        (lambda state: state["config"]["task"]["model"].update(tied=1), "tied: got 1, wants true or false"),
        (lambda state: state["config"]["task"]["model"].update(num_heads=True), "num_heads: got True, wants a whole number"),
        (lambda state: state["config"]["task"]["model"].update(num_layers=2.0), "num_layers: got 2.0, wants a whole number"),
        (lambda state: state["config"]["task"]["model"].update(num_layers=None), "num_layers: got None, wants a whole number"),
        (lambda state: state["config"]["task"]["model"].update(options=[]), r"options: got \[\], wants an object"),
        (lambda state: state["config"].update(task=7), "it does not say what model it holds: TypeError"),
        (lambda state: state.pop("step"), "step: got nothing, wants a whole number of at least 0"),
        (lambda state: state.update(step=None), "step: got None, wants a whole number of at least 0"),
        (lambda state: state.update(step=-1), "step: got -1, wants a whole number of at least 0"),
    ],
)
def test_a_checkpoint_that_does_not_hold_what_it_says_is_refused_by_name(finished, tmp_path, spoil, message):
    rewritten(finished, tmp_path, spoil)
    with pytest.raises(ValueError, match=message) as caught:
        load_trained(tmp_path)
    assert str(tmp_path / CHECKPOINT) in str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of one step."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder, steps=1)
    return folder


def rewritten(folder, target, change):
    """Put a checkpoint with another state, and the fingerprint of that, into the target folder."""
    loaded = load_checkpoint(folder / CHECKPOINT)
    change(loaded.state)
    parameters = {name.removeprefix("parameters."): array for name, array in loaded.arrays.items() if name.startswith("parameters.")}

    class Places(tuple):
        _fields = tuple(parameters)

    save_checkpoint(target / CHECKPOINT, {"parameters": Places(parameters.values())}, loaded.state)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [1_000_000_000, 2**31 - 1, 10**30])
@pytest.mark.parametrize(
    ("field", "part"),
    [
        ("num_layers", {}), ("d_model", {}), ("num_heads", {"position": "alibi"}), ("vocabulary_size", {}), ("context", {}),
        ("num_layers", {"stack": "samba", "options": {"stack": {"window": 3}}}), ("num_layers", {"stack": "zamba", "options": {"stack": {"every": 1}}}),
        ("d_hidden", {"options": {"channel": {}}}), ("d_state", {"mixer": "s4d", "position": "none", "options": {"mixer": {"kind": "legs"}}}),
        ("expand", {"mixer": "mamba", "options": {"mixer": {}}}), ("num_buckets", {"position": "t5_bias", "options": {"position": {}}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_model_larger_than_what_is_there_is_refused_before_it_is_made(finished, tmp_path, field, part, size):
    def grow(state):
        model = state["config"]["task"]["model"]
        model.update(dropout=0.0, **part)
        settings = next(iter(part["options"].values())) if "options" in part and field != "num_layers" else model
        settings[field] = size

    rewritten(finished, tmp_path, grow)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"{field}: got|far larger than the parameters that are there") as caught:
            load_trained(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{tmp_path / CHECKPOINT}: ") and len(str(caught.value)) < 400


def test_a_corpus_with_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocabulary_size: got 7, wants"):
        workbench_task(corpus(), config(vocabulary_size=7), batch_size=4)
