"""Does a penalty on the gates find the ranks of a tensor train, and is the map any better for it?

Yang et al. 2024 (CoMERA), arXiv:2405.14377: a map is trained as a tensor train, a penalty closes gates between its cores, and the ranks that are left
are as small as the task allows, without loss. The task here is a linear map of 16 by 16 whose ranks are known, three between each two of four cores;
the student starts with eight. It has fresh exact examples without end. The control needs no penalty: train, then cut by TT-SVD to the same ranks.
Every weight of the penalty has a learning rate of its own.
"""

# %%
import numpy as np

from minitransformers.reporting import Section
from minitransformers.reporting.compression.penalised_trains import COLUMNS, CUT, ERROR, RANKS, drawn, learned, rows, told, tuned

section = Section(__file__, __doc__, kind="trained")
RATES, NOISE = (0.01, 0.03, 0.1, 0.3), None


def steps():
    return 50 if section.quick else 2000


@section.tuning
def tuning(rng):
    yield from tuned(rng, rates=RATES, steps=steps(), noise=NOISE)


@section.experiment
def experiment(rng):
    yield from learned(rng, rates=section.rates, steps=steps(), noise=NOISE)


# %%
@section.claim(
    "With exact examples, does the penalty find the ranks of the task, or one link more?",
    paper="Yang et al. 2024 (CoMERA), arXiv:2405.14377, abstract: rank-adaptive, a high compression ratio and excellent accuracy",
    measured=lambda found: told(found, 0.01),
)
def finds(found):
    """At a weight of 0.01 no rank is below 3 and none above 4, of 8 at the start, and the relative error is below 0.01."""
    return all(3 <= found[rank]["train"][0.01] <= 4 for rank in RANKS) and found[ERROR]["train"][0.01] < 0.01


@section.claim(
    "With exact examples, is the map nearer than one that is trained without a penalty and cut to the same ranks?",
    paper="Yang et al. 2024 (CoMERA), arXiv:2405.14377, abstract: compression and accuracy from training itself",
    measured=lambda found: told(found, 0.01),
)
def nearer_with_exact_examples(found):
    """At a weight of 0.01 its relative error is the smaller one."""
    return found[ERROR]["train"][0.01] < found[CUT]["train"][0.01]


@section.report
def report(found):
    section.table("comera", COLUMNS, rows(found))
    section.values("comera", {"error": np.mean(found[ERROR]["train"][0.01]), "cut": np.mean(found[CUT]["train"][0.01])})
    section.values("comera", {"plain": np.mean(found[ERROR]["train"][0.0]), "numbers": np.mean(found["numbers"]["train"][0.01])})


@section.figure("comera", size=(4.4, 2.8))
def picture(ax, found):
    drawn(ax, found, yscale="log")


if __name__ == "__main__":
    section.main()
