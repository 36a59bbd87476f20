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
from minitransformers.compression.tt_linear import init_tt_linear, tt_linear
from minitransformers.foundation import trees
from minitransformers.reporting import Section, lines, mean_and_spread, tried
from minitransformers.training.fit import fit
from minitransformers.training.task import Task

section = Section(__file__, __doc__, kind="trained")
DIGITS, TRUE, START, BATCH, NOISE, DECAY = (4, 4), (3, 3, 3), (8, 8, 8), 64, 0.5, 1e-4
EXACT, NOISY = "exact examples without end", f"{BATCH} noisy examples"
WEIGHTS, RATES = (0.0, 0.003, 0.01, 0.03, 0.1), {EXACT: (0.03, 0.1, 0.3), NOISY: (0.01, 0.03, 0.1)}
SIDES = {f"{data}, {penalty:g}": (data, penalty) for data in RATES for penalty in WEIGHTS}
RANKS, MEASURES = ("rank 1", "rank 2", "rank 3"), ("error", "error if cut")


# %% What is learned
def teacher(rng):
    """A map of the true ranks whose outputs have variance 1."""
    weight = tt_matrix(init_tt_linear(rng, DIGITS, DIGITS, ranks=TRUE).train.cores)
    return 4 * weight / np.linalg.norm(weight)


class Penalised(Task):
    """The squared error of an example, with the penalty of the train and the squares of its cores."""

    def __init__(self, weight, data, penalty, rng):
        self.weight, self.penalty = weight, penalty
        self.few = None if data == EXACT else self.batch(rng, few=None, noise=np.float32(NOISE))

    def batch(self, rng, **drawn):
        few, noise = drawn.get("few", getattr(self, "few", None)), drawn.get("noise", np.float32(0))
        x, added = rng.standard_normal((2, BATCH, 16), np.float32) if few is None else (None, None)
        return (x, x @ self.weight + noise * added) if few is None else few

    def loss(self, params, batch, *, rng):
        out, backward = tt_linear(params, batch[0])
        miss = out - batch[1]
        total, objective_backward = early_objective(np.asarray(np.sum(miss**2) / BATCH), [params.train], weight=self.penalty, decay=DECAY)

        def both(dtotal):
            dloss, (dtrain,) = objective_backward(np.asarray(dtotal[0]))
            dparams, _ = backward(2 / BATCH * miss * dloss)
            return dparams._replace(train=trees.map(np.add, dparams.train, dtrain))

        return (total, 1), both
