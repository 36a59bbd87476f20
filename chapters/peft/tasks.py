"""Four tasks, one frozen model: an adapter each, one for all, or one network that writes them?

Karimi Mahabadi et al. 2021, arXiv:2106.04489: what tasks have in common can be learned once, by a network that writes the adapters of each from a
row of a table. Four languages share half of their shift and have another of their own, small or as large; 32 texts of each are there to learn
from. All four run through the same frozen reader, whose adapters are exchanged between calls. One adapter that all share is the trivial way.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.foundation import trees
from minitransformers.reporting import Section, mean_and_spread, tried
from minitransformers.reporting import adaptation as at
from minitransformers.reporting.peft.four_tasks import HYPER, SEPARATE, SHARED, TEXTS, WAYS, languages, learn, lost, new_row, reads

section = Section(__file__, __doc__, kind="trained")
OWN = (0.35, 1.0)                                            # how large the shifts are that languages have to themselves


# %%
def steps():
    return 6 if section.quick else 150


@section.tuning
def tuning(rng):
    base = at.load_reader()
    four, fifth = languages(rng, OWN[0])
    yield from tried(lambda name, rng, rate: lost(learn(name, rng, four, base, steps=steps(), peak=rate), name, four, base), WAYS, (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), rng)
    network = learn(HYPER, rng, four, base, steps=steps(), peak=1e-2)
    yield from tried(lambda name, rng, rate: new_row(network, fifth, rng, base, steps=steps(), peak=rate), ["a row alone"], (1e-2, 3e-2, 1e-1, 3e-1), rng)


@section.experiment
def experiment(rng):
    base = at.load_reader()
    for own in OWN:
        four, fifth = languages(rng, own)
        yield "no adapter", own, {"excess": np.mean([at.left(base, at.reader, of, count=128) for of in four])}
        for name in WAYS:
            trained = learn(name, rng, four, base, steps=steps(), peak=section.rates[name])
            yield name, own, {"excess": lost(trained, name, four, base), "numbers": trees.count_parameters(trained)}
            if name == SHARED:
                unchanged = at.left(trained, partial(reads, task=0, name=name, base=base), fifth, count=128)
                yield "a fifth: the shared one as it is", own, {"excess": unchanged}
        yield "a fifth: a row alone", own, {"excess": new_row(trained, fifth, rng, base, steps=steps(), peak=section.rates["a row alone"])}


# %%
@section.report
def report(found):
    rows = [[name, f"{np.mean(found['numbers'].get(name, {}).get(OWN[0], 0)):,.0f}", *(mean_and_spread(of[own], ".3f") for own in OWN)]
            for name, of in found["excess"].items()]  # fmt: skip
    section.table("tasks", ["adapters", "numbers trained", *(f"nats too many, own shifts {own}" for own in OWN)], rows)
    for key, name in (("none", "no adapter"), ("shared", SHARED), ("separate", SEPARATE), ("hyper", HYPER)):
        section.value(f"tasks.{key}", np.mean(found["excess"][name][OWN[0]]))
    section.values("tasks", {"texts": TEXTS})


def told(*names):
    return lambda found: "; ".join(f"{name} {mean_and_spread(found['excess'][name][OWN[0]], '.3f')} and "
                                   f"{mean_and_spread(found['excess'][name][OWN[1]], '.3f')}" for name in names)  # fmt: skip


@section.claim(
    "With 32 texts a task, one adapter for all is better than one each where tasks differ little",
    paper="Karimi Mahabadi et al. 2021, arXiv:2106.04489, abstract: sharing helps, above all with little data", measured=told(SHARED, SEPARATE),
)
def sharing_pays(found):
    """Where their own shifts are small, at most 0.97 of the nats of one each."""
    return found["excess"][SHARED][OWN[0]] <= 0.97 * found["excess"][SEPARATE][OWN[0]]


@section.claim(
    "Does a network that writes the adapters pay?",
    paper="Karimi Mahabadi et al. 2021, arXiv:2106.04489, table 1: better than one each, and than one for all",
    measured=told(HYPER, SHARED, SEPARATE),
)
def writing_pays(found):
    """With small own shifts or with large ones, at most 0.97 of the nats of the better of the two others."""
    return any(found["excess"][HYPER][own] <= 0.97 * min(found["excess"][name][own] for name in (SHARED, SEPARATE)) for own in OWN)


@section.claim(
    "Does a row of eight numbers serve a fifth task that mixes the four?",
    paper="Karimi Mahabadi et al. 2021, arXiv:2106.04489, section 4.3: new tasks with little data",
    measured=told("a fifth: a row alone", "a fifth: the shared one as it is"),
)
def a_row_serves(found):
    """With small own shifts, at most 0.97 of the nats of the adapter that all share, which has learned nothing of it."""
    return found["excess"]["a fifth: a row alone"][OWN[0]] <= 0.97 * found["excess"]["a fifth: the shared one as it is"][OWN[0]]


if __name__ == "__main__":
    section.main()
