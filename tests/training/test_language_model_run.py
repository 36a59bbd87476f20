"""The real model in the real loop."""

import numpy as np
import pytest
from small_run import corpus

from minitransformers.foundation import trees
from minitransformers.models.language_model import LanguageModelConfig, language_model
from minitransformers.training.config import TrainingConfig
from minitransformers.training.loop import train
from minitransformers.training.trained import load_trained


def run(folder=None, model=language_model, **settings):
    text = corpus()
    shape = {"context": 6, "d_model": 8, "num_layers": 2, "num_heads": 2, "dropout": 0.1}
    return train(
        corpus=text,
        model_config=LanguageModelConfig(vocabulary_size=text.vocabulary.size, **shape),
        training_config=TrainingConfig(**{"steps": 9, "checkpoint_every": 4, "batch_size": 4, **settings}),
        folder=folder, quiet=True, resume=folder is not None, model=model,
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
    assert trained.config.d_model == 8 and trained.step == 9


def test_dropout_acts_in_training_and_not_in_evaluation():
    given = []

    def watched(*args, rng=None, **settings):
        given.append(rng is not None)
        return language_model(*args, rng=rng, **settings)

    run(model=watched, steps=2, eval_every=1)
    first_evaluation = given.index(False)
    assert given[:first_evaluation] == [True] and given.count(True) == 2 and not given[-1]


def test_one_batch_can_be_learned_by_heart():
    text = corpus()
    one_window = type(text).from_text(text.train_text[:7] + "mow", context=6, validation_fraction=0.3)
    config = LanguageModelConfig(vocabulary_size=one_window.vocabulary.size, context=6, d_model=16, num_layers=1, num_heads=2)
    settings = TrainingConfig(steps=150, batch_size=1, learning_rate=1e-2, eval_every=0, weight_decay=0.0)
    result = train(corpus=one_window, model_config=config, training_config=settings, quiet=True)
    assert result.history[-1].loss < 0.05
