"""The training loop: draw a batch, measure the loss, walk back, clip, step; now and then evaluate and save.

A run is a function of its configurations, its text and its seed. A run that is killed at any moment and resumed ends with
the same bits as one that was not, on the same machine with the same libraries: see run.py for what is kept.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array
from tqdm import tqdm

from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.foundation import trees
from minitransformers.models.language_model import init_language_model, language_model
from minitransformers.training.config import TrainingConfig
from minitransformers.training.flat_tree import FlatTree
from minitransformers.training.history import Record, draw_curve, write_history
from minitransformers.training.memory import keep_freed_memory
from minitransformers.training.optimizer import TrainingDiverged
from minitransformers.training.run import Run
from minitransformers.training.schedule import warmup_cosine
from minitransformers.training.text import Corpus
from minitransformers.training.threads import side_by_side

CHECKPOINT = "checkpoint.safetensors"


class TrainingResult(NamedTuple):
    """The trained parameters and how they came about. Validation is in bits per character."""

    params: trees.Tree
    history: list[Record]
    final_validation: float
    best_validation: float
    best_step: int
    seconds: float                   # spent in steps, all runs together; evaluations and checkpoints not counted
    tokens_per_second: float


def train(
    *,
    corpus: Corpus,
    model_config: Any,
    training_config: TrainingConfig,
    folder: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    model: Callable = language_model,
    init: Callable = init_language_model,
) -> TrainingResult:
    """Train ``model`` on the corpus, from ``init(rng, model_config, dtype=...)``.

    Into folder, where one is given, go checkpoint.safetensors (and .json, for people), history.csv, history.json and, where
    matplotlib is installed, curve.svg. resume continues the run whose checkpoint lies there, or starts where there is none;
    without it, a folder that holds a checkpoint is refused. A progress bar is on stderr unless quiet.

    ``model(params, ids=..., config=...)`` returns logits and their backward; it also gets ``rng`` when
    model_config.dropout is above 0. model_config has vocabulary_size, context and to_json().
    Raises ValueError where the corpus and the model do not fit and where a checkpoint cannot be used, and TrainingDiverged
    where a loss, a gradient or a parameter is not finite; the last checkpoint is then as it was.
    """
    if training_config.threads > 1 and getattr(model_config, "dropout", 0) > 0:
        raise ValueError("threads: got more than 1 with dropout, wants 1: the parts would take turns at one generator by chance")
    run = Run(corpus=corpus, model_config=model_config, training_config=training_config, init=init)
    checkpoint = _prepare(folder, run, resume)
    keep_freed_memory()
    settings, context = training_config, model_config.context
    forward = functools.partial(model, config=model_config)
    trained = functools.partial(forward, rng=run.random["dropout"]) if getattr(model_config, "dropout", 0) > 0 else forward
    tokens, recent, validation = settings.batch_size * context, 0.0, None

    # A number that is not finite is looked for below and reported with its step, rather than warned of here and there.
    with (
        np.errstate(over="ignore", invalid="ignore", divide="ignore"),
        tqdm(total=settings.steps, initial=run.step, disable=quiet, file=sys.stderr, unit="step", dynamic_ncols=True) as bar,
    ):
        try:
            while run.step < settings.steps:
                step, began = run.step + 1, time.perf_counter()
                inputs, targets = corpus.batch(run.random["data"], batch_size=settings.batch_size, context=context)
                loss = accumulate_gradient(
                    run.params.tree, run.gradient, inputs, targets,
                    forward=trained, micro_batches=settings.micro_batches, threads=settings.threads,
                )  # fmt: skip
                if not math.isfinite(loss):
                    raise TrainingDiverged(f"the loss is {loss} at step {step}")
                rate = warmup_cosine(
                    step, peak=settings.learning_rate, steps=settings.steps, warmup=settings.warmup_steps, floor=settings.floor
                )
                norm = run.optimizer.step(run.gradient, learning_rate=rate, clip=settings.clip)
                elapsed = time.perf_counter() - began
                run.step, run.seconds = step, run.seconds + elapsed

                measured = None
                if _due(step, settings.eval_every, settings.steps):
                    measured = validation = evaluate(
                        run.params.tree, corpus, forward=forward, context=context, batch_size=settings.batch_size, limit=settings.eval_windows
                    )
                    if not math.isfinite(measured):
                        raise TrainingDiverged(f"the validation loss is {measured} after step {step}")
                run.history.append(Record(step, rate, loss, norm, run.seconds, measured))
                if checkpoint is not None and _due(step, settings.checkpoint_every, settings.steps):
                    run.save(checkpoint)
                    write_history(checkpoint.parent, run.history, _summary(run, tokens))

                recent = 0.9 * recent + 0.1 * elapsed if recent else elapsed
                shown = {"loss": f"{loss:.3f}", "tokens/s": f"{tokens / recent:,.0f}"}
                bar.set_postfix(shown if validation is None else shown | {"validation": f"{validation:.3f} bits"}, refresh=False)
                bar.update()
        except TrainingDiverged as error:
            if checkpoint is None:
                raise
            write_history(checkpoint.parent, run.history, _summary(run, tokens))  # how it came to this
            saved = f"; {checkpoint} is as it was" if checkpoint.exists() else ""
            raise TrainingDiverged(f"{error}{saved}") from None

    if checkpoint is not None:
        write_history(checkpoint.parent, run.history, _summary(run, tokens))
        draw_curve(checkpoint.parent / "curve.svg", run.history, tokens_per_character=corpus.tokens_per_character)
    return TrainingResult(run.params.tree, run.history, **_summary(run, tokens))


def accumulate_gradient(
    params: trees.Tree,
    gradient: FlatTree,
    inputs: Array,
    targets: Array,
    *,
    forward: Callable,
    micro_batches: int = 1,
    threads: int = 1,
) -> float:
    """Put the gradient of the mean loss over a batch into ``gradient``; return the loss, in nats per token.

    The batch (batch, length) is worked on in micro_batches equal parts along its first axis, which must divide: the
    activations of ``threads`` parts are in memory at a time. Each part's loss counts for its part of the tokens, and the
    parts are added in their order, whichever is done first: the same call gives the same bits.
    """

    def forward_and_backward(part_inputs: Array, part_targets: Array) -> tuple[float, trees.Tree]:
        logits, model_backward = forward(params, ids=part_inputs)
        part_loss, loss_backward = cross_entropy(logits, targets=part_targets)
        return float(part_loss), model_backward(loss_backward(part_loss.dtype.type(1 / micro_batches)))

    loss, parts = 0.0, list(zip(np.split(inputs, micro_batches), np.split(targets, micro_batches), strict=True))
    for first in range(0, micro_batches, threads):
        results = side_by_side(*zip(*parts[first : first + threads], strict=True), function=forward_and_backward)
        for i, (part_loss, dparams) in enumerate(results):
            (gradient.add_sum if first + i else gradient.set_sum)(dparams)
            loss += part_loss / micro_batches
    return loss


def evaluate(
    params: trees.Tree, corpus: Corpus, *, forward: Callable, context: int, batch_size: int, limit: int | None = None
) -> float:
    """Bits per character of the validation part, every token but the first predicted once; limit: only so many windows.

    A window starts without a past, so early positions know little: this overstates what the model can do with a long one.
    """
    nats, count = 0.0, 0
    for inputs, targets in corpus.evaluation_batches(batch_size=batch_size, context=context, limit=limit):
        logits, _ = forward(params, ids=inputs)
        loss, _ = cross_entropy(logits, targets=targets)
        nats, count = nats + float(loss) * targets.size, count + targets.size
    return nats / count / math.log(2) * corpus.tokens_per_character


def _prepare(folder: str | Path | None, run: Run, resume: bool) -> Path | None:
    """The checkpoint's path, the folder made, the run restored where it should be."""
    if folder is None:
        if resume:
            raise ValueError("resume: wants a folder to resume from")
        return None
    folder = Path(folder)
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        if not resume:
            raise ValueError(f"{checkpoint}: there is a checkpoint already: resume it, or choose another folder")
        run.restore(checkpoint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be made a folder: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder}: cannot be written to")  # better now than at the first checkpoint
    return checkpoint


def _due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


def _summary(run: Run, tokens_per_step: int) -> dict[str, Any]:
    measured = [(record.validation, record.step) for record in run.history if record.validation is not None]
    best_validation, best_step = min(measured, default=(None, 0))
    return {
        "final_validation": measured[-1][0] if measured else None,
        "best_validation": best_validation,
        "best_step": best_step,
        "seconds": run.seconds,
        "tokens_per_second": run.step * tokens_per_step / max(run.seconds, 1e-9),
    }
