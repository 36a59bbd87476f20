"""The state of a training run: everything that the next step depends on, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from minitransformers.foundation import invalid, trees
from minitransformers.training.checkpoint import load_checkpoint, save_checkpoint, short
from minitransformers.training.config import TrainingConfig
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.history import Record, is_finite, records_of_json
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

        Raises ValueError where it cannot be read, was made with another configuration (and says which field differs), does not
        hold this model's arrays, or says of the run what cannot be (and names the field); nothing is taken over then.
        """
        checkpoint = load_checkpoint(path)
        checkpoint.state["config"] = _beneath(self.defaults, checkpoint.state.get("config"))
        checkpoint.require(config=self.config)
        groups = self._groups()
        found = {name: checkpoint.tree(name, flat.tree) for name, flat in groups.items()}
        steps = self.config["training"]["steps"]
        step = checkpoint.field("step", lambda n: type(n) is int and 0 <= n <= steps, wants=f"a whole number from 0 to the {steps} steps")
        seconds = checkpoint.field("seconds", lambda n: is_finite(n) and n >= 0, wants="a finite number of at least 0")
        counted = checkpoint.field("counted", lambda n: type(n) is int and 0 <= n < 2**63, wants="a whole number of at least 0")
        random = checkpoint.field("random", lambda states: isinstance(states, dict), wants="the state of each generator")
        try:
            generators = {name: _generator(random.get(name), f"random.{name}") for name in self.random}
            history = records_of_json(checkpoint.state.get("history"), steps=step)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

        for name, tree in found.items():
            groups[name].assign(tree)
        self.step = self.learner.optimizer.steps = step
        self.random, self.seconds, self.counted, self.history = generators, seconds, counted, history

    def _groups(self) -> dict[str, FlatTree]:
        optimizer = self.learner.optimizer
        return {"parameters": self.params, "gradient_sum": optimizer.gradient_sum, "square_sum": optimizer.square_sum}


def _generator(state: Any, name: str) -> np.random.Generator:
    """A generator in a state. Raises ValueError, with the name, where it cannot be in it."""
    rng = np.random.default_rng(0)
    try:
        rng.bit_generator.state = state
        if rng.bit_generator.state == state:                  # NumPy takes a fraction for a whole number
            return rng
    except (TypeError, ValueError, KeyError, OverflowError):
        pass
    raise invalid(name, got=short(state), wants=f"the state of a {type(rng.bit_generator).__name__}")


def _beneath(defaults: Mapping[str, Any], saved: Any) -> Any:
    """What was saved, with defaults where it says nothing, at every depth."""
    if not isinstance(saved, dict):
        return saved
    return {**defaults, **{key: _beneath(defaults[key], own) if isinstance(defaults.get(key), dict) else own for key, own in saved.items()}}
