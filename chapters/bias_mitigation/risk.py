"""Can a score of risk be as right and as wrong about each group?

Angwin et al. 2016 (ProPublica) against the makers of COMPAS: one found unequal error rates, the others equal precision, and both
were right. Chouldechova 2016, arXiv:1610.07524, equation 2.6: with unequal base rates they exclude each other, by counting.
Kleinberg et al. 2016, arXiv:1609.05807, theorem 1.1: so it is for scores. Data: ProPublica's own file, its usual filter, a charge
within two years; a charge is what was recorded, not what somebody did. Groups are named as there; intervals are of people drawn
within groups.
"""

# %%
from functools import cache

import numpy as np

from minitransformers.bias_mitigation.bootstrap import bootstrap_interval
from minitransformers.bias_mitigation.equal_thresholds import equal_opportunity_thresholds, selection_chances
from minitransformers.bias_mitigation.group_calibration import calibration_by_group, false_positive_identity
from minitransformers.bias_mitigation.group_metrics import group_rates
from minitransformers.reporting import Section
from minitransformers.reporting.decisions import load_compas
from minitransformers.reporting.needs import needs_data

section = Section(__file__, __doc__, kind="exact", needs=needs_data(("fairness", "compas")))
LEAST, CUT, SCORES = 100, 5, np.arange(2, 11)                # of members; the usual cut is 5
RATES = ("base_rate", "selection", "accuracy", "tpr", "fpr", "ppv")
APART, NOBODY = "first less second", "nobody called likely"
ONE, SAME_TPR, SAME_FPR = "one cut at 5", "cuts of equal tpr", "cuts of equal fpr"


@cache
def people():
    """Scores, labels, groups by number, and their names, the largest group first; groups of fewer than LEAST are left out."""
    data = load_compas()
    names, sizes = np.unique(data.groups, return_counts=True)
    kept = [str(name) for name in names[np.argsort(-sizes)] if sizes[names == name][0] >= LEAST]
    rows = np.isin(data.groups, kept)
    return data.scores[rows], data.labels[rows], np.array([kept.index(name) for name in data.groups[rows]]), kept


def expected_rates(chances, labels, groups):
    """The rates that decisions drawn with these chances have in the mean: everybody counts as a yes and as a no, by the chance of each."""
    said = np.repeat([1, 0], len(labels))
    return group_rates(said, labels=np.tile(labels, 2), groups=np.tile(groups, 2), weights=np.concatenate([chances, 1 - chances]))


def selections(scores, labels, groups):
    """Chances of being called likely. Cuts of equal fpr are those of equal tpr for who is called unlikely. Found on the same people."""
    scores = scores.astype(np.float64)
    same_tpr = equal_opportunity_thresholds(scores, labels=labels, groups=groups).thresholds
    same_fpr = equal_opportunity_thresholds(-scores, labels=1 - labels, groups=groups).thresholds
    return {
        ONE: (scores >= CUT).astype(np.float64), SAME_TPR: selection_chances(scores, thresholds=same_tpr, groups=groups),
        SAME_FPR: 1 - selection_chances(-scores, thresholds=same_fpr, groups=groups), NOBODY: np.zeros(len(scores)),
    }  # fmt: skip


# %% What is counted
def by_cut(scores, labels, groups):
    for cut in SCORES:
        rates = group_rates((scores >= cut).astype(np.int64), labels=labels, groups=groups)
        needed = false_positive_identity(rates.base_rate, rates.ppv, rates.tpr)
        yield "identity", int(cut), {"error": np.abs(needed - rates.fpr).max()}
        for g in range(2):
            yield people()[-1][g], int(cut), {"fpr at": rates.fpr[g], "tpr at": rates.tpr[g]}


def with_intervals(scores, labels, groups, rng):
    def statistic(drawn):
        rates = group_rates(drawn[:, 0], labels=drawn[:, 1], groups=drawn[:, 2])
        each = np.stack([getattr(rates, rate) for rate in RATES])
        return np.concatenate([each, each[:, :1] - each[:, 1:2]], axis=1)

    rows = np.stack([scores >= CUT, labels, groups], axis=1).astype(np.int64)
    found = bootstrap_interval(rows, statistic=statistic, rng=rng, resamples=draws(), groups=groups)
    for g, name in enumerate([*people()[-1], APART]):
        for r, rate in enumerate(RATES):
            yield name, rate, {"rate": found.estimate[r, g], "low": found.low[r, g], "high": found.high[r, g]}
    base, tpr, ppv = (found.estimate[RATES.index(rate)] for rate in ("base_rate", "tpr", "ppv"))
    yield people()[-1][0], "needed", {"rate": false_positive_identity(base[:1], ppv[1:2], tpr[1:2])[0]}


def calibrated(scores, labels, groups, rng):
    """How many of each score had label 1; and the mean of this share, a calibrated score, over those of label 1 and of label 0."""

    def shares(drawn):
        return calibration_by_group((drawn[:, 0] - 0.5) / 10, labels=drawn[:, 1], groups=drawn[:, 2], bins=10).positive_rate

    rows = np.stack([scores, labels, groups], axis=1)
    found = bootstrap_interval(rows, statistic=shares, rng=rng, resamples=draws(), groups=groups)
    known = found.estimate[groups, scores - 1]
    for g, name in enumerate(people()[-1][:2]):
        own = groups == g
        p, yes, no = labels[own].mean(), known[own & (labels == 1)].mean(), known[own & (labels == 0)].mean()
        yield name, "balance", {"mean of yes": yes, "mean of no": no, "error": abs(p * (1 - yes) - (1 - p) * no)}
        for score in range(10):
            ends = {"share low": found.low[g, score], "share high": found.high[g, score]}
            yield name, score + 1, {"share": found.estimate[g, score], **ends}


def draws():
    return 100 if section.quick else 2000


@section.experiment
def experiment(rng):
    scores, labels, groups, names = people()
    yield from by_cut(scores, labels, groups)
    yield from with_intervals(scores, labels, groups, rng)
    two = [part[groups < 2] for part in (scores, labels, groups)]  # the largest groups, which the dispute is about
    yield from calibrated(*two, rng)
    for way, chances in selections(*two).items():
        rates = expected_rates(chances, *two[1:])
        yield way, "all", {"accuracy": np.average(rates.accuracy, weights=np.bincount(two[2]))}
        for g in range(2):
            yield way, names[g], {rate: getattr(rates, rate)[g] for rate in RATES}


# %%
def apart(found, way, rate):
    one, other = (found[rate][way][name] for name in people()[-1][:2])
    return np.round(one - other, 12) + 0.0                   # no -0


def told(found, *rates):
    names = people()[-1][:2]
    return ", ".join(f"{rate} {' and '.join(f'{one(found, name, rate):.3f}' for name in names)}" for rate in rates)


def one(found, name, rate, end="rate"):
    return float(np.ravel(found[end][name][rate])[0])


def exactly(number):
    return float(np.ravel(number)[0])


@section.claim(
    "Base rate, precision and true positive rate leave the false positive rate no choice",
    paper="Chouldechova 2016, arXiv:1610.07524, equation 2.6",
    measured=lambda found: f"largest error of {len(SCORES)} cuts and {len(people()[-1])} groups "
    f"{max(map(exactly, found['error']['identity'].values())):.0e}; "
    f"with the other group's precision and true positive rate {people()[-1][0]} would need {one(found, people()[-1][0], 'needed'):.3f}",
)
def identity(found):
    """At every cut and in every group what the three give is the false positive rate that was counted, to 1e-12."""
    return max(found["error"]["identity"].values()) < 1e-12


@section.claim(
    "At the usual cut precision is nearer to equal than both error rates are",
    paper="Angwin et al. 2016, ProPublica: false positives 45 % and 23 %, on more people; Dieterich et al. 2016, for the makers: precision is alike",
    measured=lambda found: told(found, "ppv", "tpr", "fpr", "accuracy"),
)
def nearer(found):
    """The two largest groups' precisions differ by less than half of what either rate differs by, and the fpr's interval lies
    above 0.15."""
    ppv, tpr, fpr = (abs(found["rate"][APART][rate]) for rate in ("ppv", "tpr", "fpr"))
    return ppv < min(tpr, fpr) / 2 and found["low"][APART]["fpr"] > 0.15


@section.claim(
    "No score is calibrated in both groups and in the mean equal for those of either label",
    paper="Kleinberg et al. 2016, arXiv:1609.05807, theorem 1.1: but for equal base rates, or a score without errors",
    measured=lambda found: "of a score calibrated by construction: " + "; ".join(
        f"{name}: mean of label 1 {exactly(found['mean of yes'][name]['balance']):.3f}, "
        f"of label 0 {exactly(found['mean of no'][name]['balance']):.3f}"
        for name in people()[-1][:2]),
)  # fmt: skip
def no_score(found):
    """In each group p (1 - mean of label 1) = (1 - p) (mean of label 0), to 1e-12: where base rates p differ, a mean must. Here
    both do, by 0.01."""
    names = people()[-1][:2]
    means = [[found[f"mean of {label}"][name]["balance"] for name in names] for label in ("yes", "no")]
    return max(found["error"][name]["balance"] for name in names) < 1e-12 and min(abs(a - b) for a, b in means) > 0.01


@section.claim(
    "Cuts for each group equalise one rate, and move the difference to others",
    paper="Hardt et al. 2016, arXiv:1610.02413: the one that is asked for is equal, by construction where they are found",
    measured=lambda found: "; ".join(
        f"{way}: " + ", ".join(f"{rate} apart {exactly(apart(found, way, rate)):+.3f}" for rate in ("tpr", "fpr", "ppv"))
        + f", accuracy {exactly(found['accuracy'][way]['all']):.3f}"
        for way in (ONE, SAME_TPR, SAME_FPR)),
)  # fmt: skip
def moved(found):
    """What was asked for is equal to 1e-9, and the precisions lie further apart than with one cut."""
    equal = abs(apart(found, SAME_TPR, "tpr")) < 1e-9 and abs(apart(found, SAME_FPR, "fpr")) < 1e-9
    return equal and all(abs(apart(found, way, "ppv")) > abs(apart(found, ONE, "ppv")) for way in (SAME_TPR, SAME_FPR))


@section.report
def report(found):
    *_, groups, names = people()
    rows = []
    for g, name in enumerate([*names, APART]):
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*(one(found, name, rate, end) for end in ("rate", "low", "high"))) for rate in RATES]
        rows.append([name, int((groups == g).sum()) if name != APART else None, *cells])
    section.table("risk", ["group", "people", *(rate.replace("_", " ") for rate in RATES)], rows)
    rows = []
    for way in (ONE, SAME_TPR, SAME_FPR, NOBODY):
        pairs = [[exactly(found[rate][way][name]) for name in names[:2]] for rate in RATES[1:]]
        each = [" and ".join("–" if np.isnan(cell) else f"{cell:.3f}" for cell in pair) for pair in pairs]
        rows.append([way, f"{exactly(found['accuracy'][way]['all']):.3f}", *each])
    section.table("risk_cuts", [f"{names[0]} and {names[1]}", "accuracy of all", *RATES[1:]], rows)
    for key, name in (("first", names[0]), ("second", names[1])):
        section.values(f"risk.{key}", {rate: one(found, name, rate) for rate in RATES})
    for key, way in (("one", ONE), ("same_tpr", SAME_TPR), ("same_fpr", SAME_FPR)):
        section.value(f"risk.{key}.accuracy", exactly(found["accuracy"][way]["all"]))
        section.values(f"risk.{key}", {rate: exactly(apart(found, way, rate)) for rate in ("tpr", "fpr", "ppv")})
    section.values("risk", {"people": len(groups), "needed": one(found, names[0], "needed")})


@section.figure("risk", size=(8, 3.2), ncols=2)
def picture(axes, found):
    for i, name in enumerate(people()[-1][:2]):
        ends = ("share", "share low", "share high")
        share, low, high = ([exactly(found[what][name][score]) for score in range(1, 11)] for what in ends)
        axes[0].plot(range(1, 11), share, "o-", label=name)
        axes[0].fill_between(range(1, 11), low, high, alpha=0.15, color=f"C{i}", linewidth=0)
        for rate, style in (("tpr at", "-"), ("fpr at", "--")):
            rates = [exactly(found[rate][name][int(cut)]) for cut in SCORES]
            axes[1].plot(SCORES, rates, style, color=f"C{i}", label=f"{rate[:3]}, {name}")
    axes[0].set(xlabel="score", ylabel="charged within two years", ylim=(0, 1))
    axes[1].set(xlabel="called likely from this score on", ylabel="rate", ylim=(0, 1))
    for ax in axes:
        ax.legend(fontsize=7)


if __name__ == "__main__":
    section.main()
