"""Is what a direction held gone when the direction is?

Gonen and Goldberg 2019, arXiv:1903.03862: words whose part along the direction of gender was taken out (Bolukbasi et al. 2016,
arXiv:1607.06520) still cluster by the side on which they were. Here words of Google News (word2vec, 300 numbers) that lie farthest to either
side are taken, made neutral, and asked for their former side: by k-means, by a linear probe and by their nearest neighbours, probes on words
that they were not fitted on. The same is done along random directions, and with labels shuffled. The lists are binary, and so is this.
"""

# %%
import numpy as np

from minitransformers.bias_mitigation.hard_debias import neutralize
from minitransformers.bias_mitigation.weat import unit_rows
from minitransformers.reporting import Section
from minitransformers.reporting.bias_mitigation.former_sides import PROBES, neutral_words, shares_told, told
from minitransformers.reporting.bias_mitigation.word_quality import span
from minitransformers.reporting.bias_mitigation.word_vectors import both_ends
from minitransformers.reporting.needs import needs_data

section = Section(__file__, __doc__, kind="trained", needs=needs_data(("fairness", "vectors")))
RANDOM, SIDES = 5, (250, 2000)                               # random directions, words a side
GENDER, OUT, SHUFFLED, OTHERS = "gender", "gender, out", "gender, out, labels shuffled", "random directions"
BEFORE, HARD = "as published", "one direction out"


def sizes():
    return SIDES[:1] if section.quick else SIDES


@section.experiment
def experiment(rng):
    (_, vectors), neutral, _, (basis, _) = neutral_words()
    x, resamples = vectors[neutral], 100 if section.quick else 1000
    others = unit_rows("directions", rng.normal(size=(2 if section.quick else RANDOM, x.shape[1])))
    for side in sizes():
        rows, labels = both_ends(x @ basis[:, 0], side)
        out = neutralize(x[rows], basis=basis)
        yield GENDER, side, shares_told(x[rows], labels, rng, resamples=resamples)
        yield OUT, side, shares_told(out, labels, rng, resamples=resamples)
        yield SHUFFLED, side, shares_told(out, rng.permutation(labels), rng, resamples=resamples)
        found = []
        for one in others:
            rows, labels = both_ends(x @ one, side)
            hits = told(neutralize(x[rows], basis=one[:, None]), labels, rng)
            found.append([hits[probe].mean() for probe in PROBES])
        ends = (("", np.mean), (" low", np.min), (" high", np.max))
        yield OTHERS, side, {probe + end: of(np.array(found)[:, i]) for i, probe in enumerate(PROBES) for end, of in ends}


# %% What was found
def at(found, curve, side):
    return {measure: of[curve][side] for measure, of in found.items()}


def listed(found, probe, curves, side):
    return "; ".join(f"{curve} {span(at(found, curve, side), probe, '.3f')}" for curve in curves)


@section.claim(
    "A linear probe tells the former side of neutral words",
    paper="Gonen and Goldberg 2019, arXiv:1903.03862, section 4: clusters and classifiers find it, in thousands of words",
    measured=lambda found: ". ".join(f"{side} words a side: {listed(found, 'linear', (GENDER, OUT, SHUFFLED), side)}" for side in SIDES),
)
def still_told(found):
    """On words that it was not fitted on at least 0.75 are right, with shuffled labels at most 0.6, with few words and with many."""
    linear = found["linear"]
    return all(linear[OUT][side] >= 0.75 and linear[SHUFFLED][side] <= 0.6 for side in SIDES)


@section.claim(
    "The same is true along directions that mean nothing",
    paper="no paper: the control that clusters of gender alone lack",
    measured=lambda found: ". ".join(f"{side} words a side, {probe}: {listed(found, probe, (OUT, OTHERS), side)}" for side in SIDES for probe in PROBES),
)
def random_as_well(found):
    """Along each of the random directions the linear probe is right about at least 0.75 too, with few words and with many."""
    return all(found["linear low"][OTHERS][side] >= 0.75 for side in SIDES)


@section.report
def report(found):
    names = {f"{GENDER}, {BEFORE}": GENDER, f"{GENDER}, {HARD}": OUT, f"{OTHERS}, {HARD}": OTHERS, SHUFFLED: SHUFFLED}
    rows = [[side, label, *(span(at(found, name, side), probe, ".3f") for probe in PROBES)] for side in sizes() for label, name in names.items()]
    section.table("recovery", ["words a side", "former side along, vectors", *PROBES], rows)
    for key, name in (("before", GENDER), ("out", OUT), ("random", OTHERS), ("shuffled", SHUFFLED)):
        for side in sizes():
            section.values(f"recovery.{key}.s{side}", {probe.replace("-", ""): np.mean(found[probe][name][side]) for probe in PROBES})
    section.value("recovery.neutral", len(neutral_words().neutral))


@section.figure("recovery", size=(7, 3.2), ncols=len(SIDES), sharey=True)
def picture(axes, found):
    for ax, side in zip(axes, sizes(), strict=False):
        for i, (name, label) in enumerate(((OUT, GENDER), (OTHERS, OTHERS), (SHUFFLED, SHUFFLED))):
            middle, low, high = (np.array([np.mean(found[probe + end][name][side]) for probe in PROBES]) for end in ("", " low", " high"))
            ax.errorbar(np.arange(len(PROBES)) + 0.15 * (i - 1), middle, yerr=[middle - low, high - middle], fmt="o", linewidth=1, label=label)
        ax.axhline(0.5, color="#808080", linestyle=":")
        ax.set(title=f"{side:,} words a side, the direction out", xticks=range(len(PROBES)), xticklabels=PROBES, ylim=(0.4, 1.02))
    axes[0].set_ylabel("former side told")
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


if __name__ == "__main__":
    section.main()
