"""What can be put on a model and taken off again so that it hides one attribute, or two, and what does it cost?

Lauscher, Lüken and Glavaš 2021 (ADELE), arXiv:2109.03646: adapters that learn from text with the groups exchanged. Hauzenberger
et al. 2023 (ModDiffy), arXiv:2205.15171: differences of weights behind gates, one module an attribute. Gira et al. 2022,
Debiasing pre-trained language models via efficient fine-tuning: a few vectors of the model alone. One small language
model knows occupations that go more or less often with either of the two words of attributes A and B. A module learns for one of
them, from two thirds of the occupations, and modules are put on together which have never met. A gap is the mean distance of the
two words' log-probabilities; beside it stand nats a filler. Sharing the mass of the two words evenly at decoding trains nothing.
"""

# %%
import numpy as np

from minitransformers.bias_mitigation.balance_pairs import balance_pairs
from minitransformers.foundation import trees
from minitransformers.reporting import Section, mean_and_spread, tried
from minitransformers.reporting.bias_mitigation import attribute_modules
from minitransformers.reporting.bias_mitigation import two_attributes as of
from minitransformers.reporting.bias_mitigation.attribute_modules import (
    ADAPTERS,
    ALL,
    BASE,
    BOTH,
    MASKS,
    OFF,
    VECTORS,
    WAYS,
    A,
    B,
    told,
)
from minitransformers.reporting.bias_mitigation.word_quality import span

section = Section(__file__, __doc__, kind="trained")


# %% What is trained: the model, and a module in each way
def updates(name):
    return (10 if name == BASE else 5) if section.quick else (800 if name == BASE else 300)


def known(seed):
    """A language and the model that knows it."""
    return of.known(seed, rate=section.rates.get(BASE, 0.01), steps=updates(BASE))


@section.tuning
def tuning(rng):
    def lost(name, rng, rate):
        seed = int(rng.integers(2**32))
        if name == BASE:
            language = of.language(rng)
            return of.distance(of.trained_base(language, rng, rate=rate, steps=updates(BASE)), language)
        language, base = known(seed)
        wanted = of.balanced(language, of.A)
        module = attribute_modules.learned(name, base, wanted, rng, rate=rate, steps=updates(name))
        return of.distance(attribute_modules.on(name, base, {A: module}, [A]), wanted)

    rates = {BASE: (3e-3, 1e-2, 3e-2, 0.1), ADAPTERS: (1e-3, 3e-3, 1e-2, 3e-2), MASKS: (3e-4, 1e-3, 3e-3, 1e-2), ALL: (3e-4, 1e-3, 3e-3, 1e-2),
             VECTORS: (1e-2, 3e-2, 0.1, 0.3)}  # fmt: skip
    yield from tried(lost, rates, {name: few[1:3] for name, few in rates.items()} if section.quick else rates, rng)


@section.experiment
def experiment(rng):
    language, base = known(int(rng.integers(2**32)))
    log_p, resamples = of.log_probabilities(base), 100 if section.quick else 500
    shared = balance_pairs(log_p, sets=[[0, 1], [2, 3]])
    yield BASE, BASE, of.with_intervals(log_p, language, rng, resamples=resamples) | {"size": 0, "numbers": trees.count_parameters(base)}
    yield BASE, BASE, {"entropy": of.entropy(language)}
    yield attribute_modules.SHARED, BOTH, of.with_intervals(shared, language, rng, resamples=resamples) | {"size": 0}
    for way in WAYS:
        modules = {
            name: attribute_modules.learned(way, base, of.balanced(language, attribute), rng, rate=section.rates[way], steps=updates(way))
            for name, attribute in ((A, of.A), (B, of.B))
        }
        for which, numbers in attribute_modules.measured(way, base, modules, language, rng, resamples=resamples):
            yield way, which, numbers


# %%
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
    measured=lambda found: "; ".join(f"{measure}: {told(found, measure, (BOTH,))}" for measure in of.MEASURES),
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
    measured=lambda found: f"of {len(WAYS)} ways {sum(int(found['restored'][way][OFF][0]) for way in WAYS)}",
)
def restored(found):
    """After all training, and with all modules off, every array has the same bytes as before."""
    return all(found["restored"][way][OFF] == 1 for way in WAYS)


@section.report
def report(found):
    section.table("modules", attribute_modules.COLUMNS, attribute_modules.rows(found))
    base = attribute_modules.numbers_of(found, BASE, BASE)
    names = {"a": "gap A", "b": "gap B", "nats": "nats", "unseen": "gap A unseen"}
    section.values("modules.base", {key: base[measure].mean() for key, measure in (names | {"entropy": "entropy"}).items()} | {"numbers": int(base["numbers"].mean())})
    for way, key in WAYS.items():
        for name, which in (("a", A), ("b", B), ("both", BOTH)):
            one = attribute_modules.numbers_of(found, way, which)
            section.values(f"modules.{key}.{name}", {key: one[measure].mean() for key, measure in names.items()})
            section.values(f"modules.{key}.{name}", {"size": int(one["size"].mean()), "interval": span(one, "gap A")})
    section.values("modules.masks", {"open": found["open"][MASKS][BOTH].mean(), "shared": found["in both"][MASKS][BOTH].mean()})
    section.values("modules", {"occupations": of.OCCUPATIONS, "seen": of.SEEN, "steps": 300})


@section.figure("modules", size=(5, 3.6))
def picture(ax, found):
    def at(way, which):
        return [float(np.mean(found[gap][way][which])) for gap in ("gap A", "gap B")]

    for i, way in enumerate(WAYS):
        for which, mark in ((A, "o"), (B, "s"), (BOTH, "^")):
            ax.plot(*at(way, which), mark, color=f"C{i}", label=way if which == A else None)
    ax.plot(*at(BASE, BASE), "*", color="#808080", markersize=10, label=BASE)
    ax.set(xlabel="gap A, nats (circles: A on, squares: B, triangles: both)", ylabel="gap B, nats", xlim=(0, None), ylim=(0, None))
    ax.legend(fontsize=7)


if __name__ == "__main__":
    section.main()
