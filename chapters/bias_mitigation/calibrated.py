"""Can a score that is calibrated in two groups have equal means for those of either label?

Kleinberg et al. 2016, arXiv:1609.05807, theorem 1.1: not where base rates differ and the score makes errors. Data: the scores of COMPAS
in ProPublica's own file, its usual filter, a charge within two years, for the two largest groups, as they are named there. Of each
score it is counted how many were charged; this share is a score that is calibrated by construction. Intervals are of people drawn
within groups.
"""

# %%
from functools import cache

import numpy as np

from minitransformers.bias_mitigation.bootstrap import bootstrap_interval
from minitransformers.bias_mitigation.group_calibration import calibration_by_group
from minitransformers.reporting import Section
from minitransformers.reporting.bias_mitigation.decisions import load_compas, numbered
from minitransformers.reporting.needs import needs_data

section = Section(__file__, __doc__, kind="exact", needs=needs_data(("fairness", "compas")))


@cache
def people():
    """Scores, labels and groups by number of the two largest groups, which the dispute is about, and their names."""
    return numbered(load_compas(), most=2)


# %% How many of each score had label 1; and the mean of this share, a calibrated score, over those of label 1 and of label 0
def shares(drawn):
    return calibration_by_group((drawn[:, 0] - 0.5) / 10, labels=drawn[:, 1], groups=drawn[:, 2], bins=10).positive_rate


@section.experiment
def experiment(rng):
    (scores, labels, groups), names = people()
    rows = np.stack([scores, labels, groups], axis=1)
    found = bootstrap_interval(rows, statistic=shares, rng=rng, resamples=100 if section.quick else 2000, groups=groups)
    known = found.estimate[groups, scores - 1]
    for g, name in enumerate(names):
        own = groups == g
        p, yes, no = labels[own].mean(), known[own & (labels == 1)].mean(), known[own & (labels == 0)].mean()
        yield name, "balance", {"base": p, "mean of yes": yes, "mean of no": no, "error": abs(p * (1 - yes) - (1 - p) * no)}
        for score in range(10):
            ends = {"share low": found.low[g, score], "share high": found.high[g, score]}
            yield name, score + 1, {"share": found.estimate[g, score], **ends}


# %%
def exactly(number):
    return float(np.ravel(number)[0])


@section.claim(
    "No score is calibrated in both groups and in the mean equal for those of either label",
    paper="Kleinberg et al. 2016, arXiv:1609.05807, theorem 1.1: but for equal base rates, or a score without errors",
    measured=lambda found: "of a score calibrated by construction: " + "; ".join(
        f"{name}: mean of label 1 {exactly(found['mean of yes'][name]['balance']):.3f}, "
        f"of label 0 {exactly(found['mean of no'][name]['balance']):.3f}"
        for name in people()[1]),
)  # fmt: skip
def no_score(found):
    """In each group p (1 - mean of label 1) = (1 - p) (mean of label 0), to 1e-12: where base rates p differ, a mean must. Here
    both do, by 0.01."""
    names = people()[1]
    means = [[found[f"mean of {label}"][name]["balance"] for name in names] for label in ("yes", "no")]
    return max(found["error"][name]["balance"] for name in names) < 1e-12 and min(abs(a - b) for a, b in means) > 0.01


@section.report
def report(found):
    measures = ("base", "mean of yes", "mean of no")
    sizes = np.bincount(people()[0].groups)
    rows = []
    for name, size in zip(people()[1], sizes, strict=True):
        rows.append([name, int(size), *(f"{exactly(found[measure][name]['balance']):.3f}" for measure in measures)])
    section.table("calibrated", ["group", "people", "base rate", "mean score of label 1", "mean score of label 0"], rows)


@section.figure("calibrated", size=(5, 3.2))
def picture(ax, found):
    for i, name in enumerate(people()[1]):
        share, low, high = ([exactly(found[what][name][score]) for score in range(1, 11)] for what in ("share", "share low", "share high"))
        ax.plot(range(1, 11), share, "o-", label=name)
        ax.fill_between(range(1, 11), low, high, alpha=0.15, color=f"C{i}", linewidth=0)
    ax.set(xlabel="score", ylabel="charged within two years", ylim=(0, 1))
    ax.legend(fontsize=7)


if __name__ == "__main__":
    section.main()
