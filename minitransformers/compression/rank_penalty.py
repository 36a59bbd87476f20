"""Rank penalty: an objective that closes the gates of a tensor train while it is trained, and so finds its ranks.

How many numbers a pruned train has is a sum over cores of how many gates are open before and behind. That count has no slope. In its
place stand sums of magnitudes, which pull at every gate, the harder the wider the core beyond its neighbour is. Alone they could be
cheated, since a train with half the gates and twice the cores is the same map: so the squares of the cores are held down as well.
Early in training the loss and the penalty are added. Late, with a loss and a size to be reached, that one is trained which is the
further from its aim.

Source: Yang et al. 2024 (CoMERA), arXiv:2405.14377, section 3. Its code (ziyangjoy/CoMERA, MNLI_trainer.py) penalises the mean of the
open gates instead, lets gates below 0.01 be zero, compares the two distances each as a part of what there is, not with fixed weights,
and has no squares of cores. Signs are kept here: a gate may cross zero. sizes n_k are the digits' numbers of values; the ends of a
train count 1, |gates_0| = |gates_d| = 1.

    length_k = sum |gates_k|                                 (1)
    penalty = sum over k of n_k length_(k-1) length_k        (2)
    dgates_k = dpenalty sign(gates_k) (n_k length_(k-1) + n_(k+1) length_(k+1))   (3)

Objectives of a loss and of trains, over all of which sums run:

    early = loss + weight sum penalty + decay sum core^2     (4)
    late = max(loss_weight (loss - target_loss), size_weight (sum size - target_size)) + share (loss + sum penalty) + decay sum core^2   (5)
    dcore = 2 decay core dearly                              (6)

size in (5) is counted, by train_size. It decides which side of the maximum is trained (the loss where they are level), and the penalty
lends it its gradient:

    dloss = (loss_weight where the loss is further, or 0, + share) dlate   (7)
    dpenalty = (size_weight where the size is further, or 0, + share) dlate   (8)
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.compression.prune_ranks import THRESHOLD, check_sizes, train_size
from minitransformers.compression.tt_linear import TensorTrain, random_train
from minitransformers.foundation import Backward, at_least, bad, concept, example

NotNegative = Annotated[float, at_least(0)]


@concept(
    title="Rank penalty",
    source="Yang et al. 2024 (CoMERA), arXiv:2405.14377, section 3",
    example=lambda rng: example([rng.normal(size=3), rng.normal(size=2), rng.normal(size=4)], sizes=(2, 4, 3, 5)),
    rejects=[bad(sizes=(2, 4, 3)), bad(sizes=(2, 4, 0, 5))],
)
def rank_penalty(gates: list[Float[Array, "rank"]], *, sizes: Sequence[Annotated[int, at_least(1)]]) -> tuple[Float[Array, ""], Backward]:
    """The size of the train with sums of magnitudes in the place of counts: it is the size where every gate is 1, -1 or 0.

    Returns penalty, one number, and backward: dpenalty -> dgates. The slope of a gate of zero is taken as 0.
    Raises ValueError where sizes are not one more than gates.
    """
    check_sizes(gates, sizes)
    dtype = gates[0].dtype
    lengths = [1.0, *(float(np.sum(np.abs(own), dtype=np.float64)) for own in gates), 1.0]  # (1)
    pairs = list(pairwise(lengths))
    penalty = np.asarray(sum(n * before * behind for n, (before, behind) in zip(sizes, pairs, strict=True)), dtype)  # (2)

    def backward(dpenalty):
        slopes = [sizes[k] * lengths[k] + sizes[k + 1] * lengths[k + 2] for k in range(len(gates))]
        return [(dpenalty * np.sign(own) * slope).astype(dtype) for own, slope in zip(gates, slopes, strict=True)]  # (3)

    return penalty, backward


@concept(
    title="Early objective: a weighted sum",
    source="Yang et al. 2024 (CoMERA), arXiv:2405.14377, section 3",
    example=lambda rng: example(rng.normal(size=()), [random_train(rng), random_train(rng)], weight=0.3, decay=0.2),
    form_of="rank_penalty",
)
def early_objective(
    loss: Float[Array, ""], trains: list[TensorTrain], *, weight: NotNegative, decay: NotNegative = 0.0
) -> tuple[Float[Array, ""], Backward]:
    """The loss, the penalty of all trains and the squares of their cores, added. weight and decay have the loss's unit.

    Returns early, one number, and backward: dearly -> dloss, dtrains.
    """
    penalty, squares, trains_backward = _of_all(trains)
    early = np.asarray(loss + (weight * penalty + decay * squares).astype(loss.dtype))  # (4)

    def backward(dearly):
        return np.asarray(dearly), trains_backward(weight * dearly, decay * dearly)

    return early, backward


@concept(
    title="Late objective: what is further from its aim",
    source="Yang et al. 2024 (CoMERA), arXiv:2405.14377, section 3",
    example=lambda rng: example(
        np.array(1.5), [random_train(rng), random_train(rng)], target_loss=0.5, target_size=20, loss_weight=0.7, size_weight=0.01, share=0.1, decay=0.2,
        threshold=0.3,
    ),
    form_of="rank_penalty",
    gradient_of=lambda loss, trains, **settings: _with_this_side(loss, trains, **settings),
)
def late_objective(
    loss: Float[Array, ""], trains: list[TensorTrain], *, target_loss: float, target_size: NotNegative, loss_weight: NotNegative = 1.0,
    size_weight: NotNegative = 1.0, share: NotNegative = 0.0, decay: NotNegative = 0.0, threshold: NotNegative = THRESHOLD,
) -> tuple[Float[Array, ""], Backward]:  # fmt: skip
    """The larger of two weighted distances, loss - target_loss and size - target_size, with a share of the loss and the penalty.

    target_size is in numbers, target_loss in the loss's unit; size_weight is what a number too many costs, loss_weight has no unit.
    Gates at or below threshold are not counted.
    Returns late, one number, and backward: dlate -> dloss, dtrains: the penalty's gradient in the place of the size's, which has none.
    """
    penalty, squares, trains_backward = _of_all(trains)
    size = sum(train_size(train.gates, sizes=_sizes(train), threshold=threshold) for train in trains)
    loss_far, size_far = loss_weight * (float(loss) - target_loss), size_weight * (size - target_size)
    too_large, dtype = size_far > loss_far, loss.dtype
    late = np.asarray(max(loss_far, size_far) + share * (float(loss) + penalty) + decay * squares, dtype)  # (5)

    def backward(dlate):
        dloss = ((0.0 if too_large else loss_weight) + share) * dlate  # (7)
        dpenalty = ((size_weight if too_large else 0.0) + share) * dlate  # (8)
        return np.asarray(dloss, dtype), trains_backward(dpenalty, decay * dlate)

    return late, backward


def _sizes(train: TensorTrain) -> list[int]:
    return [core.shape[1] for core in train.cores]


def _of_all(trains: list[TensorTrain]) -> tuple[Array, Array, Callable]:
    """The penalty and the squares of the cores of all trains, in float64, and backward: dpenalty, dsquares -> dtrains."""
    found = [rank_penalty(train.gates, sizes=_sizes(train)) for train in trains]
    penalty = sum((own.astype(np.float64) for own, _ in found), np.zeros(()))
    squares = sum((np.vecdot(core.ravel(), core.ravel(), dtype=np.float64) for train in trains for core in train.cores), np.zeros(()))

    def backward(dpenalty: Array, dsquares: Array) -> list[TensorTrain]:
        dcores = [[(2 * dsquares * core).astype(core.dtype) for core in train.cores] for train in trains]  # (6)
        return [TensorTrain(own, back(dpenalty)) for own, (_, back) in zip(dcores, found, strict=True)]

    return penalty, squares, backward


def _with_this_side(
    loss, trains, *, target_loss, target_size, loss_weight=1.0, size_weight=1.0, share=0.0, decay=0.0, threshold=THRESHOLD
) -> Callable:
    """The function whose gradient late_objective has: the side of the maximum stays what it is, with the penalty for the size."""

    def over_trains(trains, length):
        ends = [[1.0, *map(length, gates), 1.0] for _, gates in trains]
        return sum(core.shape[1] * own[k] * own[k + 1] for (cores, _), own in zip(trains, ends, strict=True) for k, core in enumerate(cores))

    loss_far = loss_weight * (loss - target_loss)
    size_far = size_weight * (over_trains(trains, lambda gates: np.sum(gates > threshold)) - target_size)

    def smooth(loss, trains):
        penalty = over_trains(trains, lambda gates: np.sum(np.abs(gates)))
        squares = sum(np.sum(core * core) for cores, _ in trains for core in cores)
        side = size_weight * penalty if size_far > loss_far else loss_weight * loss
        return side + share * (loss + penalty) + decay * squares

    return smooth
