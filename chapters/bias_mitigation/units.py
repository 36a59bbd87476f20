"""Do the units that carry a gap tell which to close, and what does closing them cost?

Sundararajan et al. 2017, arXiv:1703.01365: integrated gradients, a share of the gap for each unit, which sum to it. The model is that of
modules: it knows occupations that go more or less often with either of the two words of attributes A and B. Units of its first layer are
closed, those that the attributions to the gap of A point at, those that are most active where A is asked for, or some by lot. Nothing is
trained afterwards. A gap is the mean distance of the two words' log-probabilities; beside it stand nats a filler.
"""

# %%
import numpy as np

from minitransformers.bias_mitigation.parameter_filtering import filter_units, integrated_gradients
from minitransformers.reporting import Section, lines, listed, mean_and_spread, tried
from minitransformers.reporting.bias_mitigation import two_attributes as of

section = Section(__file__, __doc__, kind="trained")
BASE = "no module"                                           # as in modules: nothing is closed
SIGNED, ACTIVE, LOT, COUNTS = "integrated gradients", "mean activity", "lot (mean of 8)", (4, 8, 16)


# %% The model
def updates():
    return 10 if section.quick else 800


@section.tuning
def tuning(rng):
    def lost(name, rng, rate):
        rng.integers(2**32)                                  # the start of modules, so that both have one record
        language = of.language(rng)
        return of.distance(of.trained_base(language, rng, rate=rate, steps=updates()), language)

    yield from tried(lost, [BASE], (1e-2, 3e-2) if section.quick else (3e-3, 1e-2, 3e-2, 0.1), rng)


# %% What is left when units are closed, chosen in three ways
@section.experiment
def experiment(rng):
    language, base = of.known(int(rng.integers(2**32)), rate=section.rates[BASE], steps=updates())

    def measured(params):
        return dict(zip(of.MEASURES, of.by_occupation(of.log_probabilities(params), language)[: of.SEEN].mean(axis=0), strict=True))

    yield BASE, 0, measured(base)
    ids = np.stack([np.arange(of.SEEN), np.full(of.SEEN, of.OCCUPATIONS + of.A)], axis=1)
    hidden, _ = of.first_layer(base, ids)
    found = integrated_gradients(hidden, gap=of.gap_behind(base), steps=100)
    yield SIGNED, "all", {"missing": np.abs(found.missing).max()}
    for count in COUNTS:
        lots = [filter_units(rng.random((1, of.HIDDEN), np.float32), count=count) for _ in range(2 if section.quick else 8)]
        for way, gates in ((SIGNED, [filter_units(found.values, count=count)]), (ACTIVE, [filter_units(hidden, count=count)]), (LOT, lots)):
            each = [measured(of.with_gates(base, one)) for one in gates]
            yield way, count, {measure: np.mean([one[measure] for one in each]) for measure in of.MEASURES}


# %%
@section.claim(
    "Closing the units that carry a gap lowers it more than closing units by lot",
    paper="Sundararajan et al. 2017, arXiv:1703.01365: attributions that sum to the gap",
    measured=lambda found: "; ".join(
        f"{count} of {of.HIDDEN}: " + ", ".join(
            f"{way} {mean_and_spread(found['gap A'][way][count])} at {mean_and_spread(found['nats'][way][count], '.3f')} nats" for way in (SIGNED, ACTIVE, LOT))
        for count in COUNTS
    ),
)
def units(found):
    """With 8 units closed the gap is at most 0.8 of the model's, and at most 0.85 of that by lot."""
    closed = found["gap A"][SIGNED][8]
    return closed <= 0.8 * found["gap A"][BASE][0] and closed <= 0.85 * found["gap A"][LOT][8]


@section.claim(
    "Do attributions choose better than mean activity does?",
    paper="Sundararajan et al. 2017, arXiv:1703.01365: a unit may be active and not count",
    measured=lambda found: f"gap A: {listed(found['gap A'], (SIGNED, ACTIVE), list(COUNTS))}, with {', '.join(map(str, COUNTS))} closed",
)
def better_than_activity(found):
    """With 4, 8 and 16 units closed their gap is at most 0.85 of that of the units that are most active where A is asked for."""
    return all(found["gap A"][SIGNED][count] <= 0.85 * found["gap A"][ACTIVE][count] for count in COUNTS)


@section.report
def report(found):
    forms = dict(zip(of.MEASURES, (".2f", ".2f", ".3f"), strict=True))
    asked = [(BASE, 0), *((way, count) for count in COUNTS for way in (SIGNED, ACTIVE, LOT))]
    rows = [[way, count, *(mean_and_spread(found[measure][way][count], form) for measure, form in forms.items())] for way, count in asked]
    section.table("units", ["units chosen by", f"closed of {of.HIDDEN}", "gap A", "gap B", "nats a filler"], rows)
    for way, key in ((SIGNED, "signed"), (ACTIVE, "active"), (LOT, "lot")):
        for count in COUNTS:
            section.values(f"units.{key}.k{count}", {"gap": found["gap A"][way][count].mean(), "nats": found["nats"][way][count].mean()})
    section.value("units.missing", found["missing"][SIGNED]["all"].max())


@section.figure("units", size=(5, 3.2))
def picture(ax, found):
    curves = {way: {float(np.mean(found["nats"][way][count])): found["gap A"][way][count] for count in COUNTS} for way in (SIGNED, ACTIVE, LOT)}
    lines(ax, curves, xlabel="nats a filler, with 4, 8 and 16 units closed", ylabel="gap A, nats", ylim=(0, None))
    ax.plot(np.mean(found["nats"][BASE][0]), np.mean(found["gap A"][BASE][0]), "*", color="#808080", markersize=10, label="none closed")
    ax.legend()


if __name__ == "__main__":
    section.main()
