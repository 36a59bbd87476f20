"""Which positions a loss counts: those that a mask leaves in, or whose label is not one to ignore."""

from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.foundation import invalid


def counted_by_targets(logits: Array, targets: Array | None, ignore_index: int, reduction: str) -> Any:
    """True where the label is not ignore_index, in the shape of the batch; everywhere, where there are no labels.

    Raises ValueError where a label is no class, and where a mean has no position to be of.
    """
    counts = np.full(logits.shape[:-1], True) if targets is None else np.asarray(targets != ignore_index)
    _check_some("targets", f"{ignore_index} everywhere", counts, reduction)
    if targets is not None:
        check_ids("targets", targets[counts], logits.shape[-1], f", or {ignore_index} to ignore")
    return counts


def counted_by_mask(shape: tuple[int, ...], mask: Array | None, reduction: str = "mean") -> Any:
    """The mask, or True everywhere where there is none. Raises ValueError where a mean has no position to be of."""
    counts = np.full(shape, True) if mask is None else mask
    _check_some("mask", "False everywhere", counts, reduction)
    return counts


def check_ids(name: str, classes: Array, num_classes: int, otherwise: str = "") -> None:
    """Raise ValueError, naming the argument, where an id is no class."""
    if classes.size and not (classes.min() >= 0 and classes.max() < num_classes):
        worst = classes.min() if classes.min() < 0 else classes.max()
        raise invalid(name, got=f"the id {worst}", wants=f"ids from 0 to {num_classes - 1}{otherwise}")


def check_largest(name: str, logits: Array) -> None:
    """Raise ValueError, naming the argument, unless the largest logit of every row is finite: NaN is not, nor is -inf throughout."""
    if not np.isfinite(logits.max(axis=-1)).all():
        raise invalid(name, got="a position whose largest logit is not finite", wants="a finite largest logit wherever a position counts")


def check_finite(name: str, counted: Array) -> None:
    """Raise ValueError, naming the argument, where what counts of it holds NaN or infinity."""
    if not np.isfinite(counted).all():
        raise invalid(name, got="NaN or infinity where a position counts", wants="finite numbers there")


def _check_some(name: str, words: str, counts: Array, reduction: str) -> None:
    if reduction == "mean" and not counts.any():
        raise invalid(name, got=words, wants="at least one position that counts")
