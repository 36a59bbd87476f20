"""Four tasks, one frozen model: an adapter each, one for all, or one network that writes them?

Karimi Mahabadi et al. 2021, arXiv:2106.04489: what tasks have in common can be learned once, by a network that writes the adapters of each from a
row of a table. Four languages share half of their shift and have another of their own, small or as large; 32 texts of each are there to learn
from. All four run through the same frozen reader, whose adapters are exchanged between calls. One adapter that all share is the trivial way.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.basics.embedding import Embedding
from minitransformers.foundation import trees
from minitransformers.peft.bottleneck_adapter import init_bottleneck_adapter
from minitransformers.peft.hyper_adapters import hyper_adapter, hyper_adapters, init_hyper_adapters
from minitransformers.reporting import Section, mean_and_spread, nats, tried
from minitransformers.reporting import adaptation as at
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled

section = Section(__file__, __doc__, kind="trained")
TASKS, TEXTS, KEPT, EACH, WIDTH, OWN = 4, 32, 16, 8, 4, (0.35, 1.0)
SHARED, SEPARATE, HYPER = "one for all", "one each", "written by a network"


# %% Four languages and their texts
def languages(rng, own):
    """Four that share one shift and have one of their own, and a fifth: the mean of the four."""
    common = at.shifted(at.language(), rng, size=0.5)
    four = [at.shifted(common, rng, size=own) for _ in range(TASKS)]
    return four, at.Language(*(np.mean(tables, axis=0) for tables in zip(*four, strict=True)))


def with_targets(ids):
    targets = ids[:, 1:].copy()
    targets[:, 0] = IGNORED
    return ids[:, :-1], targets


# %% Three ways to have adapters: ``adapters(trained, task)`` and its backward
def fresh(rng):
    return [tuple(init_bottleneck_adapter(rng, at.WIDTH, d_bottleneck=WIDTH, std=0.1, residual_std=0.0) for _ in range(2)) for _ in range(at.LAYERS)]


def of_all(trained, task):
    return trained, lambda found: found


def of_each(trained, task):
    return trained[task], lambda found: [found if i == task else trees.zeros_like(own) for i, own in enumerate(trained)]


def written(trained, task):
    return hyper_adapters(trained, task=task)


def fresh_network(rng):
    return init_hyper_adapters(rng, at.WIDTH, d_bottleneck=WIDTH, num_tasks=TASKS, num_layers=at.LAYERS, d_row=8, d_hidden=16, d_code=8, std=0.1)


WAYS = {
    SHARED: (fresh, of_all, {}),
    SEPARATE: (lambda rng: [fresh(rng) for _ in range(TASKS)], of_each, {}),
    HYPER: (fresh_network, written, {"adapter": hyper_adapter}),
}


def reads(trained, ids, *, task, name, base):
    """The frozen reader with the adapters of a task."""
    _, of, slots = WAYS[name]
    adapters, adapters_backward = of(trained, task)
    logits, backward = at.reader_between(base, adapters, ids, **slots)
    return logits, lambda dlogits: adapters_backward(backward(dlogits))


def reads_all(trained, ids, *, name, base):
    """A batch with as many texts of each task, in their order: four calls of one reader."""
    calls = [reads(trained, part, task=task, name=name, base=base) for task, part in enumerate(np.split(ids, TASKS))]

    def backward(dlogits):
        found = [back(part) for (_, back), part in zip(calls, np.split(dlogits, TASKS), strict=True)]
        return trees.map(lambda *parts: sum(parts), *found)

    return np.concatenate([logits for logits, _ in calls]), backward


# %% Learning from few texts, and stopping in time
def stopped_in_time(params, run, batches, kept, rng, peak):
    """The parameters that were best on texts kept back, looked at six times."""
    best, steps = [np.inf, params], 6 if section.quick else 150

    def watch(step, loss, now):
        if step % (steps // 6) == 0 and (lost := nats(run(now, kept[0])[0], kept[1])) < best[0]:
            best[:] = lost, trees.map(np.copy, now)

    fit(params, Labelled(run, batches), steps=steps, peak=peak, rng=rng, watch=watch)
    return best[1]


def learn(name, rng, four, base, peak):
    known, kept = ([at.written(language, rng, count) for language in four] for count in (TEXTS, KEPT))

    def batches(rng):
        return with_targets(np.concatenate([texts[rng.integers(TEXTS, size=EACH)] for texts in known]))

    run = partial(reads_all, name=name, base=base)
    return stopped_in_time(WAYS[name][0](rng), run, batches, with_targets(np.concatenate(kept)), rng, peak)


def lost(trained, name, four, base):
    return np.mean([at.left(trained, partial(reads, task=task, name=name, base=base), of, count=128) for task, of in enumerate(four)])


def new_row(network, fifth, rng, base, peak):
    """A row for a fifth task, all else frozen: 8 numbers."""
    def run(row, ids):
        made, made_backward = hyper_adapters(network._replace(tasks=Embedding(row)), task=0)
        logits, backward = at.reader_between(base, made, ids, adapter=hyper_adapter)
        return logits, lambda dlogits: made_backward(backward(dlogits)).tasks.weight

    known, kept = at.written(fifth, rng, TEXTS), with_targets(at.written(fifth, rng, KEPT))
    start = network.tasks.weight.mean(axis=0, keepdims=True)
    row = stopped_in_time(start, run, lambda rng: with_targets(known[rng.integers(TEXTS, size=EACH)]), kept, rng, peak)
    return at.left(row, run, fifth, count=128)


@section.tuning
def tuning(rng):
    base = at.load_reader()
    four, fifth = languages(rng, OWN[0])
    yield from tried(lambda name, rng, rate: lost(learn(name, rng, four, base, rate), name, four, base), WAYS, (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), rng)
    network = learn(HYPER, rng, four, base, 1e-2)
    yield from tried(lambda name, rng, rate: new_row(network, fifth, rng, base, rate), ["a row alone"], (1e-2, 3e-2, 1e-1, 3e-1), rng)


@section.experiment
def experiment(rng):
    base = at.load_reader()
    for own in OWN:
        four, fifth = languages(rng, own)
        yield "no adapter", own, {"excess": np.mean([at.left(base, at.reader, of, count=128) for of in four])}
        for name in WAYS:
            trained = learn(name, rng, four, base, section.rates[name])
            yield name, own, {"excess": lost(trained, name, four, base), "numbers": trees.count_parameters(trained)}
            if name == SHARED:
                unchanged = at.left(trained, partial(reads, task=0, name=name, base=base), fifth, count=128)
                yield "a fifth: the shared one as it is", own, {"excess": unchanged}
        yield "a fifth: a row alone", own, {"excess": new_row(trained, fifth, rng, base, section.rates["a row alone"])}


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
