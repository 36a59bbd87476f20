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
WEIGHTS, RATES = (0.0, 0.01, 0.03, 0.1), {EXACT: (0.01, 0.03, 0.1, 0.3), NOISY: (0.0003, 0.001, 0.003, 0.01)}
SIDES = {f"{data}, {penalty:g}": (data, penalty) for data in RATES for penalty in WEIGHTS}
RANKS, ERROR, CUT = ("rank 1", "rank 2", "rank 3"), "error", "error if cut"


# %% What is learned
def teacher(rng):
    """A map of the true ranks whose outputs have variance 1."""
    weight = tt_matrix(init_tt_linear(rng, DIGITS, DIGITS, ranks=TRUE).train.cores)
    return 4 * weight / np.linalg.norm(weight)


def examples(rng, weight, noise):
    x, added = rng.standard_normal((2, BATCH, 16), np.float32)
    return x, x @ weight + np.float32(noise) * added


class Penalised(Task):
    """The squared error of an example, with the penalty of the train and the squares of its cores."""

    def __init__(self, weight, data, penalty, rng):
        self.weight, self.penalty = weight, penalty
        self.few = examples(rng, weight, NOISE) if data == NOISY else None

    def batch(self, rng):
        return self.few or examples(rng, self.weight, 0)

    def loss(self, params, batch, *, rng):
        out, backward = tt_linear(params, batch[0])
        miss = out - batch[1]
        total, objective_backward = early_objective(np.asarray(np.sum(miss**2) / BATCH), [params.train], weight=self.penalty, decay=DECAY)

        def both(dtotal):
            dloss, (dtrain,) = objective_backward(np.asarray(dtotal[0]))
            dparams, _ = backward(2 / BATCH * miss * dloss)
            return dparams._replace(train=trees.map(np.add, dparams.train, dtrain))

        return (total, 1), both


def trained(weight, side, rng, *, rate):
    task, params = Penalised(weight, *SIDES[side], rng), init_tt_linear(rng, DIGITS, DIGITS, ranks=START, bias=False)
    return fit(params, task, steps=50 if section.quick else 2000, peak=rate, rng=rng, warmup=0.05, clip=None).train


def apart(cores, weight):
    return np.linalg.norm(tt_matrix(cores) - weight) / np.linalg.norm(weight)


def judged(train, weight):
    """Of the pruned train: its ranks, its numbers and how far from the teacher it is. Where a rank is 0, the map is zero."""
    ranks = [int(np.sum(gates > THRESHOLD)) for gates in train.gates]
    error = apart(prune_ranks(train).cores, weight) if all(ranks) else 1.0
    return {**dict(zip(RANKS, ranks, strict=True)), "numbers": train_size(train.gates, sizes=DIGITS + DIGITS), ERROR: error}


def cut(train, weight, ranks):
    """How far from the teacher a train is that is made one matrix and cut to these ranks, or to as many as its sides have."""
    first, last = (min(rank, 4) for rank in (ranks[0], ranks[2]))
    whole, ranks = tt_matrix(prune_ranks(train).cores), (first, min(ranks[1], 4 * first), last)
    return apart(tt_svd(whole, rows=DIGITS, columns=DIGITS, ranks=ranks), weight) if all(ranks) else 1.0


@section.tuning
def tuning(rng):
    weight = teacher(rng)

    def of_two_starts(side, rng, rate):
        return np.mean([judged(trained(weight, side, rng, rate=rate), weight)[ERROR] for _ in range(2)])

    yield from tried(of_two_starts, SIDES, {side: RATES[data] for side, (data, _) in SIDES.items()}, rng)


@section.experiment
def experiment(rng):
    weight = teacher(rng)
    for side, (data, penalty) in SIDES.items():
        train = trained(weight, side, rng, rate=section.rates[side])
        plain, found = train if penalty == 0 else plain, judged(train, weight)
        yield data, penalty, {**found, CUT: cut(plain, weight, [found[rank] for rank in RANKS])}


# %%
def ranks(found, data, penalty):
    """The ranks that were found, by seed."""
    return "; ".join(" ".join(f"{rank:.0f}" for rank in of) for of in zip(*(np.ravel(found[rank][data][penalty]) for rank in RANKS), strict=True))


def told(found, data, penalty):
    errors = ", ".join(f"{what} {mean_and_spread(found[ERROR if what != 'cut' else CUT][data][at], '.2g')}"
                       for what, at in (("with the penalty", penalty), ("without", 0.0), ("cut", penalty)))  # fmt: skip
    return f"at a weight of {penalty:g}: {errors}; ranks {ranks(found, data, penalty)}"


@section.claim(
    "With exact examples the penalty finds the ranks of the task, or one link more",
    paper="Yang et al. 2024 (CoMERA), arXiv:2405.14377, abstract: rank-adaptive, a high compression ratio and excellent accuracy",
    measured=lambda found: told(found, EXACT, 0.01),
)
def finds(found):
    """At a weight of 0.01 no rank is below 3 and none above 4, of 8 at the start, and the relative error is below 0.01."""
    return all(3 <= found[rank][EXACT][0.01] <= 4 for rank in RANKS) and found[ERROR][EXACT][0.01] < 0.01


@section.claim(
    "With exact examples, is the map nearer than one that is trained without a penalty and cut to the same ranks?",
    paper="Yang et al. 2024 (CoMERA), arXiv:2405.14377, abstract: compression and accuracy from training itself",
    measured=lambda found: told(found, EXACT, 0.01),
)
def nearer_with_exact_examples(found):
    """At a weight of 0.01 its relative error is the smaller one."""
    return found[ERROR][EXACT][0.01] < found[CUT][EXACT][0.01]


@section.claim(
    "With few noisy examples the penalty brings the map nearer, and by more than a cut to the same ranks",
    paper="Yang et al. 2024 (CoMERA), arXiv:2405.14377: fewer numbers without loss. What they do to noise is not asked",
    measured=lambda found: told(found, NOISY, 0.1),
)
def nearer_with_noisy_examples(found):
    """At a weight of 0.1 the relative error is at most 0.9 of that without a penalty, and below that of the cut."""
    return found[ERROR][NOISY][0.1] < min(0.9 * found[ERROR][NOISY][0.0], found[CUT][NOISY][0.1])


@section.report
def report(found):
    heads = ["examples", "weight of the penalty", "ranks found, by seed", "numbers", "relative error", "no penalty, then cut"]
    section.table("comera", heads, [[data, f"{penalty:g}", ranks(found, data, penalty), float(np.mean(found["numbers"][data][penalty])),
                  *(mean_and_spread(found[measure][data][penalty], ".2g") for measure in (ERROR, CUT))] for data, penalty in SIDES.values()])  # fmt: skip
    for key, data, penalty in (("exact", EXACT, 0.01), ("noisy", NOISY, 0.1)):
        section.values(f"comera.{key}", {"error": np.mean(found[ERROR][data][penalty]), "cut": np.mean(found[CUT][data][penalty])})
        section.values(f"comera.{key}", {"plain": np.mean(found[ERROR][data][0.0]), "numbers": np.mean(found["numbers"][data][penalty])})


@section.figure("comera", size=(7, 2.8), ncols=2)
def picture(axes, found):
    for ax, data in zip(axes, RATES, strict=True):
        curves = {"with the penalty": ERROR, "without, cut to the same ranks": CUT}
        lines(ax, {label: {at: found[measure][data][at] for at in WEIGHTS[1:]} for label, measure in curves.items()}, xscale="log", yscale="log" if data == EXACT else "linear")
        ax.axhline(np.mean(found[ERROR][data][0.0]), color="#808080", linewidth=0.8, linestyle=":")
        ax.set(title=data, xlabel="weight of the penalty", ylabel="relative error")
    axes[0].legend(fontsize="small")


if __name__ == "__main__":
    section.main()
