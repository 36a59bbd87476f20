"""Can a score of risk be as right and as wrong about each group?

Angwin et al. 2016 (ProPublica) against the makers of COMPAS: one found unequal error rates, the others equal precision, and both
were right. Chouldechova 2016, arXiv:1610.07524, equation 2.6: with unequal base rates they exclude each other, by counting. Data:
ProPublica's own file, its usual filter, a charge within two years; a charge is what was recorded, not what somebody did. Groups are
named as there; intervals are of people drawn within groups.
"""

# %%
from functools import cache

import numpy as np

from minitransformers.bias_mitigation.bootstrap import bootstrap_interval
from minitransformers.bias_mitigation.group_calibration import false_positive_identity
from minitransformers.bias_mitigation.group_metrics import group_rates
from minitransformers.reporting import Section
from minitransformers.reporting.bias_mitigation.decisions import load_compas, numbered
from minitransformers.reporting.needs import needs_data

section = Section(__file__, __doc__, kind="exact", needs=needs_data(("fairness", "compas")))
LEAST, CUT, SCORES = 100, 5, np.arange(2, 11)                # of members; the usual cut is 5
RATES = ("base_rate", "selection", "accuracy", "tpr", "fpr", "ppv")
APART = "first less second"


@cache
def people():
    """Scores, labels and groups by number, and the groups' names, the largest first."""
    return numbered(load_compas(), least=LEAST)


# %% What is counted
def by_cut(scores, labels, groups):
    for cut in SCORES:
        rates = group_rates((scores >= cut).astype(np.int64), labels=labels, groups=groups)
        needed = false_positive_identity(rates.base_rate, rates.ppv, rates.tpr)
        yield "identity", int(cut), {"error": np.abs(needed - rates.fpr).max()}
        for g in range(2):
            yield people()[1][g], int(cut), {"fpr at": rates.fpr[g], "tpr at": rates.tpr[g]}


def with_intervals(scores, labels, groups, rng):
    def statistic(drawn):
        rates = group_rates(drawn[:, 0], labels=drawn[:, 1], groups=drawn[:, 2])
        each = np.stack([getattr(rates, rate) for rate in RATES])
        return np.concatenate([each, each[:, :1] - each[:, 1:2]], axis=1)

    rows = np.stack([scores >= CUT, labels, groups], axis=1).astype(np.int64)
    found = bootstrap_interval(rows, statistic=statistic, rng=rng, resamples=100 if section.quick else 2000, groups=groups)
    for g, name in enumerate([*people()[1], APART]):
        for r, rate in enumerate(RATES):
            yield name, rate, {"rate": found.estimate[r, g], "low": found.low[r, g], "high": found.high[r, g]}
    base, tpr, ppv = (found.estimate[RATES.index(rate)] for rate in ("base_rate", "tpr", "ppv"))
    yield people()[1][0], "needed", {"rate": false_positive_identity(base[:1], ppv[1:2], tpr[1:2])[0]}


@section.experiment
def experiment(rng):
    data, _ = people()
    yield from by_cut(*data)
    yield from with_intervals(*data, rng)


# %%
def one(found, name, rate, end="rate"):
    return float(np.ravel(found[end][name][rate])[0])


def told(found, *rates):
    names = people()[1][:2]
    return ", ".join(f"{rate} {' and '.join(f'{one(found, name, rate):.3f}' for name in names)}" for rate in rates)


def largest_error(found):
    return float(np.max(list(found["error"]["identity"].values())))


@section.claim(
    "Base rate, precision and true positive rate leave the false positive rate no choice",
    paper="Chouldechova 2016, arXiv:1610.07524, equation 2.6",
    measured=lambda found: f"largest error of {len(SCORES)} cuts and {len(people()[1])} groups {largest_error(found):.0e}; "
    f"with the other group's precision and true positive rate {people()[1][0]} would need {one(found, people()[1][0], 'needed'):.3f}",
)
def identity(found):
    """At every cut and in every group what the three give is the false positive rate that was counted, to 1e-12."""
    return largest_error(found) < 1e-12


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


@section.report
def report(found):
    data, names = people()
    rows = []
    for g, name in enumerate([*names, APART]):
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*(one(found, name, rate, end) for end in ("rate", "low", "high"))) for rate in RATES]
        rows.append([name, int((data.groups == g).sum()) if name != APART else None, *cells])
    section.table("risk", ["group", "people", *(rate.replace("_", " ") for rate in RATES)], rows)
    for key, name in (("first", names[0]), ("second", names[1])):
        section.values(f"risk.{key}", {rate: one(found, name, rate) for rate in RATES})
    section.values("risk", {"people": len(data.groups), "needed": one(found, names[0], "needed")})


@section.figure("risk", size=(5, 3.2))
def picture(ax, found):
    for i, name in enumerate(people()[1][:2]):
        for rate, style in (("tpr at", "-"), ("fpr at", "--")):
            rates = [one(found, name, int(cut), rate) for cut in SCORES]
            ax.plot(SCORES, rates, style, color=f"C{i}", label=f"{rate[:3]}, {name}")
    ax.set(xlabel="called likely from this score on", ylabel="rate", ylim=(0, 1))
    ax.legend(fontsize=7)


if __name__ == "__main__":
    section.main()
