"""Does a lean grow when models learn from what models wrote?

Shumailov et al. 2023, arXiv:2305.17493: each generation is trained on the text of the last. Zhao et al. 2017, arXiv:1707.09457:
models make a lean of their data larger. A model that only counts writes 2,000 sentences of an occupation, a pronoun and one of 30
words; five generations, each trained on those of the last alone. They write as they have counted, at a temperature, or with a cut of
the unlikely. 20 loops a seed.
"""

# %%
from minitransformers.reporting import Section, lines
from minitransformers.reporting.bias_mitigation.leaning import (
    COLUMNS,
    LOOPS,
    MEASURES,
    ROUNDS,
    SENTENCES,
    Written,
    generations,
    rows,
    told,
)

section = Section(__file__, __doc__, kind="trained")
COUNTED, COOL, COLD, CUT, SHORT = "as counted", "temperature 0.8", "temperature 0.7", "top-p 0.9", "top-p 0.7"
WAYS = {
    COUNTED: Written({}), COOL: Written({"temperature": 0.8}), COLD: Written({"temperature": 0.7}), CUT: Written({"top_p": 0.9}),
    SHORT: Written({"top_p": 0.7}),
}  # fmt: skip


@section.experiment
def experiment(rng):
    for name, way in WAYS.items():
        for step, numbers in generations(way, rng, quick=section.quick):
            yield name, step, numbers


# %%
@section.claim(
    "Written at a temperature below 1, a lean at least doubles in five generations",
    paper="Zhao et al. 2017, arXiv:1707.09457: trained models make a lean of their data larger; there by structured prediction, not by a loop",
    measured=lambda found: told(found, COOL, COLD) + f"; the least of all loops {found['least growth'][COOL][ROUNDS].min():.2f} times",
)
def sharpened(found):
    """At temperature 0.8 the gap of the last generation is at least twice that of the first, in each of the loops."""
    return found["least growth"][COOL][ROUNDS] >= 2


@section.claim(
    "Written as counted, does a lean drift and not grow?",
    paper="Shumailov et al. 2023, arXiv:2305.17493, section 3: errors of sampling add up; no sharpening there",
    measured=lambda found: told(found, COUNTED) + f"; the largest drift of all loops {found['drift'][COUNTED][ROUNDS].max():.2f}",
)
def drifts(found):
    """The gap of the last generation is within 0.3 of that of the first in each loop, and within 0.1 in the mean over loops."""
    gap = found["gap"][COUNTED]
    return found["drift"][COUNTED][ROUNDS] <= 0.3 and abs(gap[ROUNDS] - gap[0]) <= 0.1


@section.claim(
    "A cut of the unlikely amplifies only what it reaches",
    paper="no paper: top-p 0.9 keeps a share above 0.1, top-p 0.7 takes any below 0.3",
    measured=lambda found: told(found, CUT, SHORT),
)
def cuts(found):
    """After top-p 0.9 the mean gap is within 0.3 of the start's, after top-p 0.7 at least twice it."""
    gap = found["gap"]
    return abs(gap[CUT][ROUNDS] - gap[CUT][0]) <= 0.3 and gap[SHORT][ROUNDS] >= 2 * gap[SHORT][0]


@section.report
def report(found):
    section.table("loop", COLUMNS, rows(found, WAYS, COUNTED))
    for key, name in {"counted": COUNTED, "cool": COOL, "cold": COLD, "cut": CUT, "short": SHORT}.items():
        section.values(f"loop.{key}", {measure: found[measure][name][ROUNDS].mean() for measure in MEASURES})
    section.values("loop.start", {measure: found[measure][COUNTED][0].mean() for measure in MEASURES})
    section.values("loop", {"loops": LOOPS, "sentences": SENTENCES})


@section.figure("loop", size=(8, 3.2), ncols=2)
def picture(axes, found):
    lines(axes[0], found["gap"], xlabel="generation", ylabel="mean |log p / p'| of the pronouns")
    lines(axes[1], found["words"], xlabel="generation", ylabel="effective number of words", ylim=(0, None))
    axes[0].legend(fontsize=7)


if __name__ == "__main__":
    section.main()
