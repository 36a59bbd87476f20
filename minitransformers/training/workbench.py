"""A language model that was trained on the workbench, read back from the folder of its run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minitransformers.foundation import trees
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model, language_model_step
from minitransformers.training.checkpoint import load_checkpoint
from minitransformers.training.language_modelling import LanguageModelling
from minitransformers.training.loop import CHECKPOINT
from minitransformers.training.text import Corpus
from minitransformers.training.vocabulary import Vocabulary, vocabulary_from_json


def workbench_task(corpus: Corpus, config: LanguageModelConfig, *, batch_size: int, eval_windows: int | None = None) -> LanguageModelling:
    """The task of a workbench model on a corpus. Raises ValueError where the two do not fit."""
    if config.vocabulary_size != corpus.vocabulary.size:
        raise ValueError(f"vocabulary_size: got {config.vocabulary_size}, wants {corpus.vocabulary.size}, as the corpus has")
    return LanguageModelling(
        corpus, functools.partial(language_model, config=config), context=config.context, batch_size=batch_size, eval_windows=eval_windows,
        random=config.dropout > 0, described=config.to_json(), model_defaults=LanguageModelConfig(config.vocabulary_size).to_json(),
    )  # fmt: skip


class TrainedModel(NamedTuple):
    """What it takes to write text with a model that was trained."""

    params: trees.Tree
    config: LanguageModelConfig
    vocabulary: Vocabulary
    step: int

    @property
    def decode(self) -> Callable:
        """The decoding step, ``decode(ids, state) -> logits, state``."""
        return functools.partial(language_model_step, self.params, config=self.config)


def load_trained(path: str | Path) -> TrainedModel:
    """Read the model of a run from its folder or its checkpoint file.

    Raises ValueError that names the file when it is missing, damaged, or does not hold the model it says it holds.
    """
    path = Path(path)
    path = path / CHECKPOINT if path.is_dir() else path
    checkpoint = load_checkpoint(path)
    try:
        task = checkpoint.state["config"]["task"]
        config = LanguageModelConfig.from_json(task["model"])
        vocabulary = vocabulary_from_json(task["corpus"]["vocabulary"])
        dtype = checkpoint.arrays["parameters.embedding.weight"].dtype.type
        template = init_language_model(np.random.default_rng(0), config, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: it does not say what model it holds: {type(error).__name__}, {error}") from None
    return TrainedModel(checkpoint.tree("parameters", template), config, vocabulary, checkpoint.state["step"])
