"""The training loop: draw a batch, measure the loss, walk back, clip, step; now and then evaluate and save.

A run is a function of its task, its configuration and its seed. A run that is killed at any moment and resumed ends with
the same bits as one that was not, on the same machine with the same libraries: see run.py for what is kept.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from minitransformers.foundation import trees
from minitransformers.foundation.atomic import sole_writer
from minitransformers.training.config import TrainingConfig
from minitransformers.training.history import Record, draw_curve, write_history
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.optimizer import TrainingDiverged
from minitransformers.training.run import Run
from minitransformers.training.schedule import warmup_cosine
from minitransformers.training.task import Task

CHECKPOINT = "checkpoint.safetensors"


class TrainingResult(NamedTuple):
    """The trained parameters and how they came about. Validation is the first number that the task measures, None for none."""

    params: trees.Tree
    history: list[Record]
    final_validation: float | None
    best_validation: float | None
    best_step: int
    seconds: float                   # spent in steps, all runs together; evaluations and checkpoints not counted
    labels_per_second: float


def train(
    *,
    task: Task,
    init: Callable[[np.random.Generator], trees.Tree],
    config: TrainingConfig,
    folder: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> TrainingResult:
    """Learn the task, from the parameters that ``init(rng)`` makes.

    Into folder, where one is given, go checkpoint.safetensors (and .json, for people), history.csv, history.json and, where
    matplotlib is installed, curve.svg. resume continues the run whose checkpoint lies there, or starts where there is none;
    without it, a folder that holds a checkpoint is refused, and so is one in which another run is training. A progress bar is on stderr unless quiet.
    Raises ValueError where a checkpoint cannot be used, and TrainingDiverged where a loss, a gradient or a parameter is not
    finite; the last checkpoint is then as it was.
    """
    run = Run(task=task, init=init, config=config)
    with _prepared(folder, run, resume) as checkpoint:
        keep_freed_memory()
        _learn(run, task=task, config=config, checkpoint=checkpoint, quiet=quiet)
    return TrainingResult(run.params.tree, run.history, **_summary(run))


def _learn(run: Run, *, task: Task, config: TrainingConfig, checkpoint: Path | None, quiet: bool) -> None:
    """Take the steps that are left."""
    recent: dict[str, float] = {}
    pace = 0.0

    # A number that is not finite is looked for below and reported with its step, rather than warned of here and there.
    with (
        np.errstate(over="ignore", invalid="ignore", divide="ignore"),
        tqdm(total=config.steps, initial=run.step, disable=quiet, file=sys.stderr, unit="step", dynamic_ncols=True) as bar,
    ):
        try:
            while run.step < config.steps:
                step, began = run.step + 1, time.perf_counter()
                rate = warmup_cosine(step, peak=config.learning_rate, steps=config.steps, warmup=config.warmup_steps, floor=config.floor)
                loss, norm, count = run.learner.update(
                    task, batch=task.batch(run.random["data"]), rng=run.random["dropout"], learning_rate=rate, clip=config.clip,
                    micro_batches=config.micro_batches, threads=config.threads,
                )  # fmt: skip
                elapsed = time.perf_counter() - began
                run.step, run.seconds, run.counted = step, run.seconds + elapsed, run.counted + count

                measured = None
                if _due(step, config.eval_every, config.steps) and (found := task.evaluate(run.params.tree)):
                    measured = recent = found
                    for name, number in found.items():
                        if not math.isfinite(number):
                            raise TrainingDiverged(f"{name} is {number} after step {step}")
                run.history.append(Record(step, rate, loss, norm, run.seconds, measured))
                if checkpoint is not None and _due(step, config.checkpoint_every, config.steps):
                    run.save(checkpoint)
                    write_history(checkpoint.parent, run.history, _summary(run))

                pace = 0.9 * pace + 0.1 * elapsed / count if pace else elapsed / count
                shown = {"loss": f"{loss:.3f}", "labels/s": f"{1 / pace:,.0f}", **{name: f"{number:.3f}" for name, number in recent.items()}}
                bar.set_postfix(shown, refresh=False)
                bar.update()
        except TrainingDiverged as error:
            if checkpoint is None:
                raise
            write_history(checkpoint.parent, run.history, _summary(run))  # how it came to this
            saved = f"; {checkpoint} is as it was" if checkpoint.exists() else ""
            raise TrainingDiverged(f"{error}{saved}") from None

    if checkpoint is not None:
        write_history(checkpoint.parent, run.history, _summary(run))
        draw_curve(checkpoint.parent / "curve.svg", run.history, per_nat=task.per_nat)


@contextlib.contextmanager
def _prepared(folder: str | Path | None, run: Run, resume: bool) -> Iterator[Path | None]:
    """The checkpoint's path: the folder is made and this run's alone while it lasts, the run restored where it should be."""
    if folder is None:
        if resume:
            raise ValueError("resume: wants a folder to resume from")
        yield None
        return
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be made a folder: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder}: cannot be written to")  # better now than at the first checkpoint
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(sole_writer(folder))
        except BlockingIOError:
            raise ValueError(f"{folder}: another run is training here: wait until it ends, or choose another folder") from None
        checkpoint = folder / CHECKPOINT
        if checkpoint.exists():
            if not resume:
                raise ValueError(f"{checkpoint}: there is a checkpoint already: resume it, or choose another folder")
            run.restore(checkpoint)
        yield checkpoint


def _due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


def _summary(run: Run) -> dict[str, Any]:
    measured = [(record.validation, record.step) for record in run.history if record.validation is not None]
    best_validation, best_step = min(measured, default=(None, 0))
    return {
        "final_validation": measured[-1][0] if measured else None,
        "best_validation": best_validation,
        "best_step": best_step,
        "seconds": run.seconds,
        "labels_per_second": run.counted / max(run.seconds, 1e-9),
    }
