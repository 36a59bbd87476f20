"""The state of a training run: everything that the next step depends on, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from minitransformers.foundation import invalid
from minitransformers.training.checkpoint import load_checkpoint, save_checkpoint
from minitransformers.training.config import TrainingConfig
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.history import Record
from minitransformers.training.optimizer import AdamW, TrainingDiverged, decays
from minitransformers.training.text import Corpus


def _defaults(config: Any) -> dict[str, Any]:
    return {field.name: field.default for field in fields(config) if field.default is not MISSING}


class Run:
    """Parameters, optimiser, generators, step and history; saved whole and restored whole.

    Each source of chance has a generator of its own, so how often one is asked does not change the others.
    Raises ValueError where model and corpus do not fit.
    """

    def __init__(self, *, corpus: Corpus, model_config: Any, training_config: TrainingConfig, init: Callable) -> None:
        if model_config.vocabulary_size != corpus.vocabulary.size:
            wants = f"{corpus.vocabulary.size}, as the corpus has"
            raise invalid("model_config.vocabulary_size", got=model_config.vocabulary_size, wants=wants)
        if model_config.context >= len(corpus.train):
            wants = f"fewer than the {len(corpus.train)} tokens to train on"
            raise invalid("model_config.context", got=model_config.context, wants=wants)
        # A setting that a checkpoint is too old to know has its default there.
        self.defaults = {"model": _defaults(model_config), "training": _defaults(training_config)}
        self.config = {"model": model_config.to_json(), "training": training_config.to_json(), "corpus": corpus.to_json()}
        for_init, for_data, for_dropout = np.random.SeedSequence(training_config.seed).spawn(3)
        self.random = {"data": np.random.default_rng(for_data), "dropout": np.random.default_rng(for_dropout)}
        start = init(np.random.default_rng(for_init), model_config, dtype=np.dtype(training_config.dtype).type)
        self.params = FlatTree.pack(start, in_front=decays)
        self.gradient = self.params.zeros_like()
        self.optimizer = AdamW(
            self.params, betas=training_config.betas, eps=training_config.eps, weight_decay=training_config.weight_decay
        )
        self.step = 0
        self.seconds = 0.0                                    # spent in steps; the weights do not depend on it
        self.history: list[Record] = []

    def save(self, path: Path) -> None:
        """Write a checkpoint. Raises TrainingDiverged, and writes nothing, where a parameter is not finite."""
        if not np.isfinite(self.params.flat).all():
            raise TrainingDiverged(f"a parameter is not finite after step {self.step}")
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "config": self.config,
            "random": {name: rng.bit_generator.state for name, rng in self.random.items()},
            "history": self.history,
        }
        save_checkpoint(path, {name: flat.tree for name, flat in self._groups().items()}, state)

    def restore(self, path: Path) -> None:
        """Take over a checkpoint.

        Raises ValueError where it cannot be read, was made with another configuration (and says which field differs) or
        does not hold this model's arrays; nothing is taken over then.
        """
        checkpoint = load_checkpoint(path)
        for name, settings in self.defaults.items():
            checkpoint.state["config"][name] = {**settings, **checkpoint.state["config"][name]}
        checkpoint.require(config=self.config)
        groups = self._groups()
        trees = {name: checkpoint.tree(name, flat.tree) for name, flat in groups.items()}
        for name, tree in trees.items():
            groups[name].assign(tree)
        state = checkpoint.state
        for name, rng in self.random.items():
            rng.bit_generator.state = state["random"][name]
        self.step = self.optimizer.steps = state["step"]
        self.seconds = state["seconds"]
        self.history = [Record(*record) for record in state["history"]]

    def _groups(self) -> dict[str, FlatTree]:
        return {"parameters": self.params, "gradient_sum": self.optimizer.gradient_sum, "square_sum": self.optimizer.square_sum}
