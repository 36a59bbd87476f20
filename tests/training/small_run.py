"""Models and data so small that a whole run takes a moment. Run as a script, it starts the processes that the tests kill.

python small_run.py reads lines from its input: ``TASK FOLDER`` or ``TASK FOLDER CALL NUMBER MOMENT``, where the task is
``language`` or ``classes``. For each it starts a process of its own (a fork: the imports are paid for once) that trains into
the folder, resuming, and prints its id, then how it ended. With a call, the process kills itself before or after that call
of os.replace, os.fsync or file.write.
"""

import builtins
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minitransformers.basics.dropout import dropout
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.training.classification import Classification
from minitransformers.training.config import TrainingConfig
from minitransformers.training.language_modelling import LanguageModelling
from minitransformers.training.loop import train
from minitransformers.training.text import Corpus

TEXT = "".join(f"{i} men went to mow, went to mow a meadow, {i} men and their dog. " for i in range(60))


@dataclass(frozen=True)
class SmallConfig:
    vocabulary_size: int
    context: int = 6
    d_model: int = 5
    dropout: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Small(NamedTuple):
    embedding: Embedding
    hidden: Linear
    head: Linear


def init_small(rng, config, *, dtype=np.float32):
    d_model = config.d_model
    return Small(
        init_embedding(rng, config.vocabulary_size, d_model, dtype=dtype),
        init_linear(rng, d_model, d_model, dtype=dtype),
        init_linear(rng, d_model, config.vocabulary_size, dtype=dtype),
    )


def small(params, *, ids, config, rng=None):
    embedded, embedding_backward = embedding(params.embedding, ids=ids)
    dropped, dropout_backward = (embedded, None) if rng is None else dropout(embedded, rate=config.dropout, rng=rng)
    mapped, hidden_backward = linear(params.hidden, dropped)
    hidden = np.tanh(mapped)
    logits, head_backward = linear(params.head, hidden)

    def backward(dlogits):
        dhead, dhidden = head_backward(dlogits)
        dlayer, ddropped = hidden_backward(dhidden * (1 - hidden**2))
        dembedded = ddropped if dropout_backward is None else dropout_backward(ddropped)
        return Small(embedding_backward(dembedded), dlayer, dhead)

    return logits, backward


def corpus(**changes):
    return Corpus.from_text(TEXT, **{"context": 6, **changes})


def language_task(*, model=small, text=None, config=None, batch_size=6, eval_windows=None):
    """The small model, or another in its place, on the small text."""
    text = text or corpus()
    config = config or SmallConfig(text.vocabulary.size)
    return LanguageModelling(
        text, partial(model, config=config), context=config.context, batch_size=batch_size, eval_windows=eval_windows,
        random=config.dropout > 0, described=config.to_json(),
    )  # fmt: skip


def small_train(**changes):
    """A short run; a change to a setting of the model, the task or the training goes there, the others to train."""
    text = changes.pop("text", None) or corpus()
    config = SmallConfig(text.vocabulary.size, **{name: changes.pop(name) for name in ("dropout", "d_model", "context") if name in changes})
    task = language_task(text=text, config=config, **{name: changes.pop(name) for name in ("model", "batch_size", "eval_windows") if name in changes})
    init = partial(init_small, config=config, dtype=changes.pop("dtype", np.float32))
    return run(task, init, **changes)


def run(task, init, **changes):
    """A short run of a task; a change to a setting of the training goes there, the others to train."""
    settings = {"steps": 12, "eval_every": 5, "checkpoint_every": 4}
    settings |= {name: changes.pop(name) for name in [*changes] if name in TrainingConfig.__dataclass_fields__}
    return train(**{"task": task, "init": init, "config": TrainingConfig(**settings), "quiet": True, **changes})


class Classifier(NamedTuple):
    hidden: Linear
    head: Linear


def init_classifier(rng, *, dtype=np.float32):
    return Classifier(init_linear(rng, 3, 8, dtype=dtype), init_linear(rng, 8, 4, dtype=dtype))


def classifier(params, points, rng=None):
    """Logits of four classes; where there is a generator, a fifth of the hidden features is dropped."""
    mapped, hidden_backward = linear(params.hidden, points)
    hidden = np.tanh(mapped)
    dropped, dropout_backward = dropout(hidden, rate=0.2, rng=rng)
    logits, head_backward = linear(params.head, dropped)

    def backward(dlogits):
        dhead, ddropped = head_backward(dlogits)
        return Classifier(hidden_backward(dropout_backward(ddropped) * (1 - hidden**2))[0], dhead)

    return logits, backward


def points(seed, count, *, dtype=np.float32):
    """Points around four corners of a cube, and which corner it is."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=count)
    corners = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
    return (2 * corners[labels] - 1 + 0.4 * rng.normal(size=(count, 3))).astype(dtype), labels


def classes_task(*, model=classifier, batch_size=8, **settings):
    return Classification(model, points(0, 60), points(1, 40), batch_size=batch_size, random=True, described="small", **settings)


def die_at(call, number, moment):
    """Kill this process, without any farewell, before or after the given call."""
    seen = 0

    def count(function, *args):
        nonlocal seen
        seen += 1
        if seen == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args)
        if seen == number and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    if call == "write":
        really_open = builtins.open

        def counting_open(path, mode="r", *args, **settings):
            file = really_open(path, mode, *args, **settings)
            if mode == "wb":
                write = file.write

                class Counting:
                    def __getattr__(self, name):
                        return getattr(file, name)

                    def __enter__(self):
                        return self

                    def __exit__(self, *error):
                        file.close()

                    def write(self, part):
                        count(lambda: (write(part), file.flush()))

                return Counting()
            return file

        builtins.open = counting_open
    else:
        original = getattr(os, call)
        setattr(os, call, lambda *args: count(original, *args))


def breathing(model, *args, **settings):
    time.sleep(0.001)  # long enough that a death at a random moment is often within the run
    return model(*args, **settings)


def killed_run(task, folder):
    """The run that is killed, resumed and compared."""
    settings = {"folder": folder, "resume": True, "steps": 120, "checkpoint_every": 6, "eval_every": 20}
    if task == "language":
        small_train(**settings, eval_windows=5, dropout=0.2, model=partial(breathing, small))
    else:
        run(classes_task(model=partial(breathing, classifier)), init_classifier, **settings, micro_batches=2)


def main():
    with tempfile.TemporaryDirectory() as folder:            # what a run imports late (a figure's library) is paid for here
        killed_run("classes", folder)
    for line in sys.stdin:
        task, folder, *death = line.split()
        process = os.fork()
        if not process:
            code = 1
            try:
                if death:
                    die_at(death[0], int(death[1]), death[2])
                killed_run(task, folder)
                code = 0
            finally:
                os._exit(code)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
