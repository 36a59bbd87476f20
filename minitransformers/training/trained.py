"""A trained model, read back from the folder of its run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minitransformers.foundation import trees
from minitransformers.models.language_model import LanguageModelConfig, init_language_model
from minitransformers.training.checkpoint import load_checkpoint
from minitransformers.training.loop import CHECKPOINT
from minitransformers.training.vocabulary import Vocabulary, vocabulary_from_json


class TrainedModel(NamedTuple):
    """What it takes to write text with a model that was trained."""

    params: trees.Tree
    config: Any
    vocabulary: Vocabulary
    step: int


def load_trained(
    path: str | Path,
    *,
    config_from_json: Callable[[dict], Any] = LanguageModelConfig.from_json,
    init: Callable = init_language_model,
) -> TrainedModel:
    """Read the model of a run from its folder or its checkpoint file.

    Raises ValueError that names the file when it is missing, damaged, or does not hold the model it says it holds.
    """
    path = Path(path)
    path = path / CHECKPOINT if path.is_dir() else path
    checkpoint = load_checkpoint(path)
    try:
        settings = checkpoint.state["config"]
        config = config_from_json(settings["model"])
        vocabulary = vocabulary_from_json(settings["corpus"]["vocabulary"])
        template = init(np.random.default_rng(0), config, dtype=np.dtype(settings["training"]["dtype"]).type)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: it does not say what model it holds: {type(error).__name__}, {error}") from None
    return TrainedModel(checkpoint.tree("parameters", template), config, vocabulary, checkpoint.state["step"])
