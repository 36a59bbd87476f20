"""A cue is asked for once, five segments later: who has learned to keep it?

Wu et al. 2020 (Memformer), arXiv:2010.06891, section 3.5: back-propagation goes through the slots, from segment to segment. Where a memory is stopped,
as in Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688, no gradient tells the segments between to hand on what they do not need themselves. The texts
and the models are those of the section recall; the end of the last segment alone is asked.
"""

# %%
import numpy as np

from minitransformers.reporting import Section, listed, mean_and_spread, tried
from minitransformers.reporting.long_context.cues import CUES, SEGMENTS, remembered, remembering
from minitransformers.reporting.long_context.memories import SAME_LAYER, WRITTEN
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
STEPS, ASKED, LAST = 300, 1000, SEGMENTS - 1
KEYS = {"same": SAME_LAYER, "written": WRITTEN}
RATES = {SAME_LAYER: (1e-3, 3e-3, 1e-2), WRITTEN: (3e-3, 1e-2, 3e-2)}


def learned(name, rng, *, rate):
    return remembering(name, rng, rate=rate, steps=3 if section.quick else STEPS, last=True)


@section.tuning
def tuning(rng):
    def of_two_starts(name, rng, rate):
        """Some begin to remember from one start and not from another: what is chosen has to do so from both."""
        return np.mean([remembered(learned(name, rng, rate=rate), name, rng, texts=300, last=True)[1] for _ in range(1 if section.quick else 2)])

    yield from tried(of_two_starts, RATES, dict.fromkeys(RATES, (1e-2,)) if section.quick else RATES, rng)


@section.experiment
def experiment(rng):
    hold_blas()
    for name in RATES:
        right, _ = remembered(learned(name, rng, rate=section.rates[name]), name, rng, texts=100 if section.quick else ASKED, last=True)
        yield name, LAST, {"right": right[LAST]}


# %%
@section.claim(
    "Does a stopped memory keep what is asked for at the end alone?", paper="no paper: no gradient teaches the segments between to hand it on",
    measured=lambda found: f"right five segments later: {listed(found['right'], [SAME_LAYER], LAST)}; a guess {1 / CUES}",
)  # fmt: skip
def stopped_keeps(found):
    """Right in at least 0.5 of cases."""
    return found["right"][SAME_LAYER][LAST] >= 0.5


@section.claim(
    "Slots with a gradient through them keep what is asked for at the end alone", paper="Wu et al. 2020, arXiv:2010.06891, section 3.5: back-propagation through the memory",
    measured=lambda found: f"right five segments later: {listed(found['right'], [WRITTEN], LAST)}; a guess {1 / CUES}",
)  # fmt: skip
def slots_keep(found):
    """Right in at least 0.95 of cases."""
    return found["right"][WRITTEN][LAST] >= 0.95


@section.report
def report(found):
    rows = [["guessing", f"{1 / CUES:.3f}", ""]]
    rows += [[name, mean_and_spread(of[LAST], ".3f"), f"{section.rates[name]:g}"] for name, of in found["right"].items()]
    section.table("asked_last", ["asked at the end alone", "share of cues known, five segments later", "learning rate"], rows)
    section.values("recall.last", {key: found["right"][name][LAST].mean() for key, name in KEYS.items()})


if __name__ == "__main__":
    section.main()
