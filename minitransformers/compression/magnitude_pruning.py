"""Magnitude pruning: of a weight's numbers those nearest to zero become zero, and the others stay.

A mask says which stay. How many they are is fixed beforehand, for each array by itself or for a whole model together: then one
threshold serves all arrays, and one that is full of small numbers loses more than another. A schedule lets the share of zeros rise
while the model trains on, fast as long as there is much that nobody misses, and slowly at the end. Choosing costs one sort.

Source: Han et al. 2015, arXiv:1506.02626, for the magnitudes; Zhu and Gupta 2017, arXiv:1710.01878, eq. 1, for the schedule.
Differs from them: what stays is counted, where the papers compare with a threshold, so equal numbers cannot change how many stay:
the first of them stays. The sparsity rises at every step, in 1710.01878 every so many. N is how many numbers there are.

    kept = round((1 - sparsity) N)                           (1)
    mask = 1 where |w| is among the kept largest, 0 elsewhere  (2)
    progress = (step - start) / duration, held between 0 and 1   (3)
    sparsity = final + (initial - final) (1 - progress)^3    (4)
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from minitransformers.foundation import at_least, bad, example, finite, from_to_below, invalid, procedure, trees
from minitransformers.peft.targets import targets


def kept_of(size: int, sparsity: float) -> int:
    """How many of so many numbers stay. Raises ValueError where none would."""
    kept = int(np.rint((1 - sparsity) * size))               # half to even  (1)
    if kept == 0:
        raise invalid("sparsity", got=sparsity, wants=f"one that leaves at least one of the {size} numbers")
    return kept


def largest(scores: Array, kept: int, *, axis: int) -> Bool[Array, "..."]:
    """True at so many largest scores along an axis; of equal ones at the first, so that the mask hangs on nothing but them."""
    order = np.argsort(-scores, axis=axis, kind="stable")    # argpartition is faster, and free to choose among equals
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, np.take(order, range(kept), axis=axis), True, axis=axis)  # (2)
    return mask


@procedure(
    title="Magnitude mask",
    source="Han et al. 2015, arXiv:1506.02626",
    example=lambda rng: example(rng.normal(size=(5, 3)), sparsity=0.4),
    rejects=[bad(sparsity=0.97)],
)
def magnitude_mask(
    weight: Annotated[Float[Array, "*shape"], finite], *, sparsity: Annotated[float, from_to_below(0, 1)]
) -> Bool[Array, "*shape"]:
    """True at the numbers of largest magnitude, all axes together. weight may be any scores: what counts is how far they are from 0.

    sparsity is the share that is false, from 0 to below 1. Exactly round((1 - sparsity) weight.size) are true, half to even; of
    equal magnitudes the first in C order stays.
    Raises ValueError when nothing would stay.
    """
    kept = kept_of(weight.size, sparsity)
    return largest(np.abs(weight).ravel(), kept, axis=0).reshape(weight.shape)


@procedure(
    title="Magnitude masks under one threshold",
    source="Han et al. 2015, arXiv:1506.02626",
    example=lambda rng: example([rng.normal(size=(5, 3)), 0.3 * rng.normal(size=(2, 4))], sparsity=0.4),
    rejects=[
        bad(sparsity=0.99), bad(base=[np.ones((5, 3)), np.full((2, 4), np.nan)]), bad(base=[np.ones((5, 3)), np.ones((2, 4), np.float32)]),
        bad(base=[]), bad(patterns=["no.such"]), bad(patterns=[]),
    ],
)  # fmt: skip
def global_magnitude_masks(
    base: Any, *, sparsity: Annotated[float, from_to_below(0, 1)], patterns: Sequence[str] | None = None
) -> Any:
    """Masks for a whole tree of parameters, or a list of weights: true at the numbers of largest magnitude, all arrays together.

    patterns chooses arrays of two axes by their paths, as ``peft.targets`` does: ["query.weight", "up.weight"]; without it every
    array is pruned. sparsity is the share of all chosen numbers that is false.
    Returns a tree like base: a boolean array in the place of each array that is chosen, None in the place of the others. An array
    may lose all its numbers, when others are larger. apply_masks prunes with it.
    Raises ValueError for a pattern that matches nothing, numbers that are not finite, and when nothing would stay at all.
    """
    paths = {path for path, _ in trees.leaves(base)} if patterns is None else set(targets(base, patterns))
    chosen = trees.partition(base, lambda path, leaf: path in paths)[0]
    for path, leaf in trees.leaves(chosen):
        if not np.isfinite(leaf).all():
            raise invalid(f"base.{path}", got="numbers that are not finite", wants="finite numbers")
    leaves = [leaf for _, leaf in trees.leaves(chosen)]
    if not leaves:
        raise invalid("base", got="no arrays", wants="at least one")
    sizes = np.cumsum([leaf.size for leaf in leaves])
    mask = largest(np.abs(np.concatenate([leaf.ravel() for leaf in leaves])), kept_of(int(sizes[-1]), sparsity), axis=0)
    parts = np.split(mask, sizes[:-1])
    return trees.unflatten(chosen, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])


@procedure(
    title="Masks applied",
    source="Han et al. 2015, arXiv:1506.02626",
    example=lambda rng: example([rng.normal(size=(5, 3)), rng.normal(size=4)], masks=[rng.random((5, 3)) < 0.6, None]),
    rejects=[bad("masks.0", masks=[np.ones((5, 4), bool), None]), bad("masks.0", masks=[np.ones((5, 3)), None]), bad("masks.2", masks=[None, None, np.ones(4, bool)])],
)
def apply_masks(base: Any, *, masks: object) -> Any:
    """The parameters with zeros where a mask is false; what has None in the place of a mask is base's own array.

    Raises ValueError, naming the place, where a mask is not boolean, has another shape than its array, or has none.
    """
    arrays, found = dict(trees.leaves(base)), {path: np.asarray(mask) for path, mask in trees.leaves(masks)}
    for path, mask in found.items():
        if path not in arrays or mask.dtype != bool or mask.shape != arrays[path].shape:
            there = f"bool of shape {arrays[path].shape}" if path in arrays else "None: base has no array there"
            raise invalid(f"masks.{path}", got=f"{mask.dtype} of shape {mask.shape}", wants=there)
    return trees.unflatten(base, [np.where(found[path], leaf, 0) if path in found else leaf for path, leaf in arrays.items()])


@procedure(
    title="Cubic pruning schedule",
    source="Zhu and Gupta 2017, arXiv:1710.01878, eq. 1",
    example=lambda rng: example(7, initial=0.1, final=0.8, start=3, duration=10),
    rejects=[bad("initial", initial=0.9)],
)
def sparsity_at(
    step: Annotated[int, at_least(0)], *, final: Annotated[float, from_to_below(0, 1)], duration: Annotated[int, at_least(1)],
    initial: Annotated[float, from_to_below(0, 1)] = 0.0, start: Annotated[int, at_least(0)] = 0,
) -> float:  # fmt: skip
    """The share of zeros at a step: initial up to the step start, final from start + duration on, and between them a cubic.

    Steps are counted from 0. What it returns is the sparsity that magnitude_mask takes.
    Raises ValueError when initial is above final: what is zero stays zero.
    """
    if initial > final:
        raise invalid("initial", got=initial, wants=f"at most final, {final}")
    progress = min(max((step - start) / duration, 0.0), 1.0)  # (3)
    return final + (initial - final) * (1 - progress) ** 3   # (4)
