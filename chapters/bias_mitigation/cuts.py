"""Where does a difference between groups go when each has a cut of its own?

Hardt et al. 2016, arXiv:1610.02413: thresholds for each group make one rate equal, and the others are what they then are. Data: the
scores of COMPAS (Angwin et al. 2016) in ProPublica's own file, its usual filter, a charge within two years, for the two largest groups, as
they are named there. The cuts are found on the same people, by counting.
"""

# %%
from functools import cache

import numpy as np

from minitransformers.bias_mitigation.equal_thresholds import equal_opportunity_thresholds, selection_chances
from minitransformers.bias_mitigation.group_metrics import group_rates
from minitransformers.reporting import Section
from minitransformers.reporting.bias_mitigation.decisions import load_compas, numbered
from minitransformers.reporting.needs import needs_data

section = Section(__file__, __doc__, kind="exact", needs=needs_data(("fairness", "compas")))
CUT, RATES = 5, ("selection", "accuracy", "tpr", "fpr", "ppv")
ONE, SAME_TPR, SAME_FPR, NOBODY = "one cut at 5", "cuts of equal tpr", "cuts of equal fpr", "nobody called likely"


@cache
def people():
    """Scores, labels and groups by number of the two largest groups, which the dispute is about, and their names."""
    return numbered(load_compas(), most=2)


# %% Who is called likely, and what is counted
def selections(scores, labels, groups):
    """Chances of being called likely. Cuts of equal fpr are those of equal tpr for who is called unlikely. Found on the same people."""
    scores = scores.astype(np.float64)
    same_tpr = equal_opportunity_thresholds(scores, labels=labels, groups=groups).thresholds
    same_fpr = equal_opportunity_thresholds(-scores, labels=1 - labels, groups=groups).thresholds
    return {
        ONE: (scores >= CUT).astype(np.float64), SAME_TPR: selection_chances(scores, thresholds=same_tpr, groups=groups),
        SAME_FPR: 1 - selection_chances(-scores, thresholds=same_fpr, groups=groups), NOBODY: np.zeros(len(scores)),
    }  # fmt: skip


def expected_rates(chances, labels, groups):
    """The rates that decisions drawn with these chances have in the mean: everybody counts as a yes and as a no, by the chance of each."""
    said = np.repeat([1, 0], len(labels))
    return group_rates(said, labels=np.tile(labels, 2), groups=np.tile(groups, 2), weights=np.concatenate([chances, 1 - chances]))


@section.experiment
def experiment(rng):
    data, names = people()
    for way, chances in selections(*data).items():
        rates = expected_rates(chances, *data[1:])
        yield way, "all", {"accuracy": np.average(rates.accuracy, weights=np.bincount(data.groups))}
        for g, name in enumerate(names):
            yield way, name, {rate: getattr(rates, rate)[g] for rate in RATES}


# %%
def exactly(number):
    return float(np.ravel(number)[0])


def apart(found, way, rate):
    one, other = (found[rate][way][name] for name in people()[1])
    return np.round(one - other, 12) + 0.0                   # no -0


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
    names = people()[1]
    rows = []
    for way in (ONE, SAME_TPR, SAME_FPR, NOBODY):
        pairs = [[exactly(found[rate][way][name]) for name in names] for rate in RATES]
        each = [" and ".join("–" if np.isnan(cell) else f"{cell:.3f}" for cell in pair) for pair in pairs]
        rows.append([way, f"{exactly(found['accuracy'][way]['all']):.3f}", *each])
    section.table("cuts", [f"{names[0]} and {names[1]}", "accuracy of all", *RATES], rows)
    for key, way in (("one", ONE), ("same_tpr", SAME_TPR), ("same_fpr", SAME_FPR)):
        section.value(f"cuts.{key}.accuracy", exactly(found["accuracy"][way]["all"]))
        section.values(f"cuts.{key}", {rate: exactly(apart(found, way, rate)) for rate in ("tpr", "fpr", "ppv")})


if __name__ == "__main__":
    section.main()
