"""A model and a text so small that a whole run takes a moment. Run as a script, it starts the processes that the tests kill.

python small_run.py reads lines from its input: ``FOLDER`` or ``FOLDER CALL NUMBER MOMENT``. For each it starts a process of
its own (a fork: the imports are paid for once) that trains into the folder, resuming, and prints its id, then how it ended.
With a call, the process kills itself before or after that call of os.replace, os.fsync or file.write.
"""

import builtins
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from minitransformers.basics.dropout import dropout
from minitransformers.basics.embedding import Embedding, embedding, init_embedding
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.training.config import TrainingConfig
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


def init_small(rng, config, *, dtype):
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


def small_train(**changes):
    """A short run; a change to a setting of either configuration goes there, the others to train."""
    text = changes.pop("corpus", None) or corpus()
    model = {name: changes.pop(name) for name in ("dropout", "d_model", "context") if name in changes}
    settings = {"steps": 12, "batch_size": 6, "eval_every": 5, "checkpoint_every": 4}
    settings |= {name: changes.pop(name) for name in [*changes] if name in TrainingConfig.__dataclass_fields__}
    return train(
        **{
            "corpus": text,
            "model_config": SmallConfig(text.vocabulary.size, **model),
            "training_config": TrainingConfig(**settings),
            "quiet": True,
            "model": small,
            "init": init_small,
            **changes,
        }
    )


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


def breathing(*args, **settings):
    time.sleep(0.001)  # long enough that a death at a random moment is often within the run
    return small(*args, **settings)


def main():
    for line in sys.stdin:
        folder, *death = line.split()
        process = os.fork()
        if not process:
            code = 1
            try:
                if death:
                    die_at(death[0], int(death[1]), death[2])
                small_train(
                    folder=folder, resume=True, steps=120, checkpoint_every=6, eval_every=20, eval_windows=5, dropout=0.2, model=breathing
                )
                code = 0
            finally:
                os._exit(code)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
