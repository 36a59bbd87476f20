"""A language model that was trained on the workbench, read back from the folder of its run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import invalid, trees
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model, language_model_step
from minitransformers.training.checkpoint import load_checkpoint, short
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

    Raises ValueError that names the file when it is missing, damaged, or does not hold the model it says it holds. A model that
    is described as larger than what is there is refused before it is made: the description may be a stranger's.
    """
    path = Path(path)
    path = path / CHECKPOINT if path.is_dir() else path
    checkpoint = load_checkpoint(path)
    held = {name.removeprefix("parameters."): array for name, array in checkpoint.arrays.items() if name.startswith("parameters.")}
    try:
        task = checkpoint.state["config"]["task"]
        _check_kinds(task["model"])
        _check_sizes(task["model"], held)
        config = LanguageModelConfig.from_json(task["model"])
        vocabulary = vocabulary_from_json(task["corpus"]["vocabulary"])
        if config.vocabulary_size != vocabulary.size:
            raise invalid("vocabulary_size", got=config.vocabulary_size, wants=f"{vocabulary.size}, as the vocabulary has")
        dtype = held["embedding.weight"].dtype.type
        template = init_language_model(_Sparing(1_000_000 + 100 * sum(array.size for array in held.values())), config, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError, ZeroDivisionError, MemoryError) as error:
        raise ValueError(f"{path}: it does not say what model it holds: {type(error).__name__}, {error}") from None
    step = checkpoint.field("step", lambda n: type(n) is int and n >= 0, wants="a whole number of at least 0")
    return TrainedModel(checkpoint.tree("parameters", template), config, vocabulary, step)


def _check_kinds(described: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting of another kind than its default: LanguageModelConfig itself trusts its caller there."""
    also = {float: (float, int), type(None): (str, type(None))}  # a rate may be 0, and the stack has a name or is none
    for name, default in LanguageModelConfig(vocabulary_size=1).to_json().items():
        value, kinds = described.get(name, default), also.get(type(default), (type(default),))
        if type(value) not in kinds or (type(value) is int and abs(value) > _LARGEST):
            raise invalid(name, got=short(value), wants=" or ".join(_WORDS[kind] for kind in kinds))


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null", dict: "an object"}
_LARGEST = 2**31 - 1  # what a size can be; more overflows somewhere


def _check_sizes(described: Mapping[str, Any], held: Mapping[str, Array]) -> None:
    """Raise ValueError for more layers than there are, and for heads or a width that no array has: what costs time or memory
    before a number is drawn."""
    blocks = {name.split(".")[1] for name in held if name.startswith("blocks.")}
    if described.get("stack") is None and described.get("num_layers", 0) > len(blocks):
        raise invalid("num_layers", got=described["num_layers"], wants=f"the {len(blocks)} layers whose parameters are there")
    widest = 2 * max((size for array in held.values() for size in array.shape), default=0)  # S4D keeps one of two states
    options = {f"options.{role}.{name}": value for role, own in described.get("options", {}).items() for name, value in own.items()}
    widths = {name: value for name, value in options.items() if name.rpartition(".")[2].startswith("d_")}
    for name, value in {"num_heads": described.get("num_heads"), **widths}.items():
        if type(value) is int and value > widest:
            raise invalid(name, got=short(value), wants="at most the width of the arrays that are there")


class _Sparing(np.random.Generator):
    """A generator for a skeleton that will be filled: it draws the smallest number each time, and not more than so many."""

    def __init__(self, most: int) -> None:
        super().__init__(np.random.PCG64(0))
        self._left = most

    def _all(self, number: float, size: Any) -> Any:
        shape = () if size is None else tuple(np.atleast_1d(size).tolist())
        self._left -= math.prod(shape)
        if self._left < 0:
            raise ValueError("it describes a model that is far larger than the parameters that are there")
        return np.full(shape, number, np.float64)

    def standard_normal(self, size: Any = None, *args: Any, **settings: Any) -> Any:
        return self._all(0.0, size)

    def normal(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
        return self._all(loc, size)

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return self._all(low, size)
