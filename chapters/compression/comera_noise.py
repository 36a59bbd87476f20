"""Where examples are few and noisy, does a penalty on the ranks of a tensor train bring the map nearer?

Yang et al. 2024 (CoMERA), arXiv:2405.14377: a penalty closes gates between the cores of a train while it learns. A train with fewer links has less to
learn noise with. The task is that of the section on its ranks, a linear map of 16 by 16 of ranks three, but there are 64 examples, whose answers are
noisy, over and over. The control needs no penalty: train, then cut by TT-SVD to the same ranks. Every weight of the penalty has a learning rate of its
own.
"""

# %
import numpy as np

from minitransformers.reporting import Section, lines, tried
from minitransformers.reporting.penalised_trains import BATCH, COLUMNS, CUT, ERROR, RANKS, cut, judged, rows, teacher, told, trained

section = Section(__file__, __doc__, kind="trained")
NOISE, PENALTIES, RATES = 0.5, {f"{penalty:g}": penalty for penalty in (0.0, 0.01, 0.03, 0.1)}, (0.0003, 0.001, 0.003, 0.01)


# %%
def learned(weight, rng, *, penalty, rate):
    return trained(weight, rng, penalty=penalty, rate=rate, steps=50 if section.quick else 2000, noise=NOISE)


@section.tuning
def tuning(rng):
    weight = teacher(rng)

    def of_two_starts(name, rng, rate):
        return np.mean([judged(learned(weight, rng, penalty=PENALTIES[name], rate=rate), weight)[ERROR] for _ in range(2)])

    yield from tried(of_two_starts, PENALTIES, RATES, rng)


@section.experiment
def experiment(rng):
    weight = teacher(rng)
    for name, penalty in PENALTIES.items():
        train = learned(weight, rng, penalty=penalty, rate=section.rates[name])
        plain, found = train if penalty == 0 else plain, judged(train, weight)
        yield "train", penalty, {**found, CUT: cut(plain, weight, [found[rank] for rank in RANKS])}


# %%
@section.claim(
    "With few noisy examples the penalty brings the map nearer, and by more than a cut to the same ranks",
    paper="Yang et al. 2024 (CoMERA), arXiv:2405.14377: fewer numbers without loss. What they do to noise is not asked",
    measured=lambda found: told(found, 0.1),
)
def nearer_with_noisy_examples(found):
    """At a weight of 0.1 the relative error is at most 0.9 of that without a penalty, and below that of the cut."""
    return found[ERROR]["train"][0.1] < min(0.9 * found[ERROR]["train"][0.0], found[CUT]["train"][0.1])


@section.report
def report(found):
    section.table("comera_noise", COLUMNS, rows(found))
    section.values("comera_noise", {"error": np.mean(found[ERROR]["train"][0.1]), "cut": np.mean(found[CUT]["train"][0.1])})
    section.values("comera_noise", {"plain": np.mean(found[ERROR]["train"][0.0]), "numbers": np.mean(found["numbers"]["train"][0.1]), "examples": BATCH})


@section.figure("comera_noise", size=(4.4, 2.8))
def picture(ax, found):
    curves = {"with the penalty": ERROR, "without, cut to the same ranks": CUT}
    lines(ax, {label: {at: found[measure]["train"][at] for at in list(PENALTIES.values())[1:]} for label, measure in curves.items()}, xscale="log")
    ax.axhline(np.mean(found[ERROR]["train"][0.0]), color="#808080", linewidth=0.8, linestyle=":")
    ax.set(xlabel="weight of the penalty", ylabel="relative error")
    ax.legend(fontsize="small")


if __name__ == "__main__":
    section.main()
