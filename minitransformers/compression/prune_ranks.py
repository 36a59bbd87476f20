"""Pruned ranks: a trained tensor train without the links that its gates have closed.

A link whose gate is zero takes no part in the product, so its slice of the core before and of the core behind can be cut off, and the
map stays what it was. The gates that are left are multiplied into their cores, once. How large the train is, is counted, not penalised.

Source: Yang et al. 2024 (CoMERA), arXiv:2405.14377, and its code (ziyangjoy/CoMERA: update_factors, compute_size). There a layer may
lose all its links and be zero from then on; here that is an error, since a map that is always zero is a decision of its own.

    gated_k = core_k o gates_k along its last axis           (1)
    kept_k = the links r with gates_k[r] > threshold         (2)
    core_k = gated_k at [kept_(k-1), :, kept_k], gates_k = 1   (3)
    size = sum over k of n_k |kept_(k-1)| |kept_k|, of which the ends count 1   (4)
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.compression.tt_linear import TensorTrain, gated_cores, random_train
from minitransformers.foundation import at_least, bad, example, invalid, procedure

THRESHOLD = 0.01


@procedure(
    title="Pruned ranks",
    source="Yang et al. 2024 (CoMERA), arXiv:2405.14377",
    example=lambda rng: example(random_train(rng), threshold=0.3),
    rejects=[bad("train.gates.0", threshold=100.0), bad("train.gates", train=TensorTrain([np.ones((1, 8, 2)), np.ones((2, 15, 1))], [np.ones(3)]))],
)
def prune_ranks(train: TensorTrain, *, threshold: Annotated[float, at_least(0)] = THRESHOLD) -> TensorTrain:
    """The train without the links whose gate is at or below threshold, the other gates multiplied into their cores.

    threshold is in units of a gate. What comes out, with gates of one, makes the map that tt_linear makes of train with this threshold.
    Raises ValueError where cores and gates do not fit each other, and where no link would be left between two cores.
    """
    gated, _ = gated_cores(train, None, "train.")            # (1)
    kept = [np.flatnonzero(gates > threshold) for gates in train.gates]  # (2)
    for k, links in enumerate(kept):
        if not links.size:
            raise invalid(f"train.gates.{k}", got=f"{train.gates[k].max():.4g} at most", wants=f"one above {threshold}: without a link the map is zero")
    ends = [np.arange(1), *kept, np.arange(1)]
    cores = [core[first][:, :, last] for core, first, last in zip(gated, ends[:-1], ends[1:], strict=True)]  # (3)
    return TensorTrain(cores, [np.ones(len(links), gates.dtype) for links, gates in zip(kept, train.gates, strict=True)])


@procedure(
    title="Size of a tensor train",
    source="Yang et al. 2024 (CoMERA), arXiv:2405.14377",
    example=lambda rng: example([rng.normal(size=3), rng.normal(size=2), rng.normal(size=4)], sizes=(2, 4, 3, 5)),
    rejects=[bad(sizes=(2, 4, 3))],
)
def train_size(gates: list[Float[Array, "rank"]], *, sizes: Sequence[Annotated[int, at_least(1)]], threshold: Annotated[float, at_least(0)] = THRESHOLD) -> int:
    """How many numbers the cores have once they are pruned: 0 where between two of them no link is left.

    sizes are the digits' numbers of values, one more than there are gates; threshold is in units of a gate.
    Raises ValueError where they are not one more.
    """
    check_sizes(gates, sizes)
    ranks = [1, *(int(np.sum(own > threshold)) for own in gates), 1]
    size = sum(left * n * right for left, n, right in zip(ranks[:-1], sizes, ranks[1:], strict=True))  # (4)
    return size if all(ranks) else 0


def check_sizes(gates: Sequence[Array], sizes: Sequence[int]) -> None:
    """Raise ValueError where the digits are not one more than the gates between them."""
    if len(sizes) != len(gates) + 1:
        raise invalid("sizes", got=f"{len(sizes)} of them", wants=f"{len(gates) + 1}, one more than gates")
