"""Does a penalty on the gates find the ranks of a tensor train, and is the map any better for it?

Yang et al. 2024 (CoMERA), arXiv:2405.14377: a map is trained as a tensor train, a penalty closes gates between its cores, and the ranks that are left
are as small as the task allows, without loss. The task here is a linear map of 16 by 16 whose ranks are known, three between each two of four cores;
the student starts with eight. It has fresh exact examples without end, or 64 whose answers are noisy. The control needs no penalty: train, then cut
by TT-SVD to the same ranks. Every weight of the penalty has a learning rate of its own.
"""

# %%
import numpy as np

from minitransformers.compression.prune_ranks import THRESHOLD, prune_ranks, train_size
from minitransformers.compression.rank_penalty import early_objective
from minitransformers.compression.tensor_train import tt_matrix, tt_svd
from minitransformers.compression.tt_linear import TensorTrain, TtLinear, init_tt_linear, tt_linear
from minitransformers.foundation import trees
from minitransformers.reporting import Section, lines, mean_and_spread, tried
from minitransformers.training.fit import fit
from minitransformers.training.task import Task

section = Section(__file__, __doc__, kind="trained")
DIGITS, TRUE, START, BATCH, NOISE, DECAY = (4, 4), (3, 3, 3), (8, 8, 8), 64, 0.5, 1e-4
EXACT, NOISY = "exact examples without end", f"{BATCH} noisy examples"
WEIGHTS, DATA = (0.0, 0.003, 0.01, 0.03, 0.1), (EXACT, NOISY)
RANKS, CUT = ("rank 1", "rank 2", "rank 3"), "trained without penalty, then cut"


# %% What is learned
def teacher(rng):
    """A map of the true ranks whose outputs have variance 1."""
    weight = tt_matrix(init_tt_linear(rng, DIGITS, DIGITS, ranks=TRUE).train.cores)
    return 4 * weight / np.linalg.norm(weight)


class Penalised(Task):
    """The squared error of an example, with the penalty of the train and the squares of its cores."""

    def __init__(self, weight, data, penalty, rng):
        self.weight, self.penalty = weight, penalty
        x = rng.standard_normal((BATCH, 16), np.float32)
        self.few = (x, x @ weight + np.float32(NOISE) * rng.standard_normal((BATCH, 16), np.float32)) if data == NOISY else None

    def batch(self, rng):
        x = rng.standard_normal((BATCH, 16), np.float32)
        return (x, x @ self.weight) if self.few is None else self.few

    def loss(self, params, batch, *, rng):
        out, backward = tt_linear(params, batch[0])
        miss = out - batch[1]
        total, objective_backward = early_objective(np.asarray(np.sum(miss**2) / BATCH), [params.train], weight=self.penalty, decay=DECAY)

        def both(dtotal):
            dloss, (dtrain,) = objective_backward(np.asarray(dtotal[0]))
            dparams, _ = backward(2 / BATCH * miss * dloss)
            return dparams._replace(train=trees.map(np.add, dparams.train, dtrain))

        return (total, 1), both


def trained(weight, data, penalty, rng, *, rate):
    params, task = init_tt_linear(rng, DIGITS, DIGITS, ranks=START, bias=False), Penalised(weight, data, penalty, rng)
    return fit(params, task, steps=50 if section.quick else 2000, peak=rate, rng=rng, warmup=0.05, clip=None).train


def apart(cores, weight):
    return np.linalg.norm(tt_matrix(cores) - weight) / np.linalg.norm(weight)


def judged(train, weight):
    """Of the pruned train: its ranks, how many numbers it has and how far from the teacher it is. Where a rank is 0, the map is zero."""
    ranks = [int(np.sum(gates > THRESHOLD)) for gates in train.gates]
    error = apart(prune_ranks(train).cores, weight) if all(ranks) else 1.0
    return {**dict(zip(RANKS, ranks, strict=True)), "numbers": train_size(train.gates, sizes=DIGITS + DIGITS), "error": error}


def cut(train, weight, ranks):
    """The same of a train that is made one matrix and cut to these ranks, or to as many as its sides have."""
    first, last = (max(1, min(rank, 4)) for rank in (ranks[0], ranks[2]))
    cores = tt_svd(tt_matrix(prune_ranks(train).cores), rows=DIGITS, columns=DIGITS, ranks=(first, max(1, min(ranks[1], 4 * first)), last))
    return {"error": apart(cores, weight), "numbers": sum(core.size for core in cores)}


def name(data, penalty):
    return f"{data}, {penalty:g}"


@section.tuning
def tuning(rng):
    weight, sides = teacher(rng), {name(data, penalty): (data, penalty) for data in DATA for penalty in WEIGHTS}

    def of_two_starts(side, rng, rate):
        return np.mean([judged(trained(weight, *sides[side], rng, rate=rate), weight)["error"] for _ in range(2)])

    yield from tried(of_two_starts, sides, {side: (0.01, 0.03, 0.1) if data == NOISY else (0.03, 0.1, 0.3) for side, (data, _) in sides.items()}, rng)


@section.experiment
def experiment(rng):
    weight = teacher(rng)
    for data in DATA:
        for penalty in WEIGHTS:
            train = trained(weight, data, penalty, rng, rate=section.rates[name(data, penalty)])
            plain, found = train if penalty == 0 else plain, judged(train, weight)  # noqa: F821
            yield data, penalty, found
            yield f"{data}: {CUT}", penalty, cut(plain, weight, [found[rank] for rank in RANKS])


if __name__ == "__main__":
    section.main()
