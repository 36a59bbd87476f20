"""A cue is shown once: how many segments later is it still known?

Dai et al. 2019, arXiv:1901.02860: a memory of the last segments' hidden states reaches as far as it is long, times the layers. Rae et al. 2019,
arXiv:1911.05507: squeeze what leaves it, and the same rows reach further. Ding et al. 2020 (ERNIE-Doc), arXiv:2012.15688: keep what a layer has put
out in the place of what it read, and there is no end. Wu et al. 2020 (Memformer), arXiv:2010.06891: a few slots that are written anew carry on
without one. A text has six segments of eight tokens; a cue stands in the first, and at the end of every later one it is asked for. All have one
layer of 32 features, and 16 rows of memory where they have rows.
"""

# %%
import numpy as np

from minitransformers.reporting import Section, lines, mean_and_spread, ticks_at, tried
from minitransformers.reporting.long_context.cues import CUES, SEGMENTS, remembered, remembering
from minitransformers.reporting.long_context.memories import NOTHING, SAME_LAYER, SQUEEZED, WRITTEN, XL
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
STEPS, ASKED = 300, 1000
KEYS = {"nothing": NOTHING, "xl": XL, "squeezed": SQUEEZED, "same": SAME_LAYER, "written": WRITTEN}
LAGS = list(range(1, SEGMENTS))


def learned(name, rng, *, rate):
    return remembering(name, rng, rate=rate, steps=3 if section.quick else STEPS)


RATES = {name: (3e-3, 1e-2, 3e-2) for name in (XL, SQUEEZED, WRITTEN)} | {NOTHING: (1e-2,), SAME_LAYER: (1e-3, 3e-3, 1e-2)}


@section.tuning
def tuning(rng):
    def of_two_starts(name, rng, rate):
        """Some begin to remember from one start and not from another: what is chosen has to do so from both."""
        return np.mean([remembered(learned(name, rng, rate=rate), name, rng, texts=300)[1] for _ in range(1 if section.quick else 2)])

    yield from tried(of_two_starts, KEYS.values(), dict.fromkeys(RATES, (1e-2,)) if section.quick else RATES, rng)


@section.experiment
def experiment(rng):
    hold_blas()
    for name in KEYS.values():
        right, _ = remembered(learned(name, rng, rate=section.rates[name]), name, rng, texts=100 if section.quick else ASKED)
        for distance, share in right.items():
            yield name, distance, {"right": share}


# %%
def told(found, *runs):
    return "; ".join(f"{run}: {', '.join(f'{np.mean(y):.2f}' for y in found['right'][run].values())}" for run in runs)


@section.claim(
    "Transformer-XL forgets at the end of its memory", paper="Dai et al. 2019, arXiv:1901.02860, section 3.2: the reach is layers times length",
    measured=lambda found: f"right 1 to 5 segments later; {told(found, XL, NOTHING)}; a guess {1 / CUES}",
)  # fmt: skip
def forgets(found):
    """Right in at least 0.98 of cases one and two segments later, and in at most 0.18 from three on."""
    right = found["right"][XL]
    return min(right[1], right[2]) >= 0.98 and max(right[3], right[4], right[5]) <= 0.18


@section.claim(
    "As many rows, half of them squeezed, remember beyond it", paper="Rae et al. 2019, arXiv:1911.05507, section 3",
    measured=lambda found: f"right 1 to 5 segments later; {told(found, SQUEEZED)}",
)  # fmt: skip
def squeezed_remember(found):
    """Right in at least 0.95 of cases at every distance."""
    return min(found["right"][SQUEEZED].values()) >= 0.95


@section.claim(
    "Do as many rows of the same layer remember beyond it?", paper="Ding et al. 2020, arXiv:2012.15688, section 3.3",
    measured=lambda found: f"right 1 to 5 segments later; {told(found, SAME_LAYER)}",
)  # fmt: skip
def same_layer_remembers(found):
    """Right in at least 0.95 of cases at every distance."""
    return min(found["right"][SAME_LAYER].values()) >= 0.95


@section.claim(
    "Four slots that are written remember as well", paper="Wu et al. 2020, arXiv:2010.06891, section 3: memory of constant size",
    measured=lambda found: f"right 1 to 5 segments later; {told(found, WRITTEN)}",
)  # fmt: skip
def slots_remember(found):
    """Right in at least 0.95 of cases at every distance."""
    return min(found["right"][WRITTEN].values()) >= 0.95


@section.report
def report(found):
    rows = [["guessing", *[f"{1 / CUES:.3f}"] * len(LAGS), ""]]
    rows += [[name, *(mean_and_spread(of[lag], ".3f") for lag in LAGS), f"{section.rates[name]:g}"] for name, of in found["right"].items()]
    section.table("recall", ["share of cues known, segments later", *map(str, LAGS), "learning rate"], rows)
    for key, name in KEYS.items():
        section.values(f"recall.{key}", {f"d{lag}": found["right"][name][lag].mean() for lag in LAGS})


@section.figure("recall", size=(6, 3.2))
def picture(ax, found):
    lines(ax, found["right"], xlabel="segments since the cue", ylabel="share of cues known", ylim=(0, 1.05))
    ticks_at(ax, LAGS)
    ax.legend()


if __name__ == "__main__":
    section.main()
