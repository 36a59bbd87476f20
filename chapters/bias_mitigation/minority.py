"""Where does a gap between groups come from: the data, or the model?

Gallegos et al. 2023, arXiv:2309.00770, section 2.2, name both as sources; here is a toy of each, of numbers and not of people. The
model's: labels are right and equally many of both kinds, a tenth of the examples is of a group with a rule of its own, and a linear
model has room for one. The data's: both groups have one rule, but a part of the minority's yes was recorded as a no. Against them:
groups that weigh alike, the weights of Kamiran and Calders 2012, doi:10.1007/s10115-011-0463-8, and one hidden layer of 32. 600
updates for each.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.basics.chain import chain
from minitransformers.basics.linear import init_linear, linear
from minitransformers.bias_mitigation.group_metrics import group_rates
from minitransformers.bias_mitigation.reweighting import reweighting_weights
from minitransformers.bias_mitigation.weighted_cross_entropy import weighted_cross_entropy
from minitransformers.reporting import Section, dots, mean_and_spread, tried
from minitransformers.reporting.deciding import init_reader, reader
from minitransformers.reporting.decisions import Table
from minitransformers.reporting.rated import with_intervals
from minitransformers.training.fit import fit
from minitransformers.training.task import Task

section = Section(__file__, __doc__, kind="trained")
PEOPLE, ASKED, NUMBERS, UPDATES, BATCH = 4000, 10_000, 6, 600, 128  # of ASKED half are of each group
MINORITY, ANGLE, LOST = 0.1, 75, 0.4                         # LOST: how much of the minority's yes is recorded as a no


# %% The two worlds: who there is, the rule, and what was recorded of it
def world(rng, people, *, minority, angle, lost):
    """Numbers about each, the last of which tells the group; the true labels; and the recorded ones."""
    groups = (rng.random(people) < minority).astype(np.int64)
    x = rng.standard_normal((people, NUMBERS))
    turned = np.radians(angle) * groups
    odds = 4 * (np.cos(turned) * x[:, 0] + np.sin(turned) * x[:, 1])
    labels = (rng.random(people) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    recorded = labels * ((groups == 0) | (rng.random(people) >= lost))
    features = np.c_[x, 2 * groups - 1].astype(np.float32)
    return Table(features, labels, groups), Table(features, recorded, groups)


def alike(people):
    return 1 / np.bincount(people.groups)[people.groups]


def independent(people):
    return reweighting_weights(people.labels, groups=people.groups)


def once(people):
    return np.ones(len(people.labels))


MODEL, DATA = {"minority": MINORITY, "angle": ANGLE, "lost": 0.0}, {"minority": MINORITY, "angle": 0, "lost": LOST}
LINEAR, BALANCED, WIDE, WIDE_BALANCED = "linear", "linear, groups weigh alike", "hidden layer", "hidden layer, groups weigh alike"
HALF, NO, RULE = "linear, half of each group", 'always "no"', "the rule itself"
TRUE, RECORDED = "true labels", "recorded labels"
RECORDED_BALANCED, REWEIGHTED = "recorded, groups weigh alike", "recorded, reweighting"
WAYS = {
    LINEAR: (MODEL, linear, once), BALANCED: (MODEL, linear, alike), WIDE: (MODEL, reader, once), WIDE_BALANCED: (MODEL, reader, alike),
    HALF: (MODEL | {"minority": 0.5}, linear, once), TRUE: (DATA | {"lost": 0.0}, linear, once), RECORDED: (DATA, linear, once),
    RECORDED_BALANCED: (DATA, linear, alike), REWEIGHTED: (DATA, linear, independent),
}  # fmt: skip
OF_MODEL, OF_DATA = list(WAYS)[:5], list(WAYS)[5:]


class Deciding(Task):
    """A yes or no, of examples that count by their weights."""

    def __init__(self, model, people, weights):
        self.model, self.people, self.weights = model, people, weights.astype(np.float32)

    def batch(self, rng):
        rows = rng.integers(len(self.weights), size=BATCH)
        return *(part[rows] for part in self.people[:2]), self.weights[rows]

    def loss(self, params, batch, *, rng=None):
        x, labels, weights = batch
        logits, backward = self.model(params, x)
        out, loss_backward = weighted_cross_entropy(logits, targets=labels, weights=weights)
        return (out, 1), lambda dloss: backward(loss_backward(dloss[0]))[0]


def learned(name, rng, rate):
    """What a way has learned in its world, and the world."""
    settings, model, weights = WAYS[name]
    people = world(rng, PEOPLE, **settings)[1]
    params = [init_linear(rng, NUMBERS + 1, 2)] if model is linear else init_reader(rng, NUMBERS + 1)
    run = partial(chain, parts=(linear,)) if model is linear else model
    task = Deciding(run, people, weights(people))
    return partial(run, fit(params, task, steps=20 if section.quick else UPDATES, peak=rate, rng=rng))


@section.tuning
def tuning(rng):
    def lost(name, rng, rate):
        settings, _, weights = WAYS[name]
        people = world(rng, PEOPLE, **settings)[1]           # others, of the same world, with labels as they are recorded there
        logits, _ = learned(name, rng, rate)(people.features)
        return float(weighted_cross_entropy(logits, targets=people.labels, weights=weights(people).astype(np.float32))[0])

    yield from tried(lost, WAYS, (1e-2, 3e-2) if section.quick else (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0), rng)


@section.experiment
def experiment(rng):
    for ways, settings in ((OF_MODEL, MODEL), (OF_DATA, DATA)):
        true, recorded = world(rng, ASKED, **settings | {"minority": 0.5})
        told = {"labels": true.labels, "groups": true.groups}
        said = {name: learned(name, rng, section.rates[name])(true.features)[0].argmax(-1) for name in ways}
        axis = np.radians(settings["angle"]) * true.groups
        said[RULE] = (np.cos(axis) * true.features[:, 0] + np.sin(axis) * true.features[:, 1] > 0).astype(np.int64)
        said[NO] = np.zeros(ASKED, np.int64)
        base = said[LINEAR if ways is OF_MODEL else RECORDED]
        for name, decisions in said.items():
            numbers = with_intervals(decisions, base, rng=rng, resamples=100 if section.quick else 1000, **told)
            each = group_rates(decisions, **told).accuracy
            if ways is OF_DATA:                              # as one sees it who has the records alone
                numbers |= {"by the record": group_rates(decisions, labels=recorded.labels, groups=recorded.groups).accuracy[1]}
            yield name, "model" if ways is OF_MODEL else "data", numbers | {"majority": each[0], "minority": each[1]}


# %%
def of(found, measure, name):
    return found[measure][name]["model" if name in OF_MODEL else "data"]


def lag(found, name):
    return of(found, "majority", name) - of(found, "minority", name)


def told(found, names, *measures):
    def each(name):
        return ", ".join(f"{measure} {mean_and_spread(of(found, measure, name), '.3f')}" for measure in measures)

    return "; ".join(f"{name}: {each(name)}" for name in names)


@section.claim(
    "With right labels and too little room a model serves the minority worse",
    paper="Gallegos et al. 2023, arXiv:2309.00770, section 2.2: the model itself, by what is optimised over all",
    measured=lambda found: told(found, (LINEAR, HALF), "majority", "minority"),
)
def fits_the_majority(found):
    """With a tenth in the minority its accuracy is at least 0.1 below the majority's; with a half, at most 0.03 away."""
    return lag(found, LINEAR) >= 0.1 and abs(lag(found, HALF)) <= 0.03


@section.claim(
    "Groups that weigh alike narrow the gap, and the majority pays",
    paper="no paper's number: the weights move the best that one linear rule can do",
    measured=lambda found: told(found, (LINEAR, BALANCED), "majority", "minority"),
)
def weights_narrow(found):
    """The minority's lag is at most half of what it is without weights, and the majority's accuracy is at least 0.02 lower."""
    return lag(found, BALANCED) <= lag(found, LINEAR) / 2 and of(found, "majority", BALANCED) <= of(found, "majority", LINEAR) - 0.02


@section.claim(
    "Does room for both rules do what weights do, at no cost to the majority?",
    paper="no paper: the group can be read from the features, and a hidden layer can use it",
    measured=lambda found: told(found, (LINEAR, WIDE, WIDE_BALANCED), "majority", "minority"),
)
def room(found):
    """Without weights the lag is at most half of the linear model's, and the majority's accuracy not more than 0.01 lower."""
    return lag(found, WIDE) <= lag(found, LINEAR) / 2 and of(found, "majority", WIDE) >= of(found, "majority", LINEAR) - 0.01


@section.claim(
    "What was recorded wrongly is learned, and by the record it looks right",
    paper="Gallegos et al. 2023, arXiv:2309.00770, section 2.2: labels that stand for what one wanted to know",
    measured=lambda found: told(found, (TRUE, RECORDED), "tpr gap", "minority") + "; minority, by the record: "
    + ", ".join(f"{name} {mean_and_spread(of(found, 'by the record', name), '.3f')}" for name in (TRUE, RECORDED)),
)  # fmt: skip
def record_is_learned(found):
    """By true labels its tpr gap is at least 0.1 and three times that of who learned from true labels; by the record it is the
    one more often right."""
    gaps = [of(found, "tpr gap", name) for name in (TRUE, RECORDED)]
    return gaps[1] >= max(0.1, 3 * gaps[0]) and of(found, "by the record", RECORDED) > of(found, "by the record", TRUE)


@section.claim(
    "Against wrong labels it does not help that groups weigh alike, and it helps that the label does not depend on the group",
    paper="Kamiran and Calders 2012, doi:10.1007/s10115-011-0463-8: the aim where the true label does not depend on the group, as here",
    measured=lambda found: told(found, (RECORDED, RECORDED_BALANCED, REWEIGHTED), "tpr gap", "accuracy"),
)
def which_weights(found):
    """With groups that weigh alike the tpr gap is at least 0.8 of what it is without weights, with reweighting at most half."""
    gap = of(found, "tpr gap", RECORDED)
    return of(found, "tpr gap", RECORDED_BALANCED) >= 0.8 * gap and of(found, "tpr gap", REWEIGHTED) <= 0.5 * gap


@section.report
def report(found):
    def cell(measure, name, x, form=".3f"):
        ends = (np.mean(found[f"{measure} {end}"][name][x]) for end in ("low", "high"))
        return mean_and_spread(found[measure][name][x], form) + " ({:.3f} to {:.3f})".format(*ends)

    shown = ("worst group", "parity gap", "tpr gap", "fpr gap")
    for table, x, ways in (("minority_model", "model", OF_MODEL), ("minority_data", "data", OF_DATA)):
        rows = []
        for name in (*ways, RULE, NO):
            sides = [mean_and_spread(found[side][name][x], ".3f") for side in ("majority", "minority")]
            record = [mean_and_spread(found["by the record"][name][x], ".3f")] if x == "data" else []
            rows.append([name, *sides, *(cell(measure, name, x) for measure in shown), *record])
        last = ["minority, by the record"] if x == "data" else []
        section.table(table, ["learned", "majority right", "minority right", *shown, *last], rows)
    keys = {"linear": LINEAR, "balanced": BALANCED, "wide": WIDE, "half": HALF}
    keys |= {"true": TRUE, "recorded": RECORDED, "alike": RECORDED_BALANCED, "reweighted": REWEIGHTED}
    for key, name in keys.items():
        stated = ("majority", "minority", "accuracy", "tpr gap")
        section.values(f"minority.{key}", {measure.replace(" ", "_"): of(found, measure, name).mean() for measure in stated})
    for key, name in (("true", TRUE), ("recorded", RECORDED)):
        section.value(f"minority.{key}.by_record", of(found, "by the record", name).mean())
    section.values("minority", {"share": MINORITY, "lost": LOST, "asked": ASKED // 2, "people": PEOPLE})


@section.figure("minority", size=(6, 2.8))
def picture(ax, found):
    dots(ax, {name: lag(found, name) for name in OF_MODEL}, at=0, xlabel="accuracy of the majority less that of the minority")


if __name__ == "__main__":
    section.main()
