"""What can be put on a model and taken off again so that it hides one attribute, or two, and what does it cost?

Lauscher, Lüken and Glavaš 2021 (ADELE), arXiv:2109.03646: adapters that learn from text with the groups exchanged. Hauzenberger
et al. 2023 (ModDiffy), arXiv:2205.15171: differences of weights behind gates, one module an attribute. Gira et al. 2022,
Debiasing pre-trained language models via efficient fine-tuning: a few vectors of the model alone. Sundararajan et al. 2017,
arXiv:1703.01365: integrated gradients, here of the units that carry a gap. One small language model knows occupations that go
more or less often with either of the two words of attributes A and B. A module learns for one of them, from two thirds of the
occupations, and modules are put on together which have never met. A gap is the mean distance of the two words' log-probabilities;
beside it stand nats a filler. Sharing the mass of the two words evenly at decoding trains nothing.
"""

# %%
from functools import cache

import numpy as np

from minitransformers.bias_mitigation.balance_pairs import balance_pairs
from minitransformers.bias_mitigation.debiasing_adapter import StackedAdapters
from minitransformers.bias_mitigation.modular_debiasing import difference_module, module_size, with_modules
from minitransformers.bias_mitigation.parameter_filtering import filter_units, integrated_gradients
from minitransformers.foundation import trees
from minitransformers.reporting import Section, listed, mean_and_spread, tried
from minitransformers.reporting import two_attributes as of
from minitransformers.reporting.word_quality import interval, span

section = Section(__file__, __doc__, kind="trained")
BASE, ADAPTERS, MASKS = "no module", "adapters of width 4", "differences behind gates"
ALL, VECTORS = "differences of all weights", "differences of biases and norms"
WAYS, SHARED = {ADAPTERS: "adapters", MASKS: "masks", ALL: "all", VECTORS: "vectors"}, "shared evenly at decoding"
A, B, BOTH = "A", "B", "A and B"
SIGNED, ACTIVE, LOT, COUNTS = "integrated gradients", "mean activity", "lot (mean of 8)", (4, 8, 16)
MEASURES = ("gap A", "gap B", "nats")


# %% What is trained: the model, and a module for each attribute
@cache
def known(seed):
    """A language and the model that knows it."""
    rng = np.random.default_rng(seed)
    language = of.language(rng)
    return language, of.trained_base(language, rng, rate=section.rates.get(BASE, 0.01), steps=10 if section.quick else 800)


def module(way, base, wanted, rng, rate):
    settings = {"peak": rate, "steps": 5 if section.quick else 300}
    if way == ADAPTERS:
        return of.adapter(base, wanted, rng, **settings)
    if way == MASKS:
        return difference_module(of.masked(base, wanted, rng, **settings))
    return of.weights(base, wanted, rng, vectors=way == VECTORS, **settings)


def on(way, base, modules, names):
    """The model with the modules of these names."""
    if way == ADAPTERS:
        return of.with_adapters(base, StackedAdapters(*(modules[name] if name in names else None for name in (A, B)))) if names else base
    return with_modules(base, modules=modules, on=names)


@section.tuning
def tuning(rng):
    def lost(name, rng, rate):
        seed = int(rng.integers(2**32))
        if name == BASE:
            language = of.language(rng)
            return of.distance(of.trained_base(language, rng, rate=rate, steps=10 if section.quick else 800), language)
        language, base = known(seed)
        wanted = of.balanced(language, of.A)
        return of.distance(on(name, base, {A: module(name, base, wanted, rng, rate)}, [A]), wanted)

    rates = {BASE: (3e-3, 1e-2, 3e-2, 0.1), ADAPTERS: (1e-3, 3e-3, 1e-2, 3e-2), MASKS: (3e-4, 1e-3, 3e-3, 1e-2), ALL: (3e-4, 1e-3, 3e-3, 1e-2),
             VECTORS: (1e-2, 3e-2, 0.1, 0.3)}  # fmt: skip
    yield from tried(lost, rates, {name: few[1:3] for name, few in rates.items()} if section.quick else rates, rng)


# %% What is measured
def measured(log_p, language, rng):
    """Gaps and nats, each with the interval of occupations drawn anew; and the gaps of those that no module has seen."""
    rows = of.by_occupation(log_p, language)
    seen = interval(rows[: of.SEEN], lambda drawn: drawn.mean(axis=0), rng, resamples=100 if section.quick else 500)
    ends = (("", seen.estimate), (" low", seen.low), (" high", seen.high))
    found = {name + end: values[i] for i, name in enumerate(MEASURES) for end, values in ends}
    return found | {f"{name} unseen": rows[of.SEEN :, i].mean() for i, name in enumerate(MEASURES)}


def closed(base, language, rng):
    """What is left of a gap when units of the first layer are closed, chosen in three ways."""
    ids = np.stack([np.arange(of.SEEN), np.full(of.SEEN, of.OCCUPATIONS + of.A)], axis=1)
    hidden, _ = of.first_layer(base, ids)
    found = integrated_gradients(hidden, gap=of.gap_behind(base), steps=100)
    yield SIGNED, "all", {"missing": np.abs(found.missing).max()}
    for count in COUNTS:
        lots = [filter_units(rng.random((1, of.HIDDEN), np.float32), count=count) for _ in range(2 if section.quick else 8)]
        for way, gates in ((SIGNED, [filter_units(found.values, count=count)]), (ACTIVE, [filter_units(hidden, count=count)]), (LOT, lots)):
            rows = [of.by_occupation(of.log_probabilities(of.with_gates(base, each)), language)[: of.SEEN].mean(axis=0) for each in gates]
            yield way, count, dict(zip(MEASURES, np.mean(rows, axis=0), strict=True))


@section.experiment
def experiment(rng):
    language, base = known(int(rng.integers(2**32)))
    before = [leaf.tobytes() for _, leaf in trees.leaves(base)]
    log_p = of.log_probabilities(base)
    shared = balance_pairs(log_p, sets=[[0, 1], [2, 3]])
    entropy = -np.sum(language[: of.SEEN, of.TEXT] * np.log(np.maximum(language[: of.SEEN, of.TEXT], 1e-300)), axis=-1).mean()
    yield BASE, BASE, measured(log_p, language, rng) | {"size": 0, "entropy": entropy, "numbers": trees.count_parameters(base)}
    yield SHARED, BOTH, measured(shared, language, rng) | {"size": 0}
    for way in WAYS:
        modules = {name: module(way, base, of.balanced(language, number), rng, section.rates[way]) for number, name in enumerate((A, B))}
        sizes = {name: module_size(one) for name, one in modules.items()}
        for names in ([A], [B], [A, B]):
            found = measured(of.log_probabilities(on(way, base, modules, names)), language, rng)
            yield way, " and ".join(names), found | {"size": sum(sizes[name] for name in names)}
        off = on(way, base, modules, [])
        yield way, BASE, {"restored": [leaf.tobytes() for _, leaf in trees.leaves(off)] == before}
        if way == MASKS:
            pairs = list(zip(*(trees.leaves(one) for one in modules.values()), strict=True))
            every, both = sum(one.size for (_, one), _ in pairs), sum(np.count_nonzero((one != 0) & (other != 0)) for (_, one), (_, other) in pairs)
            yield MASKS, "all", {"in both": both / every, "open": sum(sizes.values()) / 2 / every}
    yield from closed(base, language, rng)


# %%
def told(found, measure, ons=(A, B, BOTH)):
    said = [f"{way} " + ", ".join(mean_and_spread(found[measure][way][which]) for which in ons) for way in WAYS]
    return f"{BASE} {mean_and_spread(found[measure][BASE][BASE])}; with {', '.join(ons)}: " + "; ".join(said)


def left(found, way, which, measure):
    return found[measure][way][which] / found[measure][BASE][BASE]


@section.claim(
    "Each module lowers the gap of its own attribute and leaves the other alone",
    paper="Hauzenberger et al. 2023, arXiv:2205.15171, section 5: one attribute a module",
    measured=lambda found: "gap A: " + told(found, "gap A", (A, B)) + ". Gap B: " + told(found, "gap B", (A, B)),
)
def own_alone(found):
    """Of adapters and of differences behind gates: the own gap is at most 0.35 of the model's, the other within 15 %, nats at most 0.02 more."""
    small = all(left(found, way, own, f"gap {own}") <= 0.35 for way in (ADAPTERS, MASKS) for own in (A, B))
    kept = all(abs(left(found, way, own, f"gap {other}") - 1) <= 0.15 for way in (ADAPTERS, MASKS) for own, other in ((A, B), (B, A)))
    return small and kept and all(found["nats"][way][own] <= found["nats"][BASE][BASE] + 0.02 for way in (ADAPTERS, MASKS) for own in (A, B))


@section.claim(
    "Two modules that were trained apart work together",
    paper="Hauzenberger et al. 2023, arXiv:2205.15171, section 5: modules are added",
    measured=lambda found: "; ".join(f"{measure}: {told(found, measure, (BOTH,))}" for measure in MEASURES),
)
def together(found):
    """With both on, of adapters and of differences behind gates: both gaps at most 0.35 of the model's, and nats at most 0.02 more."""
    small = all(left(found, way, BOTH, measure) <= 0.35 for way in (ADAPTERS, MASKS) for measure in ("gap A", "gap B"))
    return small and all(found["nats"][way][BOTH] <= found["nats"][BASE][BASE] + 0.02 for way in (ADAPTERS, MASKS))


@section.claim(
    "Is a module as good as all weights?",
    paper="Lauscher et al. 2021, arXiv:2109.03646, section 4: adapters are on par with fine-tuning, and keep what the model knows",
    measured=lambda found: "gap A with A: " + ", ".join(f"{way} {mean_and_spread(found['gap A'][way][A], '.3f')}" for way in WAYS),
)
def as_good(found):
    """The gap of A with adapters on is at most 0.05 nats above that with differences of all weights."""
    return found["gap A"][ADAPTERS][A] <= found["gap A"][ALL][A] + 0.05


@section.claim(
    "Does a module lower the gap of occupations that it has never seen?",
    paper="no paper: a list of occupations is never whole",
    measured=lambda found: "gap A of unseen occupations: " + told(found, "gap A unseen", (A,)),
)
def unseen(found):
    """With A on, every way leaves at most half of the gap of the occupations that modules did not see."""
    return all(left(found, way, A, "gap A unseen") <= 0.5 for way in WAYS)


@section.claim(
    "Taken off, modules leave the model as it was, bit for bit",
    paper="Pfeiffer et al. 2020, arXiv:2005.00052: the model's own weights are never written to",
    kind="exact",
    measured=lambda found: f"of {len(WAYS)} ways {sum(int(found['restored'][way][BASE][0]) for way in WAYS)}",
)
def restored(found):
    """After all training, and with all modules off, every array has the same bytes as before."""
    return all(found["restored"][way][BASE] == 1 for way in WAYS)


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
    return closed <= 0.8 * found["gap A"][BASE][BASE] and closed <= 0.85 * found["gap A"][LOT][8]


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
    def of_way(way, which):
        return {measure: curves[way][which] for measure, curves in found.items() if which in curves.get(way, {})}

    rows = []
    for way, which in [(BASE, BASE), (SHARED, BOTH), *((way, which) for way in WAYS for which in (A, B, BOTH))]:
        one = of_way(way, which)
        gaps = [cell for name in ("gap A", "gap B") for cell in (mean_and_spread(one[name]), f"{np.mean(one[name + ' low']):.2f} to {np.mean(one[name + ' high']):.2f}")]
        others = [mean_and_spread(one[f"gap {name} unseen"]) for name in (A, B)]
        rows.append([way, which if way != BASE else "–", *gaps, *others, mean_and_spread(one["nats"], ".3f"), int(np.mean(one["size"]))])
    columns = ["way", "on", "gap A", "95 % of A", "gap B", "95 % of B", "A, unseen", "B, unseen", "nats a filler", "numbers stored"]
    section.table("modules", columns, rows)
    forms = dict(zip(MEASURES, (".2f", ".2f", ".3f"), strict=True))
    rows = [[way, count, *(mean_and_spread(found[measure][way][count], form) for measure, form in forms.items())] for count in COUNTS for way in (SIGNED, ACTIVE, LOT)]
    section.table("units", ["units chosen by", f"closed of {of.HIDDEN}", "gap A", "gap B", "nats a filler"], rows)
    base = of_way(BASE, BASE)
    names = {"a": "gap A", "b": "gap B", "nats": "nats", "unseen": "gap A unseen"}
    section.values("modules.base", {key: base[measure].mean() for key, measure in (names | {"entropy": "entropy"}).items()} | {"numbers": int(base["numbers"].mean())})
    for way, key in WAYS.items():
        for name, which in (("a", A), ("b", B), ("both", BOTH)):
            one = of_way(way, which)
            section.values(f"modules.{key}.{name}", {key: one[measure].mean() for key, measure in names.items()})
            section.values(f"modules.{key}.{name}", {"size": int(one["size"].mean()), "interval": span(one, "gap A")})
    section.values("modules.masks", {"open": found["open"][MASKS]["all"].mean(), "shared": found["in both"][MASKS]["all"].mean()})
    for way, key in ((SIGNED, "signed"), (ACTIVE, "active"), (LOT, "lot")):
        for count in COUNTS:
            section.values(f"units.{key}.k{count}", {"gap": found["gap A"][way][count].mean(), "nats": found["nats"][way][count].mean()})
    section.value("units.missing", found["missing"][SIGNED]["all"].max())
    section.values("modules", {"occupations": of.OCCUPATIONS, "seen": of.SEEN, "steps": 300})


@section.figure("modules", size=(7, 3.4), ncols=2)
def picture(axes, found):
    def at(way, which, first, second):
        return np.mean(found[first][way][which]), np.mean(found[second][way][which])

    for i, way in enumerate(WAYS):
        for which, mark in ((A, "o"), (B, "s"), (BOTH, "^")):
            axes[0].plot(*at(way, which, "gap A", "gap B"), mark, color=f"C{i}", label=way if which == A else None)
    axes[0].plot(*at(BASE, BASE, "gap A", "gap B"), "*", color="#808080", markersize=10, label=BASE)
    axes[0].set(xlabel="gap A, nats (o: A on, squares: B, triangles: both)", ylabel="gap B, nats", xlim=(0, None), ylim=(0, None))
    for way in (SIGNED, ACTIVE, LOT):
        axes[1].plot(*zip(*(at(way, count, "nats", "gap A") for count in COUNTS), strict=True), "o-", label=f"closed by {way}")
    axes[1].plot(*at(BASE, BASE, "nats", "gap A"), "*", color="#808080", markersize=10)
    axes[1].set(xlabel="nats a filler", ylabel="gap A, nats", ylim=(0, None))
    for ax in axes:
        ax.legend(fontsize=6)


if __name__ == "__main__":
    section.main()
