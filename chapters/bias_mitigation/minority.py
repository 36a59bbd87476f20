"""Where does a gap between groups come from: the data, or the model?

Gallegos et al. 2023, arXiv:2309.00770, section 2.2, name both as sources; here is a toy of each, of numbers and not of people. The model's: labels
are right and equally many of both kinds, a tenth of the examples is of a group with a rule of its own, and a linear model has room for one. The
data's: both groups have one rule, but a part of the minority's yes was recorded as a no. Against them: groups that weigh alike, the weights of
Kamiran and Calders 2012, doi:10.1007/s10115-011-0463-8, and one hidden layer of 32. 600 updates for each.
"""

# %%
from minitransformers.bias_mitigation.reweighting import reweighting_weights
from minitransformers.reporting import Section, dots, mean_and_spread, tried
from minitransformers.reporting.bias_mitigation.deciding import reader
from minitransformers.reporting.bias_mitigation.two_groups import (
    ASKED,
    NO,
    PEOPLE,
    RULE,
    SHOWN,
    UPDATES,
    Learner,
    World,
    alike,
    decided,
    row,
)

section = Section(__file__, __doc__, kind="trained")
MODEL, DATA = World(minority=0.1, angle=75), World(minority=0.1, lost=0.4)  # lost: how much of the minority's yes is recorded as a no


def independent(people):
    return reweighting_weights(people.labels, groups=people.groups)


LINEAR, BALANCED, WIDE, WIDE_BALANCED = "linear", "linear, groups weigh alike", "hidden layer", "hidden layer, groups weigh alike"
HALF = "linear, half of each group"
TRUE, RECORDED, RECORDED_BALANCED, REWEIGHTED = "true labels", "recorded labels", "recorded, groups weigh alike", "recorded, reweighting"
OF_MODEL = {
    LINEAR: Learner(MODEL), BALANCED: Learner(MODEL, weights=alike), WIDE: Learner(MODEL, reader), WIDE_BALANCED: Learner(MODEL, reader, alike),
    HALF: Learner(MODEL._replace(minority=0.5)),
}  # fmt: skip
OF_DATA = {
    TRUE: Learner(DATA._replace(lost=0.0)), RECORDED: Learner(DATA), RECORDED_BALANCED: Learner(DATA, weights=alike),
    REWEIGHTED: Learner(DATA, weights=independent),
}  # fmt: skip
WAYS = OF_MODEL | OF_DATA


def steps():
    return 20 if section.quick else UPDATES


@section.tuning
def tuning(rng):
    def lost(name, rng, rate):
        return WAYS[name].loss(rng, rate, steps=steps())

    yield from tried(lost, WAYS, (1e-2, 3e-2) if section.quick else (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0), rng)


@section.experiment
def experiment(rng):
    settings = {"steps": steps(), "resamples": 100 if section.quick else 1000}
    for name, numbers in decided(OF_MODEL, MODEL, section.rates, rng, base=LINEAR, **settings):
        yield name, "model", numbers
    for name, numbers in decided(OF_DATA, DATA, section.rates, rng, base=RECORDED, **settings):
        yield name, "data", numbers


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
    columns = ["learned", "majority right", "minority right", *SHOWN]
    section.table("minority_model", columns, [row(found, name, "model") for name in (*OF_MODEL, RULE, NO)])
    rows = [row(found, name, "data", "by the record") for name in (*OF_DATA, RULE, NO)]
    section.table("minority_data", [*columns, "minority, by the record"], rows)
    keys = {"linear": LINEAR, "balanced": BALANCED, "wide": WIDE, "half": HALF}
    keys |= {"true": TRUE, "recorded": RECORDED, "alike": RECORDED_BALANCED, "reweighted": REWEIGHTED}
    for key, name in keys.items():
        stated = ("majority", "minority", "accuracy", "tpr gap")
        section.values(f"minority.{key}", {measure.replace(" ", "_"): of(found, measure, name).mean() for measure in stated})
    for key, name in (("true", TRUE), ("recorded", RECORDED)):
        section.value(f"minority.{key}.by_record", of(found, "by the record", name).mean())
    section.values("minority", {"share": MODEL.minority, "lost": DATA.lost, "asked": ASKED // 2, "people": PEOPLE})


@section.figure("minority", size=(6, 2.8))
def picture(ax, found):
    dots(ax, {name: lag(found, name) for name in OF_MODEL}, at=0, xlabel="accuracy of the majority less that of the minority")


if __name__ == "__main__":
    section.main()
