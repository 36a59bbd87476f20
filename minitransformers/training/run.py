"""The state of a training run: everything that the next step depends on, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from minitransformers.foundation import trees
from minitransformers.training.checkpoint import load_checkpoint, save_checkpoint
from minitransformers.training.config import TrainingConfig
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.history import Record
from minitransformers.training.optimizer import TrainingDiverged
from minitransformers.training.task import Task
from minitransformers.training.update import Learner


class Run:
    """Parameters, optimiser, generators, step and history; saved whole and restored whole.

    Each source of chance has a generator of its own, so how often one is asked does not change the others.
    """

    def __init__(self, *, task: Task, init: Callable[[np.random.Generator], trees.Tree], config: TrainingConfig) -> None:
        self.config = {"task": task.to_json(), "training": config.to_json()}
        # A setting that a checkpoint is too old to know has its default there.
        training = {field.name: field.default for field in fields(config) if field.default is not MISSING}
        self.defaults = {"task": task.defaults(), "training": training}
        for_init, for_data, for_dropout = np.random.SeedSequence(config.seed).spawn(3)
        self.random = {"data": np.random.default_rng(for_data), "dropout": np.random.default_rng(for_dropout)}
        self.learner = Learner(
            init(np.random.default_rng(for_init)), betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
        self.step = 0
        self.seconds = 0.0                                    # spent in steps; the weights do not depend on it
        self.counted = 0                                      # labels learned from
        self.history: list[Record] = []

    @property
    def params(self) -> FlatTree:
        """The parameters as they are now."""
        return self.learner.params

    def save(self, path: Path) -> None:
        """Write a checkpoint. Raises TrainingDiverged, and writes nothing, where a parameter is not finite."""
        if not np.isfinite(self.params.flat).all():
            raise TrainingDiverged(f"a parameter is not finite after step {self.step}")
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "counted": self.counted,
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
        checkpoint.state["config"] = _beneath(self.defaults, checkpoint.state["config"])
        checkpoint.require(config=self.config)
        groups = self._groups()
        found = {name: checkpoint.tree(name, flat.tree) for name, flat in groups.items()}
        for name, tree in found.items():
            groups[name].assign(tree)
        state = checkpoint.state
        for name, rng in self.random.items():
            rng.bit_generator.state = state["random"][name]
        self.step = self.learner.optimizer.steps = state["step"]
        self.seconds, self.counted = state["seconds"], state["counted"]
        self.history = [Record(*record) for record in state["history"]]

    def _groups(self) -> dict[str, FlatTree]:
        optimizer = self.learner.optimizer
        return {"parameters": self.params, "gradient_sum": optimizer.gradient_sum, "square_sum": optimizer.square_sum}


def _beneath(defaults: Mapping[str, Any], saved: Any) -> Any:
    """What was saved, with defaults where it says nothing, at every depth."""
    if not isinstance(saved, dict):
        return saved
    return {**defaults, **{key: _beneath(defaults[key], own) if isinstance(defaults.get(key), dict) else own for key, own in saved.items()}}
