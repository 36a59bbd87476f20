"""A linear map of 16 by 16 of known ranks, learned by a tensor train whose gates have a price; or by one without, and cut to the same ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray as Array

from minitransformers.compression.prune_ranks import THRESHOLD, prune_ranks, train_size
from minitransformers.compression.rank_penalty import early_objective
from minitransformers.compression.tensor_train import tt_matrix, tt_svd
from minitransformers.compression.tt_linear import TensorTrain, init_tt_linear, tt_linear
from minitransformers.foundation import trees
from minitransformers.reporting.figures import lines
from minitransformers.reporting.seeds import Found, tried
from minitransformers.reporting.tables import mean_and_spread
from minitransformers.training.fit import fit
from minitransformers.training.task import Task

DIGITS, TRUE, START, BATCH, DECAY = (4, 4), (3, 3, 3), (8, 8, 8), 64, 1e-4
PENALTIES = {f"{penalty:g}": penalty for penalty in (0.0, 0.01, 0.03, 0.1)}
RANKS, ERROR, CUT = ("rank 1", "rank 2", "rank 3"), "error", "error if cut"


def teacher(rng: np.random.Generator) -> Array:
    """A map of the true ranks whose outputs have variance 1."""
    weight = tt_matrix(init_tt_linear(rng, DIGITS, DIGITS, ranks=TRUE).train.cores)
    return 4 * weight / np.linalg.norm(weight)


def examples(rng: np.random.Generator, weight: Array, noise: float) -> tuple[Array, Array]:
    """A batch of inputs and answers, with noise of so large a deviation in these."""
    x, added = rng.standard_normal((2, BATCH, 16), np.float32)
    return x, x @ weight + np.float32(noise) * added


class Penalised(Task):
    """The squared error of an example, with the penalty of the train and the squares of its cores. few are all examples, None: fresh exact ones."""

    def __init__(self, weight: Array, penalty: float, few: tuple[Array, Array] | None) -> None:
        self.weight, self.penalty, self.few = weight, penalty, few

    def batch(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Inputs and answers."""
        return self.few or examples(rng, self.weight, 0)

    def loss(self, params: trees.Tree, batch: tuple[Array, Array], *, rng: np.random.Generator) -> Any:
        """The objective, as of one example."""
        out, backward = tt_linear(params, batch[0])
        miss = out - batch[1]
        total, objective_backward = early_objective(np.asarray(np.sum(miss**2) / BATCH), [params.train], weight=self.penalty, decay=DECAY)

        def both(dtotal: Any) -> trees.Tree:
            dloss, (dtrain,) = objective_backward(np.asarray(dtotal[0]))
            dparams, _ = backward(2 / BATCH * miss * dloss)
            return dparams._replace(train=trees.map(np.add, dparams.train, dtrain))

        return (total, 1), both


def trained(weight: Array, rng: np.random.Generator, *, penalty: float, rate: float, steps: int, noise: float | None) -> TensorTrain:
    """The train after so many updates on fresh exact examples, or on one batch with noise."""
    task = Penalised(weight, penalty, None if noise is None else examples(rng, weight, noise))
    params = init_tt_linear(rng, DIGITS, DIGITS, ranks=START, bias=False)
    return fit(params, task, steps=steps, peak=rate, rng=rng, warmup=0.05, clip=None).train


def apart(cores: list[Array], weight: Array) -> float:
    """The relative error of the matrix that cores make."""
    return float(np.linalg.norm(tt_matrix(cores) - weight) / np.linalg.norm(weight))


def judged(train: TensorTrain, weight: Array) -> dict[str, Any]:
    """Of the pruned train: its ranks, its numbers and how far from the teacher it is. Where a rank is 0, the map is zero."""
    ranks = [int(np.sum(gates > THRESHOLD)) for gates in train.gates]
    error = apart(prune_ranks(train).cores, weight) if all(ranks) else 1.0
    return {**dict(zip(RANKS, ranks, strict=True)), "numbers": train_size(train.gates, sizes=DIGITS + DIGITS), ERROR: error}


def cut(train: TensorTrain, weight: Array, ranks: list[int]) -> float:
    """How far from the teacher a train is that is made one matrix and cut to these ranks, or to as many as its sides have."""
    first, last = (min(rank, 4) for rank in (ranks[0], ranks[2]))
    whole, ranks = tt_matrix(prune_ranks(train).cores), [first, min(ranks[1], 4 * first), last]
    return apart(tt_svd(whole, rows=DIGITS, columns=DIGITS, ranks=ranks), weight) if all(ranks) else 1.0


def tuned(rng: np.random.Generator, *, rates: Sequence[float], steps: int, noise: float | None) -> Iterator[tuple[str, float, dict[str, float]]]:
    """For a tuning: the error of each weight of the penalty at each rate, a mean of two starts."""
    weight = teacher(rng)

    def of_two_starts(name: str, rng: np.random.Generator, *, rate: float) -> float:
        trains = [trained(weight, rng, penalty=PENALTIES[name], rate=rate, steps=steps, noise=noise) for _ in range(2)]
        return float(np.mean([judged(train, weight)[ERROR] for train in trains]))

    yield from tried(of_two_starts, PENALTIES, rates, rng)


def learned(rng: np.random.Generator, *, rates: Mapping[str, float], steps: int, noise: float | None) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """For an experiment: what each weight of the penalty finds, and the train without one, cut to the same ranks."""
    weight = teacher(rng)
    plain = None
    for name, penalty in PENALTIES.items():
        train = trained(weight, rng, penalty=penalty, rate=rates[name], steps=steps, noise=noise)
        plain, found = train if plain is None else plain, judged(train, weight)  # the first is without
        yield "train", penalty, {**found, CUT: cut(plain, weight, [found[rank] for rank in RANKS])}


def drawn(ax: Any, found: Found, **settings: Any) -> None:
    """The errors by the weight of the penalty; dotted, the error without."""
    curves = {"with the penalty": ERROR, "without, cut to the same ranks": CUT}
    priced = list(PENALTIES.values())[1:]
    lines(ax, {label: {at: found[measure]["train"][at] for at in priced} for label, measure in curves.items()}, xscale="log", **settings)
    ax.axhline(np.mean(found[ERROR]["train"][0.0]), color="#808080", linewidth=0.8, linestyle=":")
    ax.set(xlabel="weight of the penalty", ylabel="relative error")
    ax.legend(fontsize="small")


def found_ranks(found: Found, penalty: float) -> str:
    """The ranks that were found, by seed."""
    return "; ".join(" ".join(f"{rank:.0f}" for rank in of) for of in zip(*(np.ravel(found[rank]["train"][penalty]) for rank in RANKS), strict=True))


def told(found: Found, penalty: float) -> str:
    """Errors at a weight of the penalty, in words."""
    errors = ", ".join(f"{what} {mean_and_spread(found[ERROR if what != 'cut' else CUT]['train'][at], '.2g')}"
                       for what, at in (("with the penalty", penalty), ("without", 0.0), ("cut", penalty)))  # fmt: skip
    return f"at a weight of {penalty:g}: {errors}; ranks {found_ranks(found, penalty)}"


def rows(found: Found) -> list[list[Any]]:
    """Of a table: the weight, ranks by seed, numbers, and both errors."""
    return [[f"{penalty:g}", found_ranks(found, penalty), float(np.mean(found["numbers"]["train"][penalty])),
             *(mean_and_spread(found[measure]["train"][penalty], ".2g") for measure in (ERROR, CUT))] for penalty in found[ERROR]["train"]]  # fmt: skip


COLUMNS = ["weight of the penalty", "ranks found, by seed", "numbers", "relative error", "no penalty, then cut"]
